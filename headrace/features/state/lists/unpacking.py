"""Rows of lists, and reads of them, from the form that lists/packing.py describes."""

import numpy as np

from headrace.features.state.blocks import COUNT, ORDER, OWN, START, make_block, room_of
from headrace.features.state.lists.packing import HALF_BITS
from headrace.features.state.lists.update import INT, LEAST, STAMP, TEXT, TIME, place_of
from headrace.kernels.bit_columns import (
    bits_of,
    get_codes,
    get_field,
    get_numbers,
    get_signed,
    get_spans,
    get_unsigned,
    pass_padding,
)
from headrace.kernels.compile import Bytes, Floats, Int, Ints, lean_kernel, part
from headrace.kernels.packed_texts import read_text


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
    out_starts: Ints,
    out_counts: Ints,
    filled: Ints,
) -> Int:
    """Read what `pack_list` wrote at `data[at[i]:ends[i]]`; `at[i]` moves on, -1 where bytes are wrong.

    `keeps`: fill rows, which are empty. moments (n,), or none: read row i as of `moments[i]` into out_*[reads[i]], as
    `run_list` does; ids are not kept then. The donor's rows are filled before. Begins at row `begin` and returns the
    first that found no room, n when all are done. texts (room for one line a text, 3) gets (hash, start, end) of each
    text met, so that the pool can learn them; texts_found (1,) counts its lines. With a room of 0 lines only the hashes
    are used. scratch (3, N + SPARE) and column (N + SPARE,) are used.

    Lists that are read have their slots from out_starts; or with filled (1,), slots in use, each follows the one before
    and out_starts is told where. Else it is (0,).
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
        if bit < 0 or bit + HALF_BITS * own > 8 * end or _any_negative(codes, own):
            at[i] = -1
            continue
        _add_up(codes, own, count, newest[i], donor_words, donor_stamps, theirs, times)
        if keeps:
            for j in range(count):
                words[np.uint64(start + STAMP * (count - 1 - j))] = times[np.uint64(j)]
            if moments.size == 0:
                get_codes(data, bit, HALF_BITS, codes, own)
                _keep_ids(words, start, codes, own, count, donor_words, donor_stamps, theirs)
        bit += HALF_BITS * own
        first, slot = _place(times, count, moments, reads, i, strict, out_times, out_starts, out_counts, filled)
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
                    out_values[np.uint64((slot + j - first) * width + m)] = codes[np.uint64(j)]
        at[i] = pass_padding(data, bit, end) >> np.int64(3)
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
    bit = get_unsigned(data, bit, end, codes, count)
    if bit < 0:
        return count, bit
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
    return own, bit


@part
def _any_negative(spans: Ints, count: Int) -> bool:
    """Whether an element is newer than the one before it: none is written so."""
    every = np.int64(0)
    for j in range(count):
        every |= spans[np.uint64(j)]
    return bool(every < 0)


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
def _place(
    times: Ints,
    count: Int,
    moments: Ints,
    reads: Ints,
    i: Int,
    strict: bool,
    out_times: Ints,
    out_starts: Ints,
    out_counts: Ints,
    filled: Ints,
) -> tuple[Int, Int]:
    """The first element that row i is read with, and its slot; writes how many there are, and times where wanted."""
    first: Int = np.int64(0)
    if moments.size == 0:
        return first, np.int64(0)
    while strict and first < count and times[first] >= moments[i]:
        first += 1
    q = reads[i]
    if filled.size > 0:
        out_starts[q] = filled[0]
        filled[0] += count - first
    out_counts[q] = count - first
    slot: Int = out_starts[q]
    for j in range(first, count if out_times.size > 0 else first):
        out_times[slot + j - first] = times[j]
    return first, slot


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
    bit = get_unsigned(data, bit, end, codes, count)
    if bit < 0:
        return bit, found
    at = pass_padding(data, bit, end) >> np.int64(3)
    if at < 0:
        return np.int64(-1), found
    for j in range(count):
        if np.uint64(codes[j]) > np.uint64(end - at):
            return np.int64(-1), found
        stop = at + codes[j]
        codes[j], lines = read_text(data, at, stop, texts, found)
        if lines < 0:
            return np.int64(-1), found
        found, at = lines, stop
    return 8 * at, found
