"""Lists of the N newest events of an entity, ordered by (time, event id, values).

A list's state, for `rows` entities, N elements, m values an element:

    spans (rows, 2) int64    physical start and length: a circular buffer, so the newest event costs one write
    stamps (rows, N, 2)      event time, event id
    values (rows, N, m)      int64: whole numbers, bits of floats, hashes of texts, times

A late event is moved into its right place. `distinct`: of events with equal values only the newest stays, which is exact
with N elements kept: a value that was pushed out has N newer ones before it for good.
"""

import numpy as np

from headrace.features.kernels.compile import Bytes, Floats, Int, Ints, kernel
from headrace.features.kernels.hashing import xxh64
from headrace.features.kernels.id_map import find_row
from headrace.features.kernels.varints import (
    get_number,
    get_signed,
    get_varint,
    get_word,
    put_bits,
    put_byte,
    put_signed,
    put_varint,
    put_word,
)

INT, FLOAT, TEXT, TIME = 0, 1, 2, 3


@kernel
def run_list(
    spans: Ints,
    stamps: Ints,
    values: Ints,
    flag: Int,
    columns: Ints,
    distinct: bool,
    strict: bool,
    rows: Ints,
    times: Ints,
    event_ids: Ints,
    ops: Ints,
    flags: Bytes,
    bits: Ints,
    out_times: Ints,
    out_values: Ints,
    out_counts: Ints,
) -> None:
    """Walk the operations (n,) in order: `ops[i] >= 0` reads the row's list into out_*[ops[i]], else adds event ~ops[i].

    rows, times (n,) belong to operations; event_ids (e,), flags (e, f), bits (e, d) to events; `columns` (m,) picks bits.
    out_times (reads, N), out_values (reads, N, m) are filled newest first, out_counts (reads,). `strict` leaves out
    elements that are not before `times[i]`.
    """
    size, width = values.shape[1], values.shape[2]
    new = np.empty(width, np.int64)
    for i in range(rows.size):
        row = rows[i]
        event = ~ops[i]
        if event >= 0:
            if flags[event, flag] != 0:
                for m in range(width):
                    new[m] = bits[event, columns[m]]
                _insert(spans[row], stamps[row], values[row], times[i], event_ids[event], new, distinct)
        elif row >= 0:
            q, count = ops[i], 0
            for j in range(spans[row, 1] - 1, -1, -1):
                p = (spans[row, 0] + j) % size
                if strict and stamps[row, p, 0] >= times[i]:
                    continue
                out_times[q, count] = stamps[row, p, 0]
                for m in range(width):
                    out_values[q, count, m] = values[row, p, m]
                count += 1
            out_counts[q] = count


@kernel
def _insert(
    span: Ints,
    stamps: Ints,
    values: Ints,
    time: Int,
    event_id: Int,
    new: Ints,
    distinct: bool,
) -> None:
    """Put one element into its place; drop the oldest when full, or the element itself when older than all."""
    size = values.shape[0]
    if distinct:
        held = _find(span, values, new)
        if held >= 0:
            if _compare(stamps, values, (span[0] + held) % size, time, event_id, new) >= 0:
                return
            for j in range(held, span[1] - 1):
                _move(stamps, values, (span[0] + j + 1) % size, (span[0] + j) % size)
            span[1] -= 1
    place = span[1]
    while place > 0:
        order = _compare(stamps, values, (span[0] + place - 1) % size, time, event_id, new)
        if order == 0:
            return
        if order < 0:
            break
        place -= 1
    if span[1] == size:
        if place == 0:
            return
        span[0] = (span[0] + 1) % size
        span[1] -= 1
        place -= 1
    for j in range(span[1], place, -1):
        _move(stamps, values, (span[0] + j - 1) % size, (span[0] + j) % size)
    p = (span[0] + place) % size
    stamps[p, 0] = time
    stamps[p, 1] = event_id
    for m in range(new.size):
        values[p, m] = new[m]
    span[1] += 1


@kernel
def _find(span: Ints, values: Ints, new: Ints) -> Int:
    """Logical index of the element with these values, -1 where none."""
    for j in range(span[1]):
        p = span[0] + j
        if p >= values.shape[0]:
            p -= values.shape[0]
        same = True
        for m in range(new.size):
            same &= values[p, m] == new[m]
        if same:
            return j
    return -1


