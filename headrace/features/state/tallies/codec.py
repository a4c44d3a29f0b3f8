"""The packed form of a tally's row: oldest tile first, keys as differences, texts in full, counts as varints."""

import numpy as np

from headrace.features.state.blocks import COUNT, START, TAG, Blocks, make_block
from headrace.features.state.lists.update import FLOAT, TEXT
from headrace.features.state.operations import Packed
from headrace.features.state.rings.update import EMPTY
from headrace.features.state.tallies.count_sketch import ENTRY, ROWS, sketch_entries, word_of
from headrace.features.state.tallies.read import DISTINCT, LEVELS, QUANTILE, TOP, Tally, place_of_mark
from headrace.features.state.tallies.update import LEAST, keep_least_rank, keep_limit
from headrace.kernels.compile import Bytes, Int, Ints, lean_kernel, part
from headrace.kernels.id_map import find_row
from headrace.kernels.texts import TextLines, Texts, read_text
from headrace.kernels.varints import (
    get_signed,
    get_varint,
    get_word,
    put_byte,
    put_signed,
    put_varint,
    put_word,
)

LEVEL_MAX, BUCKET_MAX, TILES_MAX = 31, 2**31, 2**31
"""Maximum level of a tile, bucket number, and distance between tiles; larger values mean damaged bytes."""
_EMPTY, _LEVELS = np.int64(EMPTY), np.int64(LEVELS)


@lean_kernel
def pack_tally(blocks: Blocks, tally: Tally, rows: Ints, pool: Texts, out: Bytes, ends: Ints) -> None:
    """Write rows into `out` one after the other; `ends` (n,) is where each ends, even if `out` is too short.

    A row is its number of entries, followed by its tiles, oldest first. A tile is: the distance to the previous tile;
    twice its number of keys, plus 1 above level 0; for QUANTILE above level 0 the level; each key and its third word,
    for DISTINCT the key alone; for TOP above level 0 the counters of the sketch. Tiles outside the window that ends at
    the head are left out.
    """
    blocks, tally, pool = Blocks(*blocks), Tally(*tally), Texts(*pool)
    heads, words, offsets, mode, kind = blocks.heads, blocks.words, pool.offsets, tally.mode, tally.kind
    position: Int = np.int64(0)
    for i in range(rows.size):
        row = rows[i]
        start, count = heads[row, START], heads[row, COUNT]
        low = heads[row, TAG] - tally.span
        j = place_of_mark(words, start, count, low * _LEVELS)
        position = put_varint(out, position, np.uint64(count - j))
        before = low - 1
        while j < count:
            mark = words[start + ENTRY * j]
            end: Int = j + 1
            while end < count and words[start + ENTRY * end] == mark:
                end += 1
            tile, level = mark // _LEVELS, mark % _LEVELS
            position = put_varint(out, position, np.uint64(tile - before))
            position = put_varint(out, position, np.uint64(2 * (end - j) + (level > 0)))
            if mode == QUANTILE and level > 0:
                position = put_varint(out, position, np.uint64(level))
            before, last = tile, np.int64(0)
            while j < end:
                key = words[start + ENTRY * j + 1]
                if kind == TEXT:
                    text = find_row(pool.table, key)
                    begin, stop = offsets[text], offsets[text + 1]
                    position = put_varint(out, position, np.uint64(stop - begin))
                    for b in range(begin, stop):
                        position = put_byte(out, position, pool.data[b])
                elif kind == FLOAT:
                    position = put_word(out, position, key)
                else:
                    position = put_signed(out, position, key - last)
                    last = key
                if mode != DISTINCT:
                    position = put_varint(out, position, np.uint64(words[start + ENTRY * j + 2]))
                j += 1
            if mode == TOP and level > 0:
                for counter in range(ROWS * tally.keep):
                    times = words[word_of(start + ENTRY * j, counter)]
                    position = put_varint(out, position, np.uint64(times))
                j += sketch_entries(tally.keep)
        ends[i] = position


