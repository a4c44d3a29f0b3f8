"""The packed form of a ring's row: newest tile first, whole numbers as varints, nothing for what is empty."""

import numpy as np

from headrace.features.kernels.cells import start_value, width_of
from headrace.features.kernels.compile import Bytes, Floats, Int, Ints, lean_kernel, part
from headrace.features.kernels.rings import EMPTY
from headrace.features.kernels.varints import get_number, get_varint, get_word, put_bits, put_nothing, put_varint

_EMPTY = np.int64(EMPTY)


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
def join_sections(parts: Bytes, starts: Ints, ends: Ints, out: Bytes, at: Ints) -> None:
    """Copy `parts[starts[i]:ends[i]]` to `out[at[i]:]` and move `at[i]` to its end: sections into records."""
    for i in range(at.size):
        position = at[i]
        for b in range(starts[i], ends[i]):
            out[position] = parts[b]
            position += 1
        at[i] = position
