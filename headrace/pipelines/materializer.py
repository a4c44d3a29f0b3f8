"""Materializer: keeps the records of views in the online store up to date, with a flush interval that follows the load.

    apply  apply  apply ...  flush ------- all dirty records and their offsets, atomically per shard
    |<---- interval ---->|

Under little load a flush takes a millisecond and runs every 20 ms, so that reads are fresh. Under load it takes longer,
and the interval grows with it up to a second, so that many events of one key cost one write. While the flow is behind,
with files or a backlog, the interval is 5 s. After a crash, events past the stored offsets are read again.
"""

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import structlog
import tenacity
from numpy.typing import NDArray
from prometheus_client import Counter, Histogram

from headrace.clock import wall_us
from headrace.errors import StoreUnavailableError
from headrace.features.store import OnlineStore
from headrace.features.view import FeatureView, events_of, plans_of
from headrace.features.warm import warm_up
from headrace.pipelines.shard import ShardSet
from headrace.schemas import DeadLetters, Event, spec_of
from headrace.streams.positions import (
    Positions,
    Reader,
    is_live,
    least_positions,
    refuse_files_of_topic,
    refuse_topic_of_files,
)
from headrace.streams.source import EventBatch

log = structlog.get_logger(__name__)

FLUSH_S = (0.02, 1.0)
"""Shortest and longest interval between flushes."""
CATCH_UP_S = 5.0
"""Flush interval while catching up: fewer flushes shorten the backlog more than frequent ones improve freshness."""
BEHIND_S = (1.0, 3.0)
"""Age of events, in seconds, below which a flow has caught up, and above which it has fallen behind. Events from files
count as old."""
FLUSH_SHARE = 0.9
"""Share of the time that flushes may take, within the limits of the interval. A smaller share saves few writes: with
0.5, 280,000 events a second of 100,000 keys were half as fresh, for a tenth less work."""
APPLY_ROWS, CATCH_UP_ROWS = 32_768, 196_608
"""Rows of small batches to gather before they are applied; CATCH_UP_ROWS while the flow is behind, since then several
events of an entity share one access to its record. Not with `records_max`, which a batch's entities may exceed.
"""
DIRTY_MAX = 200_000
"""Number of dirty records that always triggers a flush: about half a second of writing, some 100 MB of commands."""
CHECK_S = 1.0
"""Interval at which an engine with nothing to write checks that the store has not changed."""
STOP_PATIENCE_S = 5.0
"""How long to wait for an unavailable store once the flow is asked to stop."""

SAMPLES_MAX = 65_536
"""Number of samples to keep; 65 of them are above the 99.9th percentile."""

FRESHNESS = Histogram(
    "headrace_freshness_seconds",
    "Append time to visible, of the oldest event in each flush",
    ["step"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 600),
)
STORE_RETRIES = Counter("headrace_store_retries_total", "Attempts repeated because the store did not answer")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FlushSummary:
    """One flush: records written, events applied, its duration, and freshness of the oldest event."""

    records: int
    events: int
    seconds: float
    freshness_s: float | None


