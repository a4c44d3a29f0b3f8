"""Files of one event as a source: Parquet, Arrow IPC, Avro, CSV and JSON lines.

A file is a partition and a row number is an offset, so a run over files resumes as one over a broker does. Files are
read one after the other in the order given, each wholly in memory. With `sort`, the rows of a file are put into
event-time order first, ties in file order: its row numbers are those of the sorted file. JSON lines are passed on as
payloads, so that a bad line costs that line only; they keep their order.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl

from headrace.clock import wall_us
from headrace.errors import DecodeError, OffsetLostError, SchemaError, SourceError
from headrace.pipelines.source import Batch
from headrace.schemas import Event, EventSpec, conform, spec_of
from headrace.schemas.avro_files import read_avro_file

ROWS_MAX = 262_144
"""Rows a batch: the larger, the more events of one entity meet in it, and share the fetch of its record."""

_MAGIC = frozenset("*?[")


class FileSource:
    """Batches of the files of one event class.

    `paths` are files or globs (`**` included). A partition is named "<topic>/<path below the glob's fixed part>", so
    that it does not change with the working folder. `rows_max` bounds a batch.

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
        self._files: dict[str, Path] | None = None
        self._pending: list[str] | None = None
        self._positions: dict[str, int] = {}
        self._open: tuple[str, pl.DataFrame | list[bytes]] | None = None

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
        """The next rows of the file at hand; the whole file is read when it is opened.

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
        end = min(begin + self._rows_max, len(rows))
        self._positions[name] = end
        if end == len(rows):
            self._pending.pop(0)
            self._open = None
        return [self._batch(name, rows, begin, end)]

    def close(self) -> None:
        """Let go of the file at hand."""
        self._open = None

    def _batch(self, name: str, rows: pl.DataFrame | list[bytes], begin: int, end: int) -> Batch:
        lines = rows[begin:end] if isinstance(rows, list) else None
        return Batch(
            topic=self._spec.topic,
            partition=name,
            offsets=np.arange(begin, end, dtype=np.int64),
            next_offset=end,
            payloads=lines,
            frame=None if isinstance(rows, list) else rows[begin:end],
            appended_us=None,
            arrival_us=wall_us(),
            codec=None if lines is None else "json",
            ended=end == len(rows),
        )

    def _read(self, name: str) -> pl.DataFrame | list[bytes]:
        assert self._files is not None
        path = self._files[name]
        try:
            rows = _READERS[path.suffix.lower()](path, self._spec)
        except (OSError, DecodeError, pl.exceptions.PolarsError) as exc:
            raise SourceError(f"file {path} cannot be read: {exc}") from exc
        if not len(rows):
            raise SourceError(f"file {path} has no rows")
        if len(rows) < self._positions[name]:
            raise OffsetLostError(
                f"file {path} has {len(rows)} rows, but {self._positions[name]} were read from it before: "
                "give a changed file a new name, or start a fresh store",
            )
        if isinstance(rows, list):
            return rows
        try:
            rows = conform(rows, self._spec)
        except SchemaError as exc:
            raise SchemaError(f"file {path}: {exc}") from exc
        if not self._sort or rows[self._spec.time].is_sorted():
            return rows
        return rows.sort(self._spec.time, maintain_order=True)


def _find(paths: Sequence[str | Path], spec: EventSpec) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        for file, relative in _matches(str(path)):
            name = f"{spec.topic}/{relative}"
            if found.setdefault(name, file) != file:
                raise SourceError(f"files {found[name]} and {file} would share the partition name {name!r}; rename one")
            if file.suffix.lower() not in _READERS:
                raise SourceError(f"file {file}: no reader for {file.suffix!r}; use one of {', '.join(_READERS)}")
            if file.stat().st_size == 0:
                raise SourceError(f"file {file} is empty")
    if not found:
        raise SourceError(f"event {spec.name}: no files given")
    return found


def _matches(path: str) -> list[tuple[Path, str]]:
    """Files of a path or glob, each with its path below the part without wildcards."""
    plain = Path(path)
    if plain.is_file():
        return [(plain, plain.name)]
    fixed = Path(*itertools.takewhile(lambda part: not _MAGIC & set(part), plain.parts))
    if fixed == plain:
        raise SourceError(
            f"file {path} does not exist"
            if not plain.exists()
            else f"{path} is a folder; add a pattern, as in {path}/*.parquet"
        )
    files = sorted(file for file in fixed.glob(str(plain.relative_to(fixed))) if file.is_file())
    if not files:
        raise SourceError(f"no file matches {path}")
    return [(file, file.relative_to(fixed).as_posix()) for file in files]


def _read_parquet(path: Path, spec: EventSpec) -> pl.DataFrame:
    scan = pl.scan_parquet(path, glob=False)
    return scan.select(name for name in scan.collect_schema().names() if name in spec.polars).collect()


def _read_ipc(path: Path, spec: EventSpec) -> pl.DataFrame:
    del spec
    try:
        return pl.read_ipc(path)
    except pl.exceptions.ComputeError:
        return pl.read_ipc_stream(path)


def _read_avro(path: Path, spec: EventSpec) -> pl.DataFrame:
    del spec
    return read_avro_file(path)


def _read_csv(path: Path, spec: EventSpec) -> pl.DataFrame:
    texts = {name: dtype for name, dtype in spec.polars.items() if dtype == pl.String}
    return pl.read_csv(path, try_parse_dates=True, schema_overrides=texts, infer_schema_length=10_000)


def _read_lines(path: Path, spec: EventSpec) -> list[bytes]:
    del spec
    return [line for line in path.read_bytes().splitlines() if line.strip()]


_READERS: dict[str, Callable[[Path, EventSpec], pl.DataFrame | list[bytes]]] = {
    ".parquet": _read_parquet,
    ".arrow": _read_ipc,
    ".ipc": _read_ipc,
    ".feather": _read_ipc,
    ".avro": _read_avro,
    ".csv": _read_csv,
    ".jsonl": _read_lines,
    ".ndjson": _read_lines,
}
"""File suffix -> reader. Blank JSON lines are not rows."""
