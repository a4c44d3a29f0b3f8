"""Lists of the N newest events of an entity, ordered by (time, event id, values).

A list's state, for `rows` entities, N elements, m values an element:

    spans (rows, 2) int64    physical start and length: a circular buffer, so the newest event costs one write
    stamps (rows, N, 2)      event time, upper half of the event id
    values (rows, N, m)      int64: whole numbers, bits of floats, hashes of texts, times

A late event is moved into its right place. `distinct`: of events with equal values only the newest stays, which is
exact with N elements kept: a value that was pushed out has N newer ones before it for good.

Half an id is enough: it tells events of one entity, one microsecond and equal values apart, and only then does it
matter that two of 4 billion are alike.
"""

import numpy as np

from headrace.features.kernels.compile import Bytes, Int, Ints, lean_kernel, part, prefetch

INT, FLOAT, TEXT, TIME = 0, 1, 2, 3
AHEAD, NEAR = 16, 6
"""Operations between the prefetch of a list's span, and once it is there of its elements, and their use."""
LINE_WORDS = 8


@lean_kernel
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
    """Walk the operations (n,): `ops[i] >= 0` reads the row's list into out_*[ops[i]], else adds event ~ops[i].

    rows, times (n,) belong to operations; event_ids (e,), flags (e, f), bits (e, d) to events; `columns` (m,) picks
    bits. out_times (reads, N) or (reads, 0), out_values (reads, N, m) are filled newest first, out_counts (reads,).
    `strict` leaves out elements that are not before `times[i]`.
    """
    for i in range(rows.size):
        if i + AHEAD < rows.size:
            prefetch(spans, 2 * max(rows[i + AHEAD], 0))
        if i + NEAR < rows.size:
            _prefetch_list(spans, stamps, values, out_values, max(rows[i + NEAR], 0), ops[i + NEAR])
        row = rows[i]
        event = ~ops[i]
        if event >= 0:
            if flags[event, flag] != 0:
                half = event_ids[event] >> np.int64(32)
                _insert(spans, stamps, values, row, times[i], half, bits, event, columns, distinct)
        elif row >= 0:
            q = ops[i]
            if strict or out_times.shape[1] > 0:
                out_counts[q] = _read_timed(spans, stamps, values, row, times[i], strict, out_times, out_values, q)
            else:
                out_counts[q] = _read(spans, values, row, out_values, q)


@part
def _prefetch_list(spans: Ints, stamps: Ints, values: Ints, out_values: Ints, row: Int, op: Int) -> None:
    """Have what an operation to come will touch on its way from memory: the list's newer end, or what is read."""
    size, width = values.shape[1], values.shape[2]
    if op < 0:
        last = spans[row, 0] + spans[row, 1] - 1
        place = row * size + (last if last < size else last - size)
        prefetch(stamps, 2 * place)
        prefetch(values, width * place)
    else:
        for word in range(0, size * width, LINE_WORDS):
            prefetch(values, row * size * width + word)
            prefetch(out_values, op * size * width + word)


@part
def _read(spans: Ints, values: Ints, row: Int, out_values: Ints, q: Int) -> Int:
    """Write a row's list into out_values[q], newest first: the elements of a circular buffer are two runs."""
    size, start = values.shape[1], spans[row, 0]
    count: Int = spans[row, 1]
    wrapped = max(start + count - size, 0)
    _reverse(values[row], wrapped, wrapped, out_values[q], 0)
    _reverse(values[row], start + count - wrapped, count - wrapped, out_values[q], wrapped)
    return count


@part
def _reverse(source: Ints, end: Int, count: Int, out: Ints, at: Int) -> None:
    """Copy source[end - count : end] (N, m), last first, to out[at:]. Indexes are unsigned: a check less an element."""
    width = source.shape[1]
    if width == 1:
        for j in range(count):
            out[np.uint64(at + j), np.uint64(0)] = source[np.uint64(end - 1 - j), np.uint64(0)]
    else:
        for j in range(count):
            for m in range(width):
                out[at + j, m] = source[end - 1 - j, m]


