"""Rows of rings, and reads of them, from the form that rings/packing.py describes."""

import numpy as np

from headrace.features.state.blocks import COUNT, OWN, START, make_block
from headrace.features.state.rings.cells import ADD, MAX, MIN, merge, width_of
from headrace.features.state.rings.packing import donor_tile
from headrace.features.state.rings.update import EMPTY, LEAST
from headrace.kernels.bit_columns import bits_of, get_codes, get_field, get_numbers, get_unsigned, pass_padding
from headrace.kernels.compile import Bytes, Floats, Int, Ints, lean_kernel, part

_EMPTY = np.int64(EMPTY)


@lean_kernel
def unpack_ring(
    heads: Ints,
    words: Ints,
    floats: Floats,
    rooms: Ints,
    most: Int,
    starts: Floats,
    hop: Int,
    span: Int,
    donor_heads: Ints,
    donor_words: Ints,
    donor_floats: Floats,
    donor_starts: Floats,
    donor_hop: Int,
    donor_span: Int,
    links: Ints,
    rows: Ints,
    newest: Ints,
    data: Bytes,
    at: Ints,
    ends: Ints,
    begin: Int,
    scratch: Ints,
    columns: Floats,
    cells: Floats,
    items: Ints,
    params: Floats,
    keeps: bool,
    moments: Ints,
    reads: Ints,
    out: Floats,
) -> Int:
    """Read what `pack_ring` wrote at `data[at[i]:ends[i]]`; `at[i]` moves on, -1 where bytes are wrong.

    `keeps`: fill rows, which are empty. moments (n,), or none: read row i as of `moments[i]` into out[reads[i]], as
    `run_ring` does. newest (n,) is each record's newest event time; the donor's rows are filled before. Begins at row
    `begin` and returns the first that found no room, n when all are done. scratch (3, t) and columns (k, t + 7) have
    room for the tiles of a window, cells (k,) for a tile.
    """
    width, tiles = starts.size, scratch[0]
    for i in range(begin, rows.size):
        head = _EMPTY
        if newest[i] != _EMPTY:
            head = newest[i] // hop if hop > 0 else np.int64(0)
        count, position = _get_tiles(
            starts,
            hop,
            span,
            donor_heads,
            donor_words,
            donor_floats,
            donor_starts,
            donor_hop,
            donor_span,
            links,
            rows[i],
            head,
            data,
            at[i],
            ends[i],
            tiles,
            scratch[1],
            scratch[2],
            columns,
        )
        if keeps:
            if not make_block(heads, words, rooms, 0, rows[i], count, LEAST, most, width + 1):
                return i
            heads[rows[i], OWN] = head
            _keep_tiles(words, floats, heads[rows[i], START], tiles, columns, count, width)
        if moments.size > 0:
            tile = moments[i] // hop if hop > 0 else np.int64(0)
            low, high = max(tile, head) - span, tile
            if hop > 0 and tile * hop == moments[i]:
                high = tile - 1  # all events of the tile are at or after the read
            _merge_columns(tiles, columns, count, low, high, items, params, cells, out, reads[i] * width)
        at[i] = position
    return rows.size


@part
def _keep_tiles(words: Ints, floats: Floats, start: Int, tiles: Ints, columns: Floats, count: Int, width: Int) -> None:
    """Write `count` tiles, given newest first, into a row's block, oldest first."""
    at: Int = start
    for j in range(count - 1, -1, -1):
        for cell in range(width):
            floats[np.uint64(at + cell)] = columns[cell, j]
        words[np.uint64(at + width)] = tiles[np.uint64(j)]
        at += width + 1


