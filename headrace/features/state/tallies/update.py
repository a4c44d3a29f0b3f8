"""Tallies: how often each value occurred, per tile, in bounded memory. Reads: read.py. Packed form: codec.py.

A row's block holds its entries sorted by (tile, key), each of ENTRY = 3 words. So a quiet entity takes only the entries
it has, a busy one `keep` entries for each tile of its window:

    heads (rows, 4)    see state/blocks.py; the tag is the newest tile of any event of the entity
    words (a,) int64   mark: tile * LEVELS + level of the tile | key | count

A tile keeps at most `keep` keys. Its level says how the other keys are represented, and is a function of the set of its
events, regardless of their order. At level 0 all keys are kept. Above it, depending on the mode:

    QUANTILE   keys are bucket numbers. Buckets 2i - 1 and 2i of one level are bucket i of the next, and likewise for
               negative ones; the level is the lowest at which all buckets fit (UDDSketch: Epicoco, Melle, Cafaro,
               Pulimeno, Sansebastiano 2020, "UDDSketch: accurate tracking of quantiles in data streams", section 3;
               differs from the paper in that each tile has its own level)
    DISTINCT   level 1 keeps the keys with the smallest hashes, a bottom-k sample (Beyer et al. 2007, "On synopses for
               distinct-value estimation under multiset operations"), without counts
    TOP        level 1 keeps the keys with the highest ranks, and among equal ranks those with the smallest hashes: a
               sample that favours frequent keys (Cohen and Kaplan 2007, "Summarizing data using bottom-k sketches").
               A key's rank is the number of leading zeros of the smallest hash of its events. Counts are estimated by
               a sketch of all events (count_sketch.py), in entries of level 2 after the keys. The third word of a key
               is 32 times its count, which is 0 at level 1, plus its rank.

A rejected key has `keep` keys before it for good, until another event of the key has a smaller hash. Tiles that left
the window are dropped when a block is full.
"""

import numpy as np

from headrace.features.state.blocks import COUNT, ORDER, START, TAG, Blocks, drop_first, room_of
from headrace.features.state.operations import LATE, Ops
from headrace.features.state.tallies.count_sketch import ENTRY, ROWS, count_in, sketch_entries, word_of
from headrace.features.state.tallies.read import (
    DISTINCT,
    LEVELS,
    QUANTILE,
    RANKS,
    TOP,
    Tally,
    TallyOut,
    TallyScratch,
    answer,
    merge_window,
    place_of_key,
    place_of_mark,
)
from headrace.kernels.compile import Int, Ints, lean_kernel, part, prefetch
from headrace.kernels.hashing import mix

LEAST = 2
"""Entries of the smallest block."""
AHEAD, NEAR = 16, 8
"""Distances in operations at which a row's head, and then its newest entries, are prefetched."""
_LEVEL_MASK = np.int64(LEVELS - 1)
_LEVELS = np.int64(LEVELS)
_RANK_MASK = np.int64(RANKS - 1)
_LATE = np.uint8(LATE)


