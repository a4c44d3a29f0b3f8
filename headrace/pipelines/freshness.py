"""Freshness: how long an event takes from the broker's log to where readers see it.

Samples weigh by event, not by flush: a uniform reservoir over all events (Vitter 1985, algorithm R, on arrays).
"""

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Histogram

from headrace.pipelines.source import EventBatch

SAMPLES_MAX = 65_536
"""Samples kept; the 99.9th percentile still rests on 65 of them."""

FRESHNESS = Histogram(
    "headrace_freshness_seconds",
    "Append time to visible, of the oldest event in each flush",
    ["step"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 600),
)


class Freshness:
    """Append times of events that are not visible yet, and a sample of how long others took.

    `step` labels the metric.
    """

    def __init__(self, step: str, *, samples_max: int = SAMPLES_MAX, seed: int = 0) -> None:
        self._step = step
        self._waiting: list[NDArray[np.int64]] = []
        self._samples_us = np.empty(samples_max, np.int64)
        self._seen_count = 0
        self._random = np.random.default_rng(seed)

    def add(self, batch: EventBatch) -> None:
        """Take note of a batch's append times; where there are none its arrival counts."""
        if batch.appended_us is not None:
            self._waiting.append(batch.appended_us)
        else:
            self._waiting.append(np.full(len(batch.offsets), batch.arrival_us, np.int64))

    def visible(self, now_us: int) -> float | None:
        """Everything added is visible since wall time `now_us`; returns the oldest event's freshness in seconds."""
        appended_us = np.concatenate(self._waiting) if self._waiting else np.empty(0, np.int64)
        self._waiting.clear()
        if not len(appended_us):
            return None
        took_us = now_us - appended_us
        oldest_s = float(took_us.max()) / 1e6
        FRESHNESS.labels(self._step).observe(oldest_s)
        self._keep(took_us)
        return oldest_s

    def samples_ms(self) -> NDArray[np.float64]:
        """Up to `samples_max` events' freshness in milliseconds, (n,), in no order."""
        return self._samples_us[: min(self._seen_count, len(self._samples_us))] / 1e3

    def _keep(self, took_us: NDArray[np.int64]) -> None:
        first = self._seen_count
        self._seen_count += len(took_us)
        room = len(self._samples_us)
        straight = max(0, min(room - first, len(took_us)))
        self._samples_us[first : first + straight] = took_us[:straight]
        rest = took_us[straight:]
        slots = self._random.integers(0, np.arange(first + straight, self._seen_count) + 1)
        kept = slots < room
        self._samples_us[slots[kept]] = rest[kept]
