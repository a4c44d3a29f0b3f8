"""Files of one event as a source: Parquet, Arrow IPC, Avro, CSV and JSON lines.

A file is a partition and a row number is an offset, so a run over files resumes as one over a broker does. Files are
read one after the other in the order given. With `sort`, the rows of a file are put into event-time order first, ties
in file order: its row numbers are those of the sorted file. A Parquet file on this disk that need not be sorted is read
a few row groups at a time, any other wholly. JSON lines are passed on as payloads, so that a bad line costs that line
only; they keep their order.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
import polars as pl

from headrace.clock import wall_us
from headrace.errors import OffsetLostError, SourceError
from headrace.pipelines.source import Batch
from headrace.schemas import Event, EventSpec, spec_of
from headrace.schemas.event_files import RowGroups, format_of, is_in_order, is_lines, read_events, read_lines
from headrace.schemas.file_finder import EventFile, find_files

ROWS_MAX = 262_144
"""Rows a batch: the larger, the more events of one entity meet in it, and share the fetch of its record."""


class FileSource:
    """Batches of the files of one event class.

    `paths` are files, globs (`**` included) or folders of an archive, here or by URL (`file_finder`). A partition is
    named "<topic>/<path below the glob's fixed part>", so that it does not change with the working folder. `rows_max`
    bounds a batch.

    Raises:
        SourceError: from the first call on, when a file is missing, empty or unreadable; it names the file.
        SchemaError: a column is missing or of another type.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        event: type[Event],
        *,
        sort: bool = True,
        rows_max: int = ROWS_MAX,
    ) -> None:
        self._paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
        self._event = event
        self._spec = spec_of(event)
        self._sort = sort
        self._rows_max = rows_max
        self._owner = (0, 1)
        self._files: dict[str, EventFile] | None = None
        self._pending: list[str] | None = None
        self._positions: dict[str, int] = {}
        self._open: tuple[str, _Rows] | None = None

    def share(self, index: int, count: int) -> Self:
        """A fresh source that reads every `count`-th file, from `index` on."""
        fresh = type(self)(self._paths, self._event, sort=self._sort, rows_max=self._rows_max)
        fresh._owner = (index, count)  # noqa: SLF001
        return fresh

    @property
    def exhausted(self) -> bool:
        """Whether every file has been read to its end."""
        return self._pending is not None and not self._pending

    def partitions(self) -> list[str]:
        """Every file's partition, in the order they are read.

        Raises:
            SourceError: a path or glob finds nothing, a file is empty, or two files would have one name.
        """
        if self._files is None:
            self._files = _find(self._paths, self._spec)
        return list(self._files)

    def seek(self, positions: Mapping[str, int]) -> None:
        """Read each file from its row on."""
        index, count = self._owner
        self._pending = self.partitions()[index::count]
        self._positions = {name: positions.get(name, 0) for name in self._pending}
        self._open = None

    def poll(self) -> list[Batch]:
        """The next rows of the file at hand.

        Raises:
            SourceError: a file is unreadable or has no rows.
            OffsetLostError: a file has fewer rows than were once read from it.
        """
        if self._pending is None:
            self.seek({})
        if not self._pending:
            return []
        name = self._pending[0]
        if self._open is None or self._open[0] != name:
            self._open = (name, self._read(name))
        rows = self._open[1]
        begin = self._positions[name]
        part = _part(rows, begin, self._rows_max)
        self._positions[name] = begin + len(part)
        is_end = begin + len(part) == len(rows)
        if is_end:
            self._pending.pop(0)
            self._open = None
        return [self._batch(name, part, begin, is_end)]

    def close(self) -> None:
        """Let go of the file at hand."""
        self._open = None

    def _batch(self, name: str, part: pl.DataFrame | list[bytes], begin: int, is_end: bool) -> Batch:
        end = begin + len(part)
        lines = part if isinstance(part, list) else None
        return Batch(
            topic=self._spec.topic,
            partition=name,
            offsets=np.arange(begin, end, dtype=np.int64),
            next_offset=end,
            payloads=lines,
            frame=part if isinstance(part, pl.DataFrame) else None,
            appended_us=None,
            arrival_us=wall_us(),
            codec=None if lines is None else "json",
            ended=is_end,
        )

    def _read(self, name: str) -> "_Rows":
        assert self._files is not None
        file = self._files[name]
        rows = self._rows_of(file)
        if not len(rows):
            raise SourceError(f"file {file.url} has no rows")
        if len(rows) < self._positions[name]:
            raise OffsetLostError(
                f"file {file.url} has {len(rows)} rows, but {self._positions[name]} were read from it before: "
                "give a changed file a new name, or start a fresh store",
            )
        return rows

    def _rows_of(self, file: EventFile) -> "_Rows":
        if is_lines(file):
            return read_lines(file)
        time = self._spec.time
        if file.is_local and file.suffix == ".parquet" and (not self._sort or is_in_order(file, time)):
            return RowGroups(file, self._event, self._rows_max)
        rows = read_events(file, self._event)
        if not self._sort or rows[time].is_sorted():
            return rows
        return rows.sort(time, maintain_order=True)


_Rows: TypeAlias = pl.DataFrame | list[bytes] | RowGroups


def _part(rows: _Rows, begin: int, rows_max: int) -> pl.DataFrame | list[bytes]:
    """Some rows from `begin` on."""
    return rows.take(begin, rows_max) if isinstance(rows, RowGroups) else rows[begin : begin + rows_max]


def _find(paths: Sequence[str | Path], spec: EventSpec) -> dict[str, EventFile]:
    found: dict[str, EventFile] = {}
    for file in find_files(paths, spec.topic):
        name = f"{spec.topic}/{file.name}"
        if found.setdefault(name, file).path != file.path:
            raise SourceError(
                f"files {found[name].url} and {file.url} would share the partition name {name!r}; rename one"
            )
        format_of(file)
        if file.size == 0:
            raise SourceError(f"file {file.url} is empty")
    if not found:
        raise SourceError(f"event {spec.name}: no files given")
    return found
