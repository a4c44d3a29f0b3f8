"""Reads of tallies: merge the tiles of a window and compute the answer. For the layout see tallies/update.py."""

from typing import Any, NamedTuple

import numpy as np

from headrace.features.state.tallies.count_sketch import ENTRY, estimate, others_of, take_out
from headrace.kernels.compile import Floats, Int, Ints, part
from headrace.kernels.hashing import mix

DISTINCT, TOP, QUANTILE = 0, 1, 2
LEVELS, RANKS = 64, 32
_LEVELS = np.int64(LEVELS)
_NO_LIMIT = np.uint64(0xFFFFFFFFFFFFFFFF)


class Tally(NamedTuple):
    """A tally for kernels.

    mode: what a read returns. kind: kind of the keys. flag: flag column that admits an event. column: bit column of its
    key. keep: keys of a tile. hop: in microseconds, 0 for a single, permanent tile. span: whole tiles of the window.
    most: entries of the largest block. quantiles (k,).
    """

    mode: Int
    kind: Int
    flag: Int
    column: Int
    keep: Int
    hop: Int
    span: Int
    most: Int
    quantiles: Floats


class TallyScratch(NamedTuple):
    """Scratch arrays of a read: keys, counts (2, most), runs (span + 2,), sums (2, 4 keep + 2)."""

    keys: Ints
    counts: Ints
    runs: Ints
    sums: Ints


class TallyOut(NamedTuple):
    """Answers of tally reads: keys, counts (reads, k), lengths, estimates (reads,); see `answer`."""

    keys: Ints
    counts: Ints
    lengths: Ints
    estimates: Floats


@part
def place_of_mark(words: Ints, start: Int, count: Int, mark: Int) -> Int:
    """Index of the first of `count` entries whose mark is not before `mark`."""
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
    """Index of the first of the entries [first, end) of one tile whose key is not before `key`."""
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
    words: Ints, start: Int, count: Int, low: Int, high: Int, mode: Int, scratch: TallyScratch
) -> tuple[Int, Int, Int, np.uint64]:
    """Merge the tiles `low <= tile <= high` into counts by ascending key, in one side of keys, counts (2, most).

    Returns (side, number of keys, level, limit). `level` is the highest level of the tiles, to which all buckets are
    brought. For DISTINCT, `limit` is the least hash up to which every tile has all its keys; keys with larger hashes
    are left out. For TOP above level 0, sums[0] gets the sum of all sketches. runs (tiles + 1,) is scratch. Tiles are
    sorted by key and merged in pairs, which combines equal keys as early as possible.
    """
    keys, counts, runs, sums = scratch.keys, scratch.counts, scratch.runs, scratch.sums
    begin, end = place_of_mark(words, start, count, low * _LEVELS), count
    if count > 0 and words[start + ENTRY * (count - 1)] >= (high + 1) * _LEVELS:
        end = place_of_mark(words, start, count, (high + 1) * _LEVELS)
    level, limit = _common(words, start, begin, end, mode)
    tiles: Int = np.int64(0)
    used: Int = np.int64(0)
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
            runs[tiles], tiles, mark = used, tiles + 1, np.int64(words[at])
        if mode == QUANTILE:
            finer = level - mark % _LEVELS
            if key > 0:
                key += (np.int64(1) << finer) - 1
            key >>= finer
            if used > runs[tiles - 1] and keys[0, used - 1] == key:
                counts[0, used - 1] += words[at + 2]
                continue
        keys[0, used], counts[0, used] = key, words[at + 2] - (words[at + 2] % RANKS if mode == TOP else 0)
        used += 1
    runs[tiles] = used
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
    """Highest level of the entries [begin, end), and for DISTINCT the least limit of their tiles."""
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
    """Sum the sketches among the entries [begin, end) into sums (4 keep + 2,)."""
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
    """Merge runs of keys in pairs; runs (tiles + 1,) holds where each begins. Returns the new number of runs."""
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
    tally: Tally, used: Int, side: Int, level: Int, limit: np.uint64, scratch: TallyScratch, read: Int, out: TallyOut
) -> None:
    """Write the answer of a read from `used` ascending keys and their counts, as `merge_window` returns them.

    DISTINCT: the estimate. TOP: the k most frequent keys, their counts and their number; of equally frequent keys the
    smallest is first. QUANTILE: the buckets of the quantiles, the level as the estimate, and k as the length, or 0
    without keys.
    """
    mode, sums = tally.mode, scratch.sums
    keys, counts, spare = scratch.keys[side], scratch.counts[side], scratch.counts[1 - side]
    if mode == DISTINCT:
        out.estimates[read] = used
        if limit < _NO_LIMIT:
            out.estimates[read] = (used - 1) / ((np.float64(limit) + 1.0) / 2.0**64)
    elif mode == TOP:
        others = others_of(sums[0], tally.keep, sums[1]) if level > 0 else np.int64(0)
        out.lengths[read] = most_frequent(
            used, keys, counts, spare, bool(level > 0), sums[0], tally.keep, others, out.keys[read], out.counts[read]
        )
    elif used > 0:
        total = np.int64(0)
        for j in range(used):
            total += counts[j]
        for q in range(tally.quantiles.size):
            rank, below = tally.quantiles[q] * (total - 1.0), counts[0]
            j = 0
            while below <= rank and j < used - 1:
                j += 1
                below += counts[j]
            out.keys[read, q] = keys[j]
        out.lengths[read] = tally.quantiles.size
        out.estimates[read] = level


@part
def most_frequent(
    used: Int,
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
    """Write the keys with the highest counts to out_* (k,), of equal counts the smallest key first; returns how many.

    keys, counts (used,) are overwritten, exact (used,) is scratch. With `is_sketched`, the estimates from the sums of
    the sketches are added to the counts, see `estimate`. Cost: O(used + k log used).
    """
    for j in range(used):
        exact[j] = counts[j]
        if is_sketched:
            counts[j] = max(counts[j] + estimate(sums, keep, others, keys[j]), 1)
    for j in range(used // 2 - 1, -1, -1):
        _sift(keys, counts, exact, j, used)
    size, length = used, np.int64(0)
    while size > 0 and length < out_keys.size:
        if is_sketched:
            estimated = estimate(sums, keep, others, keys[0])
            if max(exact[0] + estimated, 1) < counts[0]:  # a key that shares its counters has been removed since
                counts[0] = max(exact[0] + estimated, 1)
                _sift(keys, counts, exact, 0, size)
                continue
            take_out(sums, keep, keys[0], estimated)
        out_keys[length], out_counts[length] = keys[0], counts[0]
        length += 1
        size -= 1
        keys[0], counts[0], exact[0] = keys[size], counts[size], exact[size]
        _sift(keys, counts, exact, 0, size)
    return length


@part
def _sift(keys: Ints, counts: Ints, exact: Ints, at: Int, size: Int) -> None:
    """Restore the heap order below index `at`: its key sinks until no child comes before it."""
    key, count, exact_count = keys[at], counts[at], exact[at]
    while 2 * at + 1 < size:
        below: Int = 2 * at + 1
        if below + 1 < size and _before(counts, keys, below + 1, counts[below], keys[below]):
            below += 1
        if not _before(counts, keys, below, count, key):
            break
        keys[at], counts[at], exact[at] = keys[below], counts[below], exact[below]
        at = below
    keys[at], counts[at], exact[at] = key, count, exact_count


@part
def _before(counts: Ints, keys: Ints, at: Int, count: Any, key: Any) -> bool:
    return bool(counts[at] > count or (counts[at] == count and keys[at] < key))
