"""ShardSet: the shards of one view that one engine owns; it applies events and writes records and offsets exactly once.

    batch --> skip applied rows --> load unknown entities --> update the slab --> advance offsets
    flush --> compare the fences, write dirty records and offsets, atomically per shard

Invariant: the records and offsets of a shard in Redis are the effect of one set of events. In memory the same holds for
slab and offsets after each `apply`. A row counts for a shard iff its offset is at or past the shard's next offset of
that partition, so rows may be read again.

An event outside every window of its entity changes nothing and becomes a dead letter of the reason "too_late": one per
event and view, with the row as JSON. Events that are read again after a crash may produce a second dead letter, or be
in time if they arrive in another order. An event for which an expression of the view fails becomes a dead letter of the
reason "expression_failed"; it still counts for other views.
"""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise

import numpy as np
import polars as pl
import structlog
from numpy.typing import NDArray
from prometheus_client import Counter, Histogram

from headrace.clock import Clock, WallClock
from headrace.errors import FencedError
from headrace.features.event_rows import FailedRows, Rows, concat_rows
from headrace.features.failure_counts import count_failed_rows
from headrace.features.keys import shard_of
from headrace.features.state.operations import DUPLICATE, LATE, TOO_LATE
from headrace.features.state.slab import Slab
from headrace.features.store import OnlineStore
from headrace.features.store.fences import Packing, ShardWrite, fenced
from headrace.features.view import ViewPlan
from headrace.pipelines.shard_tables import OffsetTable, UseTable
from headrace.schemas import DeadLetters, Letters, spec_of
from headrace.streams.intake import letters_of_rows, put_aside
from headrace.streams.positions import is_live
from headrace.streams.source import EventBatch

