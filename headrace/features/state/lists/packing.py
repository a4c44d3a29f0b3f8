"""The packed form of a list: bit columns, newest element first, times as differences, texts in full.

    count     elements, in as many bits as N needs; nothing follows a count of 0
    refers    with a base, 1 bit: whether elements refer to it
    steps     if so, an unsigned column: 1 + base elements skipped since the last reference, 0 for no reference
    times     spans: time from each element to the next newer one, for the first to the entity's newest event
    ids       32 bits each
    values    a column each: INT signed; FLOAT floats; TIME spans, from value to event time; TEXT an unsigned column of
              lengths, then, from the next byte on, the texts

Lists of one view often hold the same events: the last 20 with two values are among the last 50 with one. So a list may
have an earlier one as its base. An element that refers to the base is left out of the other columns, except for the
values that the base lacks; links (m,) map each value to the base's value, -1 if the base lacks it.

Columns: kernels/bit_columns.py. A row begins and ends with a byte.
"""

from typing import NamedTuple

import numpy as np

from headrace.features.state.blocks import COUNT, ORDER, START, TAG, Blocks, linked_equal, room_of
from headrace.features.state.lists.update import FLOAT, INT, LEAST, STAMP, TIME, List, slot_of
from headrace.kernels.bit_columns import (
    bits_of,
    put_codes,
    put_field,
    put_numbers,
    put_signed,
    put_spans,
    put_unsigned,
    to_byte,
)
from headrace.kernels.compile import Bytes, Floats, Int, Ints, copy_bytes, lean_kernel, part, prefetch
from headrace.kernels.id_map import find_row
from headrace.kernels.texts import Texts

AHEAD, NEAR = 6, 3
"""Distances in rows at which a row's head, and then its elements, are prefetched."""
HALF_BITS = 32
"""Bits of the half event id that a list keeps."""
_HALF = np.int64(0xFFFFFFFF)


class ListBase(NamedTuple):
    """The list that a packed list refers to: N, values per element, whether there is a base, links (m,)."""

    size: Int
    width: Int
    exists: bool
    links: Ints


class PackScratch(NamedTuple):
    """Scratch arrays of a writer: words (6, N), column (N,)."""

    words: Ints
    column: Floats


@lean_kernel
def pack_list(
    blocks: Blocks,
    spec: List,
    base_blocks: Blocks,
    base: ListBase,
    rows: Ints,
    newest: Ints,
    pool: Texts,
    scratch: PackScratch,
    out: Bytes,
    ends: Ints,
) -> None:
    """Write rows (n,) into `out`, one after the other; ends (n,) is where each ends, even if `out` is too short.

    newest (n,) is each entity's newest event time. Cost: some 2 ns per number written, and a lookup per text.
    """
    blocks, spec, base_blocks, base = Blocks(*blocks), List(*spec), Blocks(*base_blocks), ListBase(*base)
    pool, scratch = Texts(*pool), PackScratch(*scratch)
    words, kinds, column = blocks.words, spec.kinds, scratch.column
    elements, stamps, unlike = scratch.words[0], scratch.words[1], scratch.words[2]
    codes, steps, times = scratch.words[3], scratch.words[4], scratch.words[5]
    bit: Int = np.int64(0)
    count_bits = bits_of(np.uint64(spec.size))
    for i in range(rows.size):
        if i + AHEAD < rows.size:
            prefetch(blocks.heads, 4 * rows[i + AHEAD])
            prefetch(base_blocks.heads, 4 * rows[i + AHEAD])
        if i + NEAR < rows.size:
            _prefetch_elements(blocks, spec, rows[i + NEAR])
        row, count = rows[i], blocks.heads[rows[i], COUNT]
        _find_elements(blocks, spec, row, newest[i], elements, stamps, times)
        bit = put_field(out, bit, np.uint64(count), count_bits)
        unlike_count: Int = np.int64(count)  # elements without a reference to the base: those in `unlike`, or all
        if base.exists and count > 0:
            unlike_count = _refer(words, elements, stamps, count, base_blocks, base, row, codes)
            refers = 8 * (count - unlike_count) > count  # a reference saves some 8 bytes, a step costs up to 1
            bit = put_field(out, bit, np.uint64(refers), 1)
            unlike_count = unlike_count if refers else np.int64(count)
            if refers:
                bit = put_unsigned(out, bit, codes, count)
        if unlike_count < count:
            listed: Int = np.int64(0)
            for j in range(count):
                if codes[j] == 0:
                    unlike[listed] = j
                    listed += 1
        for k in range(unlike_count):
            codes[k] = times[unlike[k] if unlike_count < count else k]
        bit = put_spans(out, bit, codes, unlike_count)
        for k in range(unlike_count):
            codes[k] = words[stamps[unlike[k] if unlike_count < count else k] + 1] & _HALF
        bit = put_codes(out, bit, codes, unlike_count, HALF_BITS)
        for m in range(kinds.size):
            is_linked = unlike_count < count and base.links[m] >= 0
            written = unlike_count if is_linked else np.int64(count)
            for k in range(written):
                j = unlike[k] if is_linked else k
                word = words[elements[j] + m]
                codes[k] = words[stamps[j]] - word if kinds[m] == TIME else word
            if kinds[m] == INT:
                bit = put_signed(out, bit, codes, written)
            elif kinds[m] == FLOAT:
                for k in range(written):
                    column[k] = np.int64(codes[k]).view(np.float64)
                bit = put_numbers(out, bit, column, written, 0.0, codes, steps)
            elif kinds[m] == TIME:
                bit = put_spans(out, bit, codes, written)
            else:
                bit = _put_texts(out, bit, codes, written, steps, pool)
        bit = to_byte(bit)
        ends[i] = bit >> np.int64(3)


