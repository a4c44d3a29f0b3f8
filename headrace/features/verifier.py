"""Does the store hold what the log says? Replay the log up to the store's offsets and compare, feature by feature.

A shard's offsets say exactly which rows its records are made of: row r of partition p counts iff r's offset is below
the shard's next offset of p. The replay applies those rows, in any order, to an empty slab (with `dedupe=` in the
order of each partition: a duplicate that came after the span counted there and counts here); both sides are then read
as of the same moment by the same code that serves. Floats may differ by `TOLERANCE`, since sums depend on order; all
else is equal.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import SchemaError, StoreError
from headrace.features.answer import NEVER, Answer, Column, Lists
from headrace.features.event_rows import Rows, concat_rows
from headrace.features.keys import entity_ids, ids_of_texts, shard_of
from headrace.features.reader import entity_frame
from headrace.features.record import read_packed
from headrace.features.slab import Slab
from headrace.features.store import SNAPSHOT_KEYS_MAX, OnlineStore
from headrace.features.view import FeatureView, ViewPlan, plan_of
from headrace.schemas import Event

TOLERANCE = 1e-9
"""Relative and absolute difference up to which floats count as equal."""

EXAMPLES_MAX = 20
"""Differences that a report shows."""

_SNAPSHOT_TRIES = 10


class LogBatch(Protocol):
    """Rows of one partition with their offsets: what `pipelines.EventBatch` is."""

    @property
    def event(self) -> type[Event]: ...  # noqa: D102
    @property
    def partition(self) -> str: ...  # noqa: D102
    @property
    def offsets(self) -> NDArray[np.int64]: ...  # noqa: D102
    @property
    def frame(self) -> pl.DataFrame: ...  # noqa: D102


Log = pl.DataFrame | Mapping[type[Event], pl.DataFrame] | Iterable[LogBatch]
"""A log: batches, or a frame an event class (one frame for a view of one source) with `_partition` and `_offset`."""


@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """Outcome of a comparison.

    `features`: one row a feature: `feature`, `checked` (entities), `mismatches`. `examples`: up to `EXAMPLES_MAX`
    differences: `key`, `feature`, `expected` (replayed), `found` (stored), as text. `rows`: log rows replayed.
    `expired`: entities left out because the view has a ttl and Redis has let them go.
    """

    view: str
    entities: int
    rows: int
    expired: int
    features: pl.DataFrame
    examples: pl.DataFrame

    @property
    def mismatches(self) -> int:
        """Differing values, over all features."""
        return int(self.features["mismatches"].sum())

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return self.mismatches == 0


def verify(
    view: type[FeatureView],
    events: Log,
    store: OnlineStore,
    *,
    keys: pl.DataFrame | Mapping[str, Sequence[Any]] | Sequence[Any] | None = None,
    now_us: int | None = None,
) -> Verification:
    """Compare the store with a replay of `events` up to each shard's offsets.

    `keys` are the entities to compare, in any form that `OnlineStore.read` takes; None: all that the log or the store
    has. `now_us` is the moment both sides are read as of; None: just after the newest event that was replayed. The
    store may be written to meanwhile: each shard is taken at one moment.

    Raises:
        StoreUnavailableError: Redis does not answer.
        StoreError: a shard moves on faster than it can be read; stop its engine, or give `keys`.
        SchemaError: `events` lacks offsets or is of no event of the view.
    """
    plan = plan_of(view)
    log = _log(plan, events)
    texts = _texts_of(plan, log, store) if keys is None else entity_ids(plan, entity_frame(plan, keys))[1]
    texts = list(dict.fromkeys(texts))
    ids = ids_of_texts(plan, texts)
    shards = shard_of(ids, store.shards)
    limits: dict[str, NDArray[np.int64]] = {}
    blobs: list[bytes | None] = [None] * len(texts)
    for shard in range(store.shards):
        members = np.flatnonzero(shards == shard)
        offsets, records = _steady_snapshot(plan, store, shard, [texts[index] for index in members])
        for partition, next_offset in offsets.items():
            limits.setdefault(partition, np.zeros(store.shards, np.int64))[shard] = next_offset
        for index, record in zip(members, records, strict=True):
            blobs[index] = record
    return _compared(
        plan, log, (ids, texts, blobs), now_us, lambda rows, partition: _below(rows.ids, limits, partition, store)
    )


def compare(
    plan: ViewPlan,
    offsets: Mapping[str, int],
    texts: Sequence[bytes],
    blobs: Sequence[bytes | None],
    events: Log,
    now_us: int | None = None,
) -> Verification:
    """Compare one `OnlineStore.snapshot`, taken at any earlier moment, with a replay of the log up to its offsets.

    `texts` are entities of one shard, each once, `blobs` their records at that moment and `offsets` the shard's.

    Raises:
        SchemaError: `events` lacks offsets or is of no event of the view.
    """
    limits = {partition: np.int64(next_offset) for partition, next_offset in offsets.items()}
    entities = (ids_of_texts(plan, texts), list(texts), list(blobs))
    return _compared(
        plan, _log(plan, events), entities, now_us, lambda _rows, partition: limits.get(partition, np.int64(0))
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Log rows of one partition: `offsets` (frame rows,)."""

    event: type[Event]
    partition: str
    offsets: NDArray[np.int64]
    frame: pl.DataFrame


