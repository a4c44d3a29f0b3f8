"""The placement of a flow's steps on workers.

    build of worker 0 --> make all groups' steps --> their positions --> seek
    build of worker 1 ----------------------------> same positions ---> seek
    batches ----------> step of the group

Steps are created before the first batch, and the source begins at the positions of these same objects. Positions of
other objects could differ if the store went back in time in between, which would leave an unnoticed gap.

Bytewax 0.21.1 picks the worker of a key by SipHash-1-3 (zero keys), Rust's standard hasher, of its UTF-8 bytes and
0xff, modulo the number of workers. `worker_keys` finds key names that give each group a separate worker.
Source: Aumasson and Bernstein, SipHash, 2012.
"""

import functools
import itertools
import threading
from collections.abc import Callable, Hashable, Sequence

from headrace.pipelines.loop import Step
from headrace.streams.positions import Positions, least_positions


class PlacedSteps:
    """One step for each group, created anew for each run of a flow. Thread-safe."""

    def __init__(self, make: Callable[[int, int], Step]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._askers: set[Hashable] = set()
        self._positions = Positions()
        self.made: Sequence[Step] = ()

    def positions(self, asker: Hashable, groups: int) -> Positions:
        """Positions at which a source must begin. An `asker` calls it once per run; a second call begins a new run."""
        with self._lock:
            if not self.made or asker in self._askers:
                self._askers.clear()
                self.made = [self._make(group, groups) for group in range(groups)]
                self._positions = least_positions(step.positions() for step in self.made)
            self._askers.add(asker)
            return self._positions


_MASK = (1 << 64) - 1


def worker_of(key: str, workers: int) -> int:
    """The worker, of `workers`, to which Bytewax assigns `key`.

    >>> [worker_of(key, 2) for key in worker_keys(2)]
    [0, 1]
    """
    return _siphash13(key.encode() + b"\xff") % workers


@functools.cache
def worker_keys(workers: int) -> tuple[str, ...]:
    """One key for each worker, in the order of the workers."""
    return tuple(
        next(key for attempt in itertools.count() if worker_of(key := f"group-{worker}.{attempt}", workers) == worker)
        for worker in range(workers)
    )


def _siphash13(data: bytes) -> int:
    state = [0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573]
    whole = len(data) - len(data) % 8
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, whole, 8)]
    words.append((len(data) & 0xFF) << 56 | int.from_bytes(data[whole:], "little"))
    for word in words:
        state[3] ^= word
        _round(state)
        state[0] ^= word
    state[2] ^= 0xFF
    for _ in range(3):
        _round(state)
    return state[0] ^ state[1] ^ state[2] ^ state[3]


def _round(state: list[int]) -> None:
    a, b, c, d = state
    a = (a + b) & _MASK
    b = _rotated(b, 13) ^ a
    a = _rotated(a, 32)
    c = (c + d) & _MASK
    d = _rotated(d, 16) ^ c
    a = (a + d) & _MASK
    d = _rotated(d, 21) ^ a
    c = (c + b) & _MASK
    b = _rotated(b, 17) ^ c
    c = _rotated(c, 32)
    state[:] = a, b, c, d


def _rotated(word: int, bits: int) -> int:
    return ((word << bits) | (word >> (64 - bits))) & _MASK
