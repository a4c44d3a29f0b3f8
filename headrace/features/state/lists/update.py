"""Lists of the N newest events of an entity, ordered by (time, event id, values).

A row's block holds its elements in a circle, so that the newest event costs one write:

    heads (rows, 4)    see state/blocks.py; its own number is the place of the oldest element in the circle
    words (a,) int64   of a block with room for c elements of m values:
                       c times (event time, upper half of the event id), then
                       c times the values: whole numbers, bits of floats, hashes of texts, times

A late event is moved into its right place. `distinct`: of events with equal values only the newest stays, which is
exact with N elements kept: a value that was pushed out has N newer ones before it for good.

Half an id is enough: it tells events of one entity, one microsecond and equal values apart, and only then does it
matter that two of 4 billion are alike.
"""

import numpy as np

from headrace.features.state.blocks import COUNT, ORDER, OWN, START, give_block, room_of, take_block
from headrace.kernels.compile import LINE_WORDS, Bytes, Int, Ints, lean_kernel, part, prefetch, reverse_eight

INT, FLOAT, TEXT, TIME = 0, 1, 2, 3
LEAST = 2
"""Elements of the smallest block."""
STAMP = 2
"""Words of an element beside its values."""
AHEAD, NEAR = 16, 6
"""Operations between the prefetch of a list's head, and once it is there of its elements, and their use."""
_EIGHT = 8


@lean_kernel
def run_list(
    heads: Ints,
    words: Ints,
    rooms: Ints,
    number: Int,
    size: Int,
    flag: Int,
    columns: Ints,
    distinct: bool,
    strict: bool,
    rows: Ints,
    times: Ints,
    event_ids: Ints,
    ops: Ints,
    begin: Int,
    flags: Bytes,
    bits: Ints,
    out_times: Ints,
    out_values: Ints,
    out_starts: Ints,
    out_counts: Ints,
) -> Int:
    """Walk the operations (n,): `ops[i] >= 0` reads the row's list into out_*[ops[i]], else adds event ~ops[i].

    Begins at operation `begin` and returns the first that found no room, n when all are done. `size` is N. rows, times
    (n,) belong to operations; event_ids (e,), flags (e, f), bits (e, d) to events; `columns` (m,) picks bits. out_times
    (slots,) or (0,), out_values (slots * m,) are filled newest first from slot out_starts (reads,) of the read on, and
    out_counts (reads,). `strict` leaves out elements that are not before `times[i]`.
    """
    width = columns.size
    for i in range(begin, rows.size):
        if i + AHEAD < rows.size:
            prefetch(heads, 4 * max(rows[i + AHEAD], 0))
        if i + NEAR < rows.size:
            _prefetch_list(heads, words, out_values, out_starts, max(rows[i + NEAR], 0), ops[i + NEAR], size, width)
        row = rows[i]
        event = ~ops[i]
        if event >= 0:
            if flags[event, flag] != 0:
                half = event_ids[event] >> np.int64(32)
                if not _insert(
                    heads, words, rooms, number, size, width, row, times[i], half, bits, event, columns, distinct
                ):
                    return i
        elif row >= 0:
            q = ops[i]
            out_counts[q] = _read(
                heads, words, size, width, row, times[i], strict, out_times, out_values, out_starts[q]
            )
    return rows.size


@part
def _prefetch_list(
    heads: Ints, words: Ints, out_values: Ints, out_starts: Ints, row: Int, op: Int, size: Int, width: Int
) -> None:
    """Have what an operation to come will touch on its way from memory: the list's newer end, or what is read."""
    start, count = heads[row, START], heads[row, COUNT]
    if count == 0:
        return
    room = room_of(heads[row, ORDER], LEAST, size)
    place = place_of(heads[row, OWN], count - 1, room)
    prefetch(words, start + STAMP * place)
    if op < 0:
        prefetch(words, start + STAMP * room + width * place)
    else:
        for word in range(0, count * width, LINE_WORDS):
            prefetch(words, start + STAMP * room + word)
            prefetch(out_values, out_starts[op] * width + word)


