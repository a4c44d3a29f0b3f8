"""Replay: runs the live kernels over history, with a read at each spine row.

Events and spine rows are processed in order of time, a spine row before events of the same microsecond. So a value is
what a live read at that moment would have returned, and no event leaks into a row that is not after it:

    events   --e1----e2--------e3-----e4------>
    spine    ------s1-----s2---------s3------->      s3 is at the time of e4: it sees e1 e2 e3

Late events are applied when they arrive, as in the live flow; windows and lists place them by their event time. If an
expression of a view has no value for an event, the view leaves the event out, as in the live flow, and counts it.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import ConfigError, LayoutError, SourceError
from headrace.features.answer import NEVER, Answer
from headrace.features.event_rows import Rows, concat_rows
from headrace.features.expressions.derived import request_columns
from headrace.features.failure_counts import FailedEvents, count_ahead
from headrace.features.keys import ids_of_texts, key_columns
from headrace.features.state.operations import Operations
from headrace.features.state.slab import Slab
from headrace.features.view import FeatureView, ViewPlan, plans_of
from headrace.history.external_sort import Block, keys_of, merged
from headrace.history.log import MEMORY_ROWS, History, Span, open_log, read_spine, tables_of, time_of
from headrace.history.spine import SpineFormat, check_spine, spine_times
from headrace.schemas import Event
from headrace.schemas.tables import TableLike
from headrace.schemas.time_units import TimeUnit

CHUNK_ROWS = 262_144
"""Events and spine rows that `replay` processes at a time."""


class Replay:
    """An incremental pass over history for one or more views.

    `slabs` has their records by view name, `failed_events` the events left out because an expression had no value.
    """

    def __init__(self, views: Sequence[type[FeatureView]]) -> None:
        self.plans: list[ViewPlan] = plans_of(views, "replay")
        self.slabs: dict[str, Slab] = {plan.name: Slab(plan) for plan in self.plans}
        self.failed_events = FailedEvents()
        self._words = np.empty(0, np.int64)  # reused: memory that is new to the process costs most

    def advance(
        self, events: Mapping[type[Event], pl.DataFrame], spine: pl.DataFrame | None = None
    ) -> dict[str, Answer] | None:
        """Process events and spine rows; return answers by view name in the spine's order, None without a spine.

        Frames need not be sorted. Every event before a spine row must be passed in the same call as the row, or in an
        earlier one. Classes that no view reads are ignored.

        Raises:
            SpineError: the spine lacks a column, or has one of another type.
            SchemaError: events do not fit their declaration.
        """
        return self._advance(events, spine)

    def frames(self, events: Mapping[type[Event], pl.DataFrame], spine: pl.DataFrame) -> pl.DataFrame:
        """Process as `advance` does; return the answers of all views in one frame, with columns `<view>.<feature>`."""
        answers = self._advance(events, spine, close=True)
        assert answers is not None
        return pl.concat([answers[plan.name].to_polars(f"{plan.name}.") for plan in self.plans], how="horizontal")

    def _advance(
        self, events: Mapping[type[Event], pl.DataFrame], spine: pl.DataFrame | None, *, close: bool = False
    ) -> dict[str, Answer] | None:
        if spine is not None:
            check_spine(self.plans, spine)
        answers = {}
        for plan in self.plans:
            parts = [plan.rows(event, frame) for event, frame in events.items() if event in plan.sources]
            rows = concat_rows(parts) if parts else None
            if rows is not None:
                self.failed_events.add(plan.name, rows.failed)
            if spine is not None:
                answers[plan.name] = self._answer(self.slabs[plan.name], rows, spine, close=close)
            elif rows is not None:
                self.slabs[plan.name].update(_in_time(rows))
        return None if spine is None else answers

    def _answer(self, slab: Slab, rows: Rows | None, spine: pl.DataFrame, *, close: bool) -> Answer:
        """Process events and spine rows of one view; answer in the spine's order. `close` makes lists contiguous."""
        plan = slab.plan
        now_us, ids = spine_times(spine, plan.name), key_columns(plan, spine)[0]
        request = request_columns(plan.name, plan.layout.request, spine) if plan.layout.request else None
        reads = len(now_us)
        if rows is None:
            answer = slab.read(slab.locate(ids), now_us, request)
            count_ahead(plan.name, answer)
            return answer
        at = slab.rows_of_events(rows)  # first, so that entities new in this call are located below
        where, times_us, numbers = self._columns(reads + len(rows))
        np.concatenate([slab.locate(ids), at], out=where)
        np.concatenate([now_us, rows.time_us], out=times_us)
        np.concatenate([np.arange(reads), ~np.arange(len(rows))], out=numbers)
        order = np.argsort(times_us, kind="stable")  # spine rows come first, so they win ties
        ops = Operations(where, times_us, numbers, rows.events, np.zeros(len(rows), np.uint8))
        newest = np.full(reads, NEVER, np.int64)
        outputs = slab.run(ops, plan.layout.outputs(reads, contiguous=close), newest, order)
        slab.mark_dirty(at)
        answer = plan.layout.answer(outputs, newest, now_us, request)
        count_ahead(plan.name, answer)
        return answer

    def _columns(self, count: int) -> NDArray[np.int64]:
        """Return three uninitialized columns of `count` numbers, valid until the next call."""
        if self._words.size < 3 * count:
            self._words = np.empty(3 * count, np.int64)
        return self._words[: 3 * count].reshape(3, count)

    def save(self, folder: str | Path) -> None:
        """Write each view's records to `folder/<view>.arrow`: key text, and packed record with its version."""
        self.capture()(Path(folder))

    def capture(self) -> Callable[[Path], None]:
        """Pack the present records; return a function that writes them as `save` does, from any thread."""
        frames: dict[str, pl.DataFrame] = {}
        for plan in self.plans:
            slab = self.slabs[plan.name]
            rows = slab.rows()
            columns = {"key": slab.texts(rows), "record": slab.pack(rows)}
            frames[plan.name] = pl.DataFrame(columns, schema={"key": pl.Binary, "record": pl.Binary})

        def write(folder: Path) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            for name, frame in frames.items():
                frame.write_ipc(folder / f"{name}.arrow", compression="zstd")

        return write

    def load(self, folder: str | Path) -> None:
        """Load saved records into the slabs; views that were not saved are unchanged.

        Raises:
            LayoutError: records were saved by another version of a view.
            SourceError: `folder` has no records of any view of this replay.
        """
        saved = [plan for plan in self.plans if (Path(folder) / f"{plan.name}.arrow").exists()]
        if not saved:
            names = ", ".join(plan.name for plan in self.plans)
            raise SourceError(f"replay: {folder} holds no saved records of {names}; write them with Replay.save")
        for plan in saved:
            frame = pl.read_ipc(Path(folder) / f"{plan.name}.arrow")
            texts = frame["key"].to_list()
            try:
                self.slabs[plan.name].load(ids_of_texts(plan, texts), texts, frame["record"].to_list())
            except LayoutError as exc:
                raise LayoutError(f"{folder}: {exc}") from exc


