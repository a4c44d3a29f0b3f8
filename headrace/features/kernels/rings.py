"""Rings of tiles: one pass that adds events and answers reads in the order they come. Packed: kernels/ring_codec.py.

A ring's state, for `rows` entities, R tiles, k cells a tile:

    tiles (rows, R) int64     tile number in slot `tile % R`; EMPTY where none
    heads (rows,) int64       newest tile of any event of the entity
    cells (rows, R, k)        float64, see kernels/cells.py

`items` (m, 4) int64 are the codes on the ring: code, first cell, flag column, value column (cells.ONE: the number 1,
cells.TIME: the event's time); `params` (m,) float64. An event older than `head - span` tiles is in no window that may
still be asked for and is refused. `hop` 0 means one tile for ever.
"""

import numpy as np

from headrace.features.kernels.cells import FIRST, TIME, init, merge, update
from headrace.features.kernels.compile import Bytes, Floats, Int, Ints, lean_kernel, part, prefetch

EMPTY = -(2**62)
AHEAD = 12
"""Operations between a prefetch and its use."""
_EMPTY = np.int64(EMPTY)


@lean_kernel
def run_ring(
    tiles: Ints,
    heads: Ints,
    cells: Floats,
    items: Ints,
    params: Floats,
    hop: Int,
    span: Int,
    rows: Ints,
    times: Ints,
    event_ids: Ints,
    ops: Ints,
    flags: Bytes,
    numbers: Floats,
    bits: Ints,
    late: Bytes,
    closed: Floats,
    out: Floats,
) -> None:
    """Walk the operations (n,): `ops[i] >= 0` reads the row as of `times[i]` into out[ops[i]], else adds event ~ops[i].

    rows, times (n,) belong to operations; event_ids (e,), flags (e, f), numbers (e, v), bits (e, d), late (e,) to
    events. `late` is set where an event is refused; out is (reads, 1, k) and already holds empty cells, a read of row
    -1 leaves them. Numbers that are not finite are left out.

    Cost: an event m cells, a read R tiles. Of reads of one row that follow each other inside a hop the later ones cost
    two: `closed` (1, 1, k), scratch, keeps what all tiles before the newest come to, until an event changes one.
    """
    slots = tiles.shape[1]
    kept_row, kept_low, kept_tile = np.int64(-1), np.int64(0), np.int64(0)
    for i in range(rows.size):
        if i + AHEAD < rows.size:
            _prefetch_tile(tiles, heads, cells, out, rows[i + AHEAD], times[i + AHEAD], ops[i + AHEAD], hop)
        row = rows[i]
        tile = np.int64(0)
        if hop > 0:
            tile = times[i] // hop
        if ops[i] >= 0:
            if row < 0:
                continue
            low = max(tile, heads[row]) - span
            if kept_row != row or kept_low != low or kept_tile != tile:
                _clear_tile(closed, 0, 0, items)
                _merge_tiles(tiles, cells, items, params, row, low, tile - 1, closed, 0)
                kept_row, kept_low, kept_tile = row, low, tile
            _merge_tile(closed, 0, 0, items, params, out, ops[i])
            slot = tile % slots
            if tile >= low and tiles[row, slot] == tile:  # a tile that left the windows may linger in its slot
                _merge_tile(cells, row, slot, items, params, out, ops[i])
            continue
        if row == kept_row and tile != kept_tile:
            kept_row = np.int64(-1)
        event = ~ops[i]
        heads[row] = max(heads[row], tile)
        slot = np.int64(-1)
        for m in range(items.shape[0]):
            if flags[event, items[m, 2]] == 0:
                continue
            code, column = items[m, 0], items[m, 3]
            value, word = 1.0, np.int64(0)
            if code == FIRST:
                word = bits[event, column]
            elif column >= 0:
                value = numbers[event, column] + 0.0
                if not np.isfinite(value):
                    continue
            elif column == TIME:
                value = np.float64(times[i])
            if slot < 0:
                if tile < heads[row] - span:
                    late[event] = 1
                    break
                slot = tile % slots
                if tiles[row, slot] != tile:
                    tiles[row, slot] = tile
                    _clear_tile(cells, row, slot, items)
            update(cells, row, slot, items[m, 1], code, params[m], value, word, times[i], event_ids[event])


@part
def _clear_tile(cells: Floats, row: Int, slot: Int, items: Ints) -> None:
    for m in range(items.shape[0]):
        init(cells, row, slot, items[m, 1], items[m, 0])


@part
def _prefetch_tile(
    tiles: Ints, heads: Ints, cells: Floats, out: Floats, row: Int, time: Int, op: Int, hop: Int
) -> None:
    """Have what an operation to come will touch on its way from memory: latency is most of what it costs."""
    slots = tiles.shape[1]
    place = max(row, 0) * slots
    if hop > 0:
        place += time // hop % slots
    prefetch(tiles, place)
    prefetch(heads, max(row, 0))
    prefetch(cells, place * cells.shape[2])
    if op >= 0:
        prefetch(out, op * out.shape[2])


@part
def _merge_tiles(
    tiles: Ints, cells: Floats, items: Ints, params: Floats, row: Int, low: Int, high: Int, out: Floats, read: Int
) -> None:
    """Merge the tiles `low <= tile <= high` of a row into out[read]."""
    for slot in range(tiles.shape[1]):
        if low <= tiles[row, slot] <= high:
            _merge_tile(cells, row, slot, items, params, out, read)


@part
def _merge_tile(cells: Floats, row: Int, slot: Int, items: Ints, params: Floats, out: Floats, read: Int) -> None:
    for m in range(items.shape[0]):
        merge(out, read, cells, row, slot, items[m, 1], items[m, 0], params[m])


@lean_kernel
def clear_out(items: Ints, out: Floats) -> None:
    """Fill out (n, 1, k) with empty cells."""
    for i in range(out.shape[0]):
        _clear_tile(out, i, 0, items)


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
