"""The packed form of a list: newest element first, times as differences, texts written out.

Lists of one view often hold the same events: the last 20 with two values are among the last 50 with one. So a list may
be linked to one before it, its donor: an element that the donor holds as well is written as its place there, without
time, id and the values that the donor has; links (m,) tell which of the donor's values each of ours is, -1 none.
"""

import numpy as np

from headrace.features.kernels.compile import Bytes, Floats, Int, Ints, lean_kernel, part, prefetch
from headrace.features.kernels.hashing import xxh64
from headrace.features.kernels.id_lists import FLOAT, INT, TEXT, TIME
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

AHEAD = 4
"""Rows between a prefetch and its use."""


@lean_kernel
def pack_list(
    spans: Ints,
    stamps: Ints,
    values: Ints,
    value_floats: Floats,
    kinds: Ints,
    donor_spans: Ints,
    donor_stamps: Ints,
    donor_values: Ints,
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
    for i in range(rows.size):
        if i + AHEAD < rows.size:
            _prefetch_row(spans, stamps, values, rows[i + AHEAD])
            if linked:
                _prefetch_row(donor_spans, donor_stamps, donor_values, rows[i + AHEAD])
        row = rows[i]
        count = np.uint64(spans[row, 1])
        refer = False
        if linked:
            refer = _shared(spans, stamps, values, donor_spans, donor_stamps, donor_values, links, row)
            count = (count << np.uint64(1)) | np.uint64(refer)
        position = put_varint(out, position, count)
        before = newest[i]
        seen: Int = np.int64(0)
        after: Int = np.int64(0)
        for j in range(spans[row, 1] - 1, -1, -1):
            p = spans[row, 0] + j
            p = p if p < values.shape[1] else p - values.shape[1]
            time = stamps[row, p, 0]
            found: Int = np.int64(-1)
            if refer:
                found, seen = _find(stamps, values, p, donor_spans, donor_stamps, donor_values, links, row, seen)
                if found < after:  # two elements of ours are one of the donor's
                    found = np.int64(-1)
                position = put_varint(out, position, np.uint64(found - after + 1 if found >= 0 else 0))
            if found >= 0:
                after = found + 1
            else:
                position = put_varint(out, position, np.uint64(before - time))
                position = put_half(out, position, stamps[row, p, 1])
            before = time
            for m in range(kinds.size):
                if found >= 0 and links[m] >= 0:
                    continue
                word = values[row, p, m]
                if kinds[m] == INT:
                    position = put_signed(out, position, word)
                elif kinds[m] == FLOAT:
                    position = put_bits(out, position, word, value_floats[row, p, m])
                elif kinds[m] == TIME:
                    position = put_signed(out, position, time - word)
                else:
                    text = find_row(table, word)
                    start, end = text_offsets[text], text_offsets[text + 1]
                    position = put_varint(out, position, np.uint64(end - start))
                    for b in range(start, end):
                        position = put_byte(out, position, text_data[b])
        ends[i] = position


@part
def _prefetch_row(spans: Ints, stamps: Ints, values: Ints, row: Int) -> None:
    """Ask for the elements of a row, as if they did not go round the end."""
    size, width = values.shape[1], values.shape[2]
    first, end = spans[row, 0], min(spans[row, 0] + spans[row, 1], size)
    for element in range(first, end, 4):  # a line holds four stamps
        prefetch(stamps, 2 * (row * size + element))
        prefetch(values, width * (row * size + element))


@part
def _shared(
    spans: Ints,
    stamps: Ints,
    values: Ints,
    donor_spans: Ints,
    donor_stamps: Ints,
    donor_values: Ints,
    links: Ints,
    row: Int,
) -> bool:
    """Whether so many elements are the donor's that referring to it pays: a reference saves some 8 bytes, costs 1."""
    shared = np.int64(0)
    seen: Int = np.int64(0)
    for j in range(spans[row, 1] - 1, -1, -1):
        p = spans[row, 0] + j
        p = p if p < values.shape[1] else p - values.shape[1]
        found, seen = _find(stamps, values, p, donor_spans, donor_stamps, donor_values, links, row, seen)
        shared += found >= 0
    return bool(8 * shared > spans[row, 1])


@part
def _find(
    stamps: Ints,
    values: Ints,
    p: Int,
    donor_spans: Ints,
    donor_stamps: Ints,
    donor_values: Ints,
    links: Ints,
    row: Int,
    seen: Int,
) -> tuple[Int, Int]:
    """Where the donor holds element p, counted from its newest, -1 where it does not; and what of it is newer.

    `seen` of the donor's elements are known to be newer.
    """
    time, event_id = stamps[row, p, 0], np.uint64(stamps[row, p, 1])
    place = seen
    while place < donor_spans[row, 1]:
        q = donor_spans[row, 0] + donor_spans[row, 1] - 1 - place
        q = q if q < donor_values.shape[1] else q - donor_values.shape[1]
        if donor_stamps[row, q, 0] < time:
            break
        if donor_stamps[row, q, 0] == time:
            donor_id = np.uint64(donor_stamps[row, q, 1])
            if donor_id < event_id:
                break
            if donor_id == event_id and _equal(values, p, donor_values, q, links, row):
                return place, seen
            if donor_id > event_id and place == seen:
                seen += 1
        elif place == seen:
            seen += 1
        place += 1
    return np.int64(-1), seen


@part
def _equal(values: Ints, p: Int, donor_values: Ints, q: Int, links: Ints, row: Int) -> bool:
    same = True
    for m in range(links.size):
        if links[m] >= 0:
            same &= values[row, p, m] == donor_values[row, q, links[m]]
    return same


@lean_kernel
def unpack_list(
    spans: Ints,
    stamps: Ints,
    values: Ints,
    value_floats: Floats,
    kinds: Ints,
    donor_spans: Ints,
    donor_stamps: Ints,
    donor_values: Ints,
    linked: bool,
    links: Ints,
    rows: Ints,
    newest: Ints,
    data: Bytes,
    at: Ints,
    ends: Ints,
    texts: Ints,
) -> Int:
    """Fill rows from what `pack_list` wrote at `data[at[i]:ends[i]]`; `at[i]` moves on, -1 where bytes are wrong.

    The donor's rows are filled before. texts (room for one line a text, 3) gets (hash, start, end) of each text met, so
    that the pool can learn them; returns how many. With a room of 0 lines only the hashes are used.
    """
    texts_found: Int = 0
    for i in range(rows.size):
        if at[i] < 0:
            continue
        row = rows[i]
        count, position = get_varint(data, at[i], ends[i])
        refer = linked and count & np.uint64(1) != np.uint64(0)
        if linked:
            count >>= np.uint64(1)
        if position < 0 or count > np.uint64(values.shape[1]):
            at[i] = -1
            continue
        spans[row, 0] = 0
        spans[row, 1] = np.int64(count)
        time: Int = newest[i]
        after: Int = np.int64(0)
        for j in range(spans[row, 1] - 1, -1, -1):
            step = np.uint64(0)
            if refer:
                step, position = get_varint(data, position, ends[i])
            q = np.int64(-1)
            if step != np.uint64(0):
                if step > np.uint64(donor_spans[row, 1] - after):
                    position = -1
                    break
                after += np.int64(step)
                q = donor_spans[row, 0] + donor_spans[row, 1] - after
                q = q if q < donor_values.shape[1] else q - donor_values.shape[1]
                time = donor_stamps[row, q, 0]
                stamps[row, j, 1] = donor_stamps[row, q, 1]
            else:
                delta, position = get_varint(data, position, ends[i])
                time -= np.int64(delta)
                event_id, position = get_half(data, position, ends[i])
                stamps[row, j, 1] = event_id
            stamps[row, j, 0] = time
            for m in range(kinds.size):
                if q >= 0 and links[m] >= 0:
                    values[row, j, m] = donor_values[row, q, links[m]]
                elif kinds[m] == TEXT:
                    word, position, texts_found = _get_text(data, position, ends[i], texts, texts_found)
                    values[row, j, m] = word
                elif kinds[m] == FLOAT:
                    number, position = get_number(data, position, ends[i], 0.0)
                    value_floats[row, j, m] = number
                else:
                    whole, position = get_signed(data, position, ends[i])
                    values[row, j, m] = time - whole if kinds[m] == TIME else whole
            if position < 0:
                break
        at[i] = position
    return texts_found


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
