"""Lists of the N newest events of an entity, ordered by (time, event id, values).

A row's block (state/blocks.py) is a circular buffer of its elements, so that the newest event costs one write. The
row's tag is the slot of the oldest element. A block with room for c elements of m values:

    c stamps        (event time, upper half of the event id)
    c * m values    integers, bits of floats, hashes of texts, times

    slots    | 5 | 6 | 7 | 3 | 4 |       tag 3: the oldest element is in slot 3, the newest in slot 2

A late event is inserted at its place in the order. With `distinct`, only the newest of events with equal values is
kept. N elements suffice for this to be exact: a value that was pushed out has N newer ones before it for good.

Half an event id suffices: it only has to distinguish events of one entity with the same microsecond and equal values,
and two such halves collide with a probability of 1 in 4 billion.
"""

from typing import NamedTuple

import numpy as np

from headrace.features.state.blocks import COUNT, ORDER, START, TAG, Blocks, give_block, room_of, take_block
from headrace.features.state.operations import Ops
from headrace.kernels.compile import LINE_WORDS, Bytes, Int, Ints, lean_kernel, part, prefetch, reverse_eight

INT, FLOAT, TEXT, TIME = 0, 1, 2, 3
LEAST = 2
"""Elements of the smallest block."""
STAMP = 2
"""Words of an element besides its values."""
AHEAD, NEAR = 16, 6
"""Distances in operations at which a list's head, and then its elements, are prefetched."""
_EIGHT = 8


class List(NamedTuple):
    """A list for kernels.

    size: N. flag: flag column that admits an event. columns (m,): bit columns of the values. kinds (m,): their kinds.
    distinct: keep one element of those with equal values. strict: read only elements before the time of the read.
    """

    size: Int
    flag: Int
    columns: Ints
    kinds: Ints
    distinct: bool
    strict: bool


class ListOut(NamedTuple):
    """Answers of list reads. A list takes consecutive slots, newest element first.

    times (slots,), or (0,) if times are not read. values (slots * m,). counts (reads,). starts (reads,): first slot of
    each list. filled: (1,) slots in use for contiguous lists, else (0,).
    """

    times: Ints
    values: Ints
    counts: Ints
    starts: Ints
    filled: Ints


@lean_kernel
def run_list(blocks: Blocks, area: Int, spec: List, ops: Ops, begin: Int, out: ListOut) -> Int:
    """Apply operations from `begin` on; returns the first that ran out of memory, n when all are done.

    A read of row -1 leaves its answer unchanged. Cost: O(1) for the newest event, the elements moved for a late one,
    and a search of the list if `distinct`; for a read, the elements copied.
    """
    blocks, spec, ops, out = Blocks(*blocks), List(*spec), Ops(*ops), ListOut(*out)
    rows, codes = ops.rows, ops.ops
    for i in range(begin, rows.size):
        if i + AHEAD < rows.size:
            prefetch(blocks.heads, 4 * max(rows[i + AHEAD], 0))
        if i + NEAR < rows.size:
            _prefetch_list(blocks, spec, out, max(rows[i + NEAR], 0), codes[i + NEAR])
        row, event = rows[i], ~codes[i]
        if event >= 0:
            if ops.flags[event, spec.flag] != 0 and not _insert(blocks, area, spec, ops, row, i):
                return i
        elif row >= 0:
            out.counts[codes[i]] = _read(blocks, spec, row, ops.times[i], out, out.starts[codes[i]])
    return rows.size


@part
def _prefetch_list(blocks: Blocks, spec: List, out: ListOut, row: Int, code: Int) -> None:
    """Prefetch what a later operation needs: the newest element for an event, the list and its answer for a read."""
    heads, words, width = blocks.heads, blocks.words, spec.columns.size
    start, count = heads[row, START], heads[row, COUNT]
    if count == 0:
        return
    room = room_of(heads[row, ORDER], LEAST, spec.size)
    slot = slot_of(heads[row, TAG], count - 1, room)
    prefetch(words, start + STAMP * slot)
    if code < 0:
        prefetch(words, start + STAMP * room + width * slot)
    else:
        for word in range(0, count * width, LINE_WORDS):
            prefetch(words, start + STAMP * room + word)
            prefetch(out.values, out.starts[code] * width + word)


@part
def slot_of(first: Int, index: Int, room: Int) -> Int:
    """Slot of the element at `index`, counted from the oldest, in a circular buffer whose oldest is in slot `first`."""
    slot = first + index
    return slot if slot < room else slot - room


@part
def _read(blocks: Blocks, spec: List, row: Int, time: Int, out: ListOut, to: Int) -> Int:
    """Write a row's list as of `time` to `out` from slot `to` on, newest first; returns its number of elements.

    The elements of a circular buffer are two runs.
    """
    heads, words, width = blocks.heads, blocks.words, spec.columns.size
    start, first = heads[row, START], heads[row, TAG]
    count: Int = heads[row, COUNT]
    room = room_of(heads[row, ORDER], LEAST, spec.size)
    while spec.strict and count > 0 and words[start + STAMP * slot_of(first, count - 1, room)] >= time:
        count -= 1
    wrapped = max(first + count - room, 0)
    values = start + STAMP * room
    _reverse(words, values, width, wrapped, wrapped, out.values, to)
    _reverse(words, values, width, first + count - wrapped, count - wrapped, out.values, to + wrapped)
    if out.times.size > 0:
        for j in range(count):
            out.times[to + j] = words[start + STAMP * slot_of(first, count - 1 - j, room)]
    return count


