"""Files of one event as a source: Parquet, Arrow IPC, Avro, CSV and JSON lines.

A file is a partition and a row number is an offset, so a run over files resumes as one over a broker does. Files are
read one after the other in the order given. With `sort`, the rows of a file are put into event-time order first, ties
in file order: its row numbers are those of the sorted file. A Parquet file on this disk that need not be sorted is read
a few row groups at a time, any other wholly. JSON lines are passed on as payloads, so that a bad line costs that line
only; they keep their order.

A row that is added to a sorted file may take the number of one that was read before. So the partition of such a file
names its content, and a file that has changed since is refused:

    clicks/a.parquet@5f3a9c01          sorted: size and both ends are in the name
    clicks/a.jsonl                     in the file's own order: lines may be added at its end
    clicks/2024-05-01/0.0-500.parquet  of an archive: never written again
"""

import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
import polars as pl

from headrace.clock import wall_us
from headrace.errors import OffsetLostError, SourceError
from headrace.pipelines.positions import Positions, refuse_files_of_topic
from headrace.pipelines.source import Batch
from headrace.redaction import shown_url
from headrace.schemas import Event, EventSpec, spec_of
from headrace.schemas.event_files import RowGroups, format_of, is_in_order, is_lines, read_events, read_lines
from headrace.schemas.file_finder import EventFile, Found, find_log

ROWS_MAX = 262_144
"""Rows a batch: the larger, the more events of one entity meet in it, and share the fetch of its record."""


class FileSource:
    """Batches of the files of one event class.

    `paths` are files, globs (`**` included) or folders of an archive, here or by URL (`file_finder`). A partition is
    named "<topic>/<path below the glob's fixed part>", so that it does not change with the working folder. `rows_max`
    bounds a batch. Files without rows are passed over where there are others. `beside_topic`: the files hold other
    events than the topic, so they are read although a reader has read the topic.

    Raises:
        SourceError: from the first call on, when a file is missing, unreadable or changed since it was read, or when
            there is nothing but an empty one; it names the file.
        SchemaError: a column is missing or of another type.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        event: type[Event],
        *,
        sort: bool = True,
        rows_max: int = ROWS_MAX,
        beside_topic: bool = False,
    ) -> None:
        self.beside_topic = beside_topic
        self._paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
        self.event = event
        self._spec = spec_of(event)
        self._sort = sort
        self._rows_max = rows_max
        self._owner = (0, 1)
        self._files: dict[str, EventFile] | None = None
        self._ends: dict[str, int] = {}
        self._listing = threading.Lock()
        self._pending: list[str] | None = None
        self._positions: dict[str, int] = {}
        self._open: tuple[str, _Rows] | None = None

    def share(self, index: int, count: int) -> Self:
        """A fresh source that reads every `count`-th file, from `index` on; all shares know the same files."""
        files = self._listed()
        fresh = type(self)(
            self._paths, self.event, sort=self._sort, rows_max=self._rows_max, beside_topic=self.beside_topic
        )
        fresh._owner, fresh._files, fresh._ends = (index, count), files, self._ends  # noqa: SLF001
        return fresh

    def describe(self) -> str:
        """Event and paths."""
        return f"{self._spec.name} from {', '.join(shown_url(str(path)) for path in self._paths)}"

    @property
    def exhausted(self) -> bool:
        """Whether every file has been read to its end."""
        return self._pending is not None and not self._pending

    def partitions(self) -> list[str]:
        """Every file's partition, in the order they are read.

        Raises:
            SourceError: a path or glob finds nothing, a file is empty, or two files would have one name.
        """
        return list(self._listed())

    def ends(self) -> dict[str, int]:
        """Where the archives among the paths end: next offset of each partition of their topic; {}: plain files.

        Raises:
            SourceError: as `partitions`.
        """
        self._listed()
        return dict(self._ends)

    @property
    def topic(self) -> str:
        """Topic of the event."""
        return self._spec.topic

    def refuse_changed(self, positions: Mapping[str, int]) -> None:
        """Return if none of the files was read before, up to one of `positions`, in another state.

        Raises:
            SourceError: one was; names it.
        """
        known = {_plain(name): name for name in positions}
        for name, file in self._listed().items():
            before = known.get(_plain(name), name)
            if before != name and name not in positions:
                raise SourceError(
                    f"file {file.url} has changed since {positions[before]} of its rows were read: in the order of "
                    "time they have other numbers now, so nobody can say which are new; put new events into a new file "
                    "(JSON lines may grow), or start a fresh store"
                )

    def seek(self, positions: Mapping[str, int]) -> None:
        """Read each file from its row on.

        Raises:
            SourceError: as `partitions`, or a file has changed since.
            ConfigError: a reader of the positions has read the topic itself.
        """
        self.refuse_changed(positions.known if isinstance(positions, Positions) else positions)
        if not self.beside_topic:
            refuse_files_of_topic(self.topic, self.partitions(), positions)
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

    def _listed(self) -> dict[str, EventFile]:
        with self._listing:  # workers ask for their shares at the same time
            if self._files is None:
                found = find_log(self._paths, self._spec.topic)
                self._files, self._ends = _partitions(found, self._spec, is_sorted=self._sort), found.ends
            return self._files

    def _read(self, name: str) -> "_Rows":
        assert self._files is not None
        file = self._files[name]
        rows = self._rows_of(file)
        if not len(rows) and len(self._files) == 1:
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
            return RowGroups(file, self.event, self._rows_max)
        rows = read_events(file, self.event)
        if not self._sort or rows[time].is_sorted():
            return rows
        return rows.sort(time, maintain_order=True)


_Rows: TypeAlias = pl.DataFrame | list[bytes] | RowGroups


def _part(rows: _Rows, begin: int, rows_max: int) -> pl.DataFrame | list[bytes]:
    """Some rows from `begin` on."""
    return rows.take(begin, rows_max) if isinstance(rows, RowGroups) else rows[begin : begin + rows_max]


_CONTENT = "@"
_STATED = re.compile(rf"{_CONTENT}[0-9a-f]{{8}}$")


def _partitions(found: Found, spec: EventSpec, *, is_sorted: bool) -> dict[str, EventFile]:
    files: dict[str, EventFile] = {}
    by_plain: dict[str, EventFile] = {}
    for file in found.files:
        format_of(file)
        if file.size == 0:
            raise SourceError(f"file {file.url} is empty")
        plain = f"{spec.topic}/{file.name}"
        if by_plain.setdefault(plain, file).path != file.path:
            raise SourceError(
                f"files {by_plain[plain].url} and {file.url} would share the partition name {plain!r}; rename one"
            )
        is_stated = is_sorted and not (file.is_archived or is_lines(file))
        files[f"{plain}{_CONTENT}{file.fingerprint()}" if is_stated else plain] = file
    if not (files or found.ends):
        raise SourceError(f"event {spec.name}: no files given, or only empty ones")
    return files


def _plain(partition: str) -> str:
    """A partition's name without its content's."""
    return _STATED.sub("", partition)
