"""Which events of an entity came lately, by (time, id), in memory and packed.

The state, for `rows` entities, in memory of A entries that all of them share:

    blocks (rows, 3) int64    first entry, entries in use, order of the block: room for 4 << (order - 1), 0 for none
    entries (A, 2) int64      event time, event id; each block in the order of (time, id)
    free (ORDERS + 1,) int64  entries ever used; then, by order, the first block that is free, -1 for none. A free block
                              holds the next one in its first word.

A block that is full first loses what has left the span, and is moved to one twice as large if that does not help. So an
entity takes the room that its own events need. Entries that have left the span count no more, but may stay for a while.
"""

import numpy as np

from headrace.features.kernels.compile import Bytes, Int, Ints, lean_kernel, part
from headrace.features.kernels.varints import get_varint, get_word, put_varint, put_word

ROOM_MIN = 4
ORDERS = 16
KEEP_MAX = ROOM_MIN << (ORDERS - 2)
"""Entries that count at most: half of the largest block, so that what is dropped from it is dropped seldom."""
DUPLICATE = 3
_LEAST = np.int64(-(2**63))


@lean_kernel
def mark_duplicates(
    blocks: Ints,
    entries: Ints,
    free: Ints,
    span: Int,
    keep: Int,
    rows: Ints,
    times: Ints,
    event_ids: Ints,
    ops: Ints,
    begin: Int,
    late: Bytes,
) -> Int:
    """Set `late[~ops[i]]` to DUPLICATE where the event came before, else remember it; reads, `ops[i] >= 0`, are passed.

    rows, times, ops (n,); event_ids, late (e,). What came is known of the `keep` newest entries with a time after the
    row's newest less `span`, in microseconds. Begins at operation `begin` and returns the first that found no memory,
    n when all are done. Cost: a binary search, and what a late event moves.
    """
    for i in range(begin, rows.size):
        if ops[i] >= 0:
            continue
        row, event, time = rows[i], ~ops[i], times[i]
        event_id = event_ids[event]
        start, count = blocks[row, 0], blocks[row, 1]
        newest = time if count == 0 else max(time, entries[start + count - 1, 0])
        if time <= newest - span:
            continue
        at = _place(entries, start, count, time, event_id)
        known = at < count and entries[start + at, 0] == time and entries[start + at, 1] == event_id
        if known and at >= count - keep:
            late[event] = DUPLICATE
            continue
        if known or (count >= keep and at <= count - keep):
            continue
        if count == _room(blocks[row, 2]):
            if not _make_room(blocks, entries, free, row, newest - span, keep):
                return i
            start, count = blocks[row, 0], blocks[row, 1]
            at = _place(entries, start, count, time, event_id)
        for j in range(start + count, start + at, -1):
            entries[j, 0], entries[j, 1] = entries[j - 1, 0], entries[j - 1, 1]
        entries[start + at, 0], entries[start + at, 1] = time, event_id
        blocks[row, 1] = count + 1
    return rows.size


@lean_kernel
def clear_seen(blocks: Ints, entries: Ints, free: Ints, rows: Ints) -> None:
    """Empty rows (n,) and free their blocks."""
    for i in range(rows.size):
        row = rows[i]
        if blocks[row, 2] > 0:
            _give_back(entries, free, blocks[row, 0], blocks[row, 2])
        blocks[row, 0], blocks[row, 1], blocks[row, 2] = 0, 0, 0


@lean_kernel
def pack_seen(
    blocks: Ints, entries: Ints, span: Int, keep: Int, rows: Ints, newest: Ints, out: Bytes, ends: Ints
) -> None:
    """Write rows into `out` one after the other, `ends` (n,) where each ends, also where `out` is too short.

    A row is the bytes that follow, then, newest first, (time since the one before, id) of each entry that counts; the
    first time counts from `newest[i]`.
    """
    position: Int = np.int64(0)
    for i in range(rows.size):
        start, count = blocks[rows[i], 0], blocks[rows[i], 1]
        first = max(_place(entries, start, count, newest[i] - span + 1, _LEAST), count - keep)
        size, before = np.uint64(0), newest[i]
        for j in range(start + count - 1, start + first - 1, -1):
            size += _varint_bytes(np.uint64(before - entries[j, 0])) + np.uint64(8)
            before = entries[j, 0]
        position, before = put_varint(out, position, size), newest[i]
        for j in range(start + count - 1, start + first - 1, -1):
            position = put_varint(out, position, np.uint64(before - entries[j, 0]))
            position = put_word(out, position, entries[j, 1])
            before = entries[j, 0]
        ends[i] = position


