"""The packed form of a ring's row: bit columns, newest tile first, without empty tiles.

    count     tiles, in as many bits as the window's number of tiles needs; nothing follows a count of 0
    ages      unsigned column: tiles between the head and the newest tile, then between each tile and the next newer one
    same      with a base, 1 bit per tile
    cells     a column of floats for each cell of a tile

Rings of one view keep the same cells over several windows, and most entities are quiet: the newest tile of 1 h often
equals the newest tile of 10 min, and the tiles of 30 d are those of 360 d. So a ring may have an earlier one as its
base. A tile is marked `same` if its linked cells equal those of the newest base tile within its time; these cells are
then left out of its columns.

    base, hop 15 s     ..|##|..|##|..        links (k,): for each cell of the ring the base's cell, -1 if it has none
    ring, hop 2 min    [    ##   ][   ##  ]

Columns: kernels/bit_columns.py. A row begins and ends with a byte.
"""

from typing import NamedTuple

import numpy as np

from headrace.features.state.blocks import COUNT, START, TAG, Blocks, linked_equal, make_block
from headrace.features.state.operations import Packed, Reads
from headrace.features.state.rings.cells import ADD, MAX, MIN, merge, width_of
from headrace.features.state.rings.update import EMPTY, LEAST, Ring
from headrace.kernels.bit_columns import (
    bits_of,
    get_codes,
    get_field,
    get_numbers,
    get_unsigned,
    pass_padding,
    put_codes,
    put_field,
    put_numbers,
    put_unsigned,
    to_byte,
)
from headrace.kernels.compile import Bytes, Floats, Int, Ints, lean_kernel, part, prefetch

AHEAD, NEAR = 6, 3
"""Distances in rows at which a row's head, and then its tiles, are prefetched."""
_EMPTY = np.int64(EMPTY)


class Base(NamedTuple):
    """The ring that a packed ring refers to: empty tile starts (d,), hop (0 without a base), span, links (k,)."""

    starts: Floats
    hop: Int
    span: Int
    links: Ints


class Scratch(NamedTuple):
    """Scratch arrays of a reader, for the t tiles of a window: words (3, t), columns (k, t + SPARE), cells (k,)."""

    words: Ints
    columns: Floats
    cells: Floats


@lean_kernel
def pack_ring(
    blocks: Blocks,
    ring: Ring,
    base_blocks: Blocks,
    base: Base,
    rows: Ints,
    scratch: Ints,
    column: Floats,
    out: Bytes,
    ends: Ints,
) -> None:
    """Write rows (n,) into `out`, one after the other; ends (n,) is where each ends, even if `out` is too short.

    Empty tiles, and tiles outside the window that ends at the head, are left out, so the bytes are a function of the
    set of events. Without a base its arrays are not read. scratch (4, t) and column (t,) fit the tiles of a window.
    Cost: some 2 ns per cell written.
    """
    blocks, ring, base_blocks, base = Blocks(*blocks), Ring(*ring), Blocks(*base_blocks), Base(*base)
    floats, starts = blocks.floats, ring.starts
    width, count_bits = starts.size, bits_of(np.uint64(ring.span + 1))
    tiles, unlike, codes, steps = scratch[0], scratch[1], scratch[2], scratch[3]
    bit: Int = np.int64(0)
    for i in range(rows.size):
        if i + AHEAD < rows.size:
            prefetch(blocks.heads, 4 * rows[i + AHEAD])
            prefetch(base_blocks.heads, 4 * rows[i + AHEAD])
        if i + NEAR < rows.size:
            _prefetch_tiles(blocks.heads, blocks.words, rows[i + NEAR], width)
        count = _find_tiles(blocks, ring, rows[i], tiles, codes)
        bit = put_field(out, bit, np.uint64(count), count_bits)
        bit = put_unsigned(out, bit, codes, count)
        unlike_count: Int = count
        if base.hop > 0:
            unlike_count = _mark_same(blocks, ring, base_blocks, base, rows[i], tiles, count, unlike, codes)
            bit = put_codes(out, bit, codes, count, 1)
        for cell in range(width):
            linked = base.hop > 0 and base.links[cell] >= 0
            written, written_count = (unlike, unlike_count) if linked else (tiles, count)
            for j in range(written_count):
                column[np.uint64(j)] = floats[np.uint64(written[np.uint64(j)] + cell)]
            bit = put_numbers(out, bit, column, written_count, starts[cell], codes, steps)
        bit = to_byte(bit)
        ends[i] = bit >> np.int64(3)


@part
def _find_tiles(blocks: Blocks, ring: Ring, row: Int, tiles: Ints, ages: Ints) -> Int:
    """Find the first words and ages of a row's tiles to be written, newest first; returns their number."""
    width, head = ring.starts.size, blocks.heads[row, TAG]
    after = head
    count: Int = np.int64(0)
    for index in range(blocks.heads[row, COUNT] - 1, -1, -1):
        word = blocks.heads[row, START] + index * (width + 1)
        tile = blocks.words[word + width]
        if tile < head - ring.span:
            break
        if _holds_events(blocks.floats, word, ring.starts):
            tiles[count] = word
            ages[count] = after - tile
            after = tile - 1
            count += 1
    return count


