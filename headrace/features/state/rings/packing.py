"""The packed form of a ring's row: columns of bits, newest tile first, nothing for what is empty.

    count     tiles, in as many bits as the window's number of tiles needs; of 0 nothing follows
    ages      unsigned column: tiles between the head and the newest, then between each and the one after it
    same      with a donor, 1 bit a tile
    cells     a column of floats for each cell of a tile

Rings of one view keep the same cells over several windows, and most entities are quiet: the newest tile of 1 h often
holds what the newest tile of 10 min does, and the tiles of 30 d are those of 360 d. So a ring may be linked to one
before it, its donor: a tile whose linked cells equal those of the newest donor tile inside its time is marked `same`,
and they are left out of its columns.

    donor, hop 15 s    ..|##|..|##|..        links (k,): the donor's cell for each of ours, -1 where it has none
    ours,  hop 2 min   [    ##   ][   ##  ]

Columns: kernels/bit_columns.py. A row begins and ends with a byte.
"""

import numpy as np

from headrace.features.state.blocks import COUNT, OWN, START
from headrace.kernels.bit_columns import bits_of, put_codes, put_field, put_numbers, put_unsigned, to_byte
from headrace.kernels.compile import Bytes, Floats, Int, Ints, lean_kernel, part, prefetch

AHEAD, NEAR = 6, 3
"""Rows between the prefetch of a row's head, and once it is there of its tiles, and their use."""


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
    scratch: Ints,
    column: Floats,
    out: Bytes,
    ends: Ints,
) -> None:
    """Write rows into `out` one after the other, `ends` (n,) where each ends, also where `out` is too short.

    Tiles outside the window at the head, and tiles that hold nothing, are left out: the bytes follow from the set of
    events. starts (k,) is an empty tile, donor_starts (d,) one of the donor; without a donor donor_hop is 0 and its
    arrays are not looked at. scratch (4, t) and column (t,) have room for the tiles of a window.
    """
    width, count_bits = starts.size, bits_of(np.uint64(span + 1))
    places, others, codes, steps = scratch[0], scratch[1], scratch[2], scratch[3]
    at: Int = np.int64(0)
    for i in range(rows.size):
        if i + AHEAD < rows.size:
            prefetch(heads, 4 * rows[i + AHEAD])
            prefetch(donor_heads, 4 * rows[i + AHEAD])
        if i + NEAR < rows.size:
            _prefetch_tiles(heads, words, rows[i + NEAR], width)
        count = _find_tiles(heads, words, floats, starts, span, rows[i], places, codes)
        at = put_field(out, at, np.uint64(count), count_bits)
        at = put_unsigned(out, at, codes, count)
        own, own_count = places, count
        if donor_hop > 0:
            own, own_count = (
                others,
                _mark_same(
                    words,
                    width,
                    donor_heads,
                    donor_words,
                    donor_floats,
                    donor_starts,
                    donor_hop,
                    donor_span,
                    links,
                    hop,
                    rows[i],
                    places,
                    count,
                    others,
                    codes,
                ),
            )
            at = put_codes(out, at, codes, count, 1)
        for cell in range(width):
            linked = donor_hop > 0 and links[cell] >= 0
            written, written_count = (own, own_count) if linked else (places, count)
            for j in range(written_count):
                column[np.uint64(j)] = floats[np.uint64(written[np.uint64(j)] + cell)]
            at = put_numbers(out, at, column, written_count, starts[cell], codes, steps)
        at = to_byte(at)
        ends[i] = at >> np.int64(3)


@part
def _find_tiles(
    heads: Ints, words: Ints, floats: Floats, starts: Floats, span: Int, row: Int, places: Ints, ages: Ints
) -> Int:
    """Find a row's tiles that are written, newest first: their first words, and tiles between each two; how many."""
    stride, head = starts.size + 1, heads[row, OWN]
    after = head
    count: Int = np.int64(0)
    for place in range(heads[row, COUNT] - 1, -1, -1):
        at = heads[row, START] + place * stride
        tile = words[at + starts.size]
        if tile < head - span:
            break
        if _holds(floats, at, starts):
            places[count] = at
            ages[count] = after - tile
            after = tile - 1
            count += 1
    return count


@part
def _mark_same(
    words: Ints,
    width: Int,
    donor_heads: Ints,
    donor_words: Ints,
    donor_floats: Floats,
    donor_starts: Floats,
    donor_hop: Int,
    donor_span: Int,
    links: Ints,
    hop: Int,
    row: Int,
    places: Ints,
    count: Int,
    own: Ints,
    same: Ints,
) -> Int:
    """Set same[j] where tile j's linked cells are the donor's; the first words of the others go to `own`: how many."""
    own_count: Int = np.int64(0)
    beyond: Int = donor_heads[row, COUNT]
    for j in range(count):
        found, beyond = donor_tile(
            donor_heads,
            donor_words,
            donor_floats,
            donor_starts,
            row,
            words[places[j] + width],
            hop,
            donor_hop,
            donor_span,
            beyond,
        )
        same[j] = np.int64(found >= 0 and _equal(words, places[j], donor_words, found, links))
        if same[j] == 0:
            own[own_count] = places[j]
            own_count += 1
    return own_count


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
def donor_tile(
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