FLUSH_SECONDS = Histogram(
    "headrace_flush_seconds",
    "Time of one flush of a view",
    ["view"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
RECORDS = Counter("headrace_records_written_total", "Records written to the store", ["view"])
APPLIED = Counter("headrace_rows_applied_total", "Event rows applied to records", ["view"])
SKIPPED = Counter("headrace_rows_skipped_total", "Event rows that a shard had applied before", ["view"])
LATE_ROWS = Counter("headrace_rows_late_total", "Event rows too old for at least one window", ["view"])
TOO_LATE_ROWS = Counter("headrace_rows_too_late_total", "Event rows that changed nothing, too old", ["view"])
DUPLICATES = Counter("headrace_rows_duplicate_total", "Event rows left out because the event came before", ["view"])
LOADED = Counter("headrace_records_loaded_total", "Records asked for on first touch", ["view"])
EVICTED = Counter("headrace_records_evicted_total", "Clean records dropped from memory", ["view"])

_NONE = np.zeros(0, np.int64)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Flushed:
    """Number of records written by a flush, and its duration."""

    records: int
    seconds: float


class ShardSet:
    """The `shards` of one view that this engine owns. Not thread-safe: one thread applies and flushes.

    `records_max` limits the records in memory (clean records are evicted, least recently used first); the entities of
    one batch always fit. `clock` tells when a view's ttl has passed; a clock ahead of Redis's only costs extra loads.
    `dead_letters` gets events that are too late for the view, or for which one of its expressions fails; without it
    they are only counted. State that survives a restart is in Redis: a new ShardSet continues from the offsets there.

    After `FencedError` the object is unusable: open a new one and replay from its positions. After
    `StoreUnavailableError` nothing is lost: call the same method again.
    """

    def __init__(
        self,
        plan: ViewPlan,
        store: OnlineStore,
        shards: Sequence[int],
        *,
        clock: Clock | None = None,
        records_max: int | None = None,
        dead_letters: DeadLetters | None = None,
    ) -> None:
        assert len(set(shards)) == len(shards) > 0, f"shards {shards}"
        self.plan = plan
        self.shards = list(shards)
        self._store = store
        self._slab = Slab(plan)
        self._clock = clock or WallClock()
        self._records_max = records_max
        self._dead_letters = dead_letters
        self._token = uuid.uuid4().hex[:16]
        self._owned = np.full(store.shards, -1, np.int64)  # shard -> row in the arrays below
        self._owned[self.shards] = np.arange(len(self.shards))
        self._load_fences()
        self._arrival_us = 0
        self._uses = UseTable()
        self._fenced = False
        self._is_active = True
        self._flush_seconds = FLUSH_SECONDS.labels(plan.name)
        self._register()

    # Offsets

    def positions(self) -> dict[str, int]:
        """Partition -> the smallest next offset over the shards, at which a source must start.

        A partition that a shard has never seen is left out: it must be read from its start.
        """
        return self._offsets.positions()

    def known(self) -> dict[str, int]:
        """Partition -> the largest next offset over the shards, also if only some shards have seen the partition."""
        return self._offsets.furthest()

    def reached(self) -> dict[str, list[int]]:
        """Partition -> the distinct next offsets of the shards that have seen it."""
        return self._offsets.reached()

    def start_at(self, positions: Mapping[str, int]) -> None:
        """Mark rows before `positions` (partition -> next offset) as applied, for the hand-over of a backfill."""
        for partition, next_offset in positions.items():
            self._offsets.advance(partition, next_offset)

    @property
    def dirty_count(self) -> int:
        """Number of records that differ from the store."""
        return len(self._slab.dirty())

    @property
    def record_count(self) -> int:
        """Number of records in memory."""
        return len(self._slab)

    # Events in

    def apply(self, *batches: EventBatch) -> None:
        """Apply the rows of batches to the records; event classes that the view does not read are ignored.

        Batches of one partition must be in the order of their offsets, without overlap. Rows of several classes are
        applied in the order of their times, not in the order of reading. All or nothing: after an error the same
        batches can be applied again.

        Raises:
            StoreUnavailableError: records of entities not in memory cannot be loaded.
            FencedError: an earlier flush was fenced, or with `records_max` the flush that makes room.
        """
        self._require_unfenced()
        ours = [batch for batch in batches if batch.event in self.plan.sources]
        new = [batch for batch in ours if self._offsets.span(batch.partition)[0] < batch.next_offset]
        if not new:
            return
        too_late, failed = self._take_in(new)
        for batch in new:
            if is_live(batch.partition, spec_of(batch.event).topic):  # files begin at their first row
                self._offsets.begin(batch.partition, int(batch.offsets.min(initial=batch.next_offset)))
            self._offsets.advance(batch.partition, batch.next_offset)
        # Last, since the batches are applied now, and must not be applied again if writing the dead letters fails.
        if count_failed_rows(self.plan.name, failed) + too_late.size and self._dead_letters is not None:
            starts = np.cumsum([0, *(batch.frame.height for batch in new)])
            for batch, (start, end) in zip(new, pairwise(starts.tolist()), strict=True):
                late = too_late_letters(self.plan.name, batch, _between(too_late, start, end))
                parts = [failed_letters(self.plan.name, batch, part, start, end) for part in failed]
                put_aside(Letters.joined([late, *parts]), self._dead_letters)

    def _take_in(self, batches: Sequence[EventBatch]) -> tuple[NDArray[np.int64], list[FailedRows]]:
        """Apply the rows of all batches; returns rows that were too late, and rows for which an expression failed."""
        rows = self._rows(batches)
        failed = list(rows.failed)
        if not self._are_new(batches):
            failed = [part.take(self._are_unapplied(part.ids, part.index, batches)) for part in failed]
            rows = self._unapplied(rows, batches)
        if not len(rows):
            return _NONE, failed
        self._uses.tick += 1
        slab_rows = self._located(rows)
        outcomes = self._slab.take_in(rows, slab_rows)
        self._count(outcomes)
        self._arrival_us = max(self._arrival_us, *(batch.arrival_us for batch in batches))
        too_late: NDArray[np.int64] = rows.index[outcomes == TOO_LATE]
        return too_late, failed

    def prepare(self, batch: EventBatch) -> None:
        """Prepare the rows of a batch for `apply`. Any thread may call it, before the batch is applied."""
        if batch.event in self.plan.sources and self.plan.fingerprint not in batch.prepared:
            batch.prepared[self.plan.fingerprint] = self.plan.rows(batch.event, batch.frame)

    def _rows(self, batches: Sequence[EventBatch]) -> Rows:
        """The rows of all batches, with `index` across all batches; in the order of their times if of several classes.

        Small batches are processed together, since a call costs a millisecond even for few rows.
        """
        parts, start = [], 0
        ahead = [(batch, batch.prepared.get(self.plan.fingerprint)) for batch in batches]
        for (event, _), group in groupby(ahead, lambda pair: (pair[0].event, pair[1] is not None and id(pair[1]))):
            together = list(group)
            frame, made = pl.concat([batch.frame for batch, _ in together]), together[0][1]
            if made is None:
                made = self.plan.rows(event, frame)
            parts.append(made.shifted(start))
            start += frame.height
        rows = concat_rows(parts)
        if all(batch.event is batches[0].event for batch in batches):
            return rows
        return rows.take(np.argsort(rows.time_us, kind="stable"))

    # Records out

    def flush(self) -> Flushed:
        """Write dirty records and moved offsets, synchronously.

        Raises:
            FencedError: another engine owns a shard, or Redis went back in time. Discard this object.
            StoreUnavailableError: Redis does not answer; some shards may have been written. Call again.
        """
        self._require_unfenced()
        started_s = time.perf_counter()
        records, has_unwritten = 0, not self._sequences.all()
        while writes := self._writes(rows := self._slab.dirty()):
            try:
                report = self._store.flush(self.plan, writes)
            except FencedError:
                self._fenced = True
                raise
            records += self._settle(writes, report.repeated, rows)
            # If an earlier attempt for a shard had been applied unnoticed, the shard is written once more, since that
            # attempt may have had less data.
            if not report.repeated:
                break
        if has_unwritten:
            # A Redis that was emptied before the first flush has no other fence, but the registration is lost.
            self._register()
        seconds = time.perf_counter() - started_s
        self._flush_seconds.observe(seconds)
        RECORDS.labels(self.plan.name).inc(records)
        return Flushed(records, seconds)

    def check(self) -> None:
        """Check that the store is as this engine left it, which an engine without events would not notice by flushes.

        Raises:
            FencedError: another engine owns a shard, or Redis went back in time. Discard this object.
            EvictionError: Redis may now drop records.
            StoreUnavailableError: Redis does not answer. Call again.
        """
        self._require_unfenced()
        self._store.require_kept(self.plan)
        fences = self._store.fences(self.plan, self.shards)
        for row, shard in enumerate(self.shards):
            expected, stored = (int(self._sequences[row]), self._writers[row]), fences[shard]
            if (stored.sequence, stored.writer) != expected:
                self._fenced = True
                raise fenced(self.plan, shard, expected, (stored.sequence, stored.writer))

    def _register(self) -> None:
        """Make the version the active one where none is; a line is logged once where another one is."""
        is_active = self._store.register(self.plan)
        if not is_active and self._is_active:
            log.warning(
                "view_version_not_active",
                view=self.plan.name,
                fingerprint=self.plan.fingerprint,
                detail="readers get another version until this one is activated, as a backfill does at its end",
            )
        self._is_active = is_active

    def _load_fences(self) -> None:
        fences = self._store.fences(self.plan, self.shards)
        self._sequences = np.array([fences[shard].sequence for shard in self.shards], np.int64)
        self._writers = [fences[shard].writer for shard in self.shards]
        # A shard that was never written needs no loads until one of its records is evicted from memory.
        self._complete = self._sequences == 0
        known = [fences[shard] for shard in self.shards]
        self._offsets = OffsetTable([fence.offsets for fence in known], [fence.starts for fence in known])

    def _require_unfenced(self) -> None:
        if self._fenced:
            raise FencedError(f"view {self.plan.name}: these shards were fenced before; open them again and replay")

    def _are_new(self, batches: Sequence[EventBatch]) -> bool:
        """Whether every row belongs to these shards and none has been applied, the usual case."""
        return len(self.shards) == self._store.shards and all(
            batch.offsets.min(initial=batch.next_offset) >= self._offsets.span(batch.partition)[1] for batch in batches
        )

    def _unapplied(self, rows: Rows, batches: Sequence[EventBatch]) -> Rows:
        """The rows (n,) of these shards that have not been applied."""
        ours = self._owned[shard_of(rows.ids, self._store.shards)] >= 0
        new = self._are_unapplied(rows.ids, rows.index, batches)
        new_count = int(np.count_nonzero(new))
        SKIPPED.labels(self.plan.name).inc(int(np.count_nonzero(ours)) - new_count)
        return rows if new_count == len(rows) else rows.take(new)

    def _are_unapplied(
        self, ids: NDArray[np.int64], index: NDArray[np.int64], batches: Sequence[EventBatch]
    ) -> NDArray[np.bool_]:
        """Mask (n,) of the rows of these shards that have not been applied; `index` is across all batches."""
        offsets = np.concatenate([batch.offsets for batch in batches])
        heights = [batch.frame.height for batch in batches]
        columns = np.repeat([self._offsets.column(batch.partition) for batch in batches], heights)
        owned = self._owned[shard_of(ids, self._store.shards)]
        return np.asarray((owned >= 0) & ~self._offsets.applied(owned, columns[index], offsets[index]), np.bool_)

    def _count(self, marks: NDArray[np.uint8]) -> None:
        """Count the outcomes of rows (n,) in the metrics."""
        late, too_late, duplicates = (int(np.count_nonzero(marks == mark)) for mark in (LATE, TOO_LATE, DUPLICATE))
        APPLIED.labels(self.plan.name).inc(len(marks) - duplicates)
        LATE_ROWS.labels(self.plan.name).inc(late + too_late)
        TOO_LATE_ROWS.labels(self.plan.name).inc(too_late)
        DUPLICATES.labels(self.plan.name).inc(duplicates)

    def _located(self, rows: Rows) -> NDArray[np.int64]:
        """Load the records of all entities of `rows` into the slab; returns their slab rows (n,)."""
        slab_rows = self._slab.locate(rows.ids)
        if self.plan.ttl_us:
            slab_rows = self._forget_expired(slab_rows, rows.ids)
        self._uses.touch(slab_rows[slab_rows >= 0])
        absent = np.flatnonzero(slab_rows < 0)
        if not absent.size:
            return slab_rows
        ids, first = np.unique(rows.ids[absent], return_index=True)
        texts = rows.texts(absent[first])
        self._make_room(ids.size)
        blobs = self._stored_records(ids, texts)
        self._slab.load(ids, texts, blobs)
        loaded = self._slab.locate(ids)
        self._uses.touch(loaded)
        self._uses.written(loaded, self._clock.now_us())
        slab_rows[absent] = self._slab.locate(rows.ids[absent])
        return slab_rows

    def _stored_records(self, ids: NDArray[np.int64], texts: Sequence[bytes]) -> list[bytes | None]:
        to_load = np.flatnonzero(~self._complete[self._owned[shard_of(ids, self._store.shards)]])
        blobs: list[bytes | None] = [None] * ids.size
        if to_load.size:
            stored = self._store.records(self.plan, ids[to_load], [texts[index] for index in to_load.tolist()])
            for index, blob in zip(to_load.tolist(), stored, strict=True):
                blobs[index] = blob
            LOADED.labels(self.plan.name).inc(to_load.size)
        return blobs

    # Memory

    def _make_room(self, count: int) -> None:
        """Evict records so that `count` more fit into `records_max`, as far as the current batch's entities allow."""
        if self._records_max is None or len(self._slab) + count <= self._records_max:
            return
        excess = len(self._slab) + count - self._records_max
        if self._uses.evictable(self._slab.dirty()).size < excess and self.dirty_count:
            self.flush()
        candidates = self._uses.evictable(self._slab.dirty())
        evicted = min(candidates.size, max(excess, self._records_max // 16))  # extra, since each search costs a pass
        if evicted:
            self._drop(self._uses.oldest(candidates, evicted))
            EVICTED.labels(self.plan.name).inc(evicted)

    def _drop(self, at: NDArray[np.int64]) -> None:
        self._complete[self._owned[shard_of(self._slab.ids(at), self._store.shards)]] = False
        self._slab.drop(at)
        self._uses.drop(at)

    def _forget_expired(self, at: NDArray[np.int64], ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Drop clean records that have expired in Redis, as a restart would; returns the rows of `ids`."""
        assert self.plan.ttl_us
        expired = self._uses.expired(np.unique(at[at >= 0]), self._clock.now_us() - self.plan.ttl_us)
        expired = np.setdiff1d(expired, self._slab.dirty(), assume_unique=True)
        if not expired.size:
            return at
        self._drop(expired)
        return self._slab.locate(ids)

    # Flush

    def _writes(self, dirty: NDArray[np.int64]) -> list[ShardWrite]:
        """One write for each shard with dirty records or moved offsets."""
        owned = self._owned[shard_of(self._slab.ids(dirty), self._store.shards)]
        order = np.argsort(owned, kind="stable")
        edges = np.searchsorted(owned[order], np.arange(len(self.shards) + 1))
        packing = Packing(self._slab, dirty[order], self._sequences[owned[order]] + 1, self._arrival_us)
        writes = []
        for row, shard in enumerate(self.shards):
            moved, (begin, end) = self._offsets.moved(row), edges[row : row + 2].tolist()
            if begin == end and not moved:
                continue
            writes.append(
                ShardWrite(
                    shard=shard,
                    expected_sequence=int(self._sequences[row]),
                    expected_writer=self._writers[row],
                    writer=self._token,
                    texts=packing.texts.part(begin, end),
                    blobs=partial(packing.part, begin),
                    offsets=moved,
                    starts=self._offsets.begun(row),
                )
            )
        return writes

    def _settle(self, writes: Sequence[ShardWrite], repeated: frozenset[int], dirty: NDArray[np.int64]) -> int:
        """Mark as stored what Redis acknowledged; returns the number of records written."""
        now_us = self._clock.now_us()
        written = np.zeros(len(self.shards), np.bool_)
        for write in writes:
            row = int(self._owned[write.shard])
            self._sequences[row] += 1
            self._writers[row] = self._token
            written[row] = write.shard not in repeated
        self._offsets.settle(written)
        clean = dirty[written[self._owned[shard_of(self._slab.ids(dirty), self._store.shards)]]]
        self._slab.clear_dirty(clean)
        self._uses.written(clean, now_us)
        return int(clean.size)


def too_late_letters(view_name: str, batch: EventBatch, index: NDArray[np.int64]) -> Letters:
    """A dead letter for each too late row `index` (m,) of the batch."""
    detail = "too late: outside every window that would include it, relative to its entity's newest event"
    return letters_of_rows(batch, index, "too_late", f"view {view_name}: {detail}")


def failed_letters(view_name: str, batch: EventBatch, all_failed: FailedRows, start: int, end: int) -> Letters:
    """A dead letter for each failed row of the batch, whose rows are [start, end) of all batches."""
    failed = all_failed.take((all_failed.index >= start) & (all_failed.index < end)).shifted(-start)
    details = np.empty(len(failed), object)
    for cause in np.unique(failed.causes).tolist():
        of_cause = np.flatnonzero(failed.causes == cause)
        details[of_cause] = failed.expressions[cause].details(batch.frame[failed.index[of_cause]])
    described = pl.Series([f"view {view_name} · {detail}" for detail in details], dtype=pl.String)
    return letters_of_rows(batch, failed.index, "expression_failed", described)


def _between(index: NDArray[np.int64], start: int, end: int) -> NDArray[np.int64]:
    """The rows of `index` in [start, end), relative to `start`."""
    return index[(index >= start) & (index < end)] - start