@part
def _mark_same(
    blocks: Blocks,
    ring: Ring,
    base_blocks: Blocks,
    base: Base,
    row: Int,
    tiles: Ints,
    count: Int,
    unlike: Ints,
    same: Ints,
) -> Int:
    """Set same[j] to whether tile j's linked cells equal the base's; returns the number of tiles that differ.

    `unlike` gets the first words of the tiles that differ. Tiles are visited newest first, so `beyond` only decreases,
    and the base is scanned once per row.
    """
    unlike_count: Int = np.int64(0)
    beyond: Int = base_blocks.heads[row, COUNT]
    for j in range(count):
        tile = blocks.words[tiles[j] + ring.starts.size]
        word, beyond = base_tile(base_blocks, base, ring.hop, row, tile, beyond)
        same[j] = np.int64(word >= 0 and linked_equal(blocks.words, tiles[j], base_blocks.words, word, base.links))
        if same[j] == 0:
            unlike[unlike_count] = tiles[j]
            unlike_count += 1
    return unlike_count


@part
def _prefetch_tiles(heads: Ints, words: Ints, row: Int, width: Int) -> None:
    """Prefetch a row's tiles, one cache line of eight words at a time, eight lines at most."""
    start = heads[row, START]
    for word in range(start, start + min(heads[row, COUNT] * (width + 1), 64), 8):
        prefetch(words, word)


@part
def _holds_events(floats: Floats, first: Int, starts: Floats) -> bool:
    """Whether any cell of a tile differs from its empty value. No early exit, so that the loop is vectorised."""
    differs = False
    for cell in range(starts.size):
        differs |= floats[first + cell] != starts[cell]
    return differs


@part
def base_tile(base_blocks: Blocks, base: Base, hop: Int, row: Int, tile: Int, beyond: Int) -> tuple[Int, Int]:
    """Find the base's newest non-empty tile within tile number `tile` of a ring with hop `hop`.

    Returns its first word, -1 if there is none; and the number of base tiles that are not newer than `tile`. The next
    call, which must be for an older tile, passes that number as `beyond`; the first call passes the base's tile count.
    """
    heads, words, width = base_blocks.heads, base_blocks.words, base.starts.size
    low, high = heads[row, TAG] - base.span, heads[row, TAG]
    if hop > 0:
        ratio = hop // base.hop
        low, high = max(low, tile * ratio), min(high, tile * ratio + ratio - 1)
    while beyond > 0 and words[heads[row, START] + beyond * (width + 1) - 1] > high:
        beyond -= 1
    for index in range(beyond - 1, -1, -1):
        word = heads[row, START] + index * (width + 1)
        if words[word + width] < low:
            break
        if _holds_events(base_blocks.floats, word, base.starts):
            return np.int64(word), beyond
    return np.int64(-1), beyond


@lean_kernel
def unpack_ring(
    blocks: Blocks,
    ring: Ring,
    base_blocks: Blocks,
    base: Base,
    packed: Packed,
    begin: Int,
    scratch: Scratch,
    reads: Reads,
    params: Floats,
    out: Floats,
) -> Int:
    """Unpack what `pack_ring` wrote, from row `begin` on, into empty rows, into answers, or both; see `Reads`.

    Answers are as `run_ring` writes them; params (m,) belong to the items. The base's rows must be filled before.
    Returns the first row that ran out of memory, n when all are done. Cost: some 1 ns per cell, plus merging.
    """
    blocks, ring, base_blocks, base = Blocks(*blocks), Ring(*ring), Blocks(*base_blocks), Base(*base)
    packed, scratch, reads = Packed(*packed), Scratch(*scratch), Reads(*reads)
    hop, width, tiles = ring.hop, ring.starts.size, scratch.words[0]
    for i in range(begin, packed.rows.size):
        head = _EMPTY
        if packed.newest[i] != _EMPTY:
            head = packed.newest[i] // hop if hop > 0 else np.int64(0)
        count, end = _get_tiles(ring, base_blocks, base, packed, i, head, scratch)
        if reads.keeps:
            row = packed.rows[i]
            if not make_block(blocks, 0, row, count, LEAST, ring.most, width + 1):
                return i
            blocks.heads[row, TAG] = head
            _keep_tiles(blocks, blocks.heads[row, START], tiles, scratch.columns, count, width)
        if reads.moments.size > 0:
            tile = reads.moments[i] // hop if hop > 0 else np.int64(0)
            low, high = max(tile, head) - ring.span, tile
            if hop > 0 and tile * hop == reads.moments[i]:
                high = tile - 1  # all events of the tile are at or after the read
            _merge_columns(scratch, count, low, high, ring, params, out, reads.reads[i] * width)
        packed.at[i] = end
    return packed.rows.size