class Materializer:
    """A `Step` that keeps the records of `views` in `store` up to date with batches of events.

    It owns the shards `shards`, or with `owner` (index, count) the shards with shard % count == index. While the store
    is unavailable it blocks and retries, indefinitely or, once `stop` is set, for 5 seconds. `dead_letters` gets events
    that are too late for a view; see ShardSet. `handover` is for a backfill: partition of a topic -> offset at which
    the live flow resumes the topic afterwards. Without it, the active version of each view must be this one.

    Raises:
        DeclarationError: there are no views, or two of one name.
        LayoutError: readers get another version of a view, which this flow would not update, or another class owns the
            view's name in the store.
        EvictionError: Redis may drop records.
        FencedError: another engine writes the same shards, or Redis went back in time. Start again.
    """

    def __init__(
        self,
        views: Sequence[type[FeatureView]],
        store: OnlineStore,
        *,
        shards: Sequence[int] | None = None,
        owner: tuple[int, int] = (0, 1),
        flush_s: tuple[float, float] = FLUSH_S,
        catch_up_s: float = CATCH_UP_S,
        dirty_max: int = DIRTY_MAX,
        records_max: int | None = None,
        dead_letters: DeadLetters | None = None,
        stop: threading.Event | None = None,
        handover: Mapping[str, int] | None = None,
    ) -> None:
        self._store = store
        self._handover = handover
        self._met: set[str] | None = set()  # partitions seen; None: `positions` was called, so the source checks them
        plans = plans_of(dict.fromkeys(views), "materialize")
        index, count = owner
        owned = list(shards) if shards is not None else list(range(index, store.shards, count))
        self._stop = stop or threading.Event()
        self._flush_s = flush_s
        self._catch_up_s = max(catch_up_s, flush_s[1])
        self._catch_up_rows = CATCH_UP_ROWS if records_max is None else APPLY_ROWS
        self._is_behind = False
        self._dirty_max = dirty_max
        self._freshness = Freshness("materialize")
        self._events = 0
        self._pending = False
        self._waiting: list[EventBatch] = []
        self._waiting_ends: dict[str, int] = {}
        self._waiting_rows = 0
        self._due_s = 0.0
        self._check_s = time.monotonic() + CHECK_S
        self._sets: list[ShardSet] = []
        for plan in plans:
            if handover is None:
                self._retried(functools.partial(store.require_active, plan))
            warm_up(plan)
            opening = functools.partial(
                ShardSet, plan, store, owned, records_max=records_max, dead_letters=dead_letters
            )
            self._sets.append(self._retried(opening))
        self.events: tuple[type[Event], ...] = events_of(plans)

    def describe(self) -> str:
        """Name the views and the store."""
        names = ", ".join(shard_set.plan.name for shard_set in self._sets)
        return f"view{'s' if len(self._sets) > 1 else ''} {names} in {self._store.url}"

    def positions(self) -> Positions:
        """Next offset of each partition, at which a source must begin so that no view misses a row.

        A partition that a view of its topic has never seen is left out: it must be read from its start. The result also
        has what each view has read, so that a source can refuse to count rows twice.
        """
        self._met = None
        return Positions(self._begins(), map(self._reader, self._sets))

    def _begins(self) -> dict[str, int]:
        readers: dict[str, list[dict[str, int]]] = {}
        for shard_set in self._sets:
            known = shard_set.positions()
            for event in shard_set.plan.sources:
                readers.setdefault(spec_of(event).topic, []).append(known)
        least = [least_positions(positions) for positions in readers.values()]
        return {
            partition: offset
            for topic, positions in zip(readers, least, strict=True)
            for partition, offset in positions.items()
            if partition.startswith(f"{topic}/")
        }

    def _reader(self, shard_set: ShardSet) -> Reader:
        topics = frozenset(spec_of(event).topic for event in shard_set.plan.sources)
        name, handover = f"view {shard_set.plan.name}", self._handover or {}
        known = shard_set.known()
        unseen = frozenset(known.keys() - shard_set.positions().keys())
        return Reader(name, topics, known, handover, shard_set.reached(), unseen)

    def expect(self, partitions: Sequence[str]) -> None:
        """Do nothing: shards learn partitions from the batches."""

    def apply(self, batch: EventBatch) -> None:
        """Update the records in memory. Small batches are applied together, at the latest before the next flush.

        Waits if unknown entities must be loaded while the store is unavailable.

        Raises:
            ConfigError: `positions` was never called, and the batch is of a topic whose files have been read, or of
                files whose topic has been read.
        """
        if self._met is not None and batch.partition not in self._met:
            self._meet(batch, self._met)
        if len(batch.offsets) and int(batch.offsets[0]) < self._waiting_ends.get(batch.partition, 0):
            self._apply_waiting()  # rows are read again: apply what waits first, so that the shards skip them
        self._waiting.append(batch)
        self._waiting_ends[batch.partition] = batch.next_offset
        self._waiting_rows += batch.frame.height
        self._events += batch.frame.height
        self._freshness.add(batch)
        self._follow_pace(batch)
        if self._waiting_rows >= (self._catch_up_rows if self._is_behind else APPLY_ROWS):
            self._apply_waiting()
        self._pending = True

    def _meet(self, batch: EventBatch, met: set[str]) -> None:
        """Check a new partition, as a source that was given `positions` would."""
        topic = spec_of(batch.event).topic
        positions = Positions({}, map(self._reader, self._sets))
        if is_live(batch.partition, topic):
            refuse_topic_of_files([topic], positions, [batch.partition])
        else:
            refuse_files_of_topic(topic, [batch.partition], positions)
        met.add(batch.partition)

    def prepare(self, batch: EventBatch) -> None:
        """Prepare a batch for `apply`. Called on the thread of the source while this step is busy."""
        for shard_set in self._sets:
            shard_set.prepare(batch)

    def _apply_waiting(self) -> None:
        """Apply the gathered batches in one call, which costs a millisecond even for few rows."""
        for shard_set in self._sets:
            self._retried(functools.partial(shard_set.apply, *self._waiting))
        self._waiting.clear()
        self._waiting_ends.clear()
        self._waiting_rows = 0

    @property
    def dirty_count(self) -> int:
        """Number of records that differ from the store."""
        self._apply_waiting()
        return self._applied_dirty()

    def _applied_dirty(self) -> int:
        return sum(shard_set.dirty_count for shard_set in self._sets)

    @property
    def due_s(self) -> float | None:
        """Monotonic time of the next flush, or of the next check of the store if there is nothing to flush."""
        return self._due_s if self._pending else self._check_s

    def maybe_flush(self) -> FlushSummary | None:
        """Flush if a flush is due."""
        if not self._pending or (time.monotonic() < self._due_s and not self._is_full()):
            return None
        return self.flush()

    def flush(self) -> FlushSummary:
        """Write all dirty records and the offsets; waits while the store is unavailable."""
        self._apply_waiting()
        started_s = time.monotonic()
        records = sum(self._retried(shard_set.flush).records for shard_set in self._sets)
        ended_s = time.monotonic()
        shortest_s, longest_s = self._flush_s
        took_s = ended_s - started_s
        pace_s = self._catch_up_s if self._is_behind else longest_s
        self._due_s = ended_s + min(
            max(took_s * (1 / FLUSH_SHARE - 1), self._catch_up_s * self._is_behind, shortest_s), pace_s
        )
        summary = FlushSummary(records, self._events, took_s, self._freshness.visible(wall_us()))
        self._events, self._pending, self._check_s = 0, False, ended_s + CHECK_S
        return summary

    def tick(self) -> list[FlushSummary]:
        """Flush if a flush is due; without events, check that the store has not gone back in time.

        Raises:
            FencedError: another engine writes the same shards, or Redis went back in time.
        """
        if not self._pending and time.monotonic() >= self._check_s:
            for shard_set in self._sets:
                self._retried(shard_set.check)
            self._check_s = time.monotonic() + CHECK_S
        summary = self.maybe_flush()
        return [] if summary is None else [summary]

    def finish(self) -> list[FlushSummary]:
        """Flush if there is anything to write."""
        return [self.flush()] if self._pending else []

    def status(self) -> dict[str, Any]:
        """Positions, records in memory, and percentiles of freshness in milliseconds (None before the first flush)."""
        samples = self.freshness_ms()
        p50, p99 = np.percentile(samples, (50, 99)).tolist() if len(samples) else (None, None)
        return {
            "positions": self._begins(),
            "records": sum(shard_set.record_count for shard_set in self._sets),
            "freshness_ms": {"p50": p50, "p99": p99, "count": len(samples)},
        }

    def freshness_ms(self) -> NDArray[np.float64]:
        """A sample of events' times from append to visible in the store, in milliseconds, (n,)."""
        return self._freshness.samples_ms()

    def _follow_pace(self, batch: EventBatch) -> None:
        """Update whether the flow is behind; once it has caught up, the next flush is due at once."""
        appended_us = batch.appended_us
        if not batch.frame.height:
            return
        bound_s = BEHIND_S[0] if self._is_behind else BEHIND_S[1]
        is_behind = appended_us is None or wall_us() - int(appended_us[-1]) > bound_s * 1e6
        now_s = time.monotonic()
        if is_behind and not self._is_behind:
            self._due_s = now_s + self._catch_up_s
        elif self._is_behind and not is_behind:
            self._due_s = now_s
        self._is_behind = is_behind

    def _is_full(self) -> bool:
        applied = self._events - self._waiting_rows
        return applied >= self._dirty_max and self._applied_dirty() >= self._dirty_max  # counting costs a pass

    def _retried(self, call: Callable[[], T]) -> T:
        """Retry `call` while the store is unavailable, with one log line per outage, not per attempt."""
        asked_s: list[float] = []

        def give_up(_state: tenacity.RetryCallState) -> bool:
            if self._stop.is_set():
                asked_s.append(time.monotonic())
            return bool(asked_s) and time.monotonic() - asked_s[0] > STOP_PATIENCE_S

        def before_sleep(state: tenacity.RetryCallState) -> None:
            STORE_RETRIES.inc()
            if state.attempt_number == 1:
                log.warning("store_away", detail=str(state.outcome and state.outcome.exception()))

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(StoreUnavailableError),
            wait=tenacity.wait_exponential(0.05, max=2),
            stop=give_up,
            before_sleep=before_sleep,
            reraise=True,
        )
        result = retrying(call)
        if retrying.statistics.get("attempt_number", 1) > 1:
            log.info("store_back", attempts=retrying.statistics["attempt_number"])
        return result