@kernel
def _compare(
    stamps: Ints,
    values: Ints,
    p: Int,
    time: Int,
    event_id: Int,
    new: Ints,
) -> Int:
    """-1, 0, 1 as element p is before, equal to or after (time, event_id as unsigned, new)."""
    if stamps[p, 0] != time:
        return -1 if stamps[p, 0] < time else 1
    if stamps[p, 1] != event_id:
        return -1 if np.uint64(stamps[p, 1]) < np.uint64(event_id) else 1
    for m in range(new.size):
        if values[p, m] != new[m]:
            return -1 if values[p, m] < new[m] else 1
    return 0


@kernel
def _move(stamps: Ints, values: Ints, source: Int, target: Int) -> None:
    stamps[target, 0] = stamps[source, 0]
    stamps[target, 1] = stamps[source, 1]
    for m in range(values.shape[1]):
        values[target, m] = values[source, m]


@kernel
def pack_list(
    spans: Ints,
    stamps: Ints,
    values: Ints,
    value_floats: Floats,
    kinds: Ints,
    rows: Ints,
    newest: Ints,
    table: Ints,
    text_offsets: Ints,
    text_data: Bytes,
    out: Bytes,
    at: Ints,
) -> None:
    """Write each row's elements at `out[at[i]]`, newest first: count, then (time since the one before, id, values) each.

    The first time counts from `newest[i]`. Texts are written out; `table`, `text_offsets`, `text_data` are the pool.
    """
    size = values.shape[1]
    for i in range(rows.size):
        row = rows[i]
        position = put_varint(out, at[i], np.uint64(spans[row, 1]))
        before = newest[i]
        for j in range(spans[row, 1] - 1, -1, -1):
            p = (spans[row, 0] + j) % size
            time = stamps[row, p, 0]
            position = put_varint(out, position, np.uint64(before - time))
            before = time
            position = put_word(out, position, stamps[row, p, 1])
            for m in range(kinds.size):
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
        at[i] = position


@kernel
def unpack_list(
    spans: Ints,
    stamps: Ints,
    values: Ints,
    value_floats: Floats,
    kinds: Ints,
    rows: Ints,
    newest: Ints,
    data: Bytes,
    at: Ints,
    ends: Ints,
    texts: Ints,
) -> Int:
    """Fill empty rows from what `pack_list` wrote at `data[at[i]:ends[i]]`; `at[i]` moves on, -1 where bytes are wrong.

    texts (room for one line a text, 3) gets (hash, start, end) of each text met, so that the pool can learn them;
    returns how many. With a room of 0 lines only the hashes are used.
    """
    size = values.shape[1]
    found = 0
    for i in range(rows.size):
        if at[i] < 0:
            continue
        row = rows[i]
        count, position = get_varint(data, at[i], ends[i])
        if position < 0 or count > np.uint64(size):
            at[i] = -1
            continue
        spans[row, 0] = 0
        spans[row, 1] = np.int64(count)
        time = newest[i]
        for j in range(spans[row, 1] - 1, -1, -1):
            delta, position = get_varint(data, position, ends[i])
            time -= np.int64(delta)
            stamps[row, j, 0] = time
            event_id, position = get_word(data, position, ends[i])
            stamps[row, j, 1] = event_id
            for m in range(kinds.size):
                if kinds[m] == TEXT:
                    length, position = get_varint(data, position, ends[i])
                    if position < 0 or length > np.uint64(ends[i] - position):
                        position = -1
                        break
                    stop = position + np.int64(length)
                    word = np.int64(xxh64(data, position, stop, np.uint64(0)))
                    values[row, j, m] = word
                    if found < texts.shape[0]:
                        texts[found, 0] = word
                        texts[found, 1] = position
                        texts[found, 2] = stop
                        found += 1
                    position = stop
                elif kinds[m] == FLOAT:
                    form, number, position = get_number(data, position, ends[i])
                    if form == 1 and position >= 0:
                        word, _ = get_word(data, position - 8, position)
                        values[row, j, m] = word
                    else:
                        value_floats[row, j, m] = number
                else:
                    number_read, position = get_signed(data, position, ends[i])
                    values[row, j, m] = time - number_read if kinds[m] == TIME else number_read
            if position < 0:
                break
        at[i] = position
    return found