def replay(
    views: type[FeatureView] | Sequence[type[FeatureView]],
    events: History,
    spine: TableLike,
    *,
    time_unit: TimeUnit | None = None,
    csv_time_format: str | None = None,
    chunk_rows: int = CHUNK_ROWS,
    memory_rows: int = MEMORY_ROWS,
) -> pl.DataFrame:
    """Return the spine with every feature as of each row's time: columns `<view>.<feature>`, in the spine's order.

    Arguments:
        views: the views to read.
        events: events of the views' classes: one table if there is one class, else a dict of class to table. A table is
            a frame (Polars, lazy or not, pandas, pyarrow), a list of dicts, a dict of lists, or files: Parquet, Arrow
            IPC, Avro, JSON lines or CSV, by path, glob, folder of an archive or URL, or a list of these. It need not
            be sorted.
        spine: a table of each view's entity columns, `event_time`, and the request fields that a view declares.
        time_unit: unit of the spine's `event_time` if it is whole numbers: s, ms, us or ns since 1970. They become
            datetimes in the result.
        csv_time_format: strptime format of times in CSV files that are not ISO 8601.
        chunk_rows: events and spine rows processed at a time; bounds memory, never changes the result.
        memory_rows: events in memory at a time; a larger log is sorted on disk. Never changes the result.

    Raises:
        SpineError: the spine lacks a column, has one of another type, or has times without a unit.
        SchemaError: events do not fit their declaration, a class is missing, or an argument is not a table.
        SourceError: a file is missing or cannot be read.
        ConfigError: `chunk_rows` or `memory_rows` is below 1.
    """
    for name, rows_max in (("chunk_rows", chunk_rows), ("memory_rows", memory_rows)):
        if rows_max < 1:
            raise ConfigError(f"{name}={rows_max}: give 1 or more")
    view_list = [views] if isinstance(views, type) or not isinstance(views, Iterable) else list(views)
    walk = Replay(view_list)
    tables = tables_of(walk.plans, events)
    rows = read_spine(spine, walk.plans, SpineFormat(time_unit, csv_time_format))
    check_spine(walk.plans, rows)
    times_us = spine_times(rows, walk.plans[0].name)
    order = None if (times_us[1:] >= times_us[:-1]).all() else np.argsort(times_us, kind="stable")
    parts = []
    with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
        span = Span(until_us=int(times_us.max(initial=0)))
        log = open_log(tables, span, memory_rows, lambda: Path(folder), csv_time_format)
        # Answers are joined to their rows part by part: joined all at once, Polars would copy them into one piece.
        for chunk, part, _ in chunks(log, rows.rechunk() if order is None else rows[order], chunk_rows, memory_rows):
            parts.append(part.hstack(walk.frames(chunk, part)))
    walk.failed_events.log()
    answers = pl.concat(parts)
    if order is None:
        return answers
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return answers[back]


