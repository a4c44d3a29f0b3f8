"""Keeps the threads that alternate in holding the GIL on one CPU. Linux only.

Only one thread of a process runs Python at a time. If the event loop and the scoring thread run on two CPUs, each
hand-over of the GIL wakes the other CPU and moves the interpreter's memory to its cache: with 16 callers a small
ranking cost 0.75 ms of CPU on two cores, and 0.63 ms with both threads on one (benchmarks/serving/small_rank.py).
Threads that compute for milliseconds without the GIL (large fan-outs, refreshes, loads) are not pinned, nor are those
of other libraries.

    every LOOK_S   busy time of each CPU, less that of our threads = load of others there
                   none chosen yet, or others busy on ours -> the CPU with the least load

CPUs are not reserved: replicas in containers cannot see each other, yet each sees all CPUs, so two of them may choose
the same CPU. Each then sees the other's load there, and one moves.
"""

import os
import random
import threading
import time
from collections.abc import Collection
from pathlib import Path

import structlog

LOOK_S = 1.0
"""Seconds between two measurements."""
BUSY_MAX = 0.3
"""Share of our CPU's time that others may use before we look for a better CPU."""
GAIN_MIN = 0.2
"""How much lower the load of others must be on another CPU to move there: a move costs some milliseconds."""
MOVE_CHANCE = 0.5
"""Probability of a move: two replicas on one CPU see the same load, and would otherwise always move together."""

_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_IDLE, _IOWAIT = 3, 4
_USER_OF_THREAD, _SYSTEM_OF_THREAD = 11, 12
"""Indexes of times in a line of /proc/stat, and after the name in /proc/self/task/<thread>/stat."""

log = structlog.get_logger(__name__)


class OneCpu:
    """Keeps the threads added to it on one CPU from `start` to `close`; does nothing if only one CPU is allowed.

    Thread-safe. A thread that a pinned thread starts inherits its CPU: see `free`. `proc` is the mount point of procfs,
    which has the times of CPUs and threads.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        self._threads: set[int] = set()  # native ids, guarded by _lock, as is _cpu
        self._cpu: int | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._keeper: threading.Thread | None = None

    @property
    def cpu(self) -> int | None:
        """Number of the chosen CPU; None before the choice, or if there is none to make."""
        return self._cpu

    def add(self, thread: threading.Thread) -> None:
        """Keep `thread`, which must be running, on the same CPU as the others."""
        with self._lock:
            if thread.native_id is not None:
                self._threads.add(thread.native_id)
                if self._cpu is not None:
                    self._pin({self._cpu})

    def free(self, thread: threading.Thread) -> None:
        """Allow `thread` all CPUs: it has inherited the CPU of the pinned thread that started it."""
        with self._lock:
            if thread.native_id is not None and self._cpu is not None:
                _set(thread.native_id, self._allowed)

    def start(self) -> None:
        """Start the thread that chooses a CPU, and another one when others are busy there."""
        if len(self._allowed) < 2 or not (self._proc / "self" / "task").is_dir():
            return
        with self._lock:
            if self._keeper is None and not self._closed.is_set():
                self._keeper = threading.Thread(target=self._run, name="headrace-cpu", daemon=True)
                self._keeper.start()

    def close(self) -> None:
        """Allow all threads all CPUs again."""
        with self._lock:  # not while `start` is at it in another thread
            self._closed.set()
        if self._keeper is not None:
            self._keeper.join()
        with self._lock:
            self._release()

    def _run(self) -> None:
        try:
            now_s, busy_s, ours_s = time.monotonic(), self._busy_s(), self._ours_s()
            while not self._closed.wait(LOOK_S):
                before_s, busy_before_s, ours_before_s = now_s, busy_s, ours_s
                now_s, busy_s, ours_s = time.monotonic(), self._busy_s(), self._ours_s()
                span_s = now_s - before_s
                others = {cpu: (busy_s[cpu] - busy_before_s[cpu]) / span_s for cpu in busy_s}
                if self._cpu is not None:
                    others[self._cpu] -= (ours_s - ours_before_s) / span_s
                with self._lock:
                    chosen = choice(others, self._cpu)
                    if chosen != self._cpu:
                        self._pin({chosen})
                        self._cpu = chosen
                        log.debug("cpu_chosen", cpu=chosen)
        except (OSError, KeyError, ValueError) as exc:  # /proc has another format
            log.warning("cpu_not_chosen", reason=str(exc), effect="threads run on any CPU")
            with self._lock:
                self._release()

    def _ours_s(self) -> float:
        """Return the CPU seconds that our threads have used until now."""
        with self._lock:
            return sum(self._thread_s(thread) for thread in self._threads)

    def _busy_s(self) -> dict[int, float]:
        """Return the seconds that each CPU was not idle since the machine's start."""
        busy_s = {}
        for line in (self._proc / "stat").read_text().splitlines():
            name, *numbers = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in self._allowed:
                ticks = list(map(int, numbers[:8]))  # the later ones are included in these
                busy_s[int(name[3:])] = (sum(ticks) - ticks[_IDLE] - ticks[_IOWAIT]) / _TICKS_PER_S
        return busy_s

    def _thread_s(self, thread: int) -> float:
        """Return the CPU seconds of a thread of this process; 0 if it has ended."""
        try:
            fields = (self._proc / "self" / "task" / str(thread) / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return 0.0
        return (int(fields[_USER_OF_THREAD]) + int(fields[_SYSTEM_OF_THREAD])) / _TICKS_PER_S

    def _pin(self, cpus: Collection[int]) -> None:
        """Set the CPUs of our threads, and forget ended threads."""
        self._threads = {thread for thread in self._threads if _set(thread, cpus)}

    def _release(self) -> None:
        if self._cpu is not None:
            self._pin(self._allowed)
        self._cpu = None


def _set(thread: int, cpus: Collection[int]) -> bool:
    """Set the CPUs of a thread of this process; False if it has ended."""
    try:
        os.sched_setaffinity(thread, cpus)
    except ProcessLookupError:
        return False
    except OSError as exc:  # not allowed, or the CPUs are no longer ours: a request must not fail for that
        log.warning("cpu_not_set", cpus=sorted(cpus), reason=str(exc))
    return True


def choice(others: dict[int, float], cpu: int | None) -> int:
    """Choose the CPU to run on, from the share of each that others use and the present CPU.

    >>> choice({0: 0.9, 1: 0.1}, None), choice({0: 0.25, 1: 0.0}, 0)
    (1, 0)
    """
    least = min(others.values())
    best = random.choice([each for each, share in others.items() if share <= least + 0.05])
    if cpu is None:
        return best
    is_better = others[cpu] > BUSY_MAX and others[cpu] - others[best] > GAIN_MIN
    return best if is_better and random.random() < MOVE_CHANCE else cpu
