"""Replay: the same kernels over history, with reads where they fall.

Events and spine rows are walked in the order of time, a spine row before the events of the same microsecond, so a value
is what a live read at that moment would have given, and no event leaks into a row that was not after it:

    events   --e1----e2--------e3-----e4------>
    spine    ------s1-----s2---------s3------->      s3 is at the time of e4: it sees e1 e2 e3

Late events are applied when they come, as in the live flow; their place in windows and lists is that of their time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import DeclarationError, DecodeError, LayoutError, SchemaError, SourceError
from headrace.features.answer import NEVER, Answer
from headrace.features.event_rows import Rows, concat_rows
from headrace.features.expressions import request_columns
from headrace.features.keys import ids_of_texts, key_columns
from headrace.features.layout import Operations
from headrace.features.slab import Slab
from headrace.features.spine import check_spine, spine_times
from headrace.features.view import FeatureView, ViewPlan, events_of, plan_of
from headrace.schemas import Event, codec_for, conform, spec_of
from headrace.schemas.avro_files import read_avro_file

CHUNK_ROWS = 500_000
"""Events and spine rows that `replay` walks at a time."""

_JSON_LINES = (".jsonl", ".ndjson")

Table: TypeAlias = pl.DataFrame | str | Path
History: TypeAlias = Table | Mapping[type[Event], Table]


class Replay:
    """An incremental pass over history for one or more views; `slabs` holds their records by view name."""

    def __init__(self, views: Sequence[type[FeatureView]]) -> None:
        self.plans: list[ViewPlan] = [plan_of(view) for view in views]
        names = [plan.name for plan in self.plans]
        if not names or len(set(names)) < len(names):
            raise DeclarationError(f"replay of views {', '.join(names) or '(none)'}: give at least one, and each once")
        self.slabs: dict[str, Slab] = {plan.name: Slab(plan) for plan in self.plans}

    def advance(
        self, events: Mapping[type[Event], pl.DataFrame], spine: pl.DataFrame | None = None
    ) -> dict[str, Answer] | None:
        """Walk events and spine rows together; answers by view name in the spine's order, None without a spine.

        Frames need not be sorted. Every event that is before a spine row must come in the same call as the row, or in
        an earlier one. Classes that no view reads are left out.

        Raises:
            SpineError: the spine lacks a column, or has one of another type.
            SchemaError: events do not fit their declaration.
        """
        if spine is not None:
            check_spine(self.plans, spine)
        answers = {}
        for plan in self.plans:
            parts = [plan.rows(event, frame) for event, frame in events.items() if event in plan.sources]
            rows = concat_rows(parts) if parts else None
            if spine is not None:
                answers[plan.name] = _merged(self.slabs[plan.name], rows, spine)
            elif rows is not None:
                self.slabs[plan.name].update(_in_time(rows))
        return None if spine is None else answers

    def save(self, folder: str | Path) -> None:
        """Write each view's records to `folder/<view>.arrow`: key text and packed record, and the fingerprint."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for plan in self.plans:
            slab = self.slabs[plan.name]
            rows = slab.rows()
            frame = pl.DataFrame(
                {"key": slab.texts(rows), "record": slab.pack(rows)}, schema={"key": pl.Binary, "record": pl.Binary}
            )
            frame.write_ipc(folder / f"{plan.name}.arrow", compression="zstd")

    def load(self, folder: str | Path) -> None:
        """Put saved records into the slabs; views that were not saved stay as they are.

        Raises:
            LayoutError: saved by another version of a view.
            SourceError: no view of this replay was saved there.
        """
        found = [plan for plan in self.plans if (Path(folder) / f"{plan.name}.arrow").exists()]
        if not found:
            names = ", ".join(plan.name for plan in self.plans)
            raise SourceError(f"replay: {folder} holds no saved records of {names}; write them with Replay.save")
        for plan in found:
            frame = pl.read_ipc(Path(folder) / f"{plan.name}.arrow")
            texts = frame["key"].to_list()
            try:
                self.slabs[plan.name].load(ids_of_texts(plan, texts), texts, frame["record"].to_list())
            except LayoutError as exc:
                raise LayoutError(f"{folder}: {exc}") from exc


