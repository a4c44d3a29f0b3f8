"""The packed form of a ring's row: newest tile first, numbers in their shortest form, nothing for what is empty.

Rings of one view keep the same cells over several windows, and most entities are quiet: the newest tile of 1 h often
holds what the newest tile of 10 min does, and the tiles of 30 d are those of 360 d. So a ring may be linked to one
before it, its donor: a tile that equals the newest donor tile inside its time is written as that, without its cells.

    donor, hop 15 s    ..|##|..|##|..        links (k,): the donor's cell for each of ours, -1 where it has none
    ours,  hop 2 min   [    ##   ][   ##  ]
"""

import numpy as np

from headrace.features.kernels.blocks import COUNT, OWN, START
from headrace.features.kernels.compile import Bytes, Floats, Int, Ints, lean_kernel, part, prefetch
from headrace.features.kernels.rings import EMPTY, merge_tiles, put_tiles
from headrace.features.kernels.varints import get_number, get_varint, put_bits, put_nothing, put_varint

AHEAD, NEAR = 6, 3
"""Rows between the prefetch of a row's head, and once it is there of its tiles, and their use."""

_EMPTY = np.int64(EMPTY)


@lean_kernel
def pack_ring(
    heads: Ints,
    words: Ints,
    floats: Floats,
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
    out: Bytes,
    ends: Ints,
) -> None:
    """Write rows into `out` one after the other, `ends` (n,) where each ends, also where `out` is too short.

    A row is, newest tile first, (1 + tiles since the one before, cells) each, then 0; with a donor the first number is
    doubled, and odd where the linked cells are the donor's and left out. Tiles outside the window at the head, and
    tiles that hold nothing, are left out: the bytes follow from the set of events. starts (k,) is an empty tile,
    donor_starts (d,) one of the donor; without a donor donor_hop is 0 and its arrays are not looked at.
    """
    width = starts.size
    position: Int = 0
    for i in range(rows.size):
        if i + AHEAD < rows.size:
            prefetch(heads, 4 * rows[i + AHEAD])
            prefetch(donor_heads, 4 * rows[i + AHEAD])
        if i + NEAR < rows.size:
            _prefetch_tiles(heads, words, rows[i + NEAR], width)
        row = rows[i]
        head = heads[row, OWN]
        before = head
        beyond: Int = donor_heads[row, COUNT]
        for place in range(heads[row, COUNT] - 1, -1, -1):
            at = heads[row, START] + place * (width + 1)
            tile = words[at + width]
            if tile < head - span:
                break
            if not _holds(floats, at, starts):
                continue
            delta, same = np.uint64(before - tile + 1), False
            found: Int = np.int64(-1)
            if donor_hop > 0:
                found, beyond = _donor_tile(
                    donor_heads, donor_words, donor_floats, donor_starts, row, tile, hop, donor_hop, donor_span, beyond
                )
                same = bool(found >= 0 and _equal(words, at, donor_words, found, links))
                delta = (delta << np.uint64(1)) | np.uint64(same)
            position = put_varint(out, position, delta)
            before = tile
            for cell in range(width):
                if same and links[cell] >= 0:
                    continue
                if floats[at + cell] == starts[cell]:
                    position = put_nothing(out, position)
                else:
                    position = put_bits(out, position, words[at + cell], floats[at + cell])
        position = put_varint(out, position, np.uint64(0))
        ends[i] = position


@lean_kernel
def unpack_ring(
    heads: Ints,
    words: Ints,
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
    tiles: Ints,
    numbers: Floats,
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
    `begin` and returns the first that found no room, n when all are done. tiles, as int64 and as float64, is scratch of
    a whole window's words.
    """
    width = starts.size
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
            numbers,
        )
        first = tiles.size - count * (width + 1)
        if keeps:
            if not put_tiles(heads, words, rooms, 0, most, width + 1, rows[i], tiles, count):
                return i
            heads[rows[i], OWN] = head
        if moments.size > 0:
            tile = moments[i] // hop if hop > 0 else np.int64(0)
            merge_tiles(tiles, numbers, first, count, items, params, width, max(tile, head) - span, tile, out, reads[i])
        at[i] = position
    return rows.size


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
    numbers: Floats,
) -> tuple[Int, Int]:
    """Read a packed row's tiles to the end of `tiles`, oldest first; returns how many, and the next position or -1."""
    width, position, tile = starts.size, at, head + 1
    count: Int = np.int64(0)
    beyond: Int = donor_heads[row, COUNT]
    while position >= 0:
        delta, position = get_varint(data, position, end)
        if delta == np.uint64(0):
            break
        same = donor_hop > 0 and delta & np.uint64(1) != np.uint64(0)
        if donor_hop > 0:
            delta >>= np.uint64(1)
        tile -= np.int64(delta)
        if delta == np.uint64(0) or delta > np.uint64(span + 1) or tile < head - span:
            position = -1
            break
        found: Int = np.int64(-1)
        if same:
            found, beyond = _donor_tile(
                donor_heads, donor_words, donor_floats, donor_starts, row, tile, hop, donor_hop, donor_span, beyond
            )
            if found < 0:
                position = -1
                break
        count += 1
        to = tiles.size - count * (width + 1)
        tiles[to + width] = tile
        for cell in range(width):
            if same and links[cell] >= 0:
                tiles[to + cell] = donor_words[found + links[cell]]
            else:
                number, position = get_number(data, position, end, starts[cell])
                numbers[to + cell] = number
        tile += 1
    return count, position


@part
def _prefetch_tiles(heads: Ints, words: Ints, row: Int, width: Int) -> None:
    """Ask for a row's tiles, a line of eight words at a time."""
    start = heads[row, START]
    for word in range(start, start + min(heads[row, COUNT] * (width + 1), 64), 8):
        prefetch(words, word)


@part
def _holds(floats: Floats, at: Int, starts: Floats) -> bool:
    found = False
    for cell in range(starts.size):
        found |= floats[at + cell] != starts[cell]
    return found


@part
def _equal(words: Ints, at: Int, donor_words: Ints, found: Int, links: Ints) -> bool:
    """Whether the linked cells of a tile are the donor's, to the bit."""
    same = True
    for cell in range(links.size):
        if links[cell] >= 0:
            same &= words[at + cell] == donor_words[found + links[cell]]
    return same


@part
def _donor_tile(
    heads: Ints,
    words: Ints,
    floats: Floats,
    starts: Floats,
    row: Int,
    tile: Int,
    hop: Int,
    donor_hop: Int,
    donor_span: Int,
    beyond: Int,
) -> tuple[Int, Int]:
    """The donor's newest tile that holds something and lies inside our tile of that number.

    Its first word, -1 if there is none; and how many of the donor's tiles are older than ours or inside it, for the
    next question, which is about an older tile. Of `beyond` tiles that is known already.
    """
    width = starts.size
    low, high = heads[row, OWN] - donor_span, heads[row, OWN]
    if hop > 0:
        ratio = hop // donor_hop
        low, high = max(low, tile * ratio), min(high, tile * ratio + ratio - 1)
    while beyond > 0 and words[heads[row, START] + beyond * (width + 1) - 1] > high:
        beyond -= 1
    for place in range(beyond - 1, -1, -1):
        at = heads[row, START] + place * (width + 1)
        if words[at + width] < low:
            break
        if _holds(floats, at, starts):
            return np.int64(at), beyond
    return np.int64(-1), beyond
