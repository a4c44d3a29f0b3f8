"""The packed form of a list: newest element first, times as differences, texts written out.

Lists of one view often hold the same events: the last 20 with two values are among the last 50 with one. So a list may
be linked to one before it, its donor: an element that the donor holds as well is written as its place there, without
time, id and the values that the donor has; links (m,) tell which of the donor's values each of ours is, -1 none.
"""

import numpy as np

from headrace.features.kernels.blocks import COUNT, ORDER, OWN, START, make_block, room_of
from headrace.features.kernels.compile import Bytes, Floats, Int, Ints, lean_kernel, part, prefetch
from headrace.features.kernels.hashing import xxh64
from headrace.features.kernels.id_lists import FLOAT, INT, LEAST, STAMP, TEXT, TIME, place_of
from headrace.features.kernels.id_map import find_row
from headrace.features.kernels.varints import (
    get_half,
    get_number,
    get_signed,
    get_varint,
    put_bits,
    put_byte,
    put_half,
    put_signed,
    put_varint,
)

AHEAD, NEAR = 6, 3
"""Rows between the prefetch of a row's head, and once it is there of its elements, and their use."""


@lean_kernel
def pack_list(
    heads: Ints,
    words: Ints,
    floats: Floats,
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
    out: Bytes,
    ends: Ints,
) -> None:
    """Write rows into `out` one after the other, `ends` (n,) where each ends, also where `out` is too short.

    A row is its count, then, newest first, (time since the one before, id, values) each; the first time counts from
    `newest[i]`. With a donor the count is doubled, and odd where elements refer to it: each then begins with 1 +
    elements of the donor since the last one that was referred to, or with 0 where the donor lacks it. Texts are written
    out; `table`, `text_offsets`, `text_data` are the pool.
    """
    position: Int = 0
    width = kinds.size
    for i in range(rows.size):
        if i + AHEAD < rows.size:
            prefetch(heads, 4 * rows[i + AHEAD])
            prefetch(donor_heads, 4 * rows[i + AHEAD])
        if i + NEAR < rows.size:
            _prefetch_elements(heads, words, size, rows[i + NEAR], width)
        row = rows[i]
        start, first, room = heads[row, START], heads[row, OWN], room_of(heads[row, ORDER], LEAST, size)
        count = np.uint64(heads[row, COUNT])
        refer = False
        if linked:
            refer = _shared(heads, words, size, donor_heads, donor_words, donor_size, donor_width, links, row)
            count = (count << np.uint64(1)) | np.uint64(refer)
        position = put_varint(out, position, count)
        before = newest[i]
        seen: Int = np.int64(0)
        after: Int = np.int64(0)
        for j in range(heads[row, COUNT] - 1, -1, -1):
            place = place_of(first, j, room)
            stamp, values = start + STAMP * place, start + STAMP * room + width * place
            time = words[stamp]
            found: Int = np.int64(-1)
            if refer:
                found, seen = _find(
                    words, stamp, values, donor_heads, donor_words, donor_size, donor_width, links, row, seen
                )
                if found < after:  # two elements of ours are one of the donor's
                    found = np.int64(-1)
                position = put_varint(out, position, np.uint64(found - after + 1 if found >= 0 else 0))
            if found >= 0:
                after = found + 1
            else:
                position = put_varint(out, position, np.uint64(before - time))
                position = put_half(out, position, words[stamp + 1])
            before = time
            for m in range(width):
                if found >= 0 and links[m] >= 0:
                    continue
                word = words[values + m]
                if kinds[m] == INT:
                    position = put_signed(out, position, word)
                elif kinds[m] == FLOAT:
                    position = put_bits(out, position, word, floats[values + m])
                elif kinds[m] == TIME:
                    position = put_signed(out, position, time - word)
                else:
                    text = find_row(table, word)
                    begin, end = text_offsets[text], text_offsets[text + 1]
                    position = put_varint(out, position, np.uint64(end - begin))
                    for b in range(begin, end):
                        position = put_byte(out, position, text_data[b])
        ends[i] = position


@part
def _prefetch_elements(heads: Ints, words: Ints, size: Int, row: Int, width: Int) -> None:
    """Ask for a row's elements, a line of eight words at a time."""
    start = heads[row, START]
    for word in range(start, start + room_of(heads[row, ORDER], LEAST, size) * (STAMP + width), 8):
        prefetch(words, word)


