"""Read and decode a source on a separate thread, so that the next batches are ready when the steps are.

    thread    poll decode | poll decode | poll decode ...     Polars and the broker's client work without the GIL
    steps        apply        apply        flush   apply ...  and so do the kernels

While batches wait, or a large one is being applied, the steps are the bottleneck, and the thread does a part of their
work in advance: `prepare`.

The number of rows ahead is bounded. Order is kept, and an error of the source is raised after the batches before it.
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
from headrace.telemetry import STAGE_SECONDS

_READ, _DECODE, _PREPARE = map(STAGE_SECONDS.labels, ("read", "decode", "prepare"))

T = TypeVar("T", bound=Batch | EventBatch)

ROWS_AHEAD_MAX = 1_000_000
"""Decoded rows that may wait: about a second of work."""
TAKEN_ROWS = 131_072
"""Rows from which on `poll` does not join further waiting batches."""
PREPARED_ROWS = 8_192
"""Smallest batch, in rows, to prepare while the steps are busy: small ones are cheaper together, in the steps."""
POLLS_AHEAD_MAX = 16
"""Polls that may wait, regardless of their size."""
SWITCH_S = 0.0005
"""`sys.setswitchinterval`. With CPython's default of 5 ms, a thread that returns from a kernel or socket waits up to
5 ms for the GIL, and a flush has a hundred such returns."""
STOP_S_MAX = 30.0
"""Seconds that `close` waits for the thread."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_MIB = 1 << 20

log = structlog.get_logger(__name__)


class ReadAhead(Generic[T]):
    """Decoded batches of `source`, read after its `seek`; used and closed by one thread.

    `pause_after` returns the seconds to wait after a poll, or None. The functions in `prepare` are called with a batch
    while other batches wait, or if it is large and the steps are busy.
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
        self.has_polled = False
        self._stop = threading.Event()
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_S))
        self._thread = threading.Thread(target=self._run, name="headrace-read-ahead", daemon=True)
        self._thread.start()

    @property
    def exhausted(self) -> bool:
        """Whether the source was exhausted, or stopped, and all its batches have been returned."""
        with self._lock:
            return self._ended and not self._waiting and self._failure is None

    def poll(self, wait_s: float = 0.0) -> list[T]:
        """Batches that have been read, up to about 100,000 rows; waits up to `wait_s` for them, else [].

        Several polls are returned together, so that steps catch up quickly after a long flush.

        Raises:
            HeadraceError: the error of the source, after all batches before it.
        """
        with self._lock:
            self._is_awaited = not self._waiting
            self._lock.wait_for(lambda: self._waiting or self._failure or self._ended, wait_s)
            if not self._waiting:
                if self._failure is not None:
                    raise self._failure
                return []
            self._is_awaited = False
            taken: list[T] = []
            rows = 0
            while self._waiting and rows < TAKEN_ROWS:
                polled = self._waiting.popleft()
                rows += _rows_of(polled)
                taken += polled
            self._rows -= rows
            self._lock.notify_all()
            return taken

    def stop(self) -> None:
        """Stop reading; batches that have been read can still be polled."""
        self._stop.set()
        with self._lock:
            self._lock.notify_all()

    def close(self) -> None:
        """End the thread and close the source."""
        self.stop()
        self._thread.join(STOP_S_MAX)
        self._source.close()

    def _run(self) -> None:
        try:
            while not (self._stop.is_set() or self._source.exhausted):
                began_s = time.perf_counter()
                batches = self._source.poll()
                if batches:  # the many empty polls are not counted as work
                    _READ.observe(time.perf_counter() - began_s)
                decoded = [self._decoded(batch) for batch in batches]
                for each, prepare in product(decoded, self._prepare):
                    if self._waiting or (not self._is_awaited and len(each.offsets) >= PREPARED_ROWS):
                        with _PREPARE.time():
                            prepare(each)
                self.has_polled = True
                if decoded:
                    self._hand_on(decoded)
                pause_s = self._pause_after(batches)
                if pause_s is not None:
                    time.sleep(pause_s)
        except BaseException as exc:  # noqa: BLE001 - it is raised where the batches are taken
            self._failure = exc
        with self._lock:
            self._ended = True
            self._lock.notify_all()

    def _decoded(self, batch: Batch) -> T:
        with _DECODE.time():
            return self._decode(batch)

    def _hand_on(self, decoded: list[T]) -> None:
        with self._lock:
            self._waiting.append(decoded)
            self._rows += _rows_of(decoded)
            self._lock.notify_all()
            self._lock.wait_for(lambda: self._has_room() or self._stop.is_set())

    def _has_room(self) -> bool:
        return self._rows <= self._rows_max and len(self._waiting) <= POLLS_AHEAD_MAX


def _rows_of(batches: Sequence[Batch | EventBatch]) -> int:
    return sum(len(batch.offsets) for batch in batches)


@functools.cache
def keep_freed_memory() -> None:
    """Make glibc keep freed blocks of up to 32 MiB, its limit, in this process; does nothing for other C libraries.

    By default glibc returns large freed blocks to the system at once, so that every batch pays for new pages: a third
    of a flow's time (measured). Further calls do nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        log.debug("allocator_left_alone", reason="not glibc")
        return
    for parameter, value in ((_MMAP_THRESHOLD, 32 * _MIB), (_TRIM_THRESHOLD, 1024 * _MIB), (_TOP_PAD, 64 * _MIB)):
        libc.mallopt(parameter, value)
