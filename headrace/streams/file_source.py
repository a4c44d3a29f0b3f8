"""Files of one event as a source: Parquet, Arrow IPC, Avro, CSV and JSON lines.

A file is a partition and a row number is an offset, so a run over files resumes like a run over a broker;
`files.names` describes how partitions are named and recognised. Files are read one after the other in the order given.
With `sort`, the rows of each file are first sorted by event time, ties in file order, and row numbers are those of the
sorted file. A local Parquet file that does not need sorting is read a few row groups at a time; any other file, except
JSON lines, is read as a whole.

JSON lines are passed on as payloads, so that a bad line does not affect other lines. They keep their order, and their
offsets are positions (`files.lines`). A last line without a line end is not an event yet: it becomes a dead letter, and
the next run reads it again.
"""

import threading
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self, TypeAlias

import numpy as np
import polars as pl
import structlog

from headrace.errors import OffsetLostError, SourceError
from headrace.redaction import shown_url
from headrace.schemas import Codec, Event, spec_of
from headrace.streams.files.archive_names import named_rows
from headrace.streams.files.finder import EventFile, find_files
from headrace.streams.files.line_reader import Lines, iter_lines
from headrace.streams.files.names import partition_of, recognise
from headrace.streams.files.reading import (
    RowGroups,
    format_of,
    is_in_order,
    is_lines,
    path_codec,
    read_archived,
    read_events,
    reads_row_groups,
)
from headrace.streams.positions import Positions, Reached, reached_of, refuse_files_of_topic
from headrace.streams.source import Batch, OpenOptions, Origin, Source

log = structlog.get_logger(__name__)

ROWS_MAX = 262_144
"""Rows per batch. In larger batches more events share an entity, and so the fetch of its record."""


