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

from headrace.features.kernels.bit_columns import (
    bits_of,
    get_codes,
    get_field,
    get_numbers,
    get_signed,
    get_spans,
    get_width,
    put_codes,
    put_field,
    put_numbers,
    put_signed,
    put_spans,
    put_unsigned,
    to_byte,
)
from headrace.features.kernels.blocks import COUNT, ORDER, OWN, START, make_block, room_of
from headrace.features.kernels.compile import Bytes, Floats, Int, Ints, copy_bytes, lean_kernel, part, prefetch
from headrace.features.kernels.hashing import xxh64
from headrace.features.kernels.id_lists import FLOAT, INT, LEAST, STAMP, TEXT, TIME, place_of
from headrace.features.kernels.id_map import find_row

AHEAD, NEAR = 6, 3
"""Rows between the prefetch of a row's head, and once it is there of its elements, and their use."""
_LOW_HALF, _HALF_BITS = np.int64(0xFFFFFFFF), 32


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
            codes[k] = words[stamps[others[k] if own < count else k] + 1] & _LOW_HALF
        at = put_codes(out, at, codes, own, _HALF_BITS)
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


@lean_kernel
def unpack_list(
    heads: Ints,
    words: Ints,
    rooms: Ints,
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
    data: Bytes,
    at: Ints,
    ends: Ints,
    begin: Int,
    texts: Ints,
    texts_found: Ints,
    strict: bool,
    keeps: bool,
    moments: Ints,
    reads: Ints,
    scratch: Ints,
    column: Floats,
    out_times: Ints,
    out_values: Ints,
    out_counts: Ints,
) -> Int:
    """Read what `pack_list` wrote at `data[at[i]:ends[i]]`; `at[i]` moves on, -1 where bytes are wrong.

    `keeps`: fill rows, which are empty. moments (n,), or none: read row i as of `moments[i]` into out_*[reads[i]], as
    `run_list` does; ids are not kept then. The donor's rows are filled before. Begins at row `begin` and returns the
    first that found no room, n when all are done. texts (room for one line a text, 3) gets (hash, start, end) of each
    text met, so that the pool can learn them; texts_found (1,) counts its lines. With a room of 0 lines only the hashes
    are used. scratch (3, N + SPARE) and column (N + SPARE,) are used.
    """
    width, theirs, times, codes = kinds.size, scratch[0], scratch[1], scratch[2]
    for i in range(begin, rows.size):
        row, end = rows[i], ends[i]
        found, bit = get_field(data, 8 * at[i], end, bits_of(np.uint64(size)))
        if at[i] < 0 or bit < 0 or found > np.uint64(size):
            at[i] = -1
            continue
        count = np.int64(found)
        start: Int = np.int64(0)
        room: Int = np.int64(0)
        if keeps:
            if not make_block(heads, words, rooms, 0, row, count, LEAST, size, STAMP + width):
                return i
            heads[row, OWN] = 0
            start, room = heads[row, START], room_of(heads[row, ORDER], LEAST, size)
        donor_stamps = donor_heads[row, START]
        donor_values = donor_stamps + STAMP * room_of(donor_heads[row, ORDER], LEAST, donor_size)
        own: Int = np.int64(count)
        if linked and count > 0:
            own, bit = _get_steps(data, bit, end, donor_heads, donor_size, row, count, theirs, codes)
        bit = get_spans(data, bit, end, codes, own)
        if bit < 0 or bit + _HALF_BITS * own > 8 * end:
            at[i] = -1
            continue
        _add_up(codes, own, count, newest[i], donor_words, donor_stamps, theirs, times)
        if keeps:
            for j in range(count):
                words[np.uint64(start + STAMP * (count - 1 - j))] = times[np.uint64(j)]
            if moments.size == 0:
                get_codes(data, bit, _HALF_BITS, codes, own)
                _keep_ids(words, start, codes, own, count, donor_words, donor_stamps, theirs)
        bit += _HALF_BITS * own
        first: Int = np.int64(0)
        if moments.size > 0:
            first = _answer_times(times, count, moments[i], strict, out_times, out_counts, reads[i])
        for m in range(width):
            some = own < count and links[m] >= 0
            read = own if some else count
            bit = _get_column(data, bit, end, kinds[m], codes, column, read, texts, texts_found)
            if bit < 0:
                break
            if some:
                _spread(codes, own, count, donor_words, donor_values + links[m], donor_width, theirs)
            if kinds[m] == TIME:
                for j in range(count):
                    if not some or theirs[j] < 0:
                        codes[j] = times[j] - codes[j]
            if keeps:
                values = start + STAMP * room + m
                for j in range(count):
                    words[np.uint64(values + width * (count - 1 - j))] = codes[np.uint64(j)]
            if moments.size > 0:
                for j in range(first, count):
                    out_values[np.uint64(reads[i]), np.uint64(j - first), np.uint64(m)] = codes[np.uint64(j)]
        at[i] = to_byte(bit) >> np.int64(3)
    return rows.size