def _in_time(rows: Rows) -> Rows:
    """Sort rows by time, so that none is late only because of its position in a frame."""
    ordered = bool((rows.time_us[1:] >= rows.time_us[:-1]).all())
    return rows if ordered else rows.take(np.argsort(rows.time_us, kind="stable"))


def chunks(
    log: Mapping[type[Event], Sequence[Block]], spine: pl.DataFrame, chunk_rows: int, memory_rows: int
) -> Iterator[tuple[dict[type[Event], pl.DataFrame], pl.DataFrame, int | None]]:
    """Cut a log and a time-sorted spine at common times: events before a cut, spine rows up to and at it, the cut.

    Only a part of the log is in memory at a time. Chunks end with the spine; the last cut is None if the log ends too.
    """
    spine_us = spine_times(spine, "")
    answered = 0
    times = {event: time_of(event) for event in log}
    for frames, cut in merged(log, times, max(memory_rows // 4, 1)):
        end = spine.height if cut is None else int(np.searchsorted(spine_us, cut, "right"))
        for chunk, part, inner in _cut(frames, spine[answered:end], spine_us[answered:end], chunk_rows):
            yield chunk, part, cut if inner is None else inner
        answered = end
        if answered == spine.height:
            return


def cut_events(
    history: Mapping[type[Event], pl.DataFrame], rows: int
) -> Iterator[tuple[dict[type[Event], pl.DataFrame], int | None]]:
    """Cut time-sorted events in memory at common times into pieces of about `rows` rows; the last cut is None."""
    for piece, _, cut in _cut(history, pl.DataFrame(), np.empty(0, np.int64), rows):
        yield piece, cut


def _cut_times(times_us: Sequence[NDArray[np.int64]], chunk_rows: int) -> list[int]:
    """Return the times of every `chunk_rows`-th row of all sorted columns, without merging them."""
    columns = [column for column in times_us if len(column)]
    if not columns:
        return []
    least, most = min(int(column[0]) for column in columns), max(int(column[-1]) for column in columns)

    def time_of_row(number: int) -> int:
        low, high = least, most
        while low < high:
            middle = (low + high) // 2
            if sum(int(np.searchsorted(column, middle, "right")) for column in columns) > number:
                high = middle
            else:
                low = middle + 1
        return low

    rows = sum(len(column) for column in columns)
    return sorted({time_of_row(number) for number in range(chunk_rows, rows, chunk_rows)})


def _cut(
    history: Mapping[type[Event], pl.DataFrame], spine: pl.DataFrame, spine_us: NDArray[np.int64], chunk_rows: int
) -> Iterator[tuple[dict[type[Event], pl.DataFrame], pl.DataFrame, int | None]]:
    """Cut time-sorted events in memory into chunks; yields what `chunks` yields."""
    event_us = {event: keys_of(frame, time_of(event)) for event, frame in history.items()}
    cuts = [*_cut_times([spine_us, *event_us.values()], chunk_rows), None]
    taken, answered = dict.fromkeys(history, 0), 0
    for cut in cuts:
        chunk = {}
        for event, frame in history.items():
            end = frame.height if cut is None else int(np.searchsorted(event_us[event], cut, "left"))
            chunk[event] = frame[taken[event] : end]
            taken[event] = end
        end = spine.height if cut is None else int(np.searchsorted(spine_us, cut, "right"))
        yield chunk, spine[answered:end], cut
        answered = end
