"""Rings of tiles: one pass that adds events and answers reads in order. Packed form: rings/codec.py.

A row's block (state/blocks.py) holds the tiles that have events, oldest first. A tile is width + 1 words: its cells as
floats (rings/cells.py), then its number, event_time // hop. The row's tag is the newest tile of any of its events.

    words    | cells of tile 7 | 7 | cells of tile 8 | 8 | cells of tile 12 | 12 |        tag 12

So a quiet entity takes one tile per window, a busy one as many as the window has. An event in a tile before
`tag - span` lies outside every window that can still be read, and is not added; tiles that old are dropped when a block
is full.
"""

from typing import NamedTuple

import numpy as np

from headrace.features.state.blocks import COUNT, ORDER, START, TAG, Blocks, drop_first, room_of
from headrace.features.state.operations import LATE, Ops
from headrace.features.state.rings.cells import TIME, add_number, merge, takes_bits, update
from headrace.kernels.compile import LINE_WORDS, Floats, Int, Ints, lean_kernel, part, prefetch

EMPTY = -(2**62)
LEAST = 1
"""Tiles of the smallest block."""
AHEAD, NEAR = 16, 8
"""Distances in operations at which a row's head, and then its newest tile, are prefetched."""
LINES = 3
"""Cache lines of the newest tiles to prefetch; the hardware prefetches the adjacent ones."""
_EMPTY = np.int64(EMPTY)
_LATE = np.uint8(LATE)


class Ring(NamedTuple):
    """A ring for kernels.

    items (m, 4) int64: code, first cell, flag column, value column (cells.ONE: the number 1, cells.TIME: the event's
    time). starts (k,): the k cells of an empty tile. hop: in microseconds, 0 for a single, permanent tile.
    span: whole tiles of the window. most: tiles of the largest block.
    """

    items: Ints
    starts: Floats
    hop: Int
    span: Int
    most: Int


def most_tiles(span: int) -> int:
    """Tiles of the largest block: those of a window plus a quarter, so that old tiles are dropped several at a time."""
    return span + 1 + span // 4


@lean_kernel
def run_ring(
    blocks: Blocks, area: Int, ring: Ring, params: Floats | None, ops: Ops, begin: Int, closed: Floats, out: Floats
) -> Int:
    """Apply operations from `begin` on: a read of row -1 leaves its answer unchanged, any other read writes k cells.

    Returns the first operation that ran out of memory, n when all are done. `out`, a flattened (reads, k), must hold
    empty cells. params (m,) belong to the items, None if all codes are ADD, MIN or MAX: a kernel without the other
    codes is a tenth faster, and compiles faster. Numbers that are not finite are ignored.

    Cost: m cells per event, the row's tiles per read. Of consecutive reads of one row within a hop, all but the first
    cost two tiles: the scratch `closed` (k,) holds the merge of all tiles before the newest until an event changes one.
    """
    blocks, ring, ops = Blocks(*blocks), Ring(*ring), Ops(*ops)
    heads, words = blocks.heads, blocks.words
    rows, times, codes = ops.rows, ops.times, ops.ops
    hop, span, width = ring.hop, ring.span, ring.starts.size
    kept_row, kept_low, kept_tile = np.int64(-1), np.int64(0), np.int64(0)  # row, first tile and end of `closed`
    for i in range(begin, rows.size):
        if i + AHEAD < rows.size:
            prefetch(heads, 4 * max(rows[i + AHEAD], 0))
        if i + NEAR < rows.size:
            _prefetch_tile(heads, words, out, max(rows[i + NEAR], 0), codes[i + NEAR], width)
        row = rows[i]
        tile = np.int64(0)
        if hop > 0:
            tile = times[i] // hop
        if codes[i] >= 0:
            if row < 0:
                continue
            begins = hop > 0 and tile * hop == times[i]  # all events of the tile are at or after the read
            low = max(tile, heads[row, TAG]) - span
            if kept_row != row or kept_low != low or kept_tile != tile:
                _clear_tile(closed, 0, ring.starts)
                merge_tiles(blocks, heads[row, START], heads[row, COUNT], ring, params, low, tile - 1, closed, 0)
                kept_row, kept_low, kept_tile = row, low, tile
            to = codes[i] * width
            _merge_tile(closed, 0, ring, params, out, to)
            if tile >= low and not begins:  # a tile that left the window may still be stored
                newest = _find_tile(words, heads[row, START], heads[row, COUNT], width + 1, tile)
                start, count = heads[row, START] + newest * (width + 1), heads[row, COUNT] - newest
                merge_tiles(blocks, start, count, ring, params, tile, tile, out, to)
            continue
        if row == kept_row and tile != kept_tile:
            kept_row = np.int64(-1)
        heads[row, TAG] = max(heads[row, TAG], tile)
        if not _add_event(blocks, area, ring, params, ops, i, tile):
            return i
    return rows.size