@lean_kernel
def unpack_seen(
    blocks: Ints,
    entries: Ints,
    free: Ints,
    keep: Int,
    rows: Ints,
    newest: Ints,
    data: Bytes,
    at: Ints,
    ends: Ints,
    begin: Int,
) -> Int:
    """Fill empty rows from what `pack_seen` wrote at `data[at[i]:ends[i]]`; `at[i]` moves on, -1 where bytes are wrong.

    Begins at row `begin` of the n and returns the first that found no memory, n when all are done.
    """
    for i in range(begin, rows.size):
        row, (body, stop) = rows[i], _body(data, at[i], ends[i])
        if stop < 0:
            at[i] = -1
            continue
        count, position = np.int64(0), body
        while 0 <= position < stop:
            _, position = get_varint(data, position, stop)
            _, position = get_word(data, position, stop)
            count += 1
        if position < 0 or count > keep:
            at[i] = -1
            continue
        order = np.int64(0)
        while _room(order) < count:
            order += 1
        start = np.int64(0) if order == 0 else _take(entries, free, order)
        if start < 0:
            return i
        blocks[row, 0], blocks[row, 1], blocks[row, 2] = start, count, order
        time, position = newest[i], body
        for j in range(start + count - 1, start - 1, -1):
            delta, position = get_varint(data, position, stop)
            event_id, position = get_word(data, position, stop)
            time -= np.int64(delta)
            entries[j, 0], entries[j, 1] = time, event_id
        at[i] = stop
    return rows.size


@lean_kernel
def skip_seen(data: Bytes, at: Ints, ends: Ints) -> None:
    """Move `at` (n,) past what `pack_seen` wrote, to -1 where bytes are wrong: reads have no use for it."""
    for i in range(at.size):
        _, at[i] = _body(data, at[i], ends[i])


@part
def _body(data: Bytes, at: Int, end: Int) -> tuple[Int, Int]:
    """Where the entries of a packed row begin and end; the end is -1 where bytes are wrong."""
    if at < 0:
        return np.int64(0), np.int64(-1)
    size, begin = get_varint(data, at, end)
    if begin < 0 or size > np.uint64(end - begin):
        return np.int64(0), np.int64(-1)
    return begin, begin + np.int64(size)


@part
def _place(entries: Ints, start: Int, count: Int, time: Int, event_id: Int) -> Int:
    """First of `count` entries that is not before (time, event_id); most events are newer than all."""
    low: Int = 0
    high: Int = count
    last = start + count - 1
    if count > 0 and (entries[last, 0] < time or (entries[last, 0] == time and entries[last, 1] < event_id)):
        low = count
    while low < high:
        middle = (low + high) >> np.int64(1)
        found = entries[start + middle, 0]
        if found < time or (found == time and entries[start + middle, 1] < event_id):
            low = middle + 1
        else:
            high = middle
    return low


@part
def _make_room(blocks: Ints, entries: Ints, free: Ints, row: Int, oldest: Int, keep: Int) -> bool:
    """Have room for one more entry in the row's full block; false where that takes memory that is not there."""
    start, count, order = blocks[row, 0], blocks[row, 1], blocks[row, 2]
    first = max(_place(entries, start, count, oldest + 1, _LEAST), count - keep)
    target = start
    if order == 0 or 2 * first < count:
        target = _take(entries, free, order + 1)
        if target < 0:
            return False
        blocks[row, 0], blocks[row, 2] = target, order + 1
    for j in range(first, count):
        to = target + j - first
        entries[to, 0], entries[to, 1] = entries[start + j, 0], entries[start + j, 1]
    blocks[row, 1] = count - first
    if order > 0 and target != start:
        _give_back(entries, free, start, order)
    return True


@part
def _room(order: Int) -> Int:
    return np.int64(ROOM_MIN << (order - 1)) if order > 0 else np.int64(0)


@part
def _take(entries: Ints, free: Ints, order: Int) -> Int:
    """First entry of a free block, -1 where there is no memory."""
    block: Int = free[order]
    if block >= 0:
        free[order] = entries[block, 0]
    elif free[0] + _room(order) <= entries.shape[0]:
        block = free[0]
        free[0] += _room(order)
    return block


@part
def _give_back(entries: Ints, free: Ints, start: Int, order: Int) -> None:
    entries[start, 0] = free[order]
    free[order] = start


@part
def _varint_bytes(value: np.uint64) -> np.uint64:
    size = np.uint64(1)
    while value >= np.uint64(128):
        value >>= np.uint64(7)
        size += np.uint64(1)
    return size
