"""Counts that are logged at most once a second, so that a storm of bad rows makes no storm of lines."""

import atexit
import threading
import time
from collections import Counter
from typing import Any

import structlog

PACE_S = 1.0
"""Seconds between two lines of one kind."""


class PacedLog:
    """Logs counts of things by their labels.

    The first count of a kind is logged at once; what comes within `pace_s` after a line is added up and logged with
    the next one, at the latest `pace_s` later by a timer, or at the end of the process. So the counts of all lines add
    up to the whole. Safe to use from several threads.
    """

    def __init__(self, event: str, *, pace_s: float = PACE_S) -> None:
        self._event = event
        self._pace_s = pace_s
        self._lock = threading.Lock()
        self._waiting: Counter[tuple[tuple[str, Any], ...]] = Counter()
        self._logged_s: dict[tuple[tuple[str, Any], ...], float] = {}
        self._timer: threading.Timer | None = None
        atexit.register(self.flush)

    def add(self, count: int, **labels: str) -> None:
        """Count `count` things of a kind."""
        kind = tuple(labels.items())
        with self._lock:
            self._waiting[kind] += count
            now_s = time.monotonic()
            if now_s - self._logged_s.get(kind, -self._pace_s) >= self._pace_s:
                self._log(kind, now_s)
            elif self._timer is None or not self._timer.is_alive():  # a forked process has lost its parent's timer
                self._timer = threading.Timer(self._pace_s, self.flush)
                self._timer.daemon = True
                self._timer.start()

    def flush(self) -> None:
        """Log what waits."""
        with self._lock:
            self._timer = None
            for kind in list(self._waiting):
                self._log(kind, time.monotonic())

    def _log(self, kind: tuple[tuple[str, Any], ...], now_s: float) -> None:
        self._logged_s[kind] = now_s
        structlog.get_logger(__name__).warning(self._event, **dict(kind), count=self._waiting.pop(kind))