@part
def _add_event(blocks: Blocks, area: Int, ring: Ring, params: Floats | None, ops: Ops, i: Int, tile: Int) -> bool:
    """Add the event of operation i to its tile; returns False, and changes nothing, if there is no memory.

    The tile is looked up at the first cell that admits the event, so an event that no cell admits creates no tile.
    """
    row, event, floats = ops.rows[i], ~ops.ops[i], blocks.floats
    word: Int = np.int64(-1)
    for m in range(ring.items.shape[0]):
        if ops.flags[event, ring.items[m, 2]] == 0:
            continue
        code, column = ring.items[m, 0], ring.items[m, 3]
        value, bits = 1.0, np.int64(0)
        if params is not None and takes_bits(code):
            bits = ops.bits[event, column]
        else:
            value = _number_of(ops.numbers, event, column, ops.times[i])
            if not np.isfinite(value):
                continue
        if word < 0:
            if tile < blocks.heads[row, TAG] - ring.span:
                ops.late[event] = _LATE
                break
            word = _tile_of(blocks, area, ring, row, tile)
            if word < 0:
                return False
        if params is None:
            add_number(floats, word + ring.items[m, 1], code, value)
        else:
            update(floats, word + ring.items[m, 1], code, params[m], value, bits, ops.times[i], ops.event_ids[event])
    return True


@part
def _number_of(numbers: Floats, event: Int, column: Int, time: Int) -> float:
    """The number that an event adds to a cell; + 0.0 turns -0.0 into 0.0, so that the two give equal records."""
    if column >= 0:
        return float(numbers[event, column] + 0.0)
    return np.float64(time) if column == TIME else 1.0


@part
def _prefetch_tile(heads: Ints, words: Ints, out: Floats, row: Int, code: Int, width: Int) -> None:
    """Prefetch what a later operation needs: its answer and its row's newest tiles. Memory latency dominates its cost.

    The head was prefetched AHEAD - NEAR operations ago.
    """
    if code >= 0:
        prefetch(out, code * width)
    last = heads[row, START] + heads[row, COUNT] * (width + 1) - 1
    for line in range(LINES):
        prefetch(words, max(last - LINE_WORDS * line, 0))


@part
def _find_tile(words: Ints, start: Int, count: Int, stride: Int, tile: Int) -> Int:
    """Index of the first of `count` tiles that is not before `tile`.

    Cost: O(1) for the newest tile or a newer one, which is the usual case, else a binary search.
    """
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
def _tile_of(blocks: Blocks, area: Int, ring: Ring, row: Int, tile: Int) -> Int:
    """First word of the row's tile number `tile`, inserted if missing; -1 if there is no memory.

    Cost: inserting moves all later tiles by one.
    """
    heads, words, width = blocks.heads, blocks.words, ring.starts.size
    stride, count = width + 1, heads[row, COUNT]
    index = _find_tile(words, heads[row, START], count, stride, tile)
    if index < count and words[heads[row, START] + index * stride + width] == tile:
        return np.int64(heads[row, START] + index * stride)
    if count == room_of(heads[row, ORDER], LEAST, ring.most):
        if not _make_room(blocks, area, ring, row, heads[row, TAG] - ring.span):
            return np.int64(-1)
        count = heads[row, COUNT]
        index = _find_tile(words, heads[row, START], count, stride, tile)
    first: Int = np.int64(heads[row, START] + index * stride)
    for word in range(heads[row, START] + count * stride - 1, first - 1, -1):
        words[word + stride] = words[word]
    _clear_tile(blocks.floats, first, ring.starts)
    words[first + width] = tile
    heads[row, COUNT] = count + 1
    return first


@part
def _make_room(blocks: Blocks, area: Int, ring: Ring, row: Int, oldest: Int) -> bool:
    """Make room for one more tile in the row's full block; False if there is no memory.

    Drops the tiles before `oldest`, and moves to a block twice as large if that frees less than half.
    """
    heads, stride = blocks.heads, ring.starts.size + 1
    count = heads[row, COUNT]
    dropped = _find_tile(blocks.words, heads[row, START], count, stride, oldest)
    grows = bool(heads[row, ORDER] == 0 or 2 * dropped < count < ring.most)
    return drop_first(blocks, area, row, dropped, grows, LEAST, ring.most, stride)


@part
def _clear_tile(floats: Floats, first: Int, starts: Floats) -> None:
    for cell in range(starts.size):
        floats[first + cell] = starts[cell]


@part
def merge_tiles(
    blocks: Blocks,
    start: Int,
    count: Int,
    ring: Ring,
    params: Floats | None,
    low: Int,
    high: Int,
    out: Floats,
    to: Int,
) -> None:
    """Merge the tiles in [low, high], of the `count` tiles from word `start` on, into out[to:], oldest first."""
    width = ring.starts.size
    word = start
    for _ in range(count):
        tile = blocks.words[word + width]
        if tile > high:
            break
        if tile >= low:
            _merge_tile(blocks.floats, word, ring, params, out, to)
        word += width + 1


@part
def _merge_tile(floats: Floats, first: Int, ring: Ring, params: Floats | None, out: Floats, to: Int) -> None:
    for m in range(ring.items.shape[0]):
        code, cell = ring.items[m, 0], ring.items[m, 1]
        if params is None:
            add_number(out, to + cell, code, floats[first + cell])
        else:
            merge(out, to + cell, floats, first + cell, code, params[m])