class FileSource(Source):
    """Batches of the files of one event class.

    `paths` are files, globs (including `**`) or folders of an archive, local or by URL (`files.finder`). `rows_max`
    bounds a batch. `csv_time_format` is the strptime format of times in CSV files that are not ISO 8601.
    `beside_topic`: the files hold other events than the topic, so they are read even if a reader has read the topic.
    Files without rows are skipped if other files have rows. Files that a source in `before` reads are skipped as well.

    Raises:
        SourceError: from the first call on: a file is missing, unreadable or changed since it was read, or all are
            empty; names the file.
        SchemaError: a column is missing or has another type.
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        event: type[Event],
        *,
        sort: bool = True,
        rows_max: int = ROWS_MAX,
        csv_time_format: str | None = None,
        beside_topic: bool = False,
        before: Sequence["FileSource"] = (),
    ) -> None:
        self.beside_topic = beside_topic
        self._paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
        self.event = event
        self._spec = spec_of(event)
        self._sort = sort
        self._rows_max = rows_max
        self._csv_time_format = csv_time_format
        self._before = [source for source in before if source.event is event]
        self._owner = (0, 1)
        self._files: dict[str, EventFile] | None = None
        self._ends: dict[str, int] = {}
        self._listing = threading.Lock()
        self._reached: Sequence[Reached] = ()
        self._tells_origins = False
        self._pending: list[str] | None = None
        self._positions: dict[str, int] = {}
        self._open: tuple[str, _Rows] | None = None

    def share(self, index: int, count: int) -> Self:
        """A fresh source that reads every `count`-th file, from `index` on; all shares list the same files."""
        files = self._listed()
        fresh = type(self)(
            self._paths,
            self.event,
            sort=self._sort,
            rows_max=self._rows_max,
            csv_time_format=self._csv_time_format,
            beside_topic=self.beside_topic,
            before=self._before,
        )
        fresh._owner, fresh._files, fresh._ends = (index, count), files, self._ends  # noqa: SLF001
        fresh._reached, fresh._tells_origins = self._reached, self._tells_origins  # noqa: SLF001
        return fresh

    def describe(self) -> str:
        """Event and paths."""
        return f"{self._spec.name} from {', '.join(shown_url(str(path)) for path in self._paths)}"

    @property
    def exhausted(self) -> bool:
        """Whether every file has been read to its end."""
        return self._pending is not None and not self._pending

    @property
    def topic(self) -> str:
        """Topic of the event."""
        return self._spec.topic

    def partitions(self) -> list[str]:
        """The partition of every file, in reading order.

        Raises:
            SourceError: a path or glob matches nothing, a file is empty, or two files would have the same name.
        """
        return list(self._listed())

    def ends(self) -> dict[str, int]:
        """Next offset of each topic partition at the end of the archives among the paths; {} for plain files.

        Raises:
            SourceError: see `partitions`.
        """
        self._listed()
        return dict(self._ends)

    def tell_origins(self) -> None:
        """Fill `Batch.origin` for rows of archives, with their positions in the topic."""
        self._tells_origins = True

    def unasked_topics(self) -> list[str]:
        """The topic, unless `beside_topic` declares that the files hold other events."""
        return [] if self.beside_topic else [self.topic]

    def refuse_changed(self, readers: Sequence[Reached]) -> None:
        """Give files the names by which `readers` know them, and check that the rows they have read are unchanged.

        `seek` does this for the readers of its positions. Lines of JSON files are compared when the file is opened.

        Raises:
            SourceError: a file has changed since it was read; names it.
        """
        for source in self._before:
            source.refuse_changed(readers)
        taken = {name for source in self._before for name in source.partitions()}
        files = recognise(self._listed(), self.topic, readers, taken)
        self._reached, self._files = readers, files

    def seek(self, positions: Mapping[str, int]) -> None:
        """Read each file from the row in `positions` on.

        Raises:
            SourceError: see `partitions` and `refuse_changed`.
            ConfigError: a reader of the positions has read the topic itself.
        """
        if isinstance(positions, Positions) or not self._reached:
            self.refuse_changed(reached_of(positions))
        if not self.beside_topic:
            refuse_files_of_topic(self.topic, self.partitions(), positions)
        self.close()
        index, count = self._owner
        self._pending = self.partitions()[index::count]
        self._positions = {name: positions.get(name, 0) for name in self._pending}

    def poll(self) -> list[Batch]:
        """The next rows of the current file.

        Raises:
            SourceError: a file is unreadable, has no rows, or has changed since it was read.
            OffsetLostError: a file has fewer rows than have been read from it.
        """
        if self._pending is None:
            self.seek({})
        if not self._pending:
            return []
        name = self._pending[0]
        if self._open is None or self._open[0] != name:
            self._open = (name, self._read(name))
        batch = self._open[1].take()
        if batch.ended:
            self._pending.pop(0)
            self.close()
        return [batch]

    def close(self) -> None:
        """Close the current file."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def _listed(self) -> dict[str, EventFile]:
        with self._listing:  # workers request their shares concurrently
            if self._files is None:
                log_files = find_files(self._paths, self.topic, csv_time_format=self._csv_time_format)
                self._files, self._ends = self._named(log_files.files), log_files.ends
                if not (self._files or self._ends or log_files.files):
                    raise SourceError(f"event {self._spec.name}: no files given, or only empty ones")
            return self._files

    def _named(self, files: Sequence[EventFile]) -> dict[str, EventFile]:
        """Files that no earlier source reads, by partition."""
        others = {file.location: file for source in self._before for file in source._listed().values()}  # noqa: SLF001
        names = {name: file for source in self._before for name, file in source._listed().items()}  # noqa: SLF001
        named: dict[str, EventFile] = {}
        for file in files:
            format_of(file)
            if file.size == 0:
                raise SourceError(f"file {file.url} is empty")
            if file.location in others:
                log.info("file_reached_twice", file=file.url, read_as=others[file.location].url)
                continue
            name = partition_of(file, self.topic, is_sorted=self._sort)
            if name in names:
                raise SourceError(
                    f"files {names[name].url} and {file.url} would share the partition name {name!r}, since they "
                    "begin alike; rename one, or reach both by one pattern, so that their paths differ"
                )
            named[name] = names[name] = file
        return named

    def _read(self, name: str) -> "_Rows":
        assert self._files is not None
        file, begin = self._files[name], self._positions[name]
        is_only = len(self._files) == 1
        if is_lines(file):
            reached = {offset for reader in self._reached for offset in reader.get(name, ())}
            codec, lines = path_codec(file, self.event) or "json", iter_lines(file, begin, reached)
            return _LineRows(name, self.topic, file, codec, lines, self._rows_max, is_only)
        frames, origin = (
            self._archived(file) if self._tells_origins and file.is_archived else (self._frames(file), None)
        )
        if not len(frames) and is_only:
            raise SourceError(f"file {file.url} has no rows")
        if len(frames) < begin:
            raise OffsetLostError(
                f"file {file.url} has {len(frames)} rows, but {begin} were read from it before: "
                "give a changed file a new name, or start a fresh store",
            )
        return _FrameRows(name, self.topic, frames, begin, self._rows_max, origin)

    def _archived(self, file: EventFile) -> tuple[pl.DataFrame, Origin]:
        """The rows of an archived file, in the order of `_frames`, and their positions in the topic."""
        named = named_rows(self.topic, PurePosixPath(file.name).name)
        assert named is not None, file.name
        partition, first, next_offset = named
        rows, offsets = read_archived(file, self.event)
        times_us = rows[self._spec.time].to_physical().to_numpy()
        order = np.argsort(times_us, kind="stable") if self._sort else np.arange(len(rows))
        if offsets is None:
            return rows[order], Origin(partition, np.full(len(rows), next_offset - 1, np.int64), first)
        return rows[order], Origin(partition, offsets[order].to_numpy())

    def _frames(self, file: EventFile) -> pl.DataFrame | RowGroups:
        time = self._spec.time
        if reads_row_groups(file, self.event) and (not self._sort or is_in_order(file, time)):
            return RowGroups(file, self.event, self._rows_max)
        rows = read_events(file, self.event)
        return rows if not self._sort or rows[time].is_sorted() else rows.sort(time, maintain_order=True)


