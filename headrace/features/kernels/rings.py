"""Rings of tiles: one pass that adds events and answers reads in the order they come, and the packed form of a row.

A ring's state, for `rows` entities, R tiles, k cells a tile:

    tiles (rows, R) int64     tile number in slot `tile % R`; EMPTY where none
    heads (rows,) int64       newest tile of any event of the entity
    cells (rows, R, k)        float64, see kernels/cells.py

`items` (m, 4) int64 are the codes on the ring: code, first cell, flag column, value column (cells.ONE: the number 1,
cells.TIME: the event's time); `params` (m,) float64. An event older than `head - span` tiles is in no window that may
still be asked for and is refused. `hop` 0 means one tile for ever.
"""

import numpy as np

from headrace.features.kernels.cells import FIRST, TIME, init, merge, start_value, update, width_of
from headrace.features.kernels.compile import Bytes, Floats, Int, Ints, lean_kernel, part
from headrace.features.kernels.varints import get_number, get_varint, get_word, put_bits, put_nothing, put_varint

EMPTY = -(2**62)
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
    out: Floats,
) -> None:
    """Walk the operations (n,): `ops[i] >= 0` reads the row as of `times[i]` into out[ops[i]], else adds event ~ops[i].

    rows, times (n,) belong to operations; event_ids (e,), flags (e, f), numbers (e, v), bits (e, d), late (e,) to
    events. `late` is set where an event is refused; out is (reads, 1, k) and already holds empty cells, a read of row
    -1 leaves them. Cost: an event m cells, a read R tiles. Numbers that are not finite are left out.
    """
    slots = tiles.shape[1]
    for i in range(rows.size):
        row = rows[i]
        tile = np.int64(0)
        if hop > 0:
            tile = times[i] // hop
        if ops[i] >= 0:
            if row >= 0:
                _read_row(tiles, cells, items, params, row, max(tile, heads[row]) - span, tile, out, ops[i])
            continue
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
def _read_row(
    tiles: Ints, cells: Floats, items: Ints, params: Floats, row: Int, low: Int, high: Int, out: Floats, read: Int
) -> None:
    for slot in range(tiles.shape[1]):
        if low <= tiles[row, slot] <= high:
            for m in range(items.shape[0]):
                merge(out, read, cells, row, slot, items[m, 1], items[m, 0], params[m])


@lean_kernel
def clear_out(items: Ints, out: Floats) -> None:
    """Fill out (n, 1, k) with empty cells."""
    for i in range(out.shape[0]):
        _clear_tile(out, i, 0, items)


@lean_kernel
def pack_ring(
    tiles: Ints,
    heads: Ints,
    cells: Floats,
    cell_bits: Ints,
    items: Ints,
    rows: Ints,
    out: Bytes,
    ends: Ints,
) -> None:
    """Write rows into `out` one after the other, `ends` (n,) where each ends, also where `out` is too short.

    A row is, newest tile first, (1 + tiles since the one before, cells) each, then 0. Tiles outside the window at the
    head, and tiles that hold nothing, are left out: the bytes follow from the set of events.
    """
    slots = tiles.shape[1]
    position: Int = 0
    for i in range(rows.size):
        row, head = rows[i], heads[rows[i]]
        before = head
        slot = head % slots
        for step in range(slots if head != _EMPTY else 0):
            tile = head - step
            if tiles[row, slot] == tile and _holds(cells, row, slot, items):
                position = put_varint(out, position, np.uint64(before - tile + 1))
                before = tile
                for m in range(items.shape[0]):
                    for j in range(width_of(items[m, 0])):
                        cell = items[m, 1] + j
                        if cells[row, slot, cell] == start_value(items[m, 0], j):
                            position = put_nothing(out, position)
                        else:
                            position = put_bits(out, position, cell_bits[row, slot, cell], cells[row, slot, cell])
            slot -= 1
            if slot < 0:
                slot = slots - 1
        position = put_varint(out, position, np.uint64(0))
        ends[i] = position


@part
def _holds(cells: Floats, row: Int, slot: Int, items: Ints) -> bool:
    for m in range(items.shape[0]):
        for j in range(width_of(items[m, 0])):
            if cells[row, slot, items[m, 1] + j] != start_value(items[m, 0], j):
                return True
    return False


@lean_kernel
def unpack_ring(
    tiles: Ints,
    heads: Ints,
    cells: Floats,
    cell_bits: Ints,
    items: Ints,
    hop: Int,
    rows: Ints,
    newest: Ints,
    data: Bytes,
    at: Ints,
    ends: Ints,
) -> None:
    """Fill empty rows from what `pack_ring` wrote at `data[at[i]:ends[i]]`; `at[i]` moves on, -1 where bytes are wrong.

    newest (n,) is each record's newest event time.
    """
    slots = tiles.shape[1]
    for i in range(rows.size):
        row, position = rows[i], at[i]
        if newest[i] == _EMPTY:
            heads[row] = _EMPTY
        else:
            heads[row] = newest[i] // hop if hop > 0 else 0
        tile = heads[row] + 1
        while position >= 0:
            delta, position = get_varint(data, position, ends[i])
            if delta == np.uint64(0):
                break
            tile -= np.int64(delta)
            if delta > np.uint64(slots) or tile <= heads[row] - slots:
                position = -1
                break
            slot = tile % slots
            tiles[row, slot] = tile
            tile += 1
            for m in range(items.shape[0]):
                for j in range(width_of(items[m, 0])):
                    cell = items[m, 1] + j
                    form, number, position = get_number(data, position, ends[i])
                    if form == 1 and position >= 0:
                        word, _ = get_word(data, position - 8, position)
                        cell_bits[row, slot, cell] = word
                    else:
                        cells[row, slot, cell] = start_value(items[m, 0], j) if form == 2 else number
        at[i] = position


@lean_kernel
def run_newest(newest: Ints, rows: Ints, times: Ints, ops: Ints, out: Ints) -> None:
    """Keep each row's newest event time; a read copies it into out[ops[i]]."""
    for i in range(rows.size):
        if ops[i] < 0:
            newest[rows[i]] = max(newest[rows[i]], times[i])
        elif rows[i] >= 0:
            out[ops[i]] = newest[rows[i]]


@lean_kernel
def join_sections(parts: Bytes, starts: Ints, ends: Ints, out: Bytes, at: Ints) -> None:
    """Copy `parts[starts[i]:ends[i]]` to `out[at[i]:]` and move `at[i]` to its end: sections into records."""
    for i in range(at.size):
        position = at[i]
        for b in range(starts[i], ends[i]):
            out[position] = parts[b]
            position += 1
        at[i] = position
