"""Rings of tiles: one pass that adds events and answers reads in the order they come. Packed: rings/packing.py.

A row's block holds the tiles that have events, oldest first, each k cells and the tile's number:

    heads (rows, 4)       see state/blocks.py; its own number is the newest tile of any event of the entity
    words, floats (a,)    the same memory as int64 and as float64; see rings/cells.py for the cells

So a quiet entity takes one tile a window, a busy one as many as the window has. `items` (m, 4) int64 are the codes on
the ring: code, first cell, flag column, value column (cells.ONE: the number 1, cells.TIME: the event's time); `params`
(m,) float64, or None where all codes are ADD, MIN or MAX. An event older than `head - span` tiles is in no window that
may still be asked for and is refused; tiles that old are dropped when a block is full. `hop` 0 means one tile for ever.
"""

import numpy as np

from headrace.features.state.blocks import COUNT, ORDER, OWN, START, drop_first, room_of
from headrace.features.state.rings.cells import TIME, add_number, init, merge, takes_bits, update
from headrace.kernels.compile import LINE_WORDS, Bytes, Floats, Int, Ints, lean_kernel, part, prefetch

EMPTY = -(2**62)
LEAST = 1
"""Tiles of the smallest block."""
AHEAD, NEAR = 16, 8
"""Operations between the prefetch of a row's head, and once it is there of its newest tile, and their use."""
LINES = 3
"""Lines of memory of the newest tiles that are fetched ahead; the processor itself goes on with those beside them."""
_EMPTY = np.int64(EMPTY)


def most_tiles(span: int) -> int:
    """Tiles of the largest block: a window's, and some more, so that old ones are dropped several at a time."""
    return span + 1 + span // 4


def _run_ring(
    heads: Ints,
    words: Ints,
    floats: Floats,
    rooms: Ints,
    number: Int,
    most: Int,
    width: Int,
    items: Ints,
    params: Floats | None,
    hop: Int,
    span: Int,
    rows: Ints,
    times: Ints,
    event_ids: Ints,
    ops: Ints,
    begin: Int,
    flags: Bytes,
    numbers: Floats,
    bits: Ints,
    late: Bytes,
    closed: Floats,
    out: Floats,
) -> Int:
    """Walk the operations (n,): `ops[i] >= 0` reads the row as of `times[i]` into out[ops[i]], else adds event ~ops[i].

    Begins at operation `begin` and returns the first that found no room, n when all are done. rows, times (n,) belong
    to operations; event_ids (e,), flags (e, f), numbers (e, v), bits (e, d), late (e,) to events. `late` is set where
    an event is refused; out, (reads, k) as one row, already holds empty cells, a read of row -1 leaves them. Numbers
    that are not finite are left out.

    Cost: an event m cells, a read the tiles there are. Of reads of one row that follow each other inside a hop the
    later ones cost two: `closed` (k,), scratch, keeps what all tiles before the newest come to, until an event changes
    one.
    """
    stride = width + 1
    kept_row, kept_low, kept_tile = np.int64(-1), np.int64(0), np.int64(0)
    for i in range(begin, rows.size):
        if i + AHEAD < rows.size:
            prefetch(heads, 4 * max(rows[i + AHEAD], 0))
        if i + NEAR < rows.size:
            _prefetch_tile(heads, words, out, max(rows[i + NEAR], 0), ops[i + NEAR], width)
        row = rows[i]
        tile = np.int64(0)
        if hop > 0:
            tile = times[i] // hop
        if ops[i] >= 0:
            if row < 0:
                continue
            begins = hop > 0 and tile * hop == times[i]  # all events of the tile are at or after the read
            low = max(tile, heads[row, OWN]) - span
            if kept_row != row or kept_low != low or kept_tile != tile:
                _clear_tile(closed, 0, items)
                start, count = heads[row, START], heads[row, COUNT]
                merge_tiles(words, floats, start, count, items, params, width, low, tile - 1, closed, 0)
                kept_row, kept_low, kept_tile = row, low, tile
            _merge_tile(closed, 0, items, params, out, ops[i] * width)
            if tile >= low and not begins:  # a tile that left the windows may linger
                newest = _place(words, heads[row, START], heads[row, COUNT], stride, tile)
                start, count = heads[row, START] + newest * stride, heads[row, COUNT] - newest
                merge_tiles(words, floats, start, count, items, params, width, tile, tile, out, ops[i])
            continue
        if row == kept_row and tile != kept_tile:
            kept_row = np.int64(-1)
        event = ~ops[i]
        heads[row, OWN] = max(heads[row, OWN], tile)
        at: Int = np.int64(-1)
        for m in range(items.shape[0]):
            if flags[event, items[m, 2]] == 0:
                continue
            code, column = items[m, 0], items[m, 3]
            value, word = 1.0, np.int64(0)
            if params is not None and takes_bits(code):
                word = bits[event, column]
            else:
                value = _number_of(numbers, event, column, times[i])
                if not np.isfinite(value):
                    continue
            if at < 0:
                if tile < heads[row, OWN] - span:
                    late[event] = 1
                    break
                at = _tile_of(heads, words, floats, rooms, number, most, width, items, span, row, tile)
                if at < 0:
                    return i
            _update_item(floats, at, items, m, params, value, word, times[i], event_ids[event])
    return rows.size