@part
def _read_timed(
    spans: Ints,
    stamps: Ints,
    values: Ints,
    row: Int,
    time: Int,
    strict: bool,
    out_times: Ints,
    out_values: Ints,
    q: Int,
) -> Int:
    """The same, with times where they are wanted; `strict` leaves out what is not before `time`."""
    size, count = values.shape[1], np.int64(0)
    p = spans[row, 0] + spans[row, 1]
    for _ in range(spans[row, 1]):
        p -= 1
        place = p if p < size else p - size
        if strict and stamps[row, place, 0] >= time:
            continue
        if out_times.shape[1] > 0:
            out_times[q, count] = stamps[row, place, 0]
        for m in range(values.shape[2]):
            out_values[q, count, m] = values[row, place, m]
        count += 1
    return count


@part
def _insert(
    spans: Ints,
    stamps: Ints,
    values: Ints,
    row: Int,
    time: Int,
    event_id: Int,
    bits: Ints,
    event: Int,
    columns: Ints,
    distinct: bool,
) -> None:
    """Put one element into its place; drop the oldest when full, or the element itself when older than all."""
    size = values.shape[1]
    start, count = spans[row, 0], spans[row, 1]
    if distinct:
        held = _find(values, row, start, count, bits, event, columns)
        if held >= 0:
            p = (start + held) % size
            if _compare(stamps, values, row, p, time, event_id, bits, event, columns) >= 0:
                return
            for j in range(held, count - 1):
                _move(stamps, values, row, (start + j + 1) % size, (start + j) % size)
            count -= 1
            spans[row, 1] = count
    place = count
    while place > 0:
        p = start + place - 1
        if p >= size:
            p -= size
        order = _compare(stamps, values, row, p, time, event_id, bits, event, columns)
        if order == 0:
            return
        if order < 0:
            break
        place -= 1
    if count == size:
        if place == 0:
            return
        start = start + 1 if start + 1 < size else 0
        count -= 1
        place -= 1
    for j in range(count, place, -1):
        _move(stamps, values, row, (start + j - 1) % size, (start + j) % size)
    p = start + place
    if p >= size:
        p -= size
    stamps[row, p, 0] = time
    stamps[row, p, 1] = event_id
    for m in range(columns.size):
        values[row, p, m] = bits[event, columns[m]]
    spans[row, 0] = start
    spans[row, 1] = count + 1


@part
def _find(values: Ints, row: Int, start: Int, count: Int, bits: Ints, event: Int, columns: Ints) -> Int:
    """Logical index of the element with the event's values, -1 where none."""
    for j in range(count):
        p = start + j
        if p >= values.shape[1]:
            p -= values.shape[1]
        same = True
        for m in range(columns.size):
            same &= values[row, p, m] == bits[event, columns[m]]
        if same:
            return j
    return -1


@part
def _compare(
    stamps: Ints, values: Ints, row: Int, p: Int, time: Int, event_id: Int, bits: Ints, event: Int, columns: Ints
) -> Int:
    """-1, 0, 1 as element p is before, equal to or after the event, by (time, id as unsigned, values)."""
    if stamps[row, p, 0] != time:
        return -1 if stamps[row, p, 0] < time else 1
    if stamps[row, p, 1] != event_id:
        return -1 if np.uint64(stamps[row, p, 1]) < np.uint64(event_id) else 1
    for m in range(columns.size):
        if values[row, p, m] != bits[event, columns[m]]:
            return -1 if values[row, p, m] < bits[event, columns[m]] else 1
    return 0


@part
def _move(stamps: Ints, values: Ints, row: Int, source: Int, target: Int) -> None:
    stamps[row, target, 0] = stamps[row, source, 0]
    stamps[row, target, 1] = stamps[row, source, 1]
    for m in range(values.shape[2]):
        values[row, target, m] = values[row, source, m]


@lean_kernel
def flatten_lists(values: Ints, lengths: Ints, out: Ints) -> None:
    """The first lengths[i] words of each row of values (n, N), one row after the other, into out (sum of lengths,)."""
    place = 0
    for i in range(lengths.size):
        for j in range(lengths[i]):
            out[place + j] = values[i, j]
        place += lengths[i]


@lean_kernel
def reverse_lists(values: Ints, column: Int, lengths: Ints, out: Ints) -> None:
    """The first lengths[i] of values[i, :, column], (n, N, m), last first, into out[i], (n, N), zeros."""
    for i in range(lengths.size):
        for j in range(lengths[i]):
            out[i, j] = values[i, lengths[i] - 1 - j, column]