@part
def _prefetch_elements(blocks: Blocks, spec: List, row: Int) -> None:
    """Prefetch a row's elements, one cache line of eight words at a time."""
    start, room = blocks.heads[row, START], room_of(blocks.heads[row, ORDER], LEAST, spec.size)
    for word in range(start, start + room * (STAMP + spec.kinds.size), 8):
        prefetch(blocks.words, word)


@part
def _find_elements(
    blocks: Blocks, spec: List, row: Int, newest: Int, elements: Ints, stamps: Ints, spans: Ints
) -> None:
    """Find the first words of the values and stamps of a row's elements, newest first, and the spans between them."""
    heads, words = blocks.heads, blocks.words
    start, first, room = heads[row, START], heads[row, TAG], room_of(heads[row, ORDER], LEAST, spec.size)
    before, count = newest, heads[row, COUNT]
    for j in range(count):
        slot = slot_of(first, count - 1 - j, room)
        stamps[j] = start + STAMP * slot
        elements[j] = start + STAMP * room + spec.kinds.size * slot
        spans[j] = before - words[stamps[j]]
        before = words[stamps[j]]


@part
def _refer(
    words: Ints, elements: Ints, stamps: Ints, count: Int, base_blocks: Blocks, base: ListBase, row: Int, steps: Ints
) -> Int:
    """Set the step of each element to the base element that it equals; returns the number of elements that equal none.

    Both lists have the same order, so one pass over each suffices.
    """
    newer: Int = np.int64(0)
    after: Int = np.int64(0)
    unlike: Int = np.int64(0)
    for j in range(count):
        index, newer = _find(words, stamps[j], elements[j], base_blocks, base, row, newer)
        if index < after:  # no equal element, or one that an earlier element already refers to
            steps[j] = 0
            unlike += 1
        else:
            steps[j] = index - after + 1
            after = index + 1
    return unlike


@part
def _put_texts(out: Bytes, bit: Int, hashes: Ints, count: Int, rows: Ints, pool: Texts) -> Int:
    """Write the texts of the first `count` hashes, overwriting the hashes; returns the next position."""
    offsets = pool.offsets
    for k in range(count):
        rows[k] = find_row(pool.table, hashes[k])
        hashes[k] = offsets[rows[k] + 1] - offsets[rows[k]]
    bit = to_byte(put_unsigned(out, bit, hashes, count))
    byte = bit >> np.int64(3)
    for k in range(count):
        length = offsets[rows[k] + 1] - offsets[rows[k]]
        if byte + length <= out.size:
            copy_bytes(pool.data, offsets[rows[k]], out, byte, length)
        byte += length
    return 8 * byte


@part
def _find(
    words: Ints, stamp: Int, values: Int, base_blocks: Blocks, base: ListBase, row: Int, newer: Int
) -> tuple[Int, Int]:
    """Index, counted from the newest, of the base element that equals an element; -1 if there is none.

    `stamp` and `values` are the first words of the element. Also returns the number of base elements newer than it; the
    next call, which must be for an older element, passes it as `newer`.
    """
    heads, base_words = base_blocks.heads, base_blocks.words
    time, event_id = words[stamp], np.uint64(words[stamp + 1])
    start, count, first = heads[row, START], heads[row, COUNT], heads[row, TAG]
    room = room_of(heads[row, ORDER], LEAST, base.size)
    index = newer
    while index < count:
        slot = slot_of(first, count - 1 - index, room)
        base_time = base_words[start + STAMP * slot]
        if base_time < time:
            break
        if base_time == time:
            base_id = np.uint64(base_words[start + STAMP * slot + 1])
            if base_id < event_id:
                break
            base_values = start + STAMP * room + base.width * slot
            if base_id == event_id and linked_equal(words, values, base_words, base_values, base.links):
                return index, newer
            if base_id > event_id and index == newer:
                newer += 1
        elif index == newer:
            newer += 1
        index += 1
    return np.int64(-1), newer
