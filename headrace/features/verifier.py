"""Does the store hold what the log says? Replay the log up to the store's offsets and compare, feature by feature.

A shard's offsets say exactly which rows its records are made of: row r of partition p counts iff r's offset is below
the shard's next offset of p. The replay applies those rows, in any order, to an empty slab (with `dedupe=` in the
order of each partition: a duplicate that came after the span counted there and counts here); both sides are then read
as of the same moment by the same code that serves. Floats may differ by `TOLERANCE`, since sums depend on order; all
else is equal.

    snapshot of the records that a scan finds, with each shard's offsets --> log, batch by batch, up to these offsets
    entities of the log that the scan did not show: lost, or written since --> the same again for them alone

The log is read after the snapshot, so that it holds every row below the offsets, and is never in memory as a whole
(but for the rows of views with `dedupe=`).
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from headrace.features.view import FeatureView, ViewPlan, plans_of
from headrace.schemas import Event

TOLERANCE = 1e-9
"""Relative and absolute difference up to which floats count as equal."""

EXAMPLES_MAX = 20
"""Differences that a report shows."""

_SNAPSHOT_TRIES = 10
_FIGURES = ("view", "entities", "rows", "waiting", "expired", "failed", "offsets")


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
"""A log: batches, or a frame an event class (one frame for a view of one source) with `_partition` and `_offset`.
Batches are asked for once or twice."""


@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """Outcome of a comparison.

    `features`: one row a feature: `feature`, `checked` (entities), `mismatches`. `examples`: up to `EXAMPLES_MAX`
    differences: `key`, `feature`, `expected` (replayed), `found` (stored), as text. `rows`: log rows replayed;
    `waiting`: rows of the log that the store has not applied yet; `offsets`: partition -> next offset that every shard
    has applied. `expired`: entities left out because the view has a ttl and Redis has let them go. `failed`: log rows
    left out, as the flow leaves them out, since an expression of the view has no value for them.
    """

    view: str
    entities: int
    rows: int
    waiting: int
    expired: int
    offsets: dict[str, int]
    features: pl.DataFrame
    examples: pl.DataFrame
    failed: int = 0

    @property
    def mismatches(self) -> int:
        """Differing values, over all features."""
        return int(self.features["mismatches"].sum())

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return self.mismatches == 0

    def as_dict(self) -> dict[str, Any]:
        """All of it, plain enough for JSON."""
        figures = {name: getattr(self, name) for name in _FIGURES}
        tables = {"features": self.features.to_dicts(), "examples": self.examples.to_dicts()}
        return {**figures, "mismatches": self.mismatches, **tables}


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
        LayoutError: readers get another version of the view.
        StoreUnavailableError: Redis does not answer.
        StoreError: a shard moves on faster than it can be read: stop its engine, or give `keys`. Or the store has never
            read a partition of this log.
        SchemaError: `events` lacks offsets or is of no event of the view.
    """
    return verify_all([view], events, store, keys=keys, now_us=now_us)[0]


