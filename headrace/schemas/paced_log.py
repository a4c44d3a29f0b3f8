"""Counts that are logged at most once a second, so that a flood of bad rows does not flood the log."""

import atexit
import threading
import time
from collections import Counter

import structlog

PACE_S = 1.0
"""Seconds between two log lines with the same labels."""


_Kind = tuple[tuple[str, str], ...]


class PacedLog:
    """A log of counts, grouped by labels.

    The first count of a set of labels is logged at once. Counts within `pace_s` after a line are added up and logged
    with the next count, by a timer at most `pace_s` later, or at the end of the process. So the counts of all lines
    add up to the total. Safe to use from several threads.

    Args:
        event: event name of the log lines.
        unit: name of the count's field.
        pace_s: seconds between two lines with the same labels.
    """

    def __init__(self, event: str, unit: str = "count", *, pace_s: float = PACE_S) -> None:
        self._event = event
        self._unit = unit
        self._pace_s = pace_s
        self._lock = threading.Lock()
        self._waiting: Counter[_Kind] = Counter()
        self._details: dict[_Kind, str] = {}
        self._logged_s: dict[_Kind, float] = {}
        self._timer: threading.Timer | None = None
        atexit.register(self.flush)

    def add(self, count: int, detail: str, **labels: str) -> None:
        """Add to the count of a set of labels; a line shows the first detail since the line before."""
        kind = tuple(labels.items())
        with self._lock:
            self._waiting[kind] += count
            self._details.setdefault(kind, detail)
            now_s = time.monotonic()
            if now_s - self._logged_s.get(kind, -self._pace_s) >= self._pace_s:
                self._log(kind, now_s)
            elif self._timer is None or not self._timer.is_alive():  # a forked process has lost its parent's timer
                self._timer = threading.Timer(self._pace_s, self.flush)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Log all pending counts now."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            for kind in list(self._waiting):
                self._log(kind, time.monotonic())

    def _log(self, kind: _Kind, now_s: float) -> None:
        self._logged_s[kind] = now_s
        counted = {self._unit: self._waiting.pop(kind), "detail": self._details.pop(kind)}
        structlog.get_logger(__name__).warning(self._event, **dict(kind), **counted)
