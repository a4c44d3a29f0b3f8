"""A count-min sketch: about how often each of any number of keys came, in a fixed number of counters.

    counter    0 .. keep-1 | keep .. 2 keep-1 | 2 keep .. 3 keep-1 | 3 keep .. 4 keep-1 | one more, of the user
    key's      one of these  one of these       one of these         one of these

A key adds to one counter of each of the four rows, so the least of them is what it came to and what others with the
same counter did: as much as the least of any four counters is, in the middle. Two sketches added are the sketch of
both, in any order. Source: Cormode and Muthukrishnan 2005, "An improved data stream summary: the count-min sketch and
its applications"; it differs in that keys are estimated from the most frequent on, and each is taken out before the
next one is estimated: a rare key that shares its counters with four frequent ones is not taken for one.

Counters lie two by two in the words 1 and 2 of entries of a tally (tallies/update.py), from word `base` on.
"""

import numpy as np

from headrace.kernels.compile import Int, Ints, part
from headrace.kernels.hashing import mix

ENTRY, ROWS = 3, 4
MIDDLE = 1 - 0.5 ** (1 / ROWS)
"""Of the counters in order, where the least of one of each row lies in the middle."""
_BITS = np.uint64(16)
_MASK = np.uint64((1 << 16) - 1)


@part
def sketch_entries(keep: Int) -> Int:
    """Entries that hold the counters."""
    return ROWS * keep // 2 + 1


@part
def word_of(base: Int, counter: Int) -> Int:
    """Word that holds a counter."""
    return base + ENTRY * (counter >> 1) + 1 + (counter & 1)


@part
def count_in(words: Ints, base: Int, keep: Int, key: Int, times: Int) -> None:
    """Add a key that came some times."""
    bits = mix(~key)
    for row in range(ROWS):
        words[word_of(base, row * keep + _column(bits, keep))] += times
        bits >>= _BITS


@part
def take_out(sums: Ints, keep: Int, key: Int, times: Int) -> None:
    """Take a key that came some times out of the counters sums (4 keep,)."""
    bits = mix(~key)
    for row in range(ROWS):
        sums[row * keep + _column(bits, keep)] -= times
        bits >>= _BITS


@part
def estimate(sums: Ints, keep: Int, others: Int, key: Int) -> Int:
    """About how often a key came, by the counters sums (4 keep,), to the least of which other keys add `others`."""
    bits = mix(~key)
    least: Int = np.int64(sums[_column(bits, keep)])
    for row in range(1, ROWS):
        bits >>= _BITS
        least = min(least, np.int64(sums[row * keep + _column(bits, keep)]))
    return max(least - others, 0)


@part
def others_of(sums: Ints, keep: Int, scratch: Ints) -> Int:
    """What the least counter of a key that never came is, in the middle: sums, scratch (4 keep,)."""
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
