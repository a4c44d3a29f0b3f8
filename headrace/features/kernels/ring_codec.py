"""The packed form of a ring's row: newest tile first, numbers in their shortest form, nothing for what is empty.

Rings of one view keep the same cells over several windows, and most entities are quiet: the newest tile of 1 h often
holds what the newest tile of 10 min does, and the tiles of 30 d are those of 360 d. So a ring may be linked to one
before it, its donor: a tile that equals the newest donor tile inside its time is written as that, without its cells.

    donor, hop 15 s    ..|##|..|##|..        links (k,): the donor's cell for each of ours, -1 where it has none
    ours,  hop 2 min   [    ##   ][   ##  ]
"""

import numpy as np

from headrace.features.kernels.compile import Bytes, Floats, Int, Ints, lean_kernel, part, prefetch
from headrace.features.kernels.rings import EMPTY
from headrace.features.kernels.varints import get_number, get_varint, put_bits, put_nothing, put_varint

AHEAD, NEAR = 6, 3
"""Rows between the prefetch of a row's tile numbers, and once they are there of its cells, and their use."""

_EMPTY = np.int64(EMPTY)


@lean_kernel
def pack_ring(
    tiles: Ints,
    heads: Ints,
    cells: Floats,
    cell_bits: Ints,
    starts: Floats,
    hop: Int,
    donor_tiles: Ints,
    donor_heads: Ints,
    donor_cells: Floats,
    donor_bits: Ints,
    donor_starts: Floats,
    donor_hop: Int,
    links: Ints,
    rows: Ints,
    out: Bytes,
    ends: Ints,
) -> None:
    """Write rows into `out` one after the other, `ends` (n,) where each ends, also where `out` is too short.

    A row is, newest tile first, (1 + tiles since the one before, cells) each, then 0; with a donor the first number is
    doubled, and odd where the linked cells are the donor's and left out. Tiles outside the window at the head, and
    tiles that hold nothing, are left out: the bytes follow from the set of events. starts (k,) is an empty tile,
    donor_starts (d,) one of the donor; without a donor donor_hop is 0 and its arrays are not looked at.
    """
    slots = tiles.shape[1]
    position: Int = 0
    for i in range(rows.size):
        if i + AHEAD < rows.size:
            _prefetch_row(tiles, heads, cells, rows[i + AHEAD])
            if donor_hop > 0:
                _prefetch_row(donor_tiles, donor_heads, donor_cells, rows[i + AHEAD])
        if i + NEAR < rows.size:
            _prefetch_cells(tiles, heads, cells, rows[i + NEAR])
        row, head = rows[i], heads[rows[i]]
        before = head
        slot = head % slots
        for step in range(slots if head != _EMPTY else 0):
            tile = head - step
            if tiles[row, slot] == tile and _holds(cells, row, slot, starts):
                delta, same = np.uint64(before - tile + 1), False
                if donor_hop > 0:
                    place = _donor_slot(
                        donor_tiles, donor_cells, donor_starts, row, donor_heads[row], tile, hop, donor_hop
                    )
                    same = bool(place >= 0 and _equal(cell_bits, row, slot, donor_bits, place, links))
                    delta = (delta << np.uint64(1)) | np.uint64(same)
                position = put_varint(out, position, delta)
                before = tile
                for cell in range(starts.size):
                    if same and links[cell] >= 0:
                        continue
                    if cells[row, slot, cell] == starts[cell]:
                        position = put_nothing(out, position)
                    else:
                        position = put_bits(out, position, cell_bits[row, slot, cell], cells[row, slot, cell])
            slot -= 1
            if slot < 0:
                slot = slots - 1
        position = put_varint(out, position, np.uint64(0))
        ends[i] = position