@dataclass(slots=True)
class _FrameRows:
    """Rows of a columnar file, from `begin` on."""

    partition: str
    topic: str
    frames: pl.DataFrame | RowGroups
    begin: int
    rows_max: int
    origin: Origin | None

    def take(self) -> Batch:
        """The next rows."""
        begin, end, frames = self.begin, self.begin + self.rows_max, self.frames
        part = frames.take(begin, self.rows_max) if isinstance(frames, RowGroups) else frames[begin:end]
        self.begin = begin + part.height
        return Batch(
            topic=self.topic,
            partition=self.partition,
            offsets=np.arange(begin, self.begin, dtype=np.int64),
            next_offset=self.begin,
            frame=part,
            ended=self.begin == len(frames),
            origin=None if self.origin is None else self.origin.take(slice(begin, self.begin)),
        )

    def close(self) -> None:
        """Do nothing: no file is open."""


@dataclass(slots=True)
class _LineRows:
    """Lines of a file of JSON lines, from the first of `lines` on; `rest` are lines that were read but not taken."""

    partition: str
    topic: str
    file: EventFile
    codec: Codec | str
    lines: Generator[Lines]
    rows_max: int
    is_only: bool
    rest: Lines | None = None

    def take(self) -> Batch:
        """The next lines."""
        lines, self.rest = (self.rest or next(self.lines)).cut(self.rows_max)
        if lines.is_blank and self.is_only:
            raise SourceError(f"file {self.file.url} has no rows")
        return Batch(
            topic=self.topic,
            partition=self.partition,
            offsets=lines.positions,
            next_offset=lines.next_position,
            payloads=lines.payloads,
            codec=self.codec,
            ended=lines.is_end,
            unfinished=lines.unfinished,
        )

    def close(self) -> None:
        """Close the file."""
        self.lines.close()


_Rows: TypeAlias = _FrameRows | _LineRows


def open_files(url: str, options: OpenOptions) -> FileSource:
    """The source of a path, glob, folder of an archive, or URL of a filesystem."""
    return FileSource(
        url,
        options.events[0],
        rows_max=options.rows_max or ROWS_MAX,
        beside_topic=options.beside_topic,
        before=options.before,
        csv_time_format=options.csv_time_format,
    )
