"""A source read and decoded on a thread of its own, so that the next batches are ready when the steps are.

    thread    poll decode | poll decode | poll decode ...     Polars and the broker's client work without the GIL
    steps        apply        apply        flush   apply ...  and so do the kernels

While batches wait, or the steps are at large ones, the steps are what is slow, and the thread does some of their work
ahead: `prepare`.

What is ahead is bounded by rows. Order is kept; an error of the source comes out where it happened.
"""

import ctypes
import functools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import product
from typing import Generic, TypeVar

import structlog

from headrace.streams.source import Batch, EventBatch, Source

T = TypeVar("T", bound=Batch | EventBatch)

ROWS_AHEAD_MAX = 1_000_000
"""Decoded rows that may wait: about a second of work."""
TAKEN_ROWS = 131_072
"""Rows from which no further poll is handed out with those before it."""
PREPARED_ROWS = 8_192
"""Rows of a batch that is prepared while the steps are busy: several small ones cost less together, in the steps."""
POLLS_AHEAD_MAX = 16
"""Polls that may wait, whatever they brought."""
SWITCH_S = 0.0005
"""How long the interpreter lets one thread go on while another waits for it. Python's own 5 ms would be waited for at
every return from a kernel or a socket: a flush has a hundred of them."""
STOP_S_MAX = 30.0
"""How long `close` waits for the thread."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_MIB = 1 << 20

log = structlog.get_logger(__name__)


class ReadAhead(Generic[T]):
    """Decoded batches of `source`, which has been placed by `seek`; used by one thread, closed by it.

    `pause_after` gives the seconds to wait after a poll, None for at once. `prepare` are called with a batch if others
    wait already, or it is large and the steps do not wait for it.
    """

    def __init__(
        self,
        source: Source,
        decode: Callable[[Batch], T],
        pause_after: Callable[[Sequence[Batch]], float | None],
        *,
        rows_max: int = ROWS_AHEAD_MAX,
        prepare: Sequence[Callable[[T], None]] = (),
    ) -> None:
        self._source = source
        self._decode = decode
        self._pause_after = pause_after
        self._rows_max = rows_max
        self._prepare = prepare
        self._lock = threading.Condition()
        self._waiting: deque[list[T]] = deque()
        self._rows = 0
        self._is_awaited = True
        self._failure: BaseException | None = None
        self._ended = False
        self._stop = threading.Event()
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_S))
        self._thread = threading.Thread(target=self._run, name="headrace-read-ahead", daemon=True)
        self._thread.start()

    @property
    def exhausted(self) -> bool:
        """Whether the source was exhausted, or stopped, and everything of it has been handed out."""
        with self._lock:
            return self._ended and not self._waiting and self._failure is None

    def poll(self, wait_s: float = 0.0) -> list[T]:
        """What is there of the source, some 100,000 rows of it; waits up to `wait_s`, [] when there is nothing yet.

        All of it, not one poll: a step that is busy with a flush has several to catch up with before the next one.

        Raises:
            HeadraceError: what the source failed with, after everything that came before it.
        """
        with self._lock:
            self._is_awaited = not self._waiting
            self._lock.wait_for(lambda: self._waiting or self._failure or self._ended, wait_s)
            if not self._waiting:
                if self._failure is not None:
                    raise self._failure
                return []
            self._is_awaited = False
            found: list[T] = []
            taken = 0
            while self._waiting and taken < TAKEN_ROWS:
                polled = self._waiting.popleft()
                taken += _rows_of(polled)
                found += polled
            self._rows -= taken
            self._lock.notify_all()
            return found

    def stop(self) -> None:
        """Read no further; what was read can still be taken, and then it is exhausted."""
        self._stop.set()
        with self._lock:
            self._lock.notify_all()

    def close(self) -> None:
        """End the thread, and close the source."""
        self.stop()
        self._thread.join(STOP_S_MAX)
        self._source.close()

    def _run(self) -> None:
        try:
            while not (self._stop.is_set() or self._source.exhausted):
                batches = self._source.poll()
                found = [self._decode(batch) for batch in batches]
                for batch, prepare in product(found, self._prepare):
                    if self._waiting or (not self._is_awaited and len(batch.offsets) >= PREPARED_ROWS):
                        prepare(batch)
                if found:
                    self._hand_on(found)
                pause_s = self._pause_after(batches)
                if pause_s is not None:
                    time.sleep(pause_s)
        except BaseException as exc:  # noqa: BLE001 - it is raised where the batches are taken
            self._failure = exc
        with self._lock:
            self._ended = True
            self._lock.notify_all()

    def _hand_on(self, found: list[T]) -> None:
        with self._lock:
            self._waiting.append(found)
            self._rows += _rows_of(found)
            self._lock.notify_all()
            self._lock.wait_for(lambda: self._has_room() or self._stop.is_set())

    def _has_room(self) -> bool:
        return self._rows <= self._rows_max and len(self._waiting) <= POLLS_AHEAD_MAX


def _rows_of(batches: Sequence[Batch | EventBatch]) -> int:
    return sum(len(batch.offsets) for batch in batches)


@functools.cache
def keep_freed_memory() -> None:
    """Keep freed blocks up to 32 MiB, its limit, in this process; do nothing where the C library is not glibc.

    glibc returns large freed blocks to the system at once, so that every batch would pay for its pages anew: a third of
    a flow's time (measured). Further calls do nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        log.debug("allocator_left_alone", reason="not glibc")
        return
    for parameter, value in ((_MMAP_THRESHOLD, 32 * _MIB), (_TRIM_THRESHOLD, 1024 * _MIB), (_TOP_PAD, 64 * _MIB)):
        libc.mallopt(parameter, value)