def most_entries(span: int, mode: int, keep: int) -> int:
    """Entries of the largest block: a full window plus a quarter, so that old tiles are dropped several at a time."""
    return (span + 1 + span // 4) * most_of_tile(mode, keep)


def most_of_tile(mode: int, keep: int) -> int:
    """Maximum entries of a tile."""
    return keep + int(sketch_entries(keep)) if mode == TOP else keep


@lean_kernel
def run_tally(
    blocks: Blocks, area: Int, tally: Tally, ops: Ops, begin: Int, scratch: TallyScratch, out: TallyOut
) -> Int:
    """Apply operations from `begin` on; returns the first that ran out of memory, n when all are done.

    A read of row -1 leaves its answer unchanged; see `answer`. Cost for a row of C entries in T tiles: an event
    O(log C) plus the entries moved, at most `keep` for the newest tile; a read at most O(C log T).
    """
    blocks, tally, ops = Blocks(*blocks), Tally(*tally), Ops(*ops)
    scratch, out = TallyScratch(*scratch), TallyOut(*out)
    heads, rows, codes, hop, span = blocks.heads, ops.rows, ops.ops, tally.hop, tally.span
    known: Int = np.int64(0)  # first entry of the last event's tile, usually also that of the next event
    for i in range(begin, rows.size):
        if i + AHEAD < rows.size:
            prefetch(heads, 4 * max(rows[i + AHEAD], 0))
        if i + NEAR < rows.size:
            _prefetch_entries(heads, blocks.words, max(rows[i + NEAR], 0), codes[i + NEAR])
        row = rows[i]
        tile = np.int64(0)
        if hop > 0:
            tile = ops.times[i] // hop
        if codes[i] >= 0:
            if row >= 0:
                low = max(tile, heads[row, TAG]) - span
                if hop > 0 and tile * hop == ops.times[i]:
                    tile -= 1  # all events of the tile are at or after the read
                side, used, level, limit = merge_window(
                    blocks.words, heads[row, START], heads[row, COUNT], low, tile, tally.mode, scratch
                )
                answer(tally, used, side, level, limit, scratch, codes[i], out)
            continue
        heads[row, TAG] = max(heads[row, TAG], tile)
        event = ~codes[i]
        if ops.flags[event, tally.flag] == 0:
            continue
        if tile < heads[row, TAG] - span:
            ops.late[event] = _LATE
            continue
        known = _add(blocks, area, tally, row, tile, ops.times[i], ops.bits[event, tally.column], known)
        if known < 0:
            return i
    return rows.size


@part
def _prefetch_entries(heads: Ints, words: Ints, row: Int, op: Int) -> None:
    """Prefetch the newest entries of a row that a later operation needs; more of them for a read."""
    count = heads[row, COUNT]
    lines = 4 if op < 0 else 16
    end = heads[row, START] + ENTRY * count
    for word in range(end - 1, max(end - 8 * lines, heads[row, START]) - 1, -8):
        prefetch(words, word)


@part
def _add(blocks: Blocks, area: Int, tally: Tally, row: Int, tile: Int, time: Int, key: Int, known: Int) -> Int:
    """Count one event; returns the first entry of its tile, -1 if there is no memory. `known` is a guess of it."""
    heads, words, keep, mode, most = blocks.heads, blocks.words, tally.keep, tally.mode, tally.most
    start, count = heads[row, START], heads[row, COUNT]
    first: Int = np.int64(count)
    end: Int = np.int64(count)
    mark: Int = tile * _LEVELS
    if count > 0 and words[start + ENTRY * (count - 1)] >= mark:
        first = np.int64(known)
        is_known = first < count and mark <= words[start + ENTRY * first] < mark + _LEVELS
        if not is_known or (first > 0 and words[start + ENTRY * (first - 1)] >= mark):
            first = place_of_mark(words, start, count, mark)
        if words[start + ENTRY * (count - 1)] >= mark + _LEVELS:
            end = place_of_mark(words, start, count, mark + _LEVELS)
        if first < end:
            mark = words[start + ENTRY * first]
    times: Int = np.int64(1)
    if mode == TOP:
        rank = _rank(key, time)
        if mark & _LEVEL_MASK > 0:
            _add_to_sketch(words, start, first, end - sketch_entries(keep), keep, key, rank)
            return first
        times = RANKS + rank
    elif mode == QUANTILE:
        key = _bucket_at(key, mark & _LEVEL_MASK)
    at = place_of_key(words, start, first, end, key)
    if at < end and words[start + ENTRY * at + 1] == key:
        _count_more(words, start + ENTRY * at + 2, times, mode)
        return first
    while mode == QUANTILE and end - first >= keep:
        mark, key = mark + 1, _bucket_at(key, 1)
        fewer = end - _collapse(words, start, first, end, count)
        heads[row, COUNT] -= fewer
        count, end = count - fewer, end - fewer
        at = place_of_key(words, start, first, end, key)
        if at < end and words[start + ENTRY * at + 1] == key:
            words[start + ENTRY * at + 2] += 1
            return first
    is_full = end - first >= keep
    if is_full and mode == DISTINCT:
        _add_to_sample(words, start, first, end, at, key)
        return first
    more = sketch_entries(keep) if is_full else np.int64(1)
    while room_of(heads[row, ORDER], LEAST, most) < count + more:
        if not _make_room(blocks, area, most, row, (heads[row, TAG] - tally.span) * _LEVELS):
            return np.int64(-1)
        gone = count - heads[row, COUNT]
        at, first, end = at - gone, first - gone, end - gone
        start, count = heads[row, START], heads[row, COUNT]
    heads[row, COUNT] = count + more
    if is_full:
        _start_sketch(words, start, first, end, count, keep)
        _add_to_sketch(words, start, first, end, keep, key, times - RANKS)
    else:
        _shift(words, start, at, count, 1)
        _write(words, start + ENTRY * at, mark, key, times)
    return first


@part
def _rank(key: Int, time: Int) -> Int:
    """Number of leading zeros of an event's hash, 31 at most, from the float exponent of its first 53 bits."""
    hashed = mix(np.int64(np.uint64(key) + mix(time))) >> np.uint64(11)
    return min(np.int64(1075) - (np.float64(hashed).view(np.int64) >> np.int64(52)), _RANK_MASK)


@part
def _count_more(words: Ints, at: Int, times: Int, mode: Int) -> None:
    """Count another event of a key at level 0 or of a bucket."""
    if mode == QUANTILE:
        words[at] += 1
    elif mode == TOP:
        rank = words[at] & _RANK_MASK
        words[at] += RANKS + max((times & _RANK_MASK) - rank, 0)


@part
def _bucket_at(key: Int, level: Int) -> Int:
    """Bucket at `level` that contains bucket `key` of level 0: |key| / 2**level, rounded up, with the sign of `key`."""
    if key > 0:
        key += (np.int64(1) << level) - np.int64(1)
    return key >> level


@part
def _collapse(words: Ints, start: Int, first: Int, end: Int, count: Int) -> Int:
    """Raise the tile of the entries [first, end), of `count`, to its next level; returns its new end."""
    to = first
    for j in range(first, end):
        at = start + ENTRY * j
        mark: Int = np.int64(words[at] + 1)
        key, times = _bucket_at(words[at + 1], 1), words[at + 2]
        if to > first and words[start + ENTRY * (to - 1) + 1] == key:
            words[start + ENTRY * (to - 1) + 2] += times
        else:
            _write(words, start + ENTRY * to, mark, key, times)
            to += 1
    _shift(words, start, end, count, to - end)
    return to


@part
def _add_to_sample(words: Ints, start: Int, first: Int, end: Int, at: Int, key: Int) -> None:
    """Insert a new key at index `at` of the full tile [first, end) if its hash is small enough."""
    mark: Int = np.int64(words[start + ENTRY * first])
    if mark & _LEVEL_MASK == 0:
        mark += 1
        for j in range(first, end):
            words[start + ENTRY * j] = mark
        keep_limit(words, start, first, end)
    limit = np.uint64(words[start + ENTRY * first + 2])
    if mix(key) > limit:
        return
    worst: Int = first
    while mix(words[start + ENTRY * worst + 1]) != limit:
        worst += 1
    _replace(words, start, worst, at, mark, key, 1)
    keep_limit(words, start, first, end)


@part
def _start_sketch(words: Ints, start: Int, first: Int, end: Int, count: Int, keep: Int) -> None:
    """Raise the tile of the entries [first, end), of `count`, to level 1, and start its sketch."""
    more = sketch_entries(keep)
    mark: Int = np.int64(words[start + ENTRY * first])
    _shift(words, start, end, count, more)
    for j in range(end, end + more):
        _write(words, start + ENTRY * j, mark + 2, 0, 0)
    base = start + ENTRY * end
    for j in range(first, end):
        at = start + ENTRY * j
        count_in(words, base, keep, words[at + 1], words[at + 2] // RANKS)
        words[at] = mark + 1
        words[at + 2] %= RANKS
    keep_least_rank(words, start, first, end, keep)


@part
def keep_least_rank(words: Ints, start: Int, first: Int, end: Int, keep: Int) -> None:
    """Store the least rank of the tile's keys, entries [first, end), in the sketch's spare counter.

    An event of a lower rank changes no key, so it needs no search.
    """
    least = np.int64(RANKS)
    for j in range(first, end):
        least = min(least, words[start + ENTRY * j + 2])
    words[word_of(start + ENTRY * end, ROWS * keep)] = least


@part
def _add_to_sketch(words: Ints, start: Int, first: Int, end: Int, keep: Int, key: Int, rank: Int) -> None:
    """Count an event in a tile at level 1 with the keys [first, end) and the sketch after them."""
    base = start + ENTRY * end
    count_in(words, base, keep, key, 1)
    least = words[word_of(base, ROWS * keep)]
    if rank < least:
        return
    at = place_of_key(words, start, first, end, key)
    if at < end and words[start + ENTRY * at + 1] == key:
        if rank > words[start + ENTRY * at + 2]:
            words[start + ENTRY * at + 2] = rank
            keep_least_rank(words, start, first, end, keep)
        return
    worst: Int = np.int64(-1)
    most = np.uint64(0)
    for j in range(first, end):
        if words[start + ENTRY * j + 2] == least:
            hashed = mix(words[start + ENTRY * j + 1])
            if worst < 0 or hashed > most:
                worst, most = j, hashed
    if rank > least or mix(key) < most:
        _replace(words, start, worst, at, np.int64(words[start + ENTRY * first]), key, rank)
        keep_least_rank(words, start, first, end, keep)


@part
def _replace(words: Ints, start: Int, worst: Int, at: Int, mark: Int, key: Int, times: Int) -> None:
    """Insert a key at index `at` and remove the entry `worst` of the same tile."""
    if worst < at:
        at -= 1
        _shift(words, start, worst + 1, at + 1, -1)
    else:
        _shift(words, start, at, worst, 1)
    _write(words, start + ENTRY * at, mark, key, times)


@part
def keep_limit(words: Ints, start: Int, first: Int, end: Int) -> None:
    """Store the largest hash of a DISTINCT tile at level 1 in its first entry, in place of a count; others get 1."""
    most = np.uint64(0)
    for j in range(first, end):
        most = max(most, mix(words[start + ENTRY * j + 1]))
        words[start + ENTRY * j + 2] = 1
    words[start + ENTRY * first + 2] = np.int64(most)


@part
def _write(words: Ints, at: Int, mark: Int, key: Int, times: Int) -> None:
    words[at] = mark
    words[at + 1] = key
    words[at + 2] = times


@part
def _shift(words: Ints, start: Int, at: Int, count: Int, by: Int) -> None:
    """Move the entries [at, count) by `by` entries, down if it is negative."""
    low, high, by = start + ENTRY * at, start + ENTRY * count, ENTRY * by
    if by < 0:
        for word in range(low, high):
            words[word + by] = words[word]
    else:
        for word in range(high - 1, low - 1, -1):
            words[word + by] = words[word]


@part
def _make_room(blocks: Blocks, area: Int, most: Int, row: Int, oldest: Int) -> bool:
    """Make room for one more entry in the row's full block; False if there is no memory.

    Drops the entries with marks before `oldest`, and moves to a larger block if that frees less than half.
    """
    heads = blocks.heads
    order, count = heads[row, ORDER], heads[row, COUNT]
    dropped = place_of_mark(blocks.words, heads[row, START], count, oldest)
    grows = bool(order == 0 or (2 * dropped < count and room_of(order, LEAST, most) < most))
    return drop_first(blocks, area, row, dropped, grows, LEAST, most, ENTRY)