def replay(
    views: type[FeatureView] | Sequence[type[FeatureView]],
    events: History,
    spine: Table,
    *,
    chunk_rows: int = CHUNK_ROWS,
) -> pl.DataFrame:
    """The spine with every feature as of each row's time: columns `<view>.<feature>`, rows in the spine's order.

    Arguments:
        views: the views to read.
        events: history of their event classes: one table if there is one class, else a table each. A table is a frame,
            or a path to Parquet, Arrow IPC, Avro, JSON lines or CSV. It need not be sorted.
        spine: each view's entity columns and `event_time` (datetime, or int64 microseconds UTC), and the fields of the
            request that a view declares.
        chunk_rows: events and spine rows walked at a time; bounds memory, never changes the result.

    Raises:
        SpineError: the spine lacks a column, or has one of another type.
        SchemaError: events do not fit their declaration, or a class is missing.
        SourceError: a file that cannot be read.
    """
    wanted = [views] if isinstance(views, type) else list(views)
    walk = Replay(wanted)
    history = _history(walk.plans, events)
    rows = _read_table(spine, "spine")
    check_spine(walk.plans, rows)
    times_us = spine_times(rows, walk.plans[0].name)
    order = None if (times_us[1:] >= times_us[:-1]).all() else np.argsort(times_us, kind="stable")
    parts = []
    for chunk, part in _chunks(history, rows if order is None else rows[order], walk.plans[0].name, chunk_rows):
        answers = walk.advance(chunk, part)
        assert answers is not None
        frames = [answers[plan.name].to_polars(f"{plan.name}.") for plan in walk.plans]
        parts.append(pl.concat(frames, how="horizontal"))
    values = pl.concat(parts)
    if order is not None:
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        values = values[back]
    return pl.concat([rows, values], how="horizontal")


def _merged(slab: Slab, rows: Rows | None, spine: pl.DataFrame) -> Answer:
    """Walk events and spine rows of one view; the answer is in the spine's order."""
    plan = slab.plan
    now_us, ids = spine_times(spine, plan.name), key_columns(plan, spine)[0]
    request = request_columns(plan.name, plan.layout.request, spine) if plan.layout.request else None
    reads = len(now_us)
    if rows is None:
        return slab.read(slab.locate(ids), now_us, request)
    at = slab.rows_of_events(rows)  # first: the rows of entities that appear in this call must be found below
    spine_at = slab.locate(ids)
    order = np.argsort(np.concatenate([now_us, rows.time_us]), kind="stable")  # spine rows lead: they win ties
    ops = Operations(
        np.concatenate([spine_at, at])[order],
        np.concatenate([now_us, rows.time_us])[order],
        np.concatenate([np.arange(reads), ~np.arange(len(rows))])[order],
        rows.events,
        np.zeros(len(rows), np.uint8),
    )
    outputs, newest = plan.layout.outputs(reads), np.full(reads, NEVER, np.int64)
    slab.run(ops, outputs, newest)
    slab.mark_dirty(at)
    return plan.layout.answer(outputs, newest, now_us, request)


def _in_time(rows: Rows) -> Rows:
    """Rows in order of time, so that none is late by its place in a frame alone."""
    ordered = bool((rows.time_us[1:] >= rows.time_us[:-1]).all())
    return rows if ordered else rows.take(np.argsort(rows.time_us, kind="stable"))


def _history(plans: Sequence[ViewPlan], events: History) -> dict[type[Event], pl.DataFrame]:
    """One frame for each event class that the views read, sorted by time."""
    sources = list(events_of(plans))
    names = ", ".join(event.__name__ for event in sources)
    if not isinstance(events, Mapping):
        if len(sources) > 1:
            raise SchemaError(f"replay: the views read {names}; give events as a dict with a table for each")
        events = {sources[0]: events}
    absent = [event.__name__ for event in sources if event not in events]
    if absent:
        raise SchemaError(f"replay: the views read {names}; there are no events of {', '.join(absent)}")
    return {event: _read_events(events[event], event) for event in sources}