@part
def _get_steps(
    data: Bytes, bit: Int, end: Int, donor_heads: Ints, donor_size: Int, row: Int, count: Int, theirs: Ints, codes: Ints
) -> tuple[Int, Int]:
    """Read which elements refer to the donor: how many do not, and the next position or -1.

    `theirs` gets the place of each in the donor's circle, -1 where there is none.
    """
    refers, bit = get_field(data, bit, end, 1)
    if refers == np.uint64(0):
        return count, bit
    width, bit = get_width(data, bit, end, count)
    if bit < 0:
        return count, bit
    get_codes(data, bit, width, codes, count)
    first, donor_count = donor_heads[row, OWN], donor_heads[row, COUNT]
    room = room_of(donor_heads[row, ORDER], LEAST, donor_size)
    own: Int = np.int64(0)
    after: Int = np.int64(0)
    for j in range(count):
        theirs[j] = -1
        if codes[j] == 0:
            own += 1
        elif np.uint64(codes[j]) > np.uint64(donor_count - after):
            return count, np.int64(-1)
        else:
            after += codes[j]
            theirs[j] = place_of(first, donor_count - after, room)
    return own, bit + count * width


@part
def _add_up(
    spans: Ints, own: Int, count: Int, newest: Int, donor_words: Ints, donor_stamps: Int, theirs: Ints, times: Ints
) -> None:
    """The times of `count` elements, from the spans of those without a donor."""
    time = newest
    if own == count:
        for j in range(count):
            time -= spans[np.uint64(j)]
            times[np.uint64(j)] = time
        return
    found: Int = np.int64(0)
    for j in range(count):
        if theirs[j] >= 0:
            time = donor_words[donor_stamps + STAMP * theirs[j]]
        else:
            time -= spans[found]
            found += 1
        times[j] = time


@part
def _answer_times(times: Ints, count: Int, moment: Int, strict: bool, out_times: Ints, out_counts: Ints, q: Int) -> Int:
    """Write times, where they are wanted, and how many elements are read; returns the first, as of the moment."""
    first: Int = np.int64(0)
    while strict and first < count and times[first] >= moment:
        first += 1
    out_counts[q] = count - first
    for j in range(first, count if out_times.shape[1] > 0 else first):
        out_times[q, j - first] = times[j]
    return first


@part
def _keep_ids(
    words: Ints, start: Int, halves: Ints, own: Int, count: Int, donor_words: Ints, donor_stamps: Int, theirs: Ints
) -> None:
    """Write the ids of `count` elements into a block, oldest first."""
    found: Int = np.int64(0)
    for j in range(count):
        at = start + STAMP * (count - 1 - j) + 1
        if own < count and theirs[j] >= 0:
            words[at] = donor_words[donor_stamps + STAMP * theirs[j] + 1]
        else:
            words[at] = (halves[found] << np.int64(32)) >> np.int64(32)
            found += 1


@part
def _spread(codes: Ints, own: Int, count: Int, donor_words: Ints, values: Int, donor_width: Int, theirs: Ints) -> None:
    """Put the first `own` values where they belong, and the donor's between them."""
    for j in range(count - 1, -1, -1):
        if theirs[j] >= 0:
            codes[j] = donor_words[values + donor_width * theirs[j]]
        else:
            own -= 1
            codes[j] = codes[own]


@part
def _get_column(
    data: Bytes,
    bit: Int,
    end: Int,
    kind: Int,
    codes: Ints,
    column: Floats,
    count: Int,
    texts: Ints,
    texts_found: Ints,
) -> Int:
    """Read `count` values into `codes`, of TIME the spans to it; returns the next position or -1."""
    if kind == INT:
        bit = get_signed(data, bit, end, codes, count)
    elif kind == TIME:
        bit = get_spans(data, bit, end, codes, count)
    elif kind == TEXT:
        bit, texts_found[0] = _get_texts(data, bit, end, codes, count, texts, texts_found[0])
    else:
        bit = get_numbers(data, bit, end, column, count, 0.0, codes)
        for j in range(count):
            codes[np.uint64(j)] = np.float64(column[np.uint64(j)]).view(np.int64)
    return bit


@part
def _get_texts(data: Bytes, bit: Int, end: Int, codes: Ints, count: Int, texts: Ints, found: Int) -> tuple[Int, Int]:
    """Read the hashes of `count` texts into `codes`: (next position or -1, lines of `texts` in use)."""
    width, bit = get_width(data, bit, end, count)
    if bit < 0:
        return bit, found
    get_codes(data, bit, width, codes, count)
    at = to_byte(bit + count * width) >> np.int64(3)
    for j in range(count):
        if np.uint64(codes[j]) > np.uint64(end - at):
            return np.int64(-1), found
        stop = at + codes[j]
        codes[j] = np.int64(xxh64(data, at, stop, np.uint64(0)))
        if found < texts.shape[0]:
            texts[found, 0] = codes[j]
            texts[found, 1] = at
            texts[found, 2] = stop
            found += 1
        at = stop
    return 8 * at, found