@part
def _shared(
    heads: Ints,
    words: Ints,
    size: Int,
    donor_heads: Ints,
    donor_words: Ints,
    donor_size: Int,
    donor_width: Int,
    links: Ints,
    row: Int,
) -> bool:
    """Whether so many elements are the donor's that referring to it pays: a reference saves some 8 bytes, costs 1."""
    shared = np.int64(0)
    seen: Int = np.int64(0)
    start, room = heads[row, START], room_of(heads[row, ORDER], LEAST, size)
    for j in range(heads[row, COUNT] - 1, -1, -1):
        place = place_of(heads[row, OWN], j, room)
        stamp, values = start + STAMP * place, start + STAMP * room + links.size * place
        found, seen = _find(words, stamp, values, donor_heads, donor_words, donor_size, donor_width, links, row, seen)
        shared += found >= 0
    return bool(8 * shared > heads[row, COUNT])


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
    floats: Floats,
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
    scratch_floats: Floats,
    out_times: Ints,
    out_values: Ints,
    out_counts: Ints,
) -> Int:
    """Read what `pack_list` wrote at `data[at[i]:ends[i]]`; `at[i]` moves on, -1 where bytes are wrong.

    `keeps`: fill rows, which are empty. moments (n,), or none: read row i as of `moments[i]` into out_*[reads[i]], as
    `run_list` does. The donor's rows are filled before. Begins at row `begin` and returns the first that found no room,
    n when all are done. texts (room for one line a text, 3) gets (hash, start, end) of each text met, so that the pool
    can learn them; texts_found (1,) counts its lines. With a room of 0 lines only the hashes are used. scratch, as
    int64 and as float64, holds the words of the largest block.
    """
    width = kinds.size
    for i in range(begin, rows.size):
        if at[i] < 0:
            continue
        row = rows[i]
        found, position = get_varint(data, at[i], ends[i])
        refer = linked and found & np.uint64(1) != np.uint64(0)
        if linked:
            found >>= np.uint64(1)
        if position < 0 or found > np.uint64(size):
            at[i] = -1
            continue
        count = np.int64(found)
        start: Int = np.int64(0)
        room: Int = size
        if keeps:
            if not make_block(heads, words, rooms, 0, row, count, LEAST, size, STAMP + width):
                return i
            heads[row, OWN] = 0
            start, room = heads[row, START], room_of(heads[row, ORDER], LEAST, size)
        to, to_floats = (words, floats) if keeps else (scratch, scratch_floats)
        position = _get_elements(
            to,
            to_floats,
            start,
            room,
            count,
            kinds,
            donor_heads,
            donor_words,
            donor_size,
            donor_width,
            refer,
            links,
            row,
            newest[i],
            data,
            position,
            ends[i],
            texts,
            texts_found,
        )
        if moments.size > 0:
            out_counts[reads[i]] = _answer(
                to, start, room, width, count, moments[i], strict, out_times, out_values, reads[i]
            )
        at[i] = position
    return rows.size


@part
def _answer(
    words: Ints,
    start: Int,
    room: Int,
    width: Int,
    count: Int,
    moment: Int,
    strict: bool,
    out_times: Ints,
    out_values: Ints,
    q: Int,
) -> Int:
    """Write `count` elements, the oldest first in their block, newest first into out_*[q]; returns how many."""
    found: Int = np.int64(0)
    for j in range(count - 1, -1, -1):
        time = words[start + STAMP * j]
        if strict and time >= moment:
            continue
        if out_times.shape[1] > 0:
            out_times[q, found] = time
        for m in range(width):
            out_values[q, found, m] = words[start + STAMP * room + width * j + m]
        found += 1
    return found


@part
def _get_elements(
    words: Ints,
    floats: Floats,
    start: Int,
    room: Int,
    count: Int,
    kinds: Ints,
    donor_heads: Ints,
    donor_words: Ints,
    donor_size: Int,
    donor_width: Int,
    refer: bool,
    links: Ints,
    row: Int,
    newest: Int,
    data: Bytes,
    at: Int,
    end: Int,
    texts: Ints,
    texts_found: Ints,
) -> Int:
    """Read `count` packed elements into a block with that room, oldest first; returns the next position or -1."""
    width, position, time = kinds.size, at, newest
    donor_start, donor_room = donor_heads[row, START], room_of(donor_heads[row, ORDER], LEAST, donor_size)
    after: Int = np.int64(0)
    for j in range(count - 1, -1, -1):
        stamp, values, theirs = start + STAMP * j, start + STAMP * room + width * j, np.int64(-1)
        step = np.uint64(0)
        if refer:
            step, position = get_varint(data, position, end)
        if step != np.uint64(0):
            if step > np.uint64(donor_heads[row, COUNT] - after):
                return np.int64(-1)
            after += np.int64(step)
            other = place_of(donor_heads[row, OWN], donor_heads[row, COUNT] - after, donor_room)
            theirs = donor_start + STAMP * donor_room + donor_width * other
            time = donor_words[donor_start + STAMP * other]
            words[stamp + 1] = donor_words[donor_start + STAMP * other + 1]
        else:
            delta, position = get_varint(data, position, end)
            time -= np.int64(delta)
            words[stamp + 1], position = get_half(data, position, end)
        words[stamp] = time
        for m in range(width):
            if theirs >= 0 and links[m] >= 0:
                words[values + m] = donor_words[theirs + links[m]]
            elif kinds[m] == TEXT:
                words[values + m], position, texts_found[0] = _get_text(data, position, end, texts, texts_found[0])
            elif kinds[m] == FLOAT:
                floats[values + m], position = get_number(data, position, end, 0.0)
            else:
                whole, position = get_signed(data, position, end)
                words[values + m] = time - whole if kinds[m] == TIME else whole
        if position < 0:
            return np.int64(-1)
    return position


@part
def _get_text(data: Bytes, at: Int, end: Int, texts: Ints, found: Int) -> tuple[Int, Int, Int]:
    """Read a text: (its hash, next position or -1, lines of `texts` in use)."""
    length, at = get_varint(data, at, end)
    if at < 0 or length > np.uint64(end - at):
        return np.int64(0), -1, found
    stop = at + np.int64(length)
    word = np.int64(xxh64(data, at, stop, np.uint64(0)))
    if found < texts.shape[0]:
        texts[found, 0] = word
        texts[found, 1] = at
        texts[found, 2] = stop
        found += 1
    return word, stop, found
