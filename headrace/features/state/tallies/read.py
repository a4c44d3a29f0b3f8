"""Reads of tallies: the tiles of a window merged, and what is told of them. The arrays: tallies/update.py."""

import numpy as np

from headrace.features.state.tallies.count_sketch import ENTRY, others_of
from headrace.features.state.tallies.most_frequent import most_frequent
from headrace.kernels.compile import Floats, Int, Ints, part
from headrace.kernels.hashing import mix

DISTINCT, TOP, QUANTILE = 0, 1, 2
LEVELS, RANKS = 64, 32
_LEVELS = np.int64(LEVELS)
_NO_LIMIT = np.uint64(0xFFFFFFFFFFFFFFFF)


@part
def place_of_mark(words: Ints, start: Int, count: Int, mark: Int) -> Int:
    """First of `count` entries whose mark is not before `mark`."""
    low: Int = 0
    high: Int = count
    while low < high:
        middle = (low + high) >> np.int64(1)
        if words[start + ENTRY * middle] < mark:
            low = middle + 1
        else:
            high = middle
    return low


@part
def place_of_key(words: Ints, start: Int, first: Int, end: Int, key: Int) -> Int:
    """First of the entries [first, end), of one tile, whose key is not before `key`."""
    low: Int = first
    high: Int = end
    while low < high:
        middle = (low + high) >> np.int64(1)
        if words[start + ENTRY * middle + 1] < key:
            low = middle + 1
        else:
            high = middle
    return low


@part
def merge_window(
    words: Ints,
    start: Int,
    count: Int,
    low: Int,
    high: Int,
    mode: Int,
    keys: Ints,
    counts: Ints,
    runs: Ints,
    sums: Ints,
) -> tuple[Int, Int, Int, np.uint64]:
    """Counts by key of the tiles `low <= tile <= high`, keys ascending: keys, counts (2, most), in one side of them.

    Returns (side, keys, level, limit): the greatest level of any tile, to which buckets are brought; and for DISTINCT
    the least hash up to which a tile at level 1 has all keys, beyond which keys are left out. For TOP above level 0
    sums[0] gets the sum of all sketches; runs (tiles + 1,) is scratch. The tiles are sorted, so they are merged two by
    two, and equal keys are one from the first time they meet.
    """
    begin, end = place_of_mark(words, start, count, low * _LEVELS), count
    if count > 0 and words[start + ENTRY * (count - 1)] >= (high + 1) * _LEVELS:
        end = place_of_mark(words, start, count, (high + 1) * _LEVELS)
    level, limit = _common(words, start, begin, end, mode)
    tiles: Int = np.int64(0)
    found: Int = np.int64(0)
    mark: Int = np.int64(0)
    if mode == TOP and level > 0:
        _add_sketches(words, start, begin, end, sums[0])
    for j in range(begin, end):
        at = start + ENTRY * j
        key: Int = np.int64(words[at + 1])
        if mode == TOP and words[at] % _LEVELS > 1:
            continue
        if limit < _NO_LIMIT and mix(key) > limit:
            continue
        if tiles == 0 or words[at] != mark:
            runs[tiles], tiles, mark = found, tiles + 1, np.int64(words[at])
        if mode == QUANTILE:
            finer = level - mark % _LEVELS
            if key > 0:
                key += (np.int64(1) << finer) - 1
            key >>= finer
            if found > runs[tiles - 1] and keys[0, found - 1] == key:
                counts[0, found - 1] += words[at + 2]
                continue
        keys[0, found], counts[0, found] = key, words[at + 2] - (words[at + 2] % RANKS if mode == TOP else 0)
        found += 1
    runs[tiles] = found
    side = np.int64(0)
    while tiles > 1:
        tiles = _merge_pairs(keys[side], counts[side], runs, tiles, keys[1 - side], counts[1 - side])
        side = 1 - side
    if mode == TOP:
        for j in range(runs[tiles]):
            counts[side, j] //= RANKS
    return side, runs[tiles], level, limit