def _log(plan: ViewPlan, events: Log) -> list[_Part]:
    if isinstance(events, pl.DataFrame):
        if len(plan.sources) != 1:
            names = ", ".join(event.__name__ for event in plan.sources)
            raise SchemaError(f"view {plan.name} has several sources: give a frame for each, as a dict of {names}")
        events = {plan.sources[0]: events}
    if not isinstance(events, Mapping):
        batches = [batch for batch in events if batch.event in plan.sources]
        return [_Part(batch.event, batch.partition, batch.offsets, batch.frame) for batch in batches]
    parts = []
    for event, frame in events.items():
        if event not in plan.sources:
            raise SchemaError(f"view {plan.name} does not read {event.__name__}")
        lacking = [name for name in ("_partition", "_offset") if name not in frame.columns]
        if lacking:
            raise SchemaError(
                f"log of {event.__name__}: column {' and '.join(lacking)} is missing; they say which rows count"
            )
        for (partition,), part in frame.partition_by("_partition", as_dict=True, maintain_order=True).items():
            offsets = part["_offset"].cast(pl.Int64).to_numpy()
            parts.append(_Part(event, str(partition), offsets, part.drop("_partition", "_offset")))
    return parts


def _texts_of(plan: ViewPlan, log: Sequence[_Part], store: OnlineStore) -> list[bytes]:
    texts = {text for text, _ in store.scan(plan)}
    for part in log:
        rows = plan.rows(part.event, part.frame)
        first = np.unique(rows.ids, return_index=True)[1]
        texts.update(rows.texts(first))
    return sorted(texts)


def _steady_snapshot(
    plan: ViewPlan, store: OnlineStore, shard: int, texts: Sequence[bytes]
) -> tuple[dict[str, int], list[bytes | None]]:
    """The records of any number of keys at one moment of their shard."""
    for _ in range(_SNAPSHOT_TRIES):
        records: list[bytes | None] = []
        moments = []
        for start in range(0, max(len(texts), 1), SNAPSHOT_KEYS_MAX):
            offsets, part = store.snapshot(plan, shard, texts[start : start + SNAPSHOT_KEYS_MAX])
            records += part
            moments.append(offsets)
        if all(moment == moments[0] for moment in moments):
            return moments[0], records
    raise StoreError(f"view {plan.name} · shard {shard}: it moves on while it is read; stop its engine, or give keys")


def _below(
    ids: NDArray[np.int64], limits: Mapping[str, NDArray[np.int64]], partition: str, store: OnlineStore
) -> NDArray[np.int64] | np.int64:
    if partition not in limits:
        return np.int64(0)
    return limits[partition][shard_of(ids, store.shards)]