@lean_kernel
def unpack_tally(blocks: Blocks, tally: Tally, packed: Packed, begin: Int, texts: TextLines) -> Int:
    """Fill empty rows from what `pack_tally` wrote, from row `begin` on.

    Returns the first row that ran out of memory, n when all are done.
    """
    blocks, tally, packed, texts = Blocks(*blocks), Tally(*tally), Packed(*packed), TextLines(*texts)
    at, ends, newest = packed.at, packed.ends, packed.newest
    for i in range(begin, packed.rows.size):
        if at[i] < 0:
            continue
        row = packed.rows[i]
        head = _EMPTY
        if newest[i] != _EMPTY:
            head = newest[i] // tally.hop if tally.hop > 0 else np.int64(0)
        count, position = get_varint(packed.data, at[i], ends[i])
        if position < 0 or count > np.uint64(min(tally.most, ends[i] - position)):
            at[i] = -1
            continue
        if not make_block(blocks, 0, row, np.int64(count), LEAST, tally.most, ENTRY):
            return i
        blocks.heads[row, TAG] = head
        start = blocks.heads[row, START]
        entry: Int = np.int64(0)
        tile = head - tally.span - 1
        while position >= 0 and entry < np.int64(count):
            before = tile
            tile, entry, position = _get_tile(
                packed, i, position, blocks.words, start, entry, before, tally, np.int64(count), texts
            )
            if tile > head or tile <= before:
                position = -1
        blocks.heads[row, COUNT] = entry
        at[i] = position
    return packed.rows.size


@part
def _get_tile(
    packed: Packed,
    i: Int,
    at: Int,
    words: Ints,
    start: Int,
    entry: Int,
    before: Int,
    tally: Tally,
    count: Int,
    texts: TextLines,
) -> tuple[Int, Int, Int]:
    """Read a tile into the entries [entry, count): (tile number, entries in use, next position or -1)."""
    data, end, keep, mode = packed.data, packed.ends[i], tally.keep, tally.mode
    delta, at = get_varint(data, at, end)
    entries, at = get_varint(data, at, end)
    level, entries = entries & np.uint64(1), entries >> np.uint64(1)
    is_full = mode != QUANTILE and level > np.uint64(0)
    if mode == QUANTILE and level > np.uint64(0):
        level, at = get_varint(data, at, end)
    needed = np.int64(entries) + (sketch_entries(keep) if mode == TOP and is_full else np.int64(0))
    wrong = entries == np.uint64(0) or entries > np.uint64(keep) or (is_full and entries < np.uint64(keep))
    if at < 0 or wrong or needed > count - entry or level > np.uint64(LEVEL_MAX) or delta > np.uint64(TILES_MAX):
        return before, entry, np.int64(-1)
    tile, first = before + np.int64(delta), entry
    last: Int = np.int64(0)
    for _ in range(np.int64(entries)):
        key, at = _get_key(data, at, end, tally.kind, last, texts)
        times = np.uint64(1)
        if mode != DISTINCT:
            times, at = get_varint(data, at, end)
        wrong = entry > first and key <= last
        if at < 0 or wrong or (mode == QUANTILE and not -BUCKET_MAX < key < BUCKET_MAX):
            return tile, entry, np.int64(-1)
        to, last = start + ENTRY * entry, key
        words[to] = tile * _LEVELS + np.int64(level)
        words[to + 1] = key
        words[to + 2] = np.int64(times)
        entry += 1
    if mode == DISTINCT and is_full:
        keep_limit(words, start, first, entry)
    elif is_full:
        at = _get_sketch(data, at, end, words, start, entry, keep, tile)
        keep_least_rank(words, start, first, entry, keep)
        entry += sketch_entries(keep)
    return tile, entry, at


@part
def _get_sketch(data: Bytes, at: Int, end: Int, words: Ints, start: Int, entry: Int, keep: Int, tile: Int) -> Int:
    """Read the counters of a sketch into the entries from `entry` on; returns the next position or -1."""
    base = start + ENTRY * entry
    for j in range(sketch_entries(keep)):
        words[base + ENTRY * j] = tile * _LEVELS + 2
        words[base + ENTRY * j + 1] = 0
        words[base + ENTRY * j + 2] = 0
    for counter in range(ROWS * keep):
        times, at = get_varint(data, at, end)
        words[word_of(base, counter)] = np.int64(times)
    return at


@part
def _get_key(data: Bytes, at: Int, end: Int, kind: Int, before: Int, texts: TextLines) -> tuple[Int, Int]:
    """Read a key; `before` is the previous key of its tile. Returns (key, next position or -1)."""
    if kind == FLOAT:
        return get_word(data, at, end)
    if kind != TEXT:
        step, at = get_signed(data, at, end)
        return before + step, at
    length, at = get_varint(data, at, end)
    if at < 0 or length > np.uint64(end - at):
        return np.int64(0), np.int64(-1)
    stop = at + np.int64(length)
    key, is_text = read_text(data, at, stop, texts)
    return key, np.int64(stop if is_text else -1)
