"""Tallies: how often each value came, tile by tile, in bounded room. Reads: tally_reads.py, packed: tally_codec.py.

A row's block holds its entries in the order of (tile, key), of ENTRY = 3 words each, so a quiet entity takes what it
has, a busy one `keep` entries for each tile of its window:

    heads (rows, 4)    see kernels/blocks.py; its own number is the newest tile of any event of the entity
    words (a,) int64   mark: tile * LEVELS + level of the tile | key | how often it came

A tile keeps `keep` keys, and its level tells what became of the others: a function of the set of its events, in
whatever order they come. Level 0 is all of them. Else with `collapse`, for keys that are numbers of buckets, buckets
2i - 1 and 2i of one level are bucket i of the next, and negative ones alike: the level is the least at which all fit
(UDDSketch: Epicoco, Melle, Cafaro, Pulimeno, Sansebastiano 2020, "UDDSketch: accurate tracking of quantiles in data
streams", section 3; it differs in that each tile has its own level). Without, at level 1 those with the smallest hashes
are kept, a bottom-k sample (Beyer et al. 2007, "On synopses for distinct-value estimation under multiset operations"):
a key that was turned away has `keep` others before it for good. Tiles that left the window are dropped when a block is
full.
"""

import numpy as np

from headrace.features.kernels.blocks import COUNT, ORDER, OWN, START, give_block, order_of, room_of, take_block
from headrace.features.kernels.compile import Bytes, Floats, Int, Ints, lean_kernel, part, prefetch
from headrace.features.kernels.hashing import mix
from headrace.features.kernels.tally_reads import (
    DISTINCT,
    ENTRY,
    LEVELS,
    answer,
    merge_window,
    place_of_key,
    place_of_mark,
)

LEAST = 2
"""Entries of the smallest block."""
AHEAD, NEAR = 16, 8
"""Operations between the prefetch of a row's head, and once it is there of its newest entries, and their use."""
_LEVEL_MASK = np.int64(LEVELS - 1)
_LEVELS = np.int64(LEVELS)