@lean_kernel
def unpack_ring(
    tiles: Ints,
    heads: Ints,
    cells: Floats,
    cell_bits: Ints,
    starts: Floats,
    hop: Int,
    donor_tiles: Ints,
    donor_heads: Ints,
    donor_cells: Floats,
    donor_bits: Ints,
    donor_starts: Floats,
    donor_hop: Int,
    links: Ints,
    rows: Ints,
    newest: Ints,
    data: Bytes,
    at: Ints,
    ends: Ints,
) -> None:
    """Fill rows from what `pack_ring` wrote at `data[at[i]:ends[i]]`; `at[i]` moves on, -1 where bytes are wrong.

    newest (n,) is each record's newest event time; the donor's rows are filled before.
    """
    slots = tiles.shape[1]
    for i in range(rows.size):
        row, position = rows[i], at[i]
        if newest[i] == _EMPTY:
            heads[row] = _EMPTY
        else:
            heads[row] = newest[i] // hop if hop > 0 else 0
        head = heads[row]
        for other in range(slots):
            tiles[row, other] = _EMPTY
        tile = head + 1
        slot = tile % slots
        while position >= 0:
            delta, position = get_varint(data, position, ends[i])
            if delta == np.uint64(0):
                break
            place: Int = np.int64(-1)
            same = donor_hop > 0 and delta & np.uint64(1) != np.uint64(0)
            if donor_hop > 0:
                delta >>= np.uint64(1)
            tile -= np.int64(delta)
            if delta == np.uint64(0) or delta > np.uint64(slots) or tile <= head - slots:
                position = -1
                break
            slot -= np.int64(delta)
            if slot < 0:
                slot += slots
            if same:
                place = _donor_slot(donor_tiles, donor_cells, donor_starts, row, donor_heads[row], tile, hop, donor_hop)
                if place < 0:
                    position = -1
                    break
            tiles[row, slot] = tile
            for cell in range(starts.size):
                if same and links[cell] >= 0:
                    cell_bits[row, slot, cell] = donor_bits[row, place, links[cell]]
                else:
                    number, position = get_number(data, position, ends[i], starts[cell])
                    cells[row, slot, cell] = number
            tile += 1
            slot = slot + 1 if slot + 1 < slots else 0
        at[i] = position


@part
def _prefetch_row(tiles: Ints, heads: Ints, cells: Floats, row: Int) -> None:
    """Ask for a row's tile numbers and its newest tile."""
    slots = tiles.shape[1]
    for slot in range(0, slots, 8):  # a line holds eight
        prefetch(tiles, row * slots + slot)
    if heads[row] != _EMPTY:
        prefetch(cells, (row * slots + heads[row] % slots) * cells.shape[2])


@part
def _prefetch_cells(tiles: Ints, heads: Ints, cells: Floats, row: Int) -> None:
    """Ask for the cells of a row's tiles inside the window."""
    slots, width = tiles.shape[1], cells.shape[2]
    for slot in range(slots):
        if tiles[row, slot] > heads[row] - slots:
            prefetch(cells, (row * slots + slot) * width)


@part
def _holds(cells: Floats, row: Int, slot: Int, starts: Floats) -> bool:
    found = False
    for cell in range(starts.size):
        found |= cells[row, slot, cell] != starts[cell]
    return found


@part
def _equal(bits: Ints, row: Int, slot: Int, donor_bits: Ints, place: Int, links: Ints) -> bool:
    """Whether the linked cells of a tile are the donor's, to the bit."""
    same = True
    for cell in range(links.size):
        if links[cell] >= 0:
            same &= bits[row, slot, cell] == donor_bits[row, place, links[cell]]
    return same


@part
def _donor_slot(
    tiles: Ints, cells: Floats, starts: Floats, row: Int, head: Int, tile: Int, hop: Int, donor_hop: Int
) -> Int:
    """Slot of the donor's newest tile that holds something and lies inside our tile of that number; -1 if none."""
    slots = tiles.shape[1]
    low, high = head - slots + 1, head
    if hop > 0:
        ratio = hop // donor_hop
        low, high = max(low, tile * ratio), min(high, tile * ratio + ratio - 1)
    slot = high % slots
    while high >= low:
        if tiles[row, slot] == high and _holds(cells, row, slot, starts):
            return np.int64(slot)
        high -= 1
        slot -= 1
        if slot < 0:
            slot = slots - 1
    return np.int64(-1)