@part
def place_of(first: Int, index: Int, room: Int) -> Int:
    """Place in the circle of the element with that index, oldest first."""
    place = first + index
    return place if place < room else place - room


@part
def _read(
    heads: Ints,
    words: Ints,
    size: Int,
    width: Int,
    row: Int,
    time: Int,
    strict: bool,
    out_times: Ints,
    out_values: Ints,
    slot: Int,
) -> Int:
    """Write a row's list to `slot` on, newest first: the elements of a circle are two runs.

    `strict` leaves out what is not before `time`.
    """
    start, first = heads[row, START], heads[row, OWN]
    count: Int = heads[row, COUNT]
    room = room_of(heads[row, ORDER], LEAST, size)
    while strict and count > 0 and words[start + STAMP * place_of(first, count - 1, room)] >= time:
        count -= 1
    wrapped = max(first + count - room, 0)
    values = start + STAMP * room
    _reverse(words, values, width, wrapped, wrapped, out_values, slot)
    _reverse(words, values, width, first + count - wrapped, count - wrapped, out_values, slot + wrapped)
    if out_times.size > 0:
        for j in range(count):
            out_times[slot + j] = words[start + STAMP * place_of(first, count - 1 - j, room)]
    return count


@part
def _reverse(words: Ints, values: Int, width: Int, end: Int, count: Int, out: Ints, slot: Int) -> None:
    """Copy the values of the elements end - count to end, last first, to `out` from a slot on."""
    if width == 1:
        reverse_words(words, values + end - count, count, out, slot)
    else:
        for j in range(count):
            for m in range(width):
                out[(slot + j) * width + m] = words[values + (end - 1 - j) * width + m]


@part
def reverse_words(words: Ints, begin: Int, count: Int, out: Ints, at: Int) -> None:
    """Copy `count` words from `begin` on, last first, to `out` from `at` on: eight by eight, the last eight overlap."""
    if count < _EIGHT:
        for j in range(count):
            out[at + j] = words[begin + count - 1 - j]
        return
    for j in range(0, count - _EIGHT, _EIGHT):
        reverse_eight(words, begin + count - _EIGHT - j, out, at + j)
    reverse_eight(words, begin, out, at + count - _EIGHT)


@part
def _insert(
    heads: Ints,
    words: Ints,
    rooms: Ints,
    number: Int,
    size: Int,
    width: Int,
    row: Int,
    time: Int,
    half: Int,
    bits: Ints,
    event: Int,
    columns: Ints,
    distinct: bool,
) -> bool:
    """Put one element into its place; drop the oldest when full, or the element itself when older than all.

    False, and nothing is changed, where there is no room.
    """
    count = heads[row, COUNT]
    room = room_of(heads[row, ORDER], LEAST, size)
    if count == room and room < size:
        if not _grow(heads, words, rooms, number, size, width, row):
            return False
        room = room_of(heads[row, ORDER], LEAST, size)
    start, first = heads[row, START], heads[row, OWN]
    if distinct:
        held = _find(words, start, room, first, count, bits, event, columns)
        if held >= 0:
            if _compare(words, start, room, place_of(first, held, room), time, half, bits, event, columns) >= 0:
                return True
            for j in range(held, count - 1):
                _move(words, start, room, width, place_of(first, j + 1, room), place_of(first, j, room))
            count -= 1
            heads[row, COUNT] = count
    index = count
    while index > 0:
        order = _compare(words, start, room, place_of(first, index - 1, room), time, half, bits, event, columns)
        if order == 0:
            return True
        if order < 0:
            break
        index -= 1
    if count == size:
        if index == 0:
            return True
        first = first + 1 if first + 1 < room else 0
        count -= 1
        index -= 1
    for j in range(count, index, -1):
        _move(words, start, room, width, place_of(first, j - 1, room), place_of(first, j, room))
    place = place_of(first, index, room)
    words[start + STAMP * place] = time
    words[start + STAMP * place + 1] = half
    for m in range(width):
        words[start + STAMP * room + width * place + m] = bits[event, columns[m]]
    heads[row, OWN] = first
    heads[row, COUNT] = count + 1
    return True