def most_entries(span: int, keep: int) -> int:
    """Entries of the largest block: a full window's, and some more, so that old tiles are dropped several at a time."""
    return (span + 1 + span // 4) * keep


@lean_kernel
def run_tally(
    heads: Ints,
    words: Ints,
    rooms: Ints,
    number: Int,
    most: Int,
    flag: Int,
    column: Int,
    keep: Int,
    collapse: bool,
    hop: Int,
    span: Int,
    rows: Ints,
    times: Ints,
    ops: Ints,
    begin: Int,
    flags: Bytes,
    bits: Ints,
    late: Bytes,
    mode: Int,
    quantiles: Floats,
    merged_keys: Ints,
    merged_counts: Ints,
    runs: Ints,
    out_keys: Ints,
    out_counts: Ints,
    out_lengths: Ints,
    out_estimates: Floats,
) -> Int:
    """Walk the operations (n,): `ops[i] >= 0` reads the row as of `times[i]` into out_*[ops[i]], else adds ~ops[i].

    Begins at operation `begin` and returns the first that found no room, n when all are done. The event's key is
    bits[event, column]. What a read writes, by `mode`: see `answer`. merged_* (2, most) and runs (span + 2,) are
    scratch. Cost: an event log C of C entries and what it moves, which for the newest tile is at most `keep`; a read C
    log T of T tiles at most.
    """
    for i in range(begin, rows.size):
        if i + AHEAD < rows.size:
            prefetch(heads, 4 * max(rows[i + AHEAD], 0))
        if i + NEAR < rows.size:
            _prefetch_entries(heads, words, max(rows[i + NEAR], 0), ops[i + NEAR])
        row = rows[i]
        tile = np.int64(0)
        if hop > 0:
            tile = times[i] // hop
        if ops[i] >= 0:
            if row >= 0:
                low = max(tile, heads[row, OWN]) - span
                side, found, level, limit = merge_window(
                    words, heads[row, START], heads[row, COUNT], low, tile, mode, merged_keys, merged_counts, runs
                )
                answer(
                    mode, found, level, limit, quantiles, merged_keys[side], merged_counts[side], ops[i], out_keys,
                    out_counts, out_lengths, out_estimates,
                )  # fmt: skip
            continue
        heads[row, OWN] = max(heads[row, OWN], tile)
        event = ~ops[i]
        if flags[event, flag] == 0:
            continue
        if tile < heads[row, OWN] - span:
            late[event] = 1
        elif not _add(
            heads, words, rooms, number, most, span, row, tile, bits[event, column], keep, collapse, mode == DISTINCT
        ):
            return i
    return rows.size


@part
def _prefetch_entries(heads: Ints, words: Ints, row: Int, op: Int) -> None:
    """Have what an operation to come will touch on its way from memory: the newest entries, for a read some more."""
    count = heads[row, COUNT]
    lines = 4 if op < 0 else 16
    end = heads[row, START] + ENTRY * count
    for word in range(end - 1, max(end - 8 * lines, heads[row, START]) - 1, -8):
        prefetch(words, word)


@part
def _add(
    heads: Ints,
    words: Ints,
    rooms: Ints,
    number: Int,
    most: Int,
    span: Int,
    row: Int,
    tile: Int,
    key: Int,
    keep: Int,
    collapse: bool,
    distinct: bool,
) -> bool:
    """Count one event; False where there is no room."""
    start, count = heads[row, START], heads[row, COUNT]
    first, end = count, count
    mark: Int = tile * _LEVELS
    if count > 0 and words[start + ENTRY * (count - 1)] >= mark:
        first = place_of_mark(words, start, count, mark)
        end = place_of_mark(words, start, count, mark + _LEVELS)
        if first < end:
            mark = words[start + ENTRY * first]
    if collapse:
        key = _bucket_at(key, mark & _LEVEL_MASK)
    at = place_of_key(words, start, first, end, key)
    if at < end and words[start + ENTRY * at + 1] == key:
        if not distinct:
            words[start + ENTRY * at + 2] += 1
        return True
    while collapse and end - first >= keep:
        mark, key = mark + 1, _bucket_at(key, 1)
        fewer = end - _collapse(words, start, first, end, count)
        heads[row, COUNT] -= fewer
        count, end = count - fewer, end - fewer
        at = place_of_key(words, start, first, end, key)
        if at < end and words[start + ENTRY * at + 1] == key:
            words[start + ENTRY * at + 2] += 1
            return True
    if end - first >= keep:
        _add_to_full(words, start, first, end, at, key, distinct)
        return True
    if count == room_of(heads[row, ORDER], LEAST, most):
        if not _make_room(heads, words, rooms, number, most, row, (heads[row, OWN] - span) * _LEVELS):
            return False
        at -= count - heads[row, COUNT]
        start, count = heads[row, START], heads[row, COUNT]
    _shift(words, start, at, count, 1)
    _write(words, start + ENTRY * at, mark, key, 1)
    heads[row, COUNT] = count + 1
    return True


@part
def _bucket_at(key: Int, level: Int) -> Int:
    """The bucket at a level of bucket `key` of level 0: |key| / 2**level, rounded up, with the sign of the key."""
    if key > 0:
        key += (np.int64(1) << level) - np.int64(1)
    return key >> level


@part
def _collapse(words: Ints, start: Int, first: Int, end: Int, count: Int) -> Int:
    """Bring the tile of the entries [first, end), of `count`, to its next level; returns where it ends then."""
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
def _add_to_full(words: Ints, start: Int, first: Int, end: Int, at: Int, key: Int, distinct: bool) -> None:
    """Count a new key, whose place is `at`, in a tile whose entries [first, end) are all that it may have."""
    mark: Int = np.int64(words[start + ENTRY * first])
    if mark & _LEVEL_MASK == 0:
        mark += 1
        for j in range(first, end):
            words[start + ENTRY * j] = mark
        if distinct:
            keep_limit(words, start, first, end)
    own = mix(key)
    if distinct and own > np.uint64(words[start + ENTRY * first + 2]):
        return
    worst, most = first, mix(words[start + ENTRY * first + 1])
    for j in range(first + 1, end):
        found = mix(words[start + ENTRY * j + 1])
        if found > most:
            worst, most = j, found
    if own > most:
        return
    if worst < at:
        at -= 1
        for word in range(start + ENTRY * worst, start + ENTRY * at):
            words[word] = words[word + ENTRY]
    else:
        for word in range(start + ENTRY * worst - 1, start + ENTRY * at - 1, -1):
            words[word + ENTRY] = words[word]
    _write(words, start + ENTRY * at, mark, key, 1)
    if distinct:
        keep_limit(words, start, first, end)


@part
def keep_limit(words: Ints, start: Int, first: Int, end: Int) -> None:
    """Where keys are not counted, the first entry of a tile at level 1 holds the greatest hash instead of a count."""
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
    """Move the entries [at, count) by some places, down or up."""
    low, high, by = start + ENTRY * at, start + ENTRY * count, ENTRY * by
    if by < 0:
        for word in range(low, high):
            words[word + by] = words[word]
    else:
        for word in range(high - 1, low - 1, -1):
            words[word + by] = words[word]


@part
def _make_room(heads: Ints, words: Ints, rooms: Ints, number: Int, most: Int, row: Int, oldest: Int) -> bool:
    """Have room for one more entry in the row's full block, the next larger if need be; false where there is none.

    Entries with marks before `oldest` may go.
    """
    start, order, count = heads[row, START], heads[row, ORDER], heads[row, COUNT]
    gone = place_of_mark(words, start, count, oldest)
    target = start
    grows = bool(order == 0 or 2 * gone < count < most)
    if grows:
        target = take_block(words, rooms, number, order + 1, room_of(order + 1, LEAST, most) * ENTRY)
        if target < 0:
            return False
    first = start + gone * ENTRY
    for word in range((count - gone) * ENTRY):
        words[target + word] = words[first + word]
    if grows:
        if order > 0:
            give_block(words, rooms, number, order, start)
        heads[row, START] = target
        heads[row, ORDER] = order + 1
    heads[row, COUNT] = count - gone
    return True


@part
def make_tally(heads: Ints, words: Ints, rooms: Ints, most: Int, row: Int, count: Int) -> bool:
    """Have a block for `count` entries in an empty row; false where there is no room."""
    order = order_of(count, LEAST, most)
    start: Int = np.int64(0)
    if order > 0:
        start = take_block(words, rooms, 0, order, room_of(order, LEAST, most) * ENTRY)
        if start < 0:
            return False
    heads[row, START] = start
    heads[row, ORDER] = order
    heads[row, COUNT] = 0
    return True
