"""The event log of a replay: frames or files of each event class, of any size, in order of time.

A log that fits into the budget of rows is sorted in memory. Of a larger log, local Parquet files whose row groups
overlap little in time are read group by group; anything else is sorted on disk first (`external_sort`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import polars as pl

from headrace.clock import wall_us
from headrace.errors import SchemaError, SourceError
from headrace.features.keys import ids_of_column, key_expr, shard_of
from headrace.features.view import ViewPlan, events_of
from headrace.history.external_sort import Block, Sorter, memory_block, overlap
from headrace.history.spine import SpineFiles, SpineFormat, with_times
from headrace.schemas import Event, EventSpec, Quality, conform, spec_of
from headrace.schemas.tables import TableLike, frame_of
from headrace.streams.files.finder import EventFile, find_files
from headrace.streams.files.reading import (
    iter_events,
    leave_out,
    read_events,
    read_range,
    reads_row_groups,
    row_groups,
    rows_of,
    time_range,
)

MEMORY_ROWS = 10_000_000
"""Events held in memory at a time; sorting them needs the same memory again."""

PIECE_ROWS = 250_000
_BYTES_A_ROW = 8
"""Lower bound for the size of an event in a file: a file below this size per row of the budget is read as a whole."""

Paths: TypeAlias = str | Path | Sequence[str | Path]
Table: TypeAlias = pl.DataFrame | pl.LazyFrame | Paths
History: TypeAlias = TableLike | Mapping[type[Event], TableLike]
"""One table if there is one event class, else one per class: frames, files, or whatever `frame_of` converts."""


@dataclass(frozen=True, slots=True)
class Span:
    """A selection of events: times in [since_us, until_us), and entities of part `part` of `parts`."""

    since_us: int | None = None
    until_us: int | None = None
    plan: ViewPlan | None = None
    part: int = 0
    parts: int = 1

    def of(self, frame: pl.DataFrame, time: pl.Expr) -> pl.DataFrame:
        """Return the selected events of a frame."""
        if self.since_us is not None:
            frame = frame.filter(time >= self.since_us)
        if self.until_us is not None:
            frame = frame.filter(time < self.until_us)
        if self.plan is not None and self.parts > 1:
            frame = frame.filter(in_part(self.plan, frame, self.part, self.parts))
        return frame


def in_part(plan: ViewPlan, frame: pl.DataFrame, part: int, parts: int) -> pl.Series:
    """Return whether each row's entity belongs to the part, (n,) Boolean; all null keys belong to one part."""
    keys = frame.select(key_expr([pl.col(name) for name in plan.entity], plan.key_dtype)).to_series()
    return pl.Series(shard_of(ids_of_column(keys, plan.key_dtype)[0], parts) == part)


def time_of(event: type[Event]) -> pl.Expr:
    """Expression for the event time in microseconds UTC."""
    return pl.col(spec_of(event).time).cast(pl.Datetime("us")).cast(pl.Int64)


def tables_of(plans: Sequence[ViewPlan], events: History) -> dict[type[Event], Table]:
    """Return a table for each event class that the views read; frames are converted to the declared types.

    Raises:
        SchemaError: there is one table for several classes, or none for a class, or a frame lacks a column or has one
            of another type.
    """
    sources = list(events_of(plans))
    names = ", ".join(event.__name__ for event in sources)
    if not isinstance(events, Mapping) or not all(isinstance(event, type) for event in events):
        if len(sources) > 1:
            raise SchemaError(f"replay: the views read {names}; give events as a dict with a table for each")
        events = {sources[0]: events}
    absent = [event.__name__ for event in sources if event not in events]
    if absent:
        raise SchemaError(f"replay: the views read {names}; there are no events of {', '.join(absent)}")
    tables: dict[type[Event], Table] = {}
    for event in sources:
        table = table_of(events[event], f"events {event.__name__}")
        tables[event] = _declared(table, event) if isinstance(table, pl.DataFrame) else table
    for plan in plans:
        for event in plan.sources:
            frame = tables[event]
            if isinstance(frame, pl.DataFrame):
                plan.rows(event, frame.head(0))
    return tables


