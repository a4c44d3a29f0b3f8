"""The packed form of a list: columns of bits, newest element first, times as differences, texts written out.

    count     elements, in as many bits as N needs; of 0 nothing follows
    refers    with a donor, 1 bit: whether elements refer to it
    steps     if so, an unsigned column: 1 + elements of the donor since the last one referred to, 0 where it lacks ours
    times     spans: time since the element before, the first since the newest event of the entity
    ids       32 bits each
    values    a column each: INT signed; FLOAT floats; TIME spans, from value to event time; TEXT an unsigned column of
              lengths, then from the next byte on the texts

Lists of one view often hold the same events: the last 20 with two values are among the last 50 with one. So a list may
be linked to one before it, its donor: an element that refers to it has no time, id and values that the donor has in the
other columns; links (m,) tell which of the donor's values each of ours is, -1 none.

Columns: kernels/bit_columns.py. A row begins and ends with a byte.
"""

import numpy as np

from headrace.features.state.blocks import COUNT, ORDER, OWN, START, room_of
from headrace.features.state.lists.update import FLOAT, INT, LEAST, STAMP, TIME, place_of
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

AHEAD, NEAR = 6, 3
"""Rows between the prefetch of a row's head, and once it is there of its elements, and their use."""
HALF_BITS = 32
"""Of an id a list keeps half."""
_HALF = np.int64(0xFFFFFFFF)


@lean_kernel
def pack_list(
    heads: Ints,
    words: Ints,
    size: Int,
    kinds: Ints,
    donor_heads: Ints,
    donor_words: Ints,
    donor_size: Int,
    donor_width: Int,
    linked: bool,
    links: Ints,
    rows: Ints,
    newest: Ints,
    table: Ints,
    text_offsets: Ints,
    text_data: Bytes,
    scratch: Ints,
    column: Floats,
    out: Bytes,
    ends: Ints,
) -> None:
    """Write rows into `out` one after the other, `ends` (n,) where each ends, also where `out` is too short.

    newest (n,) is each entity's newest event time; `table`, `text_offsets`, `text_data` are the pool of texts. scratch
    (6, N) and column (N,) are used.
    """
    elements, stamps, others = scratch[0], scratch[1], scratch[2]
    codes, steps, times = scratch[3], scratch[4], scratch[5]
    at: Int = np.int64(0)
    width, count_bits = kinds.size, bits_of(np.uint64(size))
    for i in range(rows.size):
        if i + AHEAD < rows.size:
            prefetch(heads, 4 * rows[i + AHEAD])
            prefetch(donor_heads, 4 * rows[i + AHEAD])
        if i + NEAR < rows.size:
            _prefetch_elements(heads, words, size, rows[i + NEAR], width)
        row, count = rows[i], heads[rows[i], COUNT]
        _find_elements(heads, words, size, row, width, newest[i], elements, stamps, times)
        at = put_field(out, at, np.uint64(count), count_bits)
        own: Int = np.int64(count)
        if linked and count > 0:
            own = _refer(
                words, elements, stamps, count, donor_heads, donor_words, donor_size, donor_width, links, row, codes
            )
            refers = 8 * (count - own) > count  # a reference saves some 8 bytes, and costs up to 1 everywhere
            at = put_field(out, at, np.uint64(refers), 1)
            own = own if refers else np.int64(count)
            if refers:
                at = put_unsigned(out, at, codes, count)
        if own < count:
            found: Int = np.int64(0)
            for j in range(count):
                if codes[j] == 0:
                    others[found] = j
                    found += 1
        for k in range(own):
            codes[k] = times[others[k] if own < count else k]
        at = put_spans(out, at, codes, own)
        for k in range(own):
            codes[k] = words[stamps[others[k] if own < count else k] + 1] & _HALF
        at = put_codes(out, at, codes, own, HALF_BITS)
        for m in range(width):
            some = own < count and links[m] >= 0
            written = own if some else np.int64(count)
            for k in range(written):
                j = others[k] if some else k
                word = words[elements[j] + m]
                codes[k] = words[stamps[j]] - word if kinds[m] == TIME else word
            if kinds[m] == INT:
                at = put_signed(out, at, codes, written)
            elif kinds[m] == FLOAT:
                for k in range(written):
                    column[k] = np.int64(codes[k]).view(np.float64)
                at = put_numbers(out, at, column, written, 0.0, codes, steps)
            elif kinds[m] == TIME:
                at = put_spans(out, at, codes, written)
            else:
                at = _put_texts(out, at, codes, written, steps, table, text_offsets, text_data)
        at = to_byte(at)
        ends[i] = at >> np.int64(3)


