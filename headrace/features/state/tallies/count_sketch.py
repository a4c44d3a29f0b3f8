"""A count-min sketch: approximate counts of any number of keys, in a fixed number of counters.

    counter    0 .. keep-1 | keep .. 2 keep-1 | 2 keep .. 3 keep-1 | 3 keep .. 4 keep-1 | one spare, for the caller
    a key has  one of these  one of these       one of these         one of these

A key adds to one counter in each of the four rows. The least of the four is its count plus the counts of other keys
that share that counter; their share is estimated by the median of the least of four counters (`others_of`). The sum of
two sketches is the sketch of both inputs. Source: Cormode and Muthukrishnan 2005, "An improved data stream summary: the
count-min sketch and its applications". It differs from the paper in that keys are estimated from the most frequent on,
and each is removed before the next is estimated, so that a rare key that shares its counters with four frequent ones is
not mistaken for one.

Counters are stored in pairs in words 1 and 2 of the entries of a tally (tallies/update.py), from word `base` on.
"""

import numpy as np

from headrace.kernels.compile import Int, Ints, part
from headrace.kernels.hashing import mix

ENTRY, ROWS = 3, 4
MIDDLE = 1 - 0.5 ** (1 / ROWS)
"""Quantile of all counters that is the median of the least of ROWS random counters."""
_BITS = np.uint64(16)
_MASK = np.uint64((1 << 16) - 1)


@part
def sketch_entries(keep: Int) -> Int:
    """Number of entries that hold the counters."""
    return ROWS * keep // 2 + 1


@part
def word_of(base: Int, counter: Int) -> Int:
    """Word that holds a counter."""
    return base + ENTRY * (counter >> 1) + 1 + (counter & 1)


@part
def count_in(words: Ints, base: Int, keep: Int, key: Int, times: Int) -> None:
    """Add `times` occurrences of a key."""
    bits = mix(~key)
    for row in range(ROWS):
        words[word_of(base, row * keep + _column(bits, keep))] += times
        bits >>= _BITS


@part
def take_out(sums: Ints, keep: Int, key: Int, times: Int) -> None:
    """Remove `times` occurrences of a key from the counters sums (4 keep,)."""
    bits = mix(~key)
    for row in range(ROWS):
        sums[row * keep + _column(bits, keep)] -= times
        bits >>= _BITS


@part
def estimate(sums: Ints, keep: Int, others: Int, key: Int) -> Int:
    """Estimate a key's count from the counters sums (4 keep,), given that other keys add `others` to the least one."""
    bits = mix(~key)
    least: Int = np.int64(sums[_column(bits, keep)])
    for row in range(1, ROWS):
        bits >>= _BITS
        least = min(least, np.int64(sums[row * keep + _column(bits, keep)]))
    return max(least - others, 0)


@part
def others_of(sums: Ints, keep: Int, scratch: Ints) -> Int:
    """Median of the least counter of a key that never occurred; sums, scratch (4 keep,)."""
    size = ROWS * keep
    gap: Int = size // 2
    for j in range(size):
        scratch[j] = sums[j]
    while gap > 0:  # Shell's sort
        for i in range(gap, size):
            value, j = scratch[i], i
            while j >= gap and scratch[j - gap] > value:
                scratch[j] = scratch[j - gap]
                j -= gap
            scratch[j] = value
        gap = 1 if gap == 2 else np.int64(gap / 2.25)
    return np.int64(scratch[np.int64(MIDDLE * size)])


@part
def _column(bits: np.uint64, keep: Int) -> Int:
    return np.int64(((bits & _MASK) * np.uint64(keep)) >> _BITS)
