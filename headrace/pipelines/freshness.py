"""Freshness: how long an event takes from the broker's log to where readers see it.

Samples weigh by event, not by flush: a uniform reservoir over all events (Vitter 1985, algorithm R, on arrays).
"""

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Histogram

from headrace.streams.source import EventBatch

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
        self._waiting: list[NDArray[np.int64]] = []  # appended, or of a file's batch arrived, once for all its rows
        self._samples_us = np.empty(samples_max, np.int64)
        self._seen_count = 0
        self._random = np.random.default_rng(seed)

    def add(self, batch: EventBatch) -> None:
        """Take note of a batch's append times; where there are none its arrival counts."""
        times = batch.appended_us
        if times is None:
            times = np.broadcast_to(np.int64(batch.arrival_us), len(batch.offsets))
        if len(times):
            self._waiting.append(times)

    def visible(self, now_us: int) -> float | None:
        """Everything added is visible since wall time `now_us`; returns the oldest event's freshness in seconds."""
        if not self._waiting:
            return None
        # The last one of an array without strides stands for all: looking at millions would take longer than a flush.
        oldest_us = min(int(times[-1] if times.strides == (0,) else times.min()) for times in self._waiting)
        for times in self._waiting:
            self._keep(times, now_us)
        self._waiting.clear()
        oldest_s = (now_us - oldest_us) / 1e6
        FRESHNESS.labels(self._step).observe(oldest_s)
        return oldest_s

    def samples_ms(self) -> NDArray[np.float64]:
        """Up to `samples_max` events' freshness in milliseconds, (n,), in no order."""
        return self._samples_us[: min(self._seen_count, len(self._samples_us))] / 1e3

    def _keep(self, times_us: NDArray[np.int64], now_us: int) -> None:
        """Bring a batch's append times (n,) into the sample.

        Event i of all stays with probability room / i. The few that do are drawn, not all events looked at: as many
        as the first one's probability would give, of whom each later one stays with its share of that.
        """
        room, first, count = len(self._samples_us), self._seen_count, len(times_us)
        self._seen_count += count
        straight = max(0, min(room - first, count))
        self._samples_us[first : first + straight] = now_us - times_us[:straight]
        first, count = first + straight, count - straight
        if not count:
            return
        drawn = self._random.binomial(count, room / (first + 1))
        places = self._random.choice(count, drawn, replace=False, shuffle=False)
        kept = np.sort(places[self._random.random(drawn) < (first + 1) / (first + 1 + places)])
        self._samples_us[self._random.integers(0, room, len(kept))] = now_us - times_us[straight + kept]
