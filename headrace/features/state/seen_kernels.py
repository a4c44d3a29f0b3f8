"""Which events of an entity came lately, by (time, id), in memory and packed.

A row's block holds (event time, event id) of its entries, in that order; see state/blocks.py. A block that is full
first loses what has left the span, and is moved to one twice as large if that does not help. So an entity takes the
room that its own events need. Entries that have left the span count no more, but may stay for a while.
"""

import numpy as np

from headrace.features.state.blocks import COUNT, ORDER, START, drop_first, make_block, room_of
from headrace.kernels.compile import Bytes, Int, Ints, lean_kernel, part
from headrace.kernels.varints import get_varint, get_word, put_varint, put_word

LEAST, MOST = 4, 1 << 17
"""Entries of the smallest and the largest block."""
ENTRY = 2
"""Words of an entry."""
KEEP_MAX = MOST // 2
"""Entries that count at most: half of the largest block, so that what is dropped from it is dropped seldom."""
DUPLICATE = 3
_FIRST = np.int64(-(2**63))


@lean_kernel
def mark_duplicates(
    heads: Ints,
    words: Ints,
    rooms: Ints,
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
    row's newest less `span`, in microseconds. Begins at operation `begin` and returns the first that found no room, n
    when all are done. Cost: a binary search, and what a late event moves.
    """
    for i in range(begin, rows.size):
        if ops[i] >= 0:
            continue
        row, event, time = rows[i], ~ops[i], times[i]
        event_id = event_ids[event]
        start, count = heads[row, START], heads[row, COUNT]
        newest = time if count == 0 else max(time, words[start + ENTRY * (count - 1)])
        if time <= newest - span:
            continue
        place = _place(words, start, count, time, event_id)
        at = start + ENTRY * place
        known = place < count and words[at] == time and words[at + 1] == event_id
        if known and place >= count - keep:
            late[event] = DUPLICATE
            continue
        if known or (count >= keep and place <= count - keep):
            continue
        if count == room_of(heads[row, ORDER], LEAST, MOST):
            if not _make_room(heads, words, rooms, row, newest - span, keep):
                return i
            start, count = heads[row, START], heads[row, COUNT]
            at = start + ENTRY * _place(words, start, count, time, event_id)
        for word in range(start + ENTRY * count - 1, at - 1, -1):
            words[word + ENTRY] = words[word]
        words[at], words[at + 1] = time, event_id
        heads[row, COUNT] = count + 1
    return rows.size


@lean_kernel
def pack_seen(heads: Ints, words: Ints, span: Int, keep: Int, rows: Ints, newest: Ints, out: Bytes, ends: Ints) -> None:
    """Write rows into `out` one after the other, `ends` (n,) where each ends, also where `out` is too short.

    A row is the bytes that follow, then, newest first, (time since the one before, id) of each entry that counts; the
    first time counts from `newest[i]`.
    """
    position: Int = np.int64(0)
    for i in range(rows.size):
        start, count = heads[rows[i], START], heads[rows[i], COUNT]
        first = start + ENTRY * max(_place(words, start, count, newest[i] - span + 1, _FIRST), count - keep)
        size, before = np.uint64(0), newest[i]
        for at in range(start + ENTRY * (count - 1), first - 1, -ENTRY):
            size += _varint_bytes(np.uint64(before - words[at])) + np.uint64(8)
            before = words[at]
        position, before = put_varint(out, position, size), newest[i]
        for at in range(start + ENTRY * (count - 1), first - 1, -ENTRY):
            position = put_varint(out, position, np.uint64(before - words[at]))
            position = put_word(out, position, words[at + 1])
            before = words[at]
        ends[i] = position


@lean_kernel
def unpack_seen(
    heads: Ints,
    words: Ints,
    rooms: Ints,
    keep: Int,
    rows: Ints,
    newest: Ints,
    data: Bytes,
    at: Ints,
    ends: Ints,
    begin: Int,
) -> Int:
    """Fill empty rows from what `pack_seen` wrote at `data[at[i]:ends[i]]`; `at[i]` moves on, -1 where bytes are wrong.

    Begins at row `begin` of the n and returns the first that found no room, n when all are done.
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
        if not make_block(heads, words, rooms, 0, row, count, LEAST, MOST, ENTRY):
            return i
        start = heads[row, START]
        time, position = newest[i], body
        for to in range(start + ENTRY * (count - 1), start - 1, -ENTRY):
            delta, position = get_varint(data, position, stop)
            event_id, position = get_word(data, position, stop)
            time -= np.int64(delta)
            words[to], words[to + 1] = time, event_id
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
def _place(words: Ints, start: Int, count: Int, time: Int, event_id: Int) -> Int:
    """First of `count` entries that is not before (time, event_id); most events are newer than all."""
    low: Int = 0
    high: Int = count
    if count > 0 and _is_before(words, start + ENTRY * (count - 1), time, event_id):
        low = count
    while low < high:
        middle = (low + high) >> np.int64(1)
        if _is_before(words, start + ENTRY * middle, time, event_id):
            low = middle + 1
        else:
            high = middle
    return low


@part
def _is_before(words: Ints, at: Int, time: Int, event_id: Int) -> bool:
    return bool(words[at] < time or (words[at] == time and words[at + 1] < event_id))


@part
def _make_room(heads: Ints, words: Ints, rooms: Ints, row: Int, oldest: Int, keep: Int) -> bool:
    """Have room for one more entry in the row's full block; false where there is none."""
    count = heads[row, COUNT]
    gone = max(_place(words, heads[row, START], count, oldest + 1, _FIRST), count - keep)
    grows = bool(heads[row, ORDER] == 0 or 2 * gone < count)
    return drop_first(heads, words, rooms, 0, row, gone, grows, LEAST, MOST, ENTRY)


@part
def _varint_bytes(value: np.uint64) -> np.uint64:
    size = np.uint64(1)
    while value >= np.uint64(128):
        value >>= np.uint64(7)
        size += np.uint64(1)
    return size
