"""Checks a store against its log: replays the log up to the store's offsets and compares, feature by feature.

A shard's offsets define exactly which rows its records include: row r of partition p is included iff its offset is
below the shard's next offset of p, and not below the first one, where the store knows it. The replay applies those rows
to an empty slab, in any order; with `dedupe=` in the order of each partition, so that a duplicate that came after the
dedupe span counts, as it did in the store. Both sides are then read as of the same moment by the code that serves.
Floats may differ by `TOLERANCE`, since sums depend on order; all other values must be equal.

    snapshot of the records that a scan finds, with each shard's offsets --> log, batch by batch, up to these offsets
    entities of the log that the scan did not show: lost, or written since --> the same again, for these only

The log is read after the snapshot, so that it has every row below the offsets. It is never in memory as a whole (except
the rows of views with `dedupe=`). If an archive ends before the store's offsets, entities with newer events than the
archive's are left out and counted.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import StoreError
from headrace.features.event_rows import Rows, concat_rows
from headrace.features.keys import entity_ids, ids_of_texts, shard_of
from headrace.features.state.record import read_packed
from headrace.features.state.slab import Slab
from headrace.features.store.reader import entity_frame
from headrace.features.store.store import SNAPSHOT_KEYS_MAX, OnlineStore
from headrace.features.view import FeatureView, ViewPlan, plans_of
from headrace.history.batches import Log, batches_of
from headrace.history.coverage import Applied, LogStart, starts_of
from headrace.history.verification import Verification, both, differences
from headrace.schemas import spec_of
from headrace.schemas.quality import FUTURE_US
from headrace.streams.source import EventBatch, Origin

_SNAPSHOT_TRIES = 10


def verify(
    view: type[FeatureView],
    events: Log,
    store: OnlineStore,
    *,
    keys: pl.DataFrame | Mapping[str, Sequence[Any]] | Sequence[Any] | None = None,
    now_us: int | None = None,
    future_us: int | None = FUTURE_US,
) -> Verification:
    """Compare the store with a replay of `events` up to each shard's offsets.

    `keys` are the entities to compare, in any form that `OnlineStore.read` takes; None: all in the log or the store.
    `now_us` is the moment as of which both sides are read; None: just after the newest replayed event. `future_us` is
    the live flow's (HEADRACE_FUTURE_S): an event that was further ahead of the clock when it was appended may have
    become a dead letter, so its entity is left out; None: events follow another clock than the broker's. The store may
    be written to meanwhile: each shard is read as of one moment.

    Raises:
        LayoutError: readers get another version of the view.
        StoreUnavailableError: Redis does not answer.
        StoreError: a shard changes faster than it can be read (stop its engine, or give `keys`), or the store has never
            read a partition of this log, or began before the log does.
        SchemaError: `events` lacks offsets, or the view does not read it.
    """
    return verify_all([view], events, store, keys=keys, now_us=now_us, future_us=future_us)[0]


def verify_all(
    views: Sequence[type[FeatureView]],
    events: Log,
    store: OnlineStore,
    *,
    keys: pl.DataFrame | Mapping[str, Sequence[Any]] | Sequence[Any] | None = None,
    now_us: int | None = None,
    future_us: int | None = FUTURE_US,
) -> list[Verification]:
    """Verify several views in one pass over the log; see `verify`.

    Raises:
        as `verify`.
    """
    plans = plans_of(views, "verify")
    for plan in plans:
        store.require_active(plan)
    log = batches_of(plans, events)
    given = [None if keys is None else entity_ids(plan, entity_frame(plan, keys))[1] for plan in plans]
    ends = getattr(log, "ends", {})
    checks = [
        _Check.of_store(plan, store, texts, now_us, future_us, ends) for plan, texts in zip(plans, given, strict=True)
    ]
    start = _replay(log, checks)
    for check in checks:
        _require_known(check, start.seen, store)
        _require_covered(check, start)
    results = [check.result() for check in checks]
    for result in results:
        _require_compared(result)
    again = {
        place: _Check.of_store(check.plan, store, texts, check.at_us, future_us, ends)
        for place, check in enumerate(checks)
        if (texts := check.unseen())
    }
    _replay(log, list(again.values()))
    return [both(result, again[place].result()) if place in again else result for place, result in enumerate(results)]


def compare(
    plan: ViewPlan,
    offsets: Mapping[str, int],
    texts: Sequence[bytes],
    blobs: Sequence[bytes | None],
    events: Log,
    now_us: int | None = None,
) -> Verification:
    """Compare one `OnlineStore.snapshot`, taken at any earlier moment, with a replay of the log up to its offsets.

    `texts` are distinct entities of one shard, `blobs` their records at that moment and `offsets` the shard's.

    Raises:
        SchemaError: `events` lacks offsets, or the view does not read it.
    """
    limits = {partition: np.array([next_offset]) for partition, next_offset in offsets.items()}
    check = _Check(plan, list(texts), list(blobs), limits, now_us, is_closed=True)
    _replay(batches_of([plan], events), [check])
    return check.result()


class _Check:
    """The check of one view: a snapshot of its records, and a slab that the log is replayed into.

    `limits`: partition -> next offset of each shard (shards,). `starts`: partition of a topic -> first offset that each
    shard has applied (shards,), -1 if it is not known. `is_closed`: rows of other entities are ignored.
    `ends`: partition -> next offset at which the log ends, if it may end before the store's offsets.
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
        starts: Mapping[str, NDArray[np.int64]] | None = None,
        ends: Mapping[str, int] | None = None,
    ) -> None:
        self.plan = plan
        self.starts = starts or {}
        self._ends = {name: end for name, end in (ends or {}).items() if name in limits}
        self._begins: dict[str, int] = {}
        self.limits = limits
        self._texts, self._blobs, self._is_closed = texts, blobs, is_closed
        self._ids = ids_of_texts(plan, texts)
        self._slab = Slab(plan)
        self._kept: list[tuple[str, NDArray[np.int64], Rows]] = []
        self._rows, self._waiting, self._earlier, self._failed, self._newest_us = 0, 0, 0, 0, 0
        self._at_us = at_us
        self._future_us: int | None = FUTURE_US
        self._ahead: list[NDArray[np.int64]] = []  # entities of events that may have been dead letters

    @classmethod
    def of_store(
        cls,
        plan: ViewPlan,
        store: OnlineStore,
        given: Sequence[bytes] | None,
        at_us: int | None,
        future_us: int | None,
        ends: Mapping[str, int],
    ) -> "_Check":
        """Build a check of the records that the store has now, of the entities `given` or of all that a scan finds."""
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
        starts = starts_of(store.fences(plan, range(store.shards)))
        check = cls(plan, texts, blobs, limits, at_us, is_closed=given is not None, starts=starts, ends=ends)
        check._future_us = future_us
        return check

    @property
    def at_us(self) -> int:
        """The moment as of which both sides are read."""
        return self._newest_us + 1 if self._at_us is None else self._at_us

    def add(self, part: EventBatch) -> None:
        """Replay the rows below the shards' offsets; with `dedupe=` all at the end, in the order of a live flow."""
        rows = self.plan.rows(part.event, part.frame)
        partition, offsets = self._place_of(part)
        failed = [lost.take(self._are_applied(partition, offsets[lost.index], lost.ids)) for lost in rows.failed]
        if self._is_closed:
            rows = rows.take(np.isin(rows.ids, self._ids))
            failed = [lost.take(np.isin(lost.ids, self._ids)) for lost in failed]
        self._failed += sum(map(len, failed))
        start, limit = self._bounds(partition, rows.ids)
        if part.origin is not None and partition == part.origin.partition:
            self._require_told(part.origin, rows, limit)
            self._require_told(part.origin, rows, start)
        self._begins[partition] = min(int(offsets.min()), self._begins.get(partition, int(offsets.min())))
        is_early, is_late = offsets[rows.index] < start, offsets[rows.index] >= limit
        self._waiting += int(np.count_nonzero(is_late))
        self._earlier += int(np.count_nonzero(is_early))
        counts = ~(is_early | is_late)
        rows = rows if counts.all() else rows.take(counts)
        if not len(rows):
            return
        if part.appended_us is not None and self._future_us is not None:
            self._ahead.append(np.unique(rows.ids[rows.time_us > part.appended_us[rows.index] + self._future_us]))
        self._rows += len(rows)
        self._newest_us = max(self._newest_us, int(rows.time_us.max()))
        if self.plan.layout.dedupe_us:
            self._kept.append((partition, offsets[rows.index], rows))
        else:
            self._slab.update(rows)

    def result(self) -> Verification:
        """Compare the entities of the snapshot."""
        if self._kept:
            self._slab.update(_side_by_side(self._kept))
            self._kept = []
        expected = self._slab.read(self._slab.locate(self._ids), self.at_us)
        stored = read_packed(self.plan, self._ids, self._texts, self._blobs, self.at_us)
        expired = expected.found & ~stored.found if self.plan.ttl_us else np.zeros(self._ids.size, np.bool_)
        newer = self._is_beyond() & stored.found & (~expected.found | (stored.age_us < expected.age_us))
        ahead = np.isin(self._ids, np.concatenate([np.empty(0, np.int64), *self._ahead])) & ~(expired | newer)
        features, examples = differences(expected, stored, self._texts, ~(expired | newer | ahead))
        return Verification(
            view=self.plan.name,
            entities=self._ids.size,
            rows=self._rows,
            waiting=self._waiting,
            earlier=self._earlier,
            expired=int(expired.sum()),
            offsets={partition: int(limit.min()) for partition, limit in sorted(self.limits.items())},
            features=features,
            examples=examples,
            failed=self._failed,
            beyond=sum(max(int(self.limits[name].max()) - end, 0) for name, end in self._ends.items()),
            newer=int(newer.sum()),
            ahead=int(ahead.sum()),
            begins={name: first for name, first in sorted(self._begins.items()) if first and name in self.limits},
        )

    def _bounds(self, partition: str, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first and the next offset that the shard of each entity (n,) has applied: (n,) each."""
        limit = self.limits.get(partition, np.zeros(1, np.int64))
        start = self.starts.get(partition, np.full(1, -1))
        return start[shard_of(ids, start.size)], limit[shard_of(ids, limit.size)]

    def _are_applied(self, partition: str, offsets: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether the shards of entities (n,) have applied their rows at `offsets` (n,): (n,)."""
        start, limit = self._bounds(partition, ids)
        return (start <= offsets) & (offsets < limit)

    def _place_of(self, part: EventBatch) -> tuple[str, NDArray[np.int64]]:
        """Return the partition and offsets by which the store knows rows: those of their file, else of their topic."""
        if part.origin is None or part.partition in self.limits:
            return part.partition, part.offsets
        return part.origin.partition, part.origin.offsets

    def _require_told(self, origin: Origin, rows: Rows, limit: NDArray[np.int64]) -> None:
        """Check that the archive tells for each row whether it is below an offset of its shard, `limit` (n,).

        Raises:
            StoreError: it does not.
        """
        last = origin.offsets[rows.index]
        if origin.first is not None and ((origin.first < limit) & (limit <= last)).any():
            raise StoreError(
                f"view {self.plan.name}: a shard has applied {origin.partition} up to offset {int(limit.min())}, amid "
                f"rows {origin.first} to {int(last.max())} of a file that was archived without their offsets: verify "
                "again once the store is past them, or with the topic as the log"
            )

    def _is_beyond(self) -> NDArray[np.bool_]:
        """Return whether the shard of each entity of the snapshot has applied rows past the log's end: (n,)."""
        beyond = np.zeros(self._ids.size, np.bool_)
        for name, end in self._ends.items():
            limit = self.limits[name]
            beyond |= (limit > end)[shard_of(self._ids, limit.size)]
        return beyond

    def unseen(self) -> list[bytes]:
        """Return the entities that were replayed but are not in the snapshot."""
        rows = self._slab.rows()
        return list(self._slab.texts(rows[~np.isin(self._slab.ids(rows), self._ids)]))


def _replay(log: Iterable[EventBatch], checks: Sequence[_Check]) -> LogStart:
    """Feed the log to all checks; return where it begins."""
    start = LogStart()
    for part in log if checks else ():
        start.add(part)
        for check in checks:
            if part.event in check.plan.sources and part.frame.height:
                check.add(part)
    return start


def _require_covered(check: _Check, log: LogStart) -> None:
    """Raise if records hold rows that the log does not go back to: any entity might differ, and rightly."""
    known = {name: start[check.limits[name] > 0] for name, start in check.starts.items() if name in check.limits}
    starts = {name: int(start.min()) for name, start in known.items() if start.size and start.min() >= 0}
    topics = [spec_of(event).topic for event in check.plan.sources]
    reached = {name: int(limit.max()) for name, limit in check.limits.items()}
    if lacking := Applied(topics, reached, starts).lacking(log):
        raise StoreError(
            f"view {check.plan.name}: {lacking}: what came before may be in the records and cannot be replayed, so "
            "nothing can be compared. Give a log that goes back further, as the archive beside the topic, --events "
            "archive/ --events kafka://HOST:PORT, and all files; or build the view anew from what there is, with "
            "`headrace backfill` into another namespace"
        )


def _require_known(check: _Check, seen: set[str], store: OnlineStore) -> None:
    """Raise if the store has read no partition of the log: nothing would be compared, so nothing would differ."""
    if seen and not seen & check.limits.keys():
        partitions = ", ".join(sorted(check.limits)) or "nothing at all"
        raise StoreError(
            f"view {check.plan.name} · version {check.plan.version} in {store.url}: the store has never read "
            f"{', '.join(sorted(seen))} of this log; it has read {partitions}. Check store, namespace and log, or fill "
            "it with `headrace materialize` or `headrace backfill`"
        )


def _require_compared(result: Verification) -> None:
    """Raise if every entity was left out of the comparison."""
    if result.newer and result.newer + result.expired == result.entities:
        raise StoreError(
            f"view {result.view}: the store has applied {result.beyond:,} offsets past the log's end, and all its "
            f"{result.entities:,} entities have newer events than the log: nothing can be compared. Archive further, "
            "or give the topic beside the archive, --events archive/ --events kafka://HOST:PORT"
        )


def _steady_snapshot(
    plan: ViewPlan, store: OnlineStore, shard: int, texts: Sequence[bytes]
) -> tuple[dict[str, int], list[bytes | None]]:
    """Read the offsets of a shard and the records of any number of its keys, as of one moment."""
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


def _side_by_side(parts: Sequence[tuple[str, NDArray[np.int64], Rows]]) -> Rows:
    """Put all rows in one order: each partition by offset, and partitions merged by event time, as in a live flow."""
    by_partition: dict[str, list[tuple[NDArray[np.int64], Rows]]] = {}
    for partition, offsets, rows in parts:
        by_partition.setdefault(partition, []).append((offsets, rows))
    ordered = []
    for batches in by_partition.values():
        order = np.argsort(np.concatenate([offsets for offsets, _ in batches]), kind="stable")
        ordered.append(concat_rows([rows for _, rows in batches]).take(order))
    moments = [np.maximum.accumulate(rows.time_us) for rows in ordered]
    return concat_rows(ordered).take(np.argsort(np.concatenate(moments), kind="stable"))
