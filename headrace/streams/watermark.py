"""The watermark: the event time up to which all events are assumed to have arrived.

    partition 0  ......x...x..x              newest 12:04
    partition 1  ...x.x....x                 newest 12:02   <- the slowest decides
    watermark    12:02 - lateness            never moves back

It is the minimum, over the partitions, of the newest event time, minus the allowed lateness. An expected partition
without events yet holds it back; a partition that is silent for `idle_s` of wall time, or has ended, does not. If all
are silent, those with events decide. Once all expected partitions have ended it is `END_OF_TIME_US`.
"""

from collections.abc import Iterable

from prometheus_client import Gauge

from headrace.clock import wall_us
from headrace.streams.intake import newest_us
from headrace.streams.source import EventBatch

END_OF_TIME_US = 2**62
"""Watermark of a stream that has ended."""


WATERMARK = Gauge(
    "headrace_watermark_timestamp_seconds", "Event time up to which all events are taken to have arrived, since 1970"
)


class Watermark:
    """The watermark over some partitions. With `idle_s` None, a silent partition holds it back forever."""

    def __init__(self, partitions: Iterable[str] = (), *, lateness_us: int = 0, idle_s: float | None = 30.0) -> None:
        self._newest_us: dict[str, int | None] = {}
        self._heard_us: dict[str, int] = {}
        self._expected: set[str] = set()
        self._ended: set[str] = set()
        self._lateness_us = lateness_us
        self._idle_us = None if idle_s is None else int(idle_s * 1_000_000)
        self._value_us: int | None = None
        self.expect(partitions)

    def expect(self, partitions: Iterable[str], now_us: int | None = None) -> None:
        """Expect these partitions: they hold the watermark back until they have events, or are idle for `idle_s`."""
        heard_us = wall_us() if now_us is None else now_us
        for partition in partitions:
            self._expected.add(partition)
            self._newest_us.setdefault(partition, None)
            self._heard_us.setdefault(partition, heard_us)

    def observe(self, batch: EventBatch, now_us: int | None = None) -> None:
        """Update the watermark with a batch; `now_us` is wall time."""
        newest = newest_us(batch)
        known = self._newest_us.get(batch.partition)
        if newest is not None:
            known = newest if known is None else max(known, newest)
        self._newest_us[batch.partition] = known
        self._heard_us[batch.partition] = wall_us() if now_us is None else now_us
        if batch.ended:
            self._ended.add(batch.partition)

    def value_us(self, now_us: int | None = None) -> int | None:
        """The watermark at wall time `now_us`, in microseconds of event time; None before anything is known."""
        wall = wall_us() if now_us is None else now_us
        open_ones = [p for p in self._newest_us if p not in self._ended]
        awake = [p for p in open_ones if not self._is_idle(p, wall)]
        # If all are silent, the reader may only have been busy: partitions that are behind must still hold it back.
        newest = [self._newest_us[p] for p in awake or open_ones if awake or self._newest_us[p] is not None]
        if self._expected and self._ended >= self._expected:
            self._value_us = END_OF_TIME_US
        elif newest and None not in newest:
            least_us = min(time_us for time_us in newest if time_us is not None) - self._lateness_us
            self._value_us = least_us if self._value_us is None else max(self._value_us, least_us)
            WATERMARK.set(self._value_us / 1e6)
        return self._value_us

    def _is_idle(self, partition: str, wall: int) -> bool:
        return self._idle_us is not None and wall - self._heard_us[partition] > self._idle_us