@part
def _reverse(words: Ints, values: Int, width: Int, end: Int, count: Int, out: Ints, to: Int) -> None:
    """Copy the values of the slots [end - count, end), in reverse, to `out` from slot `to` on."""
    if width == 1:
        reverse_words(words, values + end - count, count, out, to)
    else:
        for j in range(count):
            for m in range(width):
                out[(to + j) * width + m] = words[values + (end - 1 - j) * width + m]


@part
def reverse_words(words: Ints, begin: Int, count: Int, out: Ints, to: Int) -> None:
    """Copy `count` words from `begin` on, in reverse, to `out[to:]`, eight at a time; the last eight may overlap."""
    if count < _EIGHT:
        for j in range(count):
            out[to + j] = words[begin + count - 1 - j]
        return
    for j in range(0, count - _EIGHT, _EIGHT):
        reverse_eight(words, begin + count - _EIGHT - j, out, to + j)
    reverse_eight(words, begin, out, to + count - _EIGHT)


@part
def _insert(blocks: Blocks, area: Int, spec: List, ops: Ops, row: Int, i: Int) -> bool:
    """Insert the event of operation i in order. A full list drops its oldest element, or an event older than all.

    Returns False, and changes nothing, if there is no memory.
    """
    heads, words, size, width = blocks.heads, blocks.words, spec.size, spec.columns.size
    time, event = ops.times[i], ~ops.ops[i]
    half = ops.event_ids[event] >> np.int64(32)
    count = heads[row, COUNT]
    room = room_of(heads[row, ORDER], LEAST, size)
    if count == room and room < size:
        if not _grow(blocks, area, spec, row):
            return False
        room = room_of(heads[row, ORDER], LEAST, size)
    start, first = heads[row, START], heads[row, TAG]
    if spec.distinct:
        equal = _find(words, start, room, first, count, ops.bits, event, spec.columns)
        if equal >= 0:
            slot = slot_of(first, equal, room)
            if _compare(words, start, room, slot, time, half, ops.bits, event, spec.columns) >= 0:
                return True
            for j in range(equal, count - 1):
                _move(words, start, room, width, slot_of(first, j + 1, room), slot_of(first, j, room))
            count -= 1
            heads[row, COUNT] = count
    index = count  # insertion point, searched from the newest element on: most events are the newest
    while index > 0:
        slot = slot_of(first, index - 1, room)
        order = _compare(words, start, room, slot, time, half, ops.bits, event, spec.columns)
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
        _move(words, start, room, width, slot_of(first, j - 1, room), slot_of(first, j, room))
    slot = slot_of(first, index, room)
    words[start + STAMP * slot] = time
    words[start + STAMP * slot + 1] = half
    for m in range(width):
        words[start + STAMP * room + width * slot + m] = ops.bits[event, spec.columns[m]]
    heads[row, TAG] = first
    heads[row, COUNT] = count + 1
    return True


@part
def _grow(blocks: Blocks, area: Int, spec: List, row: Int) -> bool:
    """Move a row's elements to a block of the next order, oldest in slot 0; False if there is no memory."""
    heads, words, size, width = blocks.heads, blocks.words, spec.size, spec.columns.size
    start, order, count, first = heads[row, START], heads[row, ORDER], heads[row, COUNT], heads[row, TAG]
    room, larger = room_of(order, LEAST, size), room_of(order + 1, LEAST, size)
    target = take_block(blocks, area, order + 1, larger * (STAMP + width))
    if target < 0:
        return False
    for index in range(count):
        slot = slot_of(first, index, room)
        words[target + STAMP * index] = words[start + STAMP * slot]
        words[target + STAMP * index + 1] = words[start + STAMP * slot + 1]
        for m in range(width):
            words[target + STAMP * larger + width * index + m] = words[start + STAMP * room + width * slot + m]
    if order > 0:
        give_block(blocks, area, order, start)
    heads[row, START] = target
    heads[row, ORDER] = order + 1
    heads[row, TAG] = 0
    return True


@part
def _find(words: Ints, start: Int, room: Int, first: Int, count: Int, bits: Ints, event: Int, columns: Ints) -> Int:
    """Index of the element with the event's values, -1 if there is none."""
    width = columns.size
    for j in range(count):
        at = start + STAMP * room + width * slot_of(first, j, room)
        same = True
        for m in range(width):
            same &= words[at + m] == bits[event, columns[m]]
        if same:
            return j
    return -1


@part
def _compare(
    words: Ints, start: Int, room: Int, slot: Int, time: Int, half: Int, bits: Ints, event: Int, columns: Ints
) -> Int:
    """Compare an element with the event by (time, id as unsigned, values): -1, 0 or 1."""
    at = start + STAMP * slot
    if words[at] != time:
        return -1 if words[at] < time else 1
    if words[at + 1] != half:
        return -1 if np.uint64(words[at + 1]) < np.uint64(half) else 1
    values = start + STAMP * room + columns.size * slot
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
    """Bound the elements that each `run_list` read returns; operations of one row must be consecutive.

    A read returns fewer if an event is a duplicate, repeats the values of another in a `distinct` list, or is not
    before the time of the read.
    """
    counted = np.int64(-1)
    count: Int = np.int64(0)
    for i in range(rows.size):
        row, op = rows[i], ops[i]
        if row != counted:
            counted = row
            count = heads[row, COUNT] if row >= 0 else np.int64(0)
        if op >= 0:
            out_counts[op] = count
        elif flags[~op, flag] != 0:
            count = min(count + 1, size)


@lean_kernel
def copy_lists(
    values: Ints, width: Int, column: Int, starts: Ints, counts: Ints, reverses: bool, out: Ints, out_starts: Ints
) -> None:
    """Copy one value of each element of n lists to out[out_starts (n,):].

    List i has `counts[i]` elements from slot `starts[i]` on. A slot of `values` has `width` values, of which number
    `column` is copied. `reverses`: last element first.
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