@part
def _merge_columns(
    tiles: Ints,
    columns: Floats,
    count: Int,
    low: Int,
    high: Int,
    items: Ints,
    params: Floats,
    cells: Floats,
    out: Floats,
    to: Int,
) -> None:
    """Merge those of `count` tiles, newest first, with low <= tile <= high into the cells at out[to], oldest first."""
    first: Int = np.int64(0)
    while first < count and tiles[np.uint64(first)] > high:
        first += 1
    while count > first and tiles[np.uint64(count - 1)] < low:
        count -= 1
    for m in range(items.shape[0]):
        code, cell = items[m, 0], items[m, 1]
        if code <= MAX:  # one cell, which stays in a register
            column, value = columns[cell], out[to + cell]
            for j in range(count - 1, first - 1, -1):
                other = column[np.uint64(j)]
                if code == ADD:
                    value += other
                elif code == MIN:
                    value = min(value, other)
                else:
                    value = max(value, other)
            out[to + cell] = value
        else:
            for j in range(count - 1, first - 1, -1):
                for place in range(width_of(code)):
                    cells[place] = columns[cell + place, j]
                merge(out, to + cell, cells, 0, code, params[m])


@part
def _get_tiles(
    starts: Floats,
    hop: Int,
    span: Int,
    donor_heads: Ints,
    donor_words: Ints,
    donor_floats: Floats,
    donor_starts: Floats,
    donor_hop: Int,
    donor_span: Int,
    links: Ints,
    row: Int,
    head: Int,
    data: Bytes,
    at: Int,
    end: Int,
    tiles: Ints,
    same: Ints,
    codes: Ints,
    columns: Floats,
) -> tuple[Int, Int]:
    """Read the numbers and cells of a row's tiles, newest first; returns how many, and the next position or -1."""
    found, bit = get_field(data, 8 * at, end, bits_of(np.uint64(span + 1)))
    count, tile = np.int64(found), head + 1
    if at < 0 or count > span + 1:
        return np.int64(0), np.int64(-1)
    bit = get_unsigned(data, bit, end, codes, count)
    if bit < 0 or bit + count * (donor_hop > 0) > 8 * end:
        return np.int64(0), np.int64(-1)
    for j in range(count):
        age = codes[np.uint64(j)]
        if np.uint64(age) > np.uint64(span):
            return np.int64(0), np.int64(-1)
        tile -= age + 1
        tiles[np.uint64(j)] = tile
    if tile < head - span:
        return np.int64(0), np.int64(-1)
    own: Int = count
    if donor_hop > 0:
        own = _find_same(
            donor_heads,
            donor_words,
            donor_floats,
            donor_starts,
            donor_hop,
            donor_span,
            hop,
            row,
            data,
            bit,
            tiles,
            count,
            same,
        )
        if own < 0:
            return np.int64(0), np.int64(-1)
        bit += count
    for cell in range(starts.size):
        linked = donor_hop > 0 and links[cell] >= 0
        bit = get_numbers(data, bit, end, columns[cell], own if linked else count, starts[cell], codes)
        if linked and own < count:
            _spread(columns[cell], same, count, own, donor_floats, links[cell])
    return count, pass_padding(data, bit, end) >> np.int64(3)


@part
def _spread(column: Floats, same: Ints, count: Int, own: Int, donor_floats: Floats, link: Int) -> None:
    """Put the first `own` cells where they belong, and the donor's between them."""
    for j in range(count - 1, -1, -1):
        if same[j] >= 0:
            column[np.uint64(j)] = donor_floats[same[j] + link]
        else:
            own -= 1
            column[np.uint64(j)] = column[np.uint64(own)]


@part
def _find_same(
    donor_heads: Ints,
    donor_words: Ints,
    donor_floats: Floats,
    donor_starts: Floats,
    donor_hop: Int,
    donor_span: Int,
    hop: Int,
    row: Int,
    data: Bytes,
    bit: Int,
    tiles: Ints,
    count: Int,
    same: Ints,
) -> Int:
    """Set same[j] to the first word of the donor's tile that tile j is marked to equal, else -1.

    Returns how many are not marked; -1 where the donor has no such tile.
    """
    own: Int = np.int64(0)
    beyond: Int = donor_heads[row, COUNT]
    get_codes(data, bit, 1, same, count)
    for j in range(count):
        if same[np.uint64(j)] == 0:
            same[np.uint64(j)] = -1
            own += 1
            continue
        found, beyond = donor_tile(
            donor_heads,
            donor_words,
            donor_floats,
            donor_starts,
            row,
            tiles[np.uint64(j)],
            hop,
            donor_hop,
            donor_span,
            beyond,
        )
        if found < 0:
            return np.int64(-1)
        same[np.uint64(j)] = found
    return own
