"""Tallies: how often each value came, tile by tile, in bounded room. Packed: kernels/tally_codec.py.

A tally's state, for `rows` entities and C entries:

    heads (rows,) int64       newest tile of any event of the entity
    floors (rows,) int64      newest tile that was given up for lack of room; EMPTY where none
    sizes (rows,) int64       entries in use
    tiles, keys (rows, C + 1) int64, counts (rows, C + 1) float64, in the order of (tile, key)

Two bounds, both functions of the set of events, whatever their order. A tile keeps `keep` keys: those with the smallest
hashes (a bottom-k sample: Beyer et al. 2007, "On synopses for distinct-value estimation under multiset operations"), or
with `collapse` the greatest keys, the rest counted at the least of them (DDSketch: Masson, Rim, Lee 2019, section 3).
Within a tile keys never become fewer, so a key that was turned away could never have come back. A row keeps the newest
tiles that fit into C entries; what a newer tile displaced would still be displaced at any later time.
"""

import numpy as np

from headrace.features.kernels.compile import Bytes, Floats, Int, Ints, lean_kernel, part
from headrace.features.kernels.hashing import mix
from headrace.features.kernels.rings import EMPTY

DISTINCT, TOP, QUANTILE = 0, 1, 2
_EMPTY = np.int64(EMPTY)
_NO_LIMIT = np.uint64(0xFFFFFFFFFFFFFFFF)


@lean_kernel
def run_tally(
    heads: Ints,
    floors: Ints,
    sizes: Ints,
    tiles: Ints,
    keys: Ints,
    counts: Floats,
    flag: Int,
    column: Int,
    keep: Int,
    collapse: bool,
    hop: Int,
    span: Int,
    rows: Ints,
    times: Ints,
    ops: Ints,
    flags: Bytes,
    bits: Ints,
    late: Bytes,
    mode: Int,
    quantiles: Floats,
    merged_keys: Ints,
    merged_counts: Floats,
    out_keys: Ints,
    out_counts: Floats,
    out_lengths: Ints,
    out_estimates: Floats,
) -> None:
    """Walk the operations (n,): `ops[i] >= 0` reads the row as of `times[i]` into out_*[ops[i]], else adds ~ops[i].

    The event's key is bits[event, column]. What a read writes, by `mode`: DISTINCT the estimate (reads,); TOP the k
    most frequent keys and their counts (reads, k), and how many (reads,); QUANTILE the keys of `quantiles` (k,), and k
    where there are any. merged_* (C + 1,) are scratch. Cost: an event log C and what it moves, a read C log C at most.
    """
    for i in range(rows.size):
        row = rows[i]
        tile = np.int64(0)
        if hop > 0:
            tile = times[i] // hop
        if ops[i] >= 0:
            if row >= 0:
                low = max(tile, heads[row]) - span
                found, limit = _merge_window(
                    sizes[row], tiles[row], keys[row], counts[row], low, tile, keep, merged_keys, merged_counts
                )
                _answer(
                    mode, found, limit, quantiles, merged_keys, merged_counts, ops[i], out_keys, out_counts,
                    out_lengths, out_estimates,
                )  # fmt: skip
            continue
        heads[row] = max(heads[row], tile)
        event = ~ops[i]
        if flags[event, flag] == 0:
            continue
        oldest, key = heads[row] - span, bits[event, column]
        if tile < oldest or tile <= floors[row]:
            late[event] = 1
        else:
            late[event] |= not _add(floors, sizes, tiles, keys, counts, row, tile, key, keep, collapse, oldest)


@part
def _place(tiles: Ints, keys: Ints, size: Int, tile: Int, key: Int) -> Int:
    """First entry that is not before (tile, key)."""
    low: Int = 0
    high: Int = size
    while low < high:
        middle = (low + high) >> np.int64(1)
        if tiles[middle] < tile or (tiles[middle] == tile and keys[middle] < key):
            low = middle + 1
        else:
            high = middle
    return low


@lean_kernel
def _add(
    floors: Ints,
    sizes: Ints,
    tiles: Ints,
    keys: Ints,
    counts: Floats,
    row: Int,
    tile: Int,
    key: Int,
    keep: Int,
    collapse: bool,
    oldest: Int,
) -> bool:
    """Count one event; False where its tile had to be given up."""
    size = sizes[row]
    at = _place(tiles[row], keys[row], size, tile, key)
    if at < size and tiles[row, at] == tile and keys[row, at] == key:
        counts[row, at] += 1.0
        return True
    first = at
    while first > 0 and tiles[row, first - 1] == tile:
        first -= 1
    end = at
    while end < size and tiles[row, end] == tile:
        end += 1
    if end - first >= keep:
        _add_to_full(tiles, keys, counts, row, first, end, at, tile, key, collapse, size)
        return True
    if size == tiles.shape[1] - 1:
        if at == 0 and tiles[row, 0] != tile and tiles[row, 0] >= oldest:
            floors[row] = tile
            return False
        dropped = _give_up_oldest(floors, sizes, tiles, keys, counts, row, oldest)
        if tile <= floors[row]:
            return False
        at -= dropped
        size = sizes[row]
    _insert(tiles, keys, counts, row, at, size, tile, key, 1.0)
    sizes[row] = size + 1
    return True