def _read_events(table: Table, event: type[Event]) -> pl.DataFrame:
    spec = spec_of(event)
    if isinstance(table, pl.DataFrame):
        frame = table
    elif Path(table).suffix in _JSON_LINES:
        frame = _opened(lambda path: _decoded(path, event), Path(table), f"events {spec.name}")
    else:
        frame = conform(_read_table(table, f"events {spec.name}", spec.polars), spec)
    if spec.time not in frame.columns:
        raise SchemaError(f"event {spec.name}: no column {spec.time!r}; there are {', '.join(frame.columns)}")
    return frame.sort(spec.time, maintain_order=True)


def _decoded(path: Path, event: type[Event]) -> pl.DataFrame:
    """A file of JSON lines, each an event."""
    found = codec_for(event, "json").decode([line for line in path.read_bytes().splitlines() if line.strip()])
    if found.bad:
        bad = found.bad[0]
        raise SchemaError(f"{path} · line {bad.index + 1}: {bad.detail}; {len(found.bad)} lines in all cannot be read")
    return found.frame


def _read_table(table: Table, role: str, schema: Mapping[str, pl.DataType] | None = None) -> pl.DataFrame:
    """A frame, or the file of one; `schema` tells which columns of a CSV are texts."""
    if isinstance(table, pl.DataFrame):
        return table
    texts = {name: dtype for name, dtype in (schema or {}).items() if dtype == pl.String}
    readers: dict[str, Callable[[Path], pl.DataFrame]] = {
        ".parquet": pl.read_parquet,
        **dict.fromkeys((".arrow", ".ipc", ".feather"), pl.read_ipc),
        **dict.fromkeys(_JSON_LINES, pl.read_ndjson),
        ".avro": read_avro_file,
        ".csv": partial(pl.read_csv, try_parse_dates=True, schema_overrides=texts, infer_schema_length=10_000),
    }
    path = Path(table)
    if path.suffix not in readers:
        raise SourceError(f"{role}: {path.name!r} is of no known kind; use one of {', '.join(readers)}")
    return _opened(readers[path.suffix], path, role)


def _opened(read: Callable[[Path], pl.DataFrame], path: Path, role: str) -> pl.DataFrame:
    try:
        return read(path)
    except (OSError, DecodeError, pl.exceptions.PolarsError) as exc:
        raise SourceError(f"{role}: cannot read {path}: {exc}") from exc


def _chunks(
    history: Mapping[type[Event], pl.DataFrame], spine: pl.DataFrame, view: str, chunk_rows: int
) -> Iterator[tuple[dict[type[Event], pl.DataFrame], pl.DataFrame]]:
    """Cut sorted history and spine at common times: events before a cut go with the spine rows up to and at it."""
    event_us = {event: _times(frame, event) for event, frame in history.items()}
    spine_us = spine_times(spine, view)
    merged = np.sort(np.concatenate([spine_us, *event_us.values()]))
    cuts = [*np.unique(merged[chunk_rows::chunk_rows]).tolist(), None]
    taken, answered = dict.fromkeys(history, 0), 0
    for cut in cuts:
        chunk = {}
        for event, frame in history.items():
            end = frame.height if cut is None else int(np.searchsorted(event_us[event], cut, "left"))
            chunk[event] = frame[taken[event] : end]
            taken[event] = end
        end = spine.height if cut is None else int(np.searchsorted(spine_us, cut, "right"))
        yield chunk, spine[answered:end]
        answered = end


def _times(frame: pl.DataFrame, event: type[Event]) -> NDArray[np.int64]:
    return (
        frame.select(pl.col(spec_of(event).time).cast(pl.Datetime("us")).cast(pl.Int64))
        .to_series()
        .to_numpy(writable=True)
    )