def _compared(
    plan: ViewPlan,
    log: Sequence[_Part],
    entities: tuple[NDArray[np.int64], list[bytes], list[bytes | None]],
    now_us: int | None,
    limit: Callable[[Rows, str], NDArray[np.int64] | np.int64],
) -> Verification:
    """Replay the rows of the entities whose offset is below `limit`, and compare."""
    ids, texts, blobs = entities
    slab, row_count, newest_us = Slab(plan), 0, 0
    for rows in _replayed(plan, log, ids, limit):
        row_count += len(rows)
        newest_us = max(newest_us, int(rows.time_us.max()))
        slab.update(rows)
    at_us = newest_us + 1 if now_us is None else now_us
    expected = slab.read(slab.locate(ids), at_us)
    found = read_packed(plan, ids, texts, blobs, at_us)
    expired = expected.found & ~found.found if plan.ttl_us else np.zeros(ids.size, np.bool_)
    features, examples = _differences(expected, found, texts, ~expired)
    return Verification(plan.name, ids.size, row_count, int(expired.sum()), features, examples)


def _replayed(
    plan: ViewPlan,
    log: Sequence[_Part],
    ids: NDArray[np.int64],
    limit: Callable[[Rows, str], NDArray[np.int64] | np.int64],
) -> Iterator[Rows]:
    """The rows that count of the entities `ids`; those of a view with `dedupe=` in one piece, as a flow takes them."""
    kept: list[tuple[str, Rows]] = []
    for part in log:
        rows = plan.rows(part.event, part.frame)
        rows = rows.take(np.isin(rows.ids, ids) & (part.offsets[rows.index] < limit(rows, part.partition)))
        if not len(rows):
            continue
        if plan.layout.dedupe_us:
            kept.append((part.partition, rows))
        else:
            yield rows
    if kept:
        yield _side_by_side(kept)


def _side_by_side(parts: Sequence[tuple[str, Rows]]) -> Rows:
    """All rows in one order: each partition's own, and the partitions abreast in event time, as a flow reads them."""
    reached: dict[str, int] = {}
    moments = []
    for partition, rows in parts:
        moments.append(np.maximum.accumulate(np.maximum(rows.time_us, reached.get(partition, NEVER))))
        reached[partition] = int(moments[-1][-1])
    order = np.argsort(np.concatenate(moments), kind="stable")
    return concat_rows([rows for _, rows in parts]).take(order)


def _differences(
    expected: Answer, found: Answer, texts: Sequence[bytes], counted: NDArray[np.bool_]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    features: list[tuple[str, int, int]] = []
    examples: list[tuple[str, str, str, str]] = []
    shown: tuple[pl.DataFrame, pl.DataFrame] | None = None
    for name, column in expected.columns.items():
        differs = _differs(column, found.columns[name]) | (expected.found != found.found)
        if name in expected.empty:
            differs |= expected.empty[name] != found.empty[name]
        differs &= counted
        features.append((name, int(counted.sum()), int(differs.sum())))
        for index in np.flatnonzero(differs)[: EXAMPLES_MAX - len(examples)]:
            shown = shown or (expected.to_polars(), found.to_polars())
            sides = (
                str(frame[name][int(index)]) if answer.found[index] else "missing"
                for answer, frame in zip((expected, found), shown, strict=True)
            )
            examples.append((texts[index].decode(errors="replace"), name, *sides))
    return (
        pl.DataFrame(features, {"feature": pl.String, "checked": pl.Int64, "mismatches": pl.Int64}, orient="row"),
        pl.DataFrame(examples, dict.fromkeys(("key", "feature", "expected", "found"), pl.String), orient="row"),
    )


def _differs(ours: Column, theirs: Column) -> NDArray[np.bool_]:
    """Where two columns (n,) differ; lists are compared element by element up to their length."""
    if isinstance(ours, Lists) and isinstance(theirs, Lists):
        inside = np.arange(ours.values.shape[1]) < ours.lengths[:, None]
        unequal = np.any(_unequal(ours.values, theirs.values) & inside, axis=1)
        return np.asarray(unequal | (ours.lengths != theirs.lengths), np.bool_)
    assert isinstance(ours, np.ndarray)
    assert isinstance(theirs, np.ndarray)
    return _unequal(ours, theirs)


def _unequal(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.bool_]:
    if ours.dtype.kind == "f":
        return np.asarray(~np.isclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True), np.bool_)
    return np.asarray(ours != theirs, np.bool_)
