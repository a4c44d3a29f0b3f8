"""A circuit breaker for the store: while Redis hangs, requests are refused at once instead of waiting for it."""

import threading
import time
from collections.abc import Callable

import structlog
from prometheus_client import Gauge

from headrace.errors import StoreError

SLOW_S = 0.25
"""A failure that took at least this long opens the circuit; a refused connection takes milliseconds and does not."""
PROBE_S = 0.25
"""Seconds between two pings while the circuit is open."""

CIRCUIT_OPEN = Gauge("headrace_store_circuit_open", "1 while requests are refused because the store hangs.")

log = structlog.get_logger(__name__)


class StoreBreaker:
    """Opens after a slow failure and closes when `ping` succeeds. Thread-safe.

    Args:
        ping: returns if the store answers, raises StoreError if not; called by a thread while the circuit is open.
        slow_s, probe_s: see the module's constants.
    """

    def __init__(self, ping: Callable[[], None], *, slow_s: float = SLOW_S, probe_s: float = PROBE_S) -> None:
        self.is_open = False
        self._ping = ping
        self._slow_s = slow_s
        self._probe_s = probe_s
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def failed(self, seconds: float) -> None:
        """Record a read that failed after `seconds`."""
        with self._lock:
            if seconds < self._slow_s or self.is_open or self._closed.is_set():
                return
            self.is_open = True
        CIRCUIT_OPEN.set(1)
        log.warning("store_circuit_opened", seconds=round(seconds, 3))
        threading.Thread(target=self._probe, name="headrace-store-probe", daemon=True).start()

    def close(self) -> None:
        """Stop pinging the store."""
        self._closed.set()

    def _probe(self) -> None:
        opened_s = time.monotonic()
        while not self._closed.wait(self._probe_s):
            try:
                self._ping()
            except StoreError as exc:
                log.debug("store_still_away", reason=str(exc))
                continue
            break
        self.is_open = False
        CIRCUIT_OPEN.set(0)
        log.info("store_circuit_closed", seconds=round(time.monotonic() - opened_s, 3))