def verify_all(
    views: Sequence[type[FeatureView]],
    events: Log,
    store: OnlineStore,
    *,
    keys: pl.DataFrame | Mapping[str, Sequence[Any]] | Sequence[Any] | None = None,
    now_us: int | None = None,
) -> list[Verification]:
    """`verify` of several views in one pass over the log.

    Raises:
        as `verify`.
    """
    plans = plans_of(views, "verify")
    for plan in plans:
        store.require_active(plan)
    log = _log(plans, events)
    given = [None if keys is None else entity_ids(plan, entity_frame(plan, keys))[1] for plan in plans]
    checks = [_Check.of_store(plan, store, texts, now_us) for plan, texts in zip(plans, given, strict=True)]
    seen = _replay(log, checks)
    for check in checks:
        _require_known(check, seen, store)
    results = [check.result() for check in checks]
    again = {
        place: _Check.of_store(check.plan, store, texts, check.at_us)
        for place, check in enumerate(checks)
        if (texts := check.unseen())
    }
    _replay(log, list(again.values()))
    return [_both(result, again[place].result()) if place in again else result for place, result in enumerate(results)]


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
    limits = {partition: np.array([next_offset]) for partition, next_offset in offsets.items()}
    check = _Check(plan, list(texts), list(blobs), limits, now_us, is_closed=True)
    _replay(_log([plan], events), [check])
    return check.result()


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Log rows of one partition: `offsets` (frame rows,)."""

    event: type[Event]
    partition: str
    offsets: NDArray[np.int64]
    frame: pl.DataFrame


class _Check:
    """One view at work: a snapshot of its records, and a slab that the log is replayed into.

    `limits`: partition -> next offset of each shard (shards,). `is_closed`: rows of other entities are passed over.
    """

    def __init__(
        self,
        plan: ViewPlan,
        texts: list[bytes],
        blobs: list[bytes | None],
        limits: Mapping[str, NDArray[np.int64]],
        at_us: int | None,
        *,
        is_closed: bool,
    ) -> None:
        self.plan = plan
        self.limits = limits
        self._texts, self._blobs, self._is_closed = texts, blobs, is_closed
        self._ids = ids_of_texts(plan, texts)
        self._slab = Slab(plan)
        self._kept: list[tuple[str, Rows]] = []
        self._rows, self._waiting, self._failed, self._newest_us = 0, 0, 0, 0
        self._at_us = at_us

    @classmethod
    def of_store(cls, plan: ViewPlan, store: OnlineStore, given: Sequence[bytes] | None, at_us: int | None) -> "_Check":
        """With the records that the store holds now, of the entities `given` or all that a scan finds."""
        texts = list(dict.fromkeys((text for text, _ in store.scan(plan)) if given is None else given))
        shards = shard_of(ids_of_texts(plan, texts), store.shards)
        limits: dict[str, NDArray[np.int64]] = {}
        blobs: list[bytes | None] = [None] * len(texts)
        for shard in range(store.shards):
            members = np.flatnonzero(shards == shard)
            offsets, records = _steady_snapshot(plan, store, shard, [texts[index] for index in members])
            for partition, next_offset in offsets.items():
                limits.setdefault(partition, np.zeros(store.shards, np.int64))[shard] = next_offset
            for index, record in zip(members, records, strict=True):
                blobs[index] = record
        return cls(plan, texts, blobs, limits, at_us, is_closed=given is not None)

    @property
    def at_us(self) -> int:
        """The moment that both sides are read as of."""
        return self._newest_us + 1 if self._at_us is None else self._at_us

    def add(self, part: LogBatch) -> None:
        """Replay the rows that count; those of a view with `dedupe=` in one piece at the end, as a flow takes them."""
        rows = self.plan.rows(part.event, part.frame)
        failed = [found.take(self._are_applied(part, found.index, found.ids)) for found in rows.failed]
        if self._is_closed:
            rows = rows.take(np.isin(rows.ids, self._ids))
            failed = [found.take(np.isin(found.ids, self._ids)) for found in failed]
        self._failed += sum(map(len, failed))
        counts = self._are_applied(part, rows.index, rows.ids)
        self._waiting += int(np.count_nonzero(~counts))
        rows = rows if counts.all() else rows.take(counts)
        if not len(rows):
            return
        self._rows += len(rows)
        self._newest_us = max(self._newest_us, int(rows.time_us.max()))
        if self.plan.layout.dedupe_us:
            self._kept.append((part.partition, rows))
        else:
            self._slab.update(rows)

    def _are_applied(self, part: LogBatch, index: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) whether the shard of each row's entity has applied it."""
        limit = self.limits.get(part.partition, np.zeros(1, np.int64))
        return np.asarray(part.offsets[index] < limit[shard_of(ids, limit.size)], np.bool_)

    def result(self) -> Verification:
        """The comparison, of the entities of the snapshot."""
        if self._kept:
            self._slab.update(_side_by_side(self._kept))
            self._kept = []
        expected = self._slab.read(self._slab.locate(self._ids), self.at_us)
        found = read_packed(self.plan, self._ids, self._texts, self._blobs, self.at_us)
        expired = expected.found & ~found.found if self.plan.ttl_us else np.zeros(self._ids.size, np.bool_)
        features, examples = _differences(expected, found, self._texts, ~expired)
        return Verification(
            view=self.plan.name,
            entities=self._ids.size,
            rows=self._rows,
            waiting=self._waiting,
            expired=int(expired.sum()),
            offsets={partition: int(limit.min()) for partition, limit in sorted(self.limits.items())},
            features=features,
            examples=examples,
            failed=self._failed,
        )

    def unseen(self) -> list[bytes]:
        """Entities that were replayed and are not in the snapshot."""
        rows = self._slab.rows()
        return list(self._slab.texts(rows[~np.isin(self._slab.ids(rows), self._ids)]))


def _replay(log: Iterable[LogBatch], checks: Sequence[_Check]) -> set[str]:
    """Bring the log into each check; the partitions that had rows."""
    seen = set()
    for part in log if checks else ():
        for check in checks:
            if part.event in check.plan.sources and part.frame.height:
                check.add(part)
                seen.add(part.partition)
    return seen


def _require_known(check: _Check, seen: set[str], store: OnlineStore) -> None:
    """Else nothing would be compared, and nothing differ."""
    if seen and not seen & check.limits.keys():
        held = f"it has read {', '.join(sorted(check.limits))}" if check.limits else "it has read nothing at all"
        raise StoreError(
            f"view {check.plan.name} · version {check.plan.version} in {store.url}: the store has never read "
            f"{', '.join(sorted(seen))} of this log; {held}. Check store, namespace and log, or fill it with "
            "`headrace materialize` or `headrace backfill`"
        )


def _both(first: Verification, rest: Verification) -> Verification:
    """The verification of some entities, and that of others, which replayed some of the same rows."""
    features = first.features.with_columns(
        checked=first.features["checked"] + rest.features["checked"],
        mismatches=first.features["mismatches"] + rest.features["mismatches"],
    )
    return dataclasses.replace(
        first,
        entities=first.entities + rest.entities,
        expired=first.expired + rest.expired,
        features=features,
        examples=pl.concat([first.examples, rest.examples])[:EXAMPLES_MAX],
    )


def _log(plans: Sequence[ViewPlan], events: Log) -> Iterable[LogBatch]:
    if isinstance(events, pl.DataFrame):
        [plan] = plans
        if len(plan.sources) != 1:
            names = ", ".join(event.__name__ for event in plan.sources)
            raise SchemaError(f"view {plan.name} has several sources: give a frame for each, as a dict of {names}")
        events = {plan.sources[0]: events}
    if not isinstance(events, Mapping):
        return list(events) if isinstance(events, Iterator) else events
    parts: list[LogBatch] = []
    for event, frame in events.items():
        if not any(event in plan.sources for plan in plans):
            raise SchemaError(f"view {', '.join(plan.name for plan in plans)} does not read {event.__name__}")
        lacking = [name for name in ("_partition", "_offset") if name not in frame.columns]
        if lacking:
            raise SchemaError(
                f"log of {event.__name__}: column {' and '.join(lacking)} is missing; they say which rows count"
            )
        for (partition,), part in frame.partition_by("_partition", as_dict=True, maintain_order=True).items():
            offsets = part["_offset"].cast(pl.Int64).to_numpy()
            parts.append(_Part(event, str(partition), offsets, part.drop("_partition", "_offset")))
    return parts


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