def open_log(
    tables: Mapping[type[Event], Table],
    span: Span,
    memory_rows: int,
    folder: Callable[[], Path],
    csv_time_format: str | None = None,
    count: Callable[[int], None] = lambda _rows: None,
) -> dict[type[Event], list[Block]]:
    """Return blocks of each class's events, to be merged by `time_of`; `folder` returns the folder for sorting on disk.

    `csv_time_format` is the strptime format of times in CSV files that are not ISO 8601. `count` is called with the
    number of rows of each piece that was read, before it is sorted.

    Rows that break a rule of the event are left out, as in the live flow, and logged.

    Raises:
        SourceError: a file is missing or cannot be read.
        SchemaError: events do not fit their declaration.
    """
    budget = max(memory_rows // len(tables), 1)

    def room(event: type[Event]) -> Path:
        place = folder() / spec_of(event).name
        place.mkdir(parents=True, exist_ok=True)
        return place

    blocks = {}
    for event, table in tables.items():
        if isinstance(table, pl.DataFrame | pl.LazyFrame):
            log: pl.DataFrame | pl.LazyFrame | list[EventFile] = table
        else:
            log = find_files(table, spec_of(event).topic, csv_time_format=csv_time_format).files
        blocks[event] = _blocks(log, event, span, budget, functools.partial(room, event), count)
    return blocks


def table_of(value: TableLike, place: str) -> Table:
    """Return a frame, or the paths of files. `place` is named in errors.

    Raises:
        SchemaError: `value` is neither, or a table that cannot be read.
    """
    frame = frame_of(value)
    if frame is not None:
        return frame
    if isinstance(value, (str, Path)) or (
        isinstance(value, Sequence) and all(isinstance(path, (str, Path)) for path in value)
    ):
        return value
    raise SchemaError(
        f"{place}: a {type(value).__name__} is no table; give a frame (Polars, pandas, pyarrow), a list of dicts, a "
        "dict of lists, or paths of files"
    )


def read_spine(table: TableLike, plans: Sequence[ViewPlan], written: SpineFormat) -> pl.DataFrame:
    """Read all rows of a spine, with times as datetimes.

    Raises:
        SourceError: a file is missing or cannot be read.
        SchemaError: the spine is not a table.
        SpineError: its times are numbers without a unit, or columns of its files do not fit each other.
    """
    rows = table_of(table, "spine")
    if isinstance(rows, pl.DataFrame | pl.LazyFrame):
        return with_times(rows.lazy().collect(), written.time_unit)
    return SpineFiles(rows, plans, written).read()


def _blocks(
    table: pl.DataFrame | pl.LazyFrame | list[EventFile],
    event: type[Event],
    span: Span,
    budget: int,
    folder: Callable[[], Path],
    count: Callable[[int], None],
) -> list[Block]:
    time, spec = time_of(event), spec_of(event)
    if isinstance(table, pl.DataFrame):
        good = _good(_declared(table, event), event, "a frame")
        return memory_block(dataclasses.replace(span, until_us=None).of(good, time), time)  # no copy
    pieces: Iterator[pl.DataFrame]
    if isinstance(table, pl.LazyFrame):
        batches = table.collect_batches(chunk_size=PIECE_ROWS, maintain_order=True)
        pieces = (_good(_declared(piece, event), event, "a lazy frame") for piece in batches)
    else:
        files = table
        if not files:
            raise SourceError(f"events {spec.name}: no files given")
        rows = [rows_of(file) for file in files]
        known = [count for count in rows if count is not None]
        if len(known) == len(files) and sum(known) > budget and all(reads_row_groups(file, event) for file in files):
            blocks = _row_groups(files, event, span, min(PIECE_ROWS, budget // 8))
            if overlap(blocks) <= budget:
                return blocks
        pieces = _checked(files, rows, event, budget)
    sorter = Sorter(time, budget, folder)
    for piece in pieces:
        count(piece.height)
        sorter.add(span.of(piece, time))
    return sorter.blocks()


def _declared(frame: pl.DataFrame, event: type[Event]) -> pl.DataFrame:
    """Select the declared columns of a frame; it may lack required columns that no view reads."""
    return conform(frame, _spec_for(event, tuple(frame.columns)))


@functools.lru_cache(maxsize=64)
def _spec_for(event: type[Event], columns: tuple[str, ...]) -> EventSpec:
    """Return the spec of an event without required columns that are absent from `columns`, except its time."""
    spec = spec_of(event)
    types = {
        name: field
        for name, field in spec.types.items()
        if name == spec.time or not field.required or field.name_in(columns, name) is not None
    }
    if len(types) == len(spec.types):
        return spec
    return dataclasses.replace(spec, types=types, polars={name: spec.polars[name] for name in types})


def _checked(
    files: Sequence[EventFile], rows: Sequence[int | None], event: type[Event], budget: int
) -> Iterator[pl.DataFrame]:
    """Yield the valid rows of files; small files are read as a whole."""
    for file, count in zip(files, rows, strict=True):
        is_sized = file.size >= 0 and file.compression is None
        is_small = count <= budget if count is not None else is_sized and file.size <= budget * _BYTES_A_ROW
        pieces = [read_events(file, event)] if is_small else iter_events(file, event, min(PIECE_ROWS, budget))
        for piece in pieces:
            yield _good(piece, event, file.url)


def _good(frame: pl.DataFrame, event: type[Event], place: str) -> pl.DataFrame:
    checked = _quality(event, tuple(frame.columns)).check(frame, wall_us())
    if checked.bad:
        first = checked.bad[0]
        leave_out(spec_of(event).name, place, len(checked.bad), first.reason, first.detail)
    return checked.frame


@functools.lru_cache(maxsize=64)
def _quality(event: type[Event], columns: tuple[str, ...]) -> Quality:
    return Quality(_spec_for(event, columns))


def _row_groups(files: Sequence[EventFile], event: type[Event], span: Span, rows_max: int) -> list[Block]:
    """Return blocks that read row groups from the files on demand."""
    blocks = []
    for file in files:
        for start, rows in row_groups(file, rows_max):
            low, high = time_range(file, time_of(event), start, rows)
            if low is not None and high is not None:
                blocks.append(Block(low, high, rows, functools.partial(_read_group, file, event, span, start, rows)))
    since_us = -(2**63) if span.since_us is None else span.since_us
    until_us = 2**63 if span.until_us is None else span.until_us
    return [block for block in blocks if block.low < until_us and block.high >= since_us]


def _read_group(file: EventFile, event: type[Event], span: Span, start: int, rows: int) -> pl.DataFrame:
    good = _good(read_range(file, event, start, rows), event, file.url)
    return span.of(good, time_of(event))