@part
def _grow(heads: Ints, words: Ints, rooms: Ints, number: Int, size: Int, width: Int, row: Int) -> bool:
    """Move a row's elements to a block of the next order; false where there is no room."""
    start, order, count, first = heads[row, START], heads[row, ORDER], heads[row, COUNT], heads[row, OWN]
    room, larger = room_of(order, LEAST, size), room_of(order + 1, LEAST, size)
    target = take_block(words, rooms, number, order + 1, larger * (STAMP + width))
    if target < 0:
        return False
    for index in range(count):
        place = place_of(first, index, room)
        words[target + STAMP * index] = words[start + STAMP * place]
        words[target + STAMP * index + 1] = words[start + STAMP * place + 1]
        for m in range(width):
            words[target + STAMP * larger + width * index + m] = words[start + STAMP * room + width * place + m]
    if order > 0:
        give_block(words, rooms, number, order, start)
    heads[row, START] = target
    heads[row, ORDER] = order + 1
    heads[row, OWN] = 0
    return True


@part
def _find(words: Ints, start: Int, room: Int, first: Int, count: Int, bits: Ints, event: Int, columns: Ints) -> Int:
    """Index of the element with the event's values, -1 where none."""
    width = columns.size
    for j in range(count):
        at = start + STAMP * room + width * place_of(first, j, room)
        same = True
        for m in range(width):
            same &= words[at + m] == bits[event, columns[m]]
        if same:
            return j
    return -1


@part
def _compare(
    words: Ints, start: Int, room: Int, place: Int, time: Int, half: Int, bits: Ints, event: Int, columns: Ints
) -> Int:
    """-1, 0, 1 as the element is before, equal to or after the event, by (time, id as unsigned, values)."""
    at = start + STAMP * place
    if words[at] != time:
        return -1 if words[at] < time else 1
    if words[at + 1] != half:
        return -1 if np.uint64(words[at + 1]) < np.uint64(half) else 1
    values = start + STAMP * room + columns.size * place
    for m in range(columns.size):
        if words[values + m] != bits[event, columns[m]]:
            return -1 if words[values + m] < bits[event, columns[m]] else 1
    return 0


@part
def _move(words: Ints, start: Int, room: Int, width: Int, source: Int, target: Int) -> None:
    for j in range(STAMP):
        words[start + STAMP * target + j] = words[start + STAMP * source + j]
    values = start + STAMP * room
    for m in range(width):
        words[values + width * target + m] = words[values + width * source + m]


@lean_kernel
def count_lists(heads: Ints, size: Int, flag: Int, rows: Ints, ops: Ints, flags: Bytes, out_counts: Ints) -> None:
    """The most elements that each read of `run_list` can find, where operations of one row follow each other.

    That is what it does find, unless an event comes twice, or has values of another that is `distinct`.
    """
    held = np.int64(-1)
    count: Int = np.int64(0)
    for i in range(rows.size):
        row, op = rows[i], ops[i]
        if row != held:
            held = row
            count = heads[row, COUNT] if row >= 0 else np.int64(0)
        if op >= 0:
            out_counts[op] = count
        elif flags[~op, flag] != 0:
            count = min(count + 1, size)


@lean_kernel
def copy_lists(
    values: Ints, width: Int, column: Int, starts: Ints, counts: Ints, reverses: bool, out: Ints, out_starts: Ints
) -> None:
    """One value of each element of lists: counts (n,) elements of slots starts (n,) on, to out[out_starts (n,):].

    A slot of `values` has `width` of them. `reverses`: last first.
    """
    for i in range(counts.size):
        first, step, to = np.uint64(starts[i] * width + column), np.uint64(width), np.uint64(out_starts[i])
        count = np.uint64(counts[i])
        if reverses:
            for j in range(count):
                out[to + count - np.uint64(1) - j] = values[first + j * step]
        elif width == 1:
            for j in range(count):
                out[to + j] = values[first + j]
        else:
            for j in range(count):
                out[to + j] = values[first + j * step]
