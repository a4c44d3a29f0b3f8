"""Key names that Bytewax sends to a wanted worker.

Bytewax takes worker = SipHash-1-3 (zero keys) of the key's UTF-8 bytes and 0xff, modulo the number of workers: Rust's
standard hasher, in 0.21.1. Names of our own choice would land anywhere, two groups on one worker and none on another.
Source: Aumasson and Bernstein, SipHash, 2012.
"""

import functools
import itertools

_MASK = (1 << 64) - 1


def worker_of(key: str, workers: int) -> int:
    """The worker, of `workers`, that Bytewax gives `key` to.

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
