"""The packed form of a tally's row: oldest tile first, keys as differences, texts written out, counts as varints."""

import numpy as np

from headrace.features.kernels.blocks import COUNT, OWN, START
from headrace.features.kernels.compile import Bytes, Int, Ints, lean_kernel, part
from headrace.features.kernels.hashing import xxh64
from headrace.features.kernels.id_lists import FLOAT, TEXT
from headrace.features.kernels.id_map import find_row
from headrace.features.kernels.rings import EMPTY
from headrace.features.kernels.tallies import keep_limit, make_tally
from headrace.features.kernels.tally_reads import DISTINCT, ENTRY, LEVELS, QUANTILE, place_of_mark
from headrace.features.kernels.varints import (
    get_signed,
    get_varint,
    get_word,
    put_byte,
    put_signed,
    put_varint,
    put_word,
)

LEVEL_MAX, BUCKET_MAX = 31, 2**31
"""Level of a tile and bucket at most: beyond them bytes are damaged."""
_EMPTY, _LEVELS = np.int64(EMPTY), np.int64(LEVELS)


@lean_kernel
def pack_tally(
    heads: Ints,
    words: Ints,
    kind: Int,
    mode: Int,
    span: Int,
    rows: Ints,
    table: Ints,
    text_offsets: Ints,
    text_data: Bytes,
    out: Bytes,
    ends: Ints,
) -> None:
    """Write rows into `out` one after the other, `ends` (n,) where each ends, also where `out` is too short.

    A row is how many entries it has, then, oldest tile first, (tiles since the one before, twice the entries, and odd
    above level 0; the level where it is, for QUANTILE; key and count of each, for DISTINCT without the count). Tiles
    outside the window at the head are left out. `table`, `text_offsets`, `text_data` are the pool.
    """
    position: Int = np.int64(0)
    for i in range(rows.size):
        row = rows[i]
        start, count = heads[row, START], heads[row, COUNT]
        low = heads[row, OWN] - span
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
                    text = find_row(table, key)
                    begin, stop = text_offsets[text], text_offsets[text + 1]
                    position = put_varint(out, position, np.uint64(stop - begin))
                    for b in range(begin, stop):
                        position = put_byte(out, position, text_data[b])
                elif kind == FLOAT:
                    position = put_word(out, position, key)
                else:
                    position = put_signed(out, position, key - last)
                    last = key
                if mode != DISTINCT:
                    position = put_varint(out, position, np.uint64(words[start + ENTRY * j + 2]))
                j += 1
        ends[i] = position


@lean_kernel
def unpack_tally(
    heads: Ints,
    words: Ints,
    rooms: Ints,
    most: Int,
    kind: Int,
    mode: Int,
    keep: Int,
    hop: Int,
    span: Int,
    rows: Ints,
    newest: Ints,
    data: Bytes,
    at: Ints,
    ends: Ints,
    begin: Int,
    texts: Ints,
    texts_found: Ints,
) -> Int:
    """Fill empty rows from what `pack_tally` wrote at `data[at[i]:ends[i]]`; `at[i]` moves on, -1 if bytes are wrong.

    newest (n,) is each record's newest event time. Begins at row `begin` and returns the first that found no room, n
    when all are done. texts (room for one line a text, 3) gets (hash, start, end) of each text met; texts_found (1,)
    counts its lines.
    """
    for i in range(begin, rows.size):
        if at[i] < 0:
            continue
        row = rows[i]
        head = _EMPTY
        if newest[i] != _EMPTY:
            head = newest[i] // hop if hop > 0 else np.int64(0)
        count, position = get_varint(data, at[i], ends[i])
        if position < 0 or count > np.uint64(min((span + 1) * keep, ends[i] - position)):
            at[i] = -1
            continue
        if not make_tally(heads, words, rooms, most, row, np.int64(count)):
            return i
        heads[row, OWN] = head
        entry: Int = np.int64(0)
        tile = head - span - 1
        while position >= 0 and entry < np.int64(count):
            delta, position = get_varint(data, position, ends[i])
            head_of_tile, position = get_varint(data, position, ends[i])
            entries, level = head_of_tile >> np.uint64(1), head_of_tile & np.uint64(1)
            if mode == QUANTILE and level > np.uint64(0):
                level, position = get_varint(data, position, ends[i])
            tile += np.int64(delta)
            wrong = delta == np.uint64(0) or delta > np.uint64(span + 1) or tile > head
            wrong |= entries == np.uint64(0) or entries > np.uint64(min(keep, np.int64(count) - entry))
            if position < 0 or wrong or level > np.uint64(LEVEL_MAX):
                position = -1
                break
            first: Int = entry
            last: Int = np.int64(0)
            for _ in range(np.int64(entries)):
                last, position, texts_found[0] = _get_key(data, position, ends[i], kind, last, texts, texts_found[0])
                times = np.uint64(1)
                if mode != DISTINCT:
                    times, position = get_varint(data, position, ends[i])
                if position < 0 or (mode == QUANTILE and not -BUCKET_MAX < last < BUCKET_MAX):
                    position = -1
                    break
                to = heads[row, START] + ENTRY * entry
                words[to] = tile * _LEVELS + np.int64(level)
                words[to + 1] = last
                words[to + 2] = np.int64(times)
                entry += 1
            if mode == DISTINCT and level > np.uint64(0) and position >= 0:
                keep_limit(words, heads[row, START], first, entry)
        heads[row, COUNT] = entry
        at[i] = position
    return rows.size


@part
def _get_key(data: Bytes, at: Int, end: Int, kind: Int, before: Int, texts: Ints, found: Int) -> tuple[Int, Int, Int]:
    """Read a key after another of its tile: (key, next position or -1, lines of `texts` in use)."""
    if kind == FLOAT:
        key, at = get_word(data, at, end)
        return key, at, found
    if kind != TEXT:
        step, at = get_signed(data, at, end)
        return before + step, at, found
    length, at = get_varint(data, at, end)
    if at < 0 or length > np.uint64(end - at):
        return np.int64(0), -1, found
    stop = at + np.int64(length)
    key = np.int64(xxh64(data, at, stop, np.uint64(0)))
    if found < texts.shape[0]:
        texts[found, 0] = key
        texts[found, 1] = at
        texts[found, 2] = stop
        found += 1
    return key, stop, found