class Freshness:
    """Times that events take from the broker's log to the store, as a uniform sample of all events.

    `step` labels the metric. Source: Vitter, Random sampling with a reservoir, 1985, algorithm R, on arrays.
    """

    def __init__(self, step: str, *, samples_max: int = SAMPLES_MAX, seed: int = 0) -> None:
        self._step = step
        self._waiting: list[NDArray[np.int64]] = []  # append times; of a file's batch its arrival, broadcast
        self._samples_us = np.empty(samples_max, np.int64)
        self._seen_count = 0
        self._random = np.random.default_rng(seed)

    def add(self, batch: EventBatch) -> None:
        """Add a batch's append times, or its arrival time if it has none."""
        times = batch.appended_us
        if times is None:
            times = np.broadcast_to(np.int64(batch.arrival_us), len(batch.offsets))
        if len(times):
            self._waiting.append(times)

    def visible(self, now_us: int) -> float | None:
        """Sample all added events, visible since wall time `now_us`; returns the freshness of the oldest in seconds."""
        if not self._waiting:
            return None
        # An array with stride 0 has one value: scanning millions of copies would take longer than a flush.
        oldest_us = min(int(times[-1] if times.strides == (0,) else times.min()) for times in self._waiting)
        for times in self._waiting:
            self._keep(times, now_us)
        self._waiting.clear()
        oldest_s = (now_us - oldest_us) / 1e6
        FRESHNESS.labels(self._step).observe(oldest_s)
        return oldest_s

    def samples_ms(self) -> NDArray[np.float64]:
        """Freshness of up to `samples_max` events in milliseconds, (n,), in no order."""
        return self._samples_us[: min(self._seen_count, len(self._samples_us))] / 1e3

    def _keep(self, times_us: NDArray[np.int64], now_us: int) -> None:
        """Add a batch's append times (n,) to the sample.

        Event i of all is kept with probability size / i. Candidates are drawn with the probability of the batch's first
        event, and a later one is then kept in proportion to its own. So the cost depends on the sample, not the events.
        """
        size, first, count = len(self._samples_us), self._seen_count, len(times_us)
        self._seen_count += count
        straight = max(0, min(size - first, count))
        self._samples_us[first : first + straight] = now_us - times_us[:straight]
        first, count = first + straight, count - straight
        if not count:
            return
        drawn = self._random.binomial(count, size / (first + 1))
        index = self._random.choice(count, drawn, replace=False, shuffle=False)
        kept = np.sort(index[self._random.random(drawn) < (first + 1) / (first + 1 + index)])
        self._samples_us[self._random.integers(0, size, len(kept))] = now_us - times_us[straight + kept]