@part
def _prefetch_elements(heads: Ints, words: Ints, size: Int, row: Int, width: Int) -> None:
    """Ask for a row's elements, a line of eight words at a time."""
    start = heads[row, START]
    for word in range(start, start + room_of(heads[row, ORDER], LEAST, size) * (STAMP + width), 8):
        prefetch(words, word)


@part
def _find_elements(
    heads: Ints, words: Ints, size: Int, row: Int, width: Int, newest: Int, elements: Ints, stamps: Ints, spans: Ints
) -> None:
    """Where the values and the stamps of a row's elements are, newest first, and the time since the one before."""
    start, first, room = heads[row, START], heads[row, OWN], room_of(heads[row, ORDER], LEAST, size)
    before, count = newest, heads[row, COUNT]
    for j in range(count):
        place = place_of(first, count - 1 - j, room)
        stamps[j] = start + STAMP * place
        elements[j] = start + STAMP * room + width * place
        spans[j] = before - words[stamps[j]]
        before = words[stamps[j]]


@part
def _refer(
    words: Ints,
    elements: Ints,
    stamps: Ints,
    count: Int,
    donor_heads: Ints,
    donor_words: Ints,
    donor_size: Int,
    donor_width: Int,
    links: Ints,
    row: Int,
    steps: Ints,
) -> Int:
    """Set the step of each element to the donor's that it equals; returns how many have none."""
    seen: Int = np.int64(0)
    after: Int = np.int64(0)
    own: Int = np.int64(0)
    for j in range(count):
        found, seen = _find(
            words, stamps[j], elements[j], donor_heads, donor_words, donor_size, donor_width, links, row, seen
        )
        if found < after:  # none, or two elements of ours are one of the donor's
            steps[j] = 0
            own += 1
        else:
            steps[j] = found - after + 1
            after = found + 1
    return own


@part
def _put_texts(
    out: Bytes, at: Int, hashes: Ints, count: Int, rows: Ints, table: Ints, text_offsets: Ints, text_data: Bytes
) -> Int:
    """Write the texts of the first `count` hashes, which are changed; returns the next position."""
    for k in range(count):
        rows[k] = find_row(table, hashes[k])
        hashes[k] = text_offsets[rows[k] + 1] - text_offsets[rows[k]]
    at = to_byte(put_unsigned(out, at, hashes, count))
    byte = at >> np.int64(3)
    for k in range(count):
        length = text_offsets[rows[k] + 1] - text_offsets[rows[k]]
        if byte + length <= out.size:
            copy_bytes(text_data, text_offsets[rows[k]], out, byte, length)
        byte += length
    return 8 * byte


@part
def _find(
    words: Ints,
    stamp: Int,
    values: Int,
    donor_heads: Ints,
    donor_words: Ints,
    donor_size: Int,
    donor_width: Int,
    links: Ints,
    row: Int,
    seen: Int,
) -> tuple[Int, Int]:
    """Where the donor holds our element, counted from its newest, -1 where it does not; and what of it is newer.

    `stamp` and `values` are where the element's words begin. `seen` of the donor's elements are known to be newer.
    """
    time, event_id = words[stamp], np.uint64(words[stamp + 1])
    start, count, first = donor_heads[row, START], donor_heads[row, COUNT], donor_heads[row, OWN]
    room = room_of(donor_heads[row, ORDER], LEAST, donor_size)
    place = seen
    while place < count:
        other = place_of(first, count - 1 - place, room)
        donor_time = donor_words[start + STAMP * other]
        if donor_time < time:
            break
        if donor_time == time:
            donor_id = np.uint64(donor_words[start + STAMP * other + 1])
            if donor_id < event_id:
                break
            donor_values = start + STAMP * room + donor_width * other
            if donor_id == event_id and _equal(words, values, donor_words, donor_values, links):
                return place, seen
            if donor_id > event_id and place == seen:
                seen += 1
        elif place == seen:
            seen += 1
        place += 1
    return np.int64(-1), seen


@part
def _equal(words: Ints, values: Int, donor_words: Ints, donor_values: Int, links: Ints) -> bool:
    same = True
    for m in range(links.size):
        if links[m] >= 0:
            same &= words[values + m] == donor_words[donor_values + links[m]]
    return same