@part
def _keep_tiles(blocks: Blocks, start: Int, tiles: Ints, columns: Floats, count: Int, width: Int) -> None:
    """Write `count` tiles, given newest first, to a row's block, oldest first."""
    word: Int = start
    for j in range(count - 1, -1, -1):
        for cell in range(width):
            blocks.floats[np.uint64(word + cell)] = columns[cell, j]
        blocks.words[np.uint64(word + width)] = tiles[np.uint64(j)]
        word += width + 1


@part
def _merge_columns(
    scratch: Scratch, count: Int, low: Int, high: Int, ring: Ring, params: Floats, out: Floats, to: Int
) -> None:
    """Merge the tiles with low <= tile <= high, among `count` tiles given newest first, into the cells at out[to:].

    Merges oldest first, as `run_ring` does, so both give the same float to the last bit.
    """
    tiles, columns, cells = scratch.words[0], scratch.columns, scratch.cells
    first: Int = np.int64(0)
    while first < count and tiles[np.uint64(first)] > high:
        first += 1
    while count > first and tiles[np.uint64(count - 1)] < low:
        count -= 1
    for m in range(ring.items.shape[0]):
        code, cell = ring.items[m, 0], ring.items[m, 1]
        if code <= MAX:  # a single cell, kept in a register
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
                for offset in range(width_of(code)):
                    cells[offset] = columns[cell + offset, j]
                merge(out, to + cell, cells, 0, code, params[m])


@part
def _get_tiles(
    ring: Ring, base_blocks: Blocks, base: Base, packed: Packed, i: Int, head: Int, scratch: Scratch
) -> tuple[Int, Int]:
    """Read row i's tiles, newest first, into scratch.words[0] and scratch.columns.

    Returns their number and the byte after the row; (0, -1) if the bytes are damaged.
    """
    data, end, span = packed.data, packed.ends[i], ring.span
    tiles, same, codes = scratch.words[0], scratch.words[1], scratch.words[2]
    field, bit = get_field(data, 8 * packed.at[i], end, bits_of(np.uint64(span + 1)))
    count, tile = np.int64(field), head + 1
    if packed.at[i] < 0 or count > span + 1:
        return np.int64(0), np.int64(-1)
    bit = get_unsigned(data, bit, end, codes, count)
    if bit < 0 or bit + count * (base.hop > 0) > 8 * end:
        return np.int64(0), np.int64(-1)
    for j in range(count):
        age = codes[np.uint64(j)]
        if np.uint64(age) > np.uint64(span):
            return np.int64(0), np.int64(-1)
        tile -= age + 1
        tiles[np.uint64(j)] = tile
    if tile < head - span:
        return np.int64(0), np.int64(-1)
    unlike: Int = count
    if base.hop > 0:
        unlike = _find_same(base_blocks, base, ring.hop, packed, i, bit, tiles, count, same)
        if unlike < 0:
            return np.int64(0), np.int64(-1)
        bit += count
    for cell in range(ring.starts.size):
        linked = base.hop > 0 and base.links[cell] >= 0
        column = scratch.columns[cell]
        bit = get_numbers(data, bit, end, column, unlike if linked else count, ring.starts[cell], codes)
        if linked and unlike < count:
            _insert_same(column, same, count, unlike, base_blocks.floats, base.links[cell])
    return count, pass_padding(data, bit, end) >> np.int64(3)


@part
def _insert_same(column: Floats, same: Ints, count: Int, unlike: Int, base_floats: Floats, link: Int) -> None:
    """Move the first `unlike` cells to their tiles, in place from the end; the others get the base's cells."""
    for j in range(count - 1, -1, -1):
        if same[j] >= 0:
            column[np.uint64(j)] = base_floats[same[j] + link]
        else:
            unlike -= 1
            column[np.uint64(j)] = column[np.uint64(unlike)]


@part
def _find_same(
    base_blocks: Blocks, base: Base, hop: Int, packed: Packed, i: Int, bit: Int, tiles: Ints, count: Int, same: Ints
) -> Int:
    """Set same[j] to the first word of the base tile that tile j is marked to equal, -1 if it is not marked.

    Returns the number of unmarked tiles; -1 if the base lacks a tile.
    """
    row, unlike = packed.rows[i], np.int64(0)
    beyond: Int = base_blocks.heads[row, COUNT]
    get_codes(packed.data, bit, 1, same, count)
    for j in range(count):
        if same[np.uint64(j)] == 0:
            same[np.uint64(j)] = -1
            unlike += 1
            continue
        word, beyond = base_tile(base_blocks, base, hop, row, tiles[np.uint64(j)], beyond)
        if word < 0:
            return np.int64(-1)
        same[np.uint64(j)] = word
    return unlike