@part
def _common(words: Ints, start: Int, begin: Int, end: Int, mode: Int) -> tuple[Int, np.uint64]:
    """Greatest level of the entries [begin, end), and for DISTINCT the least of the limits of their tiles."""
    level: Int = np.int64(0)
    before: Int = np.int64(0)
    limit = _NO_LIMIT
    for j in range(begin, end):
        mark: Int = np.int64(words[start + ENTRY * j])
        if j == begin or mark != before:
            before = mark
            level = max(level, np.int64(mark % _LEVELS))
            if mode == DISTINCT and mark % _LEVELS > 0:
                limit = min(limit, np.uint64(words[start + ENTRY * j + 2]))
    return level, limit


@part
def _add_sketches(words: Ints, start: Int, begin: Int, end: Int, sums: Ints) -> None:
    """Add up the sketches among the entries [begin, end) into sums (4 keep + 2,)."""
    sums[:] = 0
    counter: Int = np.int64(0)
    for j in range(begin, end):
        at = start + ENTRY * j
        if words[at] % _LEVELS < 2:
            counter = np.int64(0)
        else:
            sums[counter] += words[at + 1]
            sums[counter + 1] += words[at + 2]
            counter += 2


@part
def _merge_pairs(keys: Ints, counts: Ints, runs: Ints, tiles: Int, to_keys: Ints, to_counts: Ints) -> Int:
    """Merge runs of keys two by two; runs (tiles + 1,) are where each begins. Returns how many there are then."""
    to: Int = np.int64(0)
    merged: Int = np.int64(0)
    for run in range(0, tiles, 2):
        a, a_end = runs[run], runs[run + 1]
        b, b_end = a_end, runs[min(run + 2, tiles)]
        runs[merged] = to
        merged += 1
        while a < a_end and b < b_end:
            one, other = keys[a], keys[b]
            to_keys[to] = min(one, other)
            to_counts[to] = (counts[a] if one <= other else 0) + (counts[b] if other <= one else 0)
            a += one <= other
            b += other <= one
            to += 1
        while a < a_end:
            to_keys[to], to_counts[to] = keys[a], counts[a]
            a, to = a + 1, to + 1
        while b < b_end:
            to_keys[to], to_counts[to] = keys[b], counts[b]
            b, to = b + 1, to + 1
    runs[merged] = to
    return merged


@part
def answer(
    mode: Int,
    found: Int,
    level: Int,
    limit: np.uint64,
    keep: Int,
    quantiles: Floats,
    keys: Ints,
    counts: Ints,
    spare: Ints,
    sums: Ints,
    read: Int,
    out_keys: Ints,
    out_counts: Ints,
    out_lengths: Ints,
    out_estimates: Floats,
) -> None:
    """Write what a read tells of `found` keys, ascending, and their counts, as `merge_window` gives them.

    DISTINCT: the estimate (reads,). TOP: the k most frequent keys and their counts (reads, k), of equally frequent ones
    the least first, and how many. QUANTILE: the buckets of `quantiles` (k,), and the level, k where there are any.
    """
    if mode == DISTINCT:
        out_estimates[read] = found
        if limit < _NO_LIMIT:
            out_estimates[read] = (found - 1) / ((np.float64(limit) + 1.0) / 2.0**64)
    elif mode == TOP:
        others = others_of(sums[0], keep, sums[1]) if level > 0 else np.int64(0)
        out_lengths[read] = most_frequent(
            found, keys, counts, spare, bool(level > 0), sums[0], keep, others, out_keys[read], out_counts[read]
        )
    elif found > 0:
        total = np.int64(0)
        for j in range(found):
            total += counts[j]
        for q in range(quantiles.size):
            rank, below = quantiles[q] * (total - 1.0), counts[0]
            j = 0
            while below <= rank and j < found - 1:
                j += 1
                below += counts[j]
            out_keys[read, q] = keys[j]
        out_lengths[read] = quantiles.size
        out_estimates[read] = level
