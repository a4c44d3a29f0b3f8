"""A fault that lasts, in few lines of the log: its beginning, each new reason, growing intervals, and its end."""

import threading
import time

import structlog

AGAIN_S = 10.0
"""Seconds until a fault that goes on is logged again; the interval doubles with each line, up to `AGAIN_S_MAX`."""
AGAIN_S_MAX = 600.0
QUIET_S = 2.0
"""Seconds without a failure after which a success ends a fault: some calls may fail while others succeed."""
REASONS_MAX = 16
"""Reasons of one fault that are logged when they first occur; further ones wait for the interval."""

log = structlog.get_logger(__name__)


class FaultLog:
    """The log of one fault, such as a server that does not answer. Thread-safe.

    Every line has `times`, the failures since the line before; the last one has `seconds`, how long the fault lasted.

    Args:
        over: event name of the line that tells that the fault is over.
    """

    def __init__(self, over: str, *, again_s: float = AGAIN_S, quiet_s: float = QUIET_S) -> None:
        self.is_on = False
        self._over = over
        self._again_s = again_s
        self._quiet_s = quiet_s
        self._lock = threading.Lock()
        self._reasons: set[tuple[str, str]] = set()
        self._times = 0  # failures since the last line
        self._interval_s = again_s
        self._began_s = self._failed_s = self._logged_s = 0.0

    def failed(self, event: str, reason: str, *, level: str = "warning", **fields: object) -> None:
        """Count a failure, and log it as `event` if it begins the fault, has a new reason, or its interval is over."""
        now_s = time.monotonic()
        with self._lock:
            if not self.is_on:
                self.is_on, self._began_s, self._interval_s = True, now_s, self._again_s
                self._reasons.clear()
                self._times = 0
            self._failed_s = now_s
            self._times += 1
            is_new = (event, reason) not in self._reasons and len(self._reasons) < REASONS_MAX
            if is_new:
                self._reasons.add((event, reason))
            elif now_s - self._logged_s < self._interval_s:
                return
            else:
                self._interval_s = min(2 * self._interval_s, AGAIN_S_MAX)
            self._logged_s = now_s
            times, self._times = self._times, 0
        getattr(log, level)(event, reason=reason, times=times, **fields)

    def succeeded(self) -> None:
        """End the fault, and log that, unless a failure is younger than `QUIET_S`. Costs nothing without a fault."""
        if not self.is_on:
            return
        now_s = time.monotonic()
        with self._lock:
            if not self.is_on or now_s - self._failed_s < self._quiet_s:
                return
            self.is_on = False
            times = self._times
        log.info(self._over, seconds=round(now_s - self._began_s, 1), times=times)
