"""The packed form of a tally's row: oldest tile first, keys as differences, texts written out, counts as varints."""

import numpy as np

from headrace.features.kernels.compile import Bytes, Floats, Int, Ints, lean_kernel
from headrace.features.kernels.hashing import xxh64
from headrace.features.kernels.id_lists import FLOAT, TEXT
from headrace.features.kernels.id_map import find_row
from headrace.features.kernels.rings import EMPTY
from headrace.features.kernels.varints import (
    get_signed,
    get_varint,
    get_word,
    put_byte,
    put_signed,
    put_varint,
    put_word,
)

_EMPTY = np.int64(EMPTY)


@lean_kernel
def pack_tally(
    heads: Ints,
    floors: Ints,
    sizes: Ints,
    tiles: Ints,
    keys: Ints,
    counts: Floats,
    kind: Int,
    span: Int,
    rows: Ints,
    table: Ints,
    text_offsets: Ints,
    text_data: Bytes,
    out: Bytes,
    ends: Ints,
) -> None:
    """Write rows into `out` one after the other, `ends` (n,) where each ends, also where `out` is too short.

    A row is (1 + tiles from the floor to the head, 0 without a floor), then, oldest tile first, (tiles since the one
    before, entries, (key, count) each), then 0. Tiles outside the window at the head are left out. `table`,
    `text_offsets`, `text_data` are the pool.
    """
    position: Int = np.int64(0)
    for i in range(rows.size):
        row = rows[i]
        head = heads[row]
        low = head - span
        has_floor = head != _EMPTY and floors[row] >= low
        position = put_varint(out, position, np.uint64(head - floors[row] + 1 if has_floor else 0))
        j, size, before = np.int64(0), sizes[row], low - 1
        while j < size and tiles[row, j] < low:
            j += 1
        while j < size:
            tile, end = tiles[row, j], j
            while end < size and tiles[row, end] == tile:
                end += 1
            position = put_varint(out, position, np.uint64(tile - before))
            position = put_varint(out, position, np.uint64(end - j))
            before, last = tile, np.int64(0)
            while j < end:
                key = keys[row, j]
                if kind == TEXT:
                    text = find_row(table, key)
                    start, stop = text_offsets[text], text_offsets[text + 1]
                    position = put_varint(out, position, np.uint64(stop - start))
                    for b in range(start, stop):
                        position = put_byte(out, position, text_data[b])
                elif kind == FLOAT:
                    position = put_word(out, position, key)
                else:
                    position = put_signed(out, position, key - last)
                    last = key
                position = put_varint(out, position, np.uint64(counts[row, j]))
                j += 1
        position = put_varint(out, position, np.uint64(0))
        ends[i] = position


@lean_kernel
def unpack_tally(
    heads: Ints,
    floors: Ints,
    sizes: Ints,
    tiles: Ints,
    keys: Ints,
    counts: Floats,
    kind: Int,
    hop: Int,
    span: Int,
    rows: Ints,
    newest: Ints,
    data: Bytes,
    at: Ints,
    ends: Ints,
    texts: Ints,
) -> Int:
    """Fill rows from what `pack_tally` wrote at `data[at[i]:ends[i]]`; `at[i]` moves on, -1 if bytes are wrong.

    newest (n,) is each record's newest event time. texts (room for one line a text, 3) gets (hash, start, end) of each
    text met; returns how many.
    """
    room, texts_found = tiles.shape[1] - 1, np.int64(0)
    for i in range(rows.size):
        if at[i] < 0:
            continue
        row = rows[i]
        if newest[i] == _EMPTY:
            heads[row] = _EMPTY
        else:
            heads[row] = newest[i] // hop if hop > 0 else 0
        low, size = heads[row] - span, np.int64(0)
        floor, position = get_varint(data, at[i], ends[i])
        floors[row] = heads[row] - np.int64(floor) + 1 if floor != np.uint64(0) else _EMPTY
        tile = low - 1
        while position >= 0:
            delta, position = get_varint(data, position, ends[i])
            if delta == np.uint64(0):
                break
            tile += np.int64(delta)
            entries, position = get_varint(data, position, ends[i])
            if tile > heads[row] or delta > np.uint64(span + 1) or entries > np.uint64(room - size):
                position = -1
                break
            last: Int = np.int64(0)
            for _ in range(np.int64(entries)):
                if kind == TEXT:
                    length, position = get_varint(data, position, ends[i])
                    if position < 0 or length > np.uint64(ends[i] - position):
                        position = -1
                        break
                    stop = position + np.int64(length)
                    last = np.int64(xxh64(data, position, stop, np.uint64(0)))
                    if texts_found < texts.shape[0]:
                        texts[texts_found, 0] = last
                        texts[texts_found, 1] = position
                        texts[texts_found, 2] = stop
                        texts_found += 1
                    position = stop
                elif kind == FLOAT:
                    last, position = get_word(data, position, ends[i])
                else:
                    step, position = get_signed(data, position, ends[i])
                    last += step
                count, position = get_varint(data, position, ends[i])
                if position < 0:
                    break
                tiles[row, size], keys[row, size], counts[row, size] = tile, last, np.float64(count)
                size += 1
        sizes[row] = size
        at[i] = position
    return texts_found