@part
def _add_to_full(
    tiles: Ints,
    keys: Ints,
    counts: Floats,
    row: Int,
    first: Int,
    end: Int,
    at: Int,
    tile: Int,
    key: Int,
    collapse: bool,
    size: Int,
) -> None:
    """Count a new key in a tile whose entries [first, end) are all that it may have."""
    if collapse:
        if at == first:
            counts[row, first] += 1.0
            return
        _insert(tiles, keys, counts, row, at, size, tile, key, 1.0)
        counts[row, first + 1] += counts[row, first]
        _remove(tiles, keys, counts, row, first, size + 1)
        return
    worst, most = first, mix(keys[row, first])
    for j in range(first + 1, end):
        found = mix(keys[row, j])
        if found > most:
            worst, most = j, found
    if mix(key) < most:
        _remove(tiles, keys, counts, row, worst, size)
        _insert(tiles, keys, counts, row, at - 1 if worst < at else at, size - 1, tile, key, 1.0)


@part
def _insert(
    tiles: Ints, keys: Ints, counts: Floats, row: Int, at: Int, size: Int, tile: Int, key: Int, count: float
) -> None:
    for j in range(size, at, -1):
        tiles[row, j], keys[row, j], counts[row, j] = tiles[row, j - 1], keys[row, j - 1], counts[row, j - 1]
    tiles[row, at], keys[row, at], counts[row, at] = tile, key, count


@part
def _remove(tiles: Ints, keys: Ints, counts: Floats, row: Int, at: Int, size: Int) -> None:
    for j in range(at, size - 1):
        tiles[row, j], keys[row, j], counts[row, j] = tiles[row, j + 1], keys[row, j + 1], counts[row, j + 1]


@part
def _give_up_oldest(floors: Ints, sizes: Ints, tiles: Ints, keys: Ints, counts: Floats, row: Int, oldest: Int) -> Int:
    """Drop the tiles that have left the window, or else the oldest one; returns how many entries that were."""
    size, dropped = sizes[row], np.int64(0)
    while dropped < size and tiles[row, dropped] < oldest:
        dropped += 1
    if dropped == 0:
        floors[row] = tiles[row, 0]
        while dropped < size and tiles[row, dropped] == floors[row]:
            dropped += 1
    for j in range(dropped, size):
        k = j - dropped
        tiles[row, k], keys[row, k], counts[row, k] = tiles[row, j], keys[row, j], counts[row, j]
    sizes[row] = size - dropped
    return dropped


@part
def _merge_window(
    size: Int,
    tiles: Ints,
    keys: Ints,
    counts: Floats,
    low: Int,
    high: Int,
    keep: Int,
    merged_keys: Ints,
    merged_counts: Floats,
) -> tuple[Int, np.uint64]:
    """Counts by key of the tiles `low <= tile <= high`, keys ascending; returns (keys, greatest hash fully kept)."""
    found, limit, j = np.int64(0), _NO_LIMIT, np.int64(0)
    while j < size and tiles[j] < low:
        j += 1
    begin = j
    while j < size and tiles[j] <= high:
        tile, most, start = tiles[j], np.uint64(0), j
        while j < size and tiles[j] == tile:
            merged_keys[j - begin], merged_counts[j - begin] = keys[j], counts[j]
            most = max(most, mix(keys[j]))
            j += 1
        if j - start >= keep:
            limit = min(limit, most)
    if j == begin:
        return found, limit
    if tiles[begin] == tiles[j - 1]:
        return j - begin, limit
    _sort(merged_keys, merged_counts, j - begin)
    for k in range(1, j - begin):
        if merged_keys[k] == merged_keys[found]:
            merged_counts[found] += merged_counts[k]
        else:
            found += 1
            merged_keys[found], merged_counts[found] = merged_keys[k], merged_counts[k]
    return found + 1, limit


@part
def _sort(keys: Ints, counts: Floats, size: Int) -> None:
    """Shell's sort, with gaps of 2.25: short lists, no room needed."""
    gap: Int = 1
    while gap < size:
        gap = np.int64(gap * 2.25) + 1
    while gap > 0:
        for i in range(gap, size):
            key, count, j = keys[i], counts[i], i
            while j >= gap and keys[j - gap] > key:
                keys[j], counts[j] = keys[j - gap], counts[j - gap]
                j -= gap
            keys[j], counts[j] = key, count
        gap = np.int64(gap / 2.25)


@part
def _answer(
    mode: Int,
    found: Int,
    limit: np.uint64,
    quantiles: Floats,
    keys: Ints,
    counts: Floats,
    read: Int,
    out_keys: Ints,
    out_counts: Floats,
    out_lengths: Ints,
    out_estimates: Floats,
) -> None:
    if mode == DISTINCT:
        out_estimates[read] = _estimate(found, limit, keys)
    elif mode == TOP:
        length = min(found, out_keys.shape[1])
        for place in range(length):
            best: Int = 0
            for j in range(1, found):
                if counts[j] > counts[best]:
                    best = j
            out_keys[read, place], out_counts[read, place] = keys[best], counts[best]
            counts[best] = -1.0
        out_lengths[read] = length
    elif found > 0:
        total = 0.0
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


@part
def _estimate(found: Int, limit: np.uint64, keys: Ints) -> float:
    """Distinct keys: as many as there are, or from those whose hash is within the limit of every tile."""
    if limit == _NO_LIMIT:
        return np.float64(found)
    within = 0
    for j in range(found):
        if mix(keys[j]) <= limit:
            within += 1
    return (within - 1) / ((np.float64(limit) + 1.0) / 2.0**64)
