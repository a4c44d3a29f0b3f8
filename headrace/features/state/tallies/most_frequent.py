"""The most frequent of some keys, of which some are known by a sketch only."""

from typing import Any

import numpy as np

from headrace.features.state.tallies.count_sketch import estimate, take_out
from headrace.kernels.compile import Int, Ints, part


@part
def most_frequent(
    found: Int,
    keys: Ints,
    counts: Ints,
    exact: Ints,
    is_sketched: bool,
    sums: Ints,
    keep: Int,
    others: Int,
    out_keys: Ints,
    out_counts: Ints,
) -> Int:
    """Put the keys with the greatest counts into out_* (k,), of equal ones the least key first; returns how many.

    keys, counts (found,) are used up, exact (found,) is scratch. With `is_sketched` what the sums of the sketches tell
    is added to the counts, see `estimate`. Cost: the keys, and their logarithm for each of the k.
    """
    for j in range(found):
        exact[j] = counts[j]
        if is_sketched:
            counts[j] = max(counts[j] + estimate(sums, keep, others, keys[j]), 1)
    for j in range(found // 2 - 1, -1, -1):
        _sift(keys, counts, exact, j, found)
    size, length = found, np.int64(0)
    while size > 0 and length < out_keys.size:
        if is_sketched:
            told = estimate(sums, keep, others, keys[0])
            if max(exact[0] + told, 1) < counts[0]:  # what shares its counters has been taken out since
                counts[0] = max(exact[0] + told, 1)
                _sift(keys, counts, exact, 0, size)
                continue
            take_out(sums, keep, keys[0], told)
        out_keys[length], out_counts[length] = keys[0], counts[0]
        length += 1
        size -= 1
        keys[0], counts[0], exact[0] = keys[size], counts[size], exact[size]
        _sift(keys, counts, exact, 0, size)
    return length


@part
def _sift(keys: Ints, counts: Ints, exact: Ints, at: Int, size: Int) -> None:
    """Let the key at a place of the heap sink to where none below it comes before it."""
    key, count, held = keys[at], counts[at], exact[at]
    while 2 * at + 1 < size:
        below: Int = 2 * at + 1
        if below + 1 < size and _before(counts, keys, below + 1, counts[below], keys[below]):
            below += 1
        if not _before(counts, keys, below, count, key):
            break
        keys[at], counts[at], exact[at] = keys[below], counts[below], exact[below]
        at = below
    keys[at], counts[at], exact[at] = key, count, held


@part
def _before(counts: Ints, keys: Ints, at: Int, count: Any, key: Any) -> bool:
    return bool(counts[at] > count or (counts[at] == count and keys[at] < key))