run_ring = lean_kernel(_run_ring)
run_number_ring = lean_kernel(_run_ring)
"""The same for `params` None. Without the other codes it is a tenth faster, and compiled sooner."""


@part
def _number_of(numbers: Floats, event: Int, column: Int, time: Int) -> float:
    """What an event adds to a cell."""
    if column >= 0:
        return float(numbers[event, column] + 0.0)
    return np.float64(time) if column == TIME else 1.0


@part
def _update_item(
    floats: Floats,
    at: Int,
    items: Ints,
    m: Int,
    params: Floats | None,
    value: float,
    word: Int,
    time: Int,
    event_id: Int,
) -> None:
    if params is None:
        add_number(floats, at + items[m, 1], items[m, 0], value)
    else:
        update(floats, at + items[m, 1], items[m, 0], params[m], value, word, time, event_id)


@part
def _prefetch_tile(heads: Ints, words: Ints, out: Floats, row: Int, op: Int, width: Int) -> None:
    """Have what an operation to come will touch on its way from memory: latency is most of what it costs."""
    if op >= 0:
        prefetch(out, op * width)
    last = heads[row, START] + heads[row, COUNT] * (width + 1) - 1
    for line in range(LINES):
        prefetch(words, max(last - LINE_WORDS * line, 0))


@part
def _place(words: Ints, start: Int, count: Int, stride: Int, tile: Int) -> Int:
    """First of `count` tiles that is not before `tile`; mostly it is the newest, or newer than all."""
    last = start + count * stride - 1
    if count == 0 or words[last] < tile:
        return np.int64(count)
    low: Int = 0
    high: Int = count - 1
    if words[last] == tile:
        low = high
    while low < high:
        middle = (low + high) >> np.int64(1)
        if words[start + middle * stride + stride - 1] < tile:
            low = middle + 1
        else:
            high = middle
    return np.int64(low)


@part
def _tile_of(
    heads: Ints,
    words: Ints,
    floats: Floats,
    rooms: Ints,
    number: Int,
    most: Int,
    width: Int,
    items: Ints,
    span: Int,
    row: Int,
    tile: Int,
) -> Int:
    """First word of the row's tile, made if it is not there; -1 where that finds no room."""
    stride = width + 1
    count = heads[row, COUNT]
    place = _place(words, heads[row, START], count, stride, tile)
    if place < count and words[heads[row, START] + place * stride + width] == tile:
        return np.int64(heads[row, START] + place * stride)
    if count == room_of(heads[row, ORDER], LEAST, most):
        oldest = heads[row, OWN] - span
        if not _make_room(heads, words, rooms, number, most, stride, row, oldest):
            return np.int64(-1)
        count = heads[row, COUNT]
        place = _place(words, heads[row, START], count, stride, tile)
    at: Int = np.int64(heads[row, START] + place * stride)
    for word in range(heads[row, START] + count * stride - 1, at - 1, -1):
        words[word + stride] = words[word]
    _clear_tile(floats, at, items)
    words[at + width] = tile
    heads[row, COUNT] = count + 1
    return at


@part
def _make_room(
    heads: Ints, words: Ints, rooms: Ints, number: Int, most: Int, stride: Int, row: Int, oldest: Int
) -> bool:
    """Have room for one more tile in the row's full block, the next larger if need be; false where there is none."""
    count = heads[row, COUNT]
    gone = _place(words, heads[row, START], count, stride, oldest)
    grows = bool(heads[row, ORDER] == 0 or 2 * gone < count < most)
    return drop_first(heads, words, rooms, number, row, gone, grows, LEAST, most, stride)


@part
def _clear_tile(floats: Floats, at: Int, items: Ints) -> None:
    for m in range(items.shape[0]):
        init(floats, at + items[m, 1], items[m, 0])


@part
def merge_tiles(
    words: Ints,
    floats: Floats,
    start: Int,
    count: Int,
    items: Ints,
    params: Floats | None,
    width: Int,
    low: Int,
    high: Int,
    out: Floats,
    q: Int,
) -> None:
    """Merge those of `count` tiles, oldest first from `words[start]` on, with low <= tile <= high into out[q]."""
    at = start
    for _ in range(count):
        tile = words[at + width]
        if tile > high:
            break
        if tile >= low:
            _merge_tile(floats, at, items, params, out, q * width)
        at += width + 1


@part
def _merge_tile(floats: Floats, at: Int, items: Ints, params: Floats | None, out: Floats, to: Int) -> None:
    for m in range(items.shape[0]):
        code, cell = items[m, 0], items[m, 1]
        if params is None:
            add_number(out, to + cell, code, floats[at + cell])
        else:
            merge(out, to + cell, floats, at + cell, code, params[m])


@lean_kernel
def run_newest(newest: Ints, rows: Ints, times: Ints, ops: Ints, out: Ints, older: Ints) -> None:
    """Keep each row's newest event time; a read copies it to out[ops[i]].

    `older` (e, 2) gets the time of an event and its row's newest, where the event is older; else it is left as it is.
    """
    for i in range(rows.size):
        if ops[i] < 0:
            if times[i] < newest[rows[i]]:
                older[~ops[i], 0] = times[i]
                older[~ops[i], 1] = newest[rows[i]]
            else:
                newest[rows[i]] = times[i]
        elif rows[i] >= 0:
            out[ops[i]] = newest[rows[i]]
