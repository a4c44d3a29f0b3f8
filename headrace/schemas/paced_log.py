"""Counts that are logged at most once a second, so that a storm of bad rows makes no storm of lines."""

import atexit
import threading
import time
from collections import Counter

import structlog

PACE_S = 1.0
"""Seconds between two lines of one kind."""


_Kind = tuple[tuple[str, str], ...]


class PacedLog:
    """Logs counts of things by their labels.

    The first count of a kind is logged at once; what comes within `pace_s` after a line is added up and logged with
    the next one, at the latest `pace_s` later by a timer, or at the end of the process. So the counts of all lines add
    up to the whole. Safe to use from several threads.

    Args:
        event: name of the lines.
        unit: name of the count in them.
        pace_s: seconds between two lines of one kind.
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
        """Count things of a kind; a line shows the first detail of those that it counts."""
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
