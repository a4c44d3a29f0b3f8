"""Recent events by (time, id), to leave out duplicates: `dedupe=` of a view.

An event is identified by its class, id and time. The events of the last `span` before an entity's newest event are
remembered; duplicates of older events are not recognised. The remembered ids are a function of the set of the entity's
events, and are packed with its record, so they survive a restart, an eviction and the hand-over of a backfill.

A row's block (state/blocks.py) holds entries of (event time, event id) in ascending order. A full block first drops
the entries that have left the span, and moves to a block twice as large if that frees less than half. Entries that have
left the span no longer count, but may stay until then.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from headrace.features.state.blocks import COUNT, ORDER, START, BlockPool, Blocks, drop_first, make_block, room_of
from headrace.features.state.operations import DUPLICATE, Operations, Ops, Packed
from headrace.kernels.compile import Bytes, Int, Ints, lean_kernel, part, plain
from headrace.kernels.varints import get_varint, get_word, put_varint, put_word

LEAST, MOST = 4, 1 << 17
"""Entries of the smallest and the largest block."""
ENTRY = 2
"""Words of an entry."""
KEEP_MAX = MOST // 2
"""Maximum number of entries that count: half of the largest block, so that a full block drops entries rarely."""
_DUPLICATE = np.uint8(DUPLICATE)
_FIRST = np.int64(-(2**63))


class SeenIds:
    """Recent event ids of a slab of `capacity` rows: those of the last `span_us` of each row.

    At most the KEEP_MAX newest events of a row are remembered. An event takes 16 bytes, and 8 to 13 packed.
    """

    def __init__(self, span_us: int, capacity: int) -> None:
        self._span_us = span_us
        self._state = BlockPool(capacity, ENTRY * MOST, ENTRY, 0)

    def nbytes(self, rows: int) -> int:
        """Bytes in use, assuming that only the first `rows` rows are."""
        return self._state.nbytes(rows)

    def grow(self, capacity: int) -> None:
        """Grow to `capacity` rows, keeping the contents of existing rows."""
        self._state.grow(capacity)

    def clear(self, rows: NDArray[np.int64]) -> None:
        """Empty rows (n,)."""
        self._state.clear(rows)

    def without_duplicates(self, ops: Operations) -> Operations:
        """Mark known events as DUPLICATE and remember the others; returns the operations without the duplicates."""
        state, arrays = self._state, ops.arrays()
        state.fill(len(ops.rows), lambda begin: mark_duplicates(state.blocks, self._span_us, KEEP_MAX, arrays, begin))
        if not (ops.late == DUPLICATE).any():
            return ops
        kept = ops.ops >= 0
        kept[~kept] = ops.late[~ops.ops[~kept]] != DUPLICATE
        return replace(ops, rows=ops.rows[kept], times=ops.times[kept], ops=ops.ops[kept])

    def pack(
        self,
        rows: NDArray[np.int64],
        newest: NDArray[np.int64],
        out: NDArray[np.uint8],
        ends: NDArray[np.int64],
    ) -> None:
        """Write rows (n,) one after the other, with newest event times (n,); see `Group.pack`."""
        pack_seen(self._state.blocks, self._span_us, KEEP_MAX, rows, newest, out, ends)

    def unpack(self, packed: Packed) -> None:
        """Fill empty rows; see `Group.unpack`."""
        state, arrays = self._state, plain(packed)
        state.fill(len(packed.rows), lambda begin: unpack_seen(state.blocks, KEEP_MAX, arrays, begin))


@lean_kernel
def mark_duplicates(blocks: Blocks, span: Int, keep: Int, ops: Ops, begin: Int) -> Int:
    """Mark known events as DUPLICATE and remember the others, from operation `begin` on; reads are skipped.

    The known entries of a row are the `keep` newest with a time after the row's newest minus `span`, in microseconds.
    Returns the first operation that ran out of memory, n when all are done. Cost: a binary search, and for a late event
    the entries moved.
    """
    blocks, ops = Blocks(*blocks), Ops(*ops)
    heads, words = blocks.heads, blocks.words
    for i in range(begin, ops.rows.size):
        if ops.ops[i] >= 0:
            continue
        row, event, time = ops.rows[i], ~ops.ops[i], ops.times[i]
        event_id = ops.event_ids[event]
        start, count = heads[row, START], heads[row, COUNT]
        newest = time if count == 0 else max(time, words[start + ENTRY * (count - 1)])
        if time <= newest - span:
            continue
        index = _index_of(words, start, count, time, event_id)
        at = start + ENTRY * index
        known = index < count and words[at] == time and words[at + 1] == event_id
        if known and index >= count - keep:
            ops.late[event] = _DUPLICATE
            continue
        if known or (count >= keep and index <= count - keep):
            continue
        if count == room_of(heads[row, ORDER], LEAST, MOST):
            if not _make_room(blocks, row, newest - span, keep):
                return i
            start, count = heads[row, START], heads[row, COUNT]
            at = start + ENTRY * _index_of(words, start, count, time, event_id)
        for word in range(start + ENTRY * count - 1, at - 1, -1):
            words[word + ENTRY] = words[word]
        words[at], words[at + 1] = time, event_id
        heads[row, COUNT] = count + 1
    return ops.rows.size


@lean_kernel
def pack_seen(blocks: Blocks, span: Int, keep: Int, rows: Ints, newest: Ints, out: Bytes, ends: Ints) -> None:
    """Write rows into `out` one after the other; `ends` (n,) is where each ends, even if `out` is too short.

    A row is its size in bytes and then, newest first, the time difference and id of each entry that counts. A time
    difference is the time from an entry to the next newer one, for the first to `newest[i]`.
    """
    blocks = Blocks(*blocks)
    heads, words = blocks.heads, blocks.words
    position: Int = np.int64(0)
    for i in range(rows.size):
        start, count = heads[rows[i], START], heads[rows[i], COUNT]
        first = start + ENTRY * max(_index_of(words, start, count, newest[i] - span + 1, _FIRST), count - keep)
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
def unpack_seen(blocks: Blocks, keep: Int, packed: Packed, begin: Int) -> Int:
    """Fill empty rows from what `pack_seen` wrote, from row `begin` on.

    Returns the first row that ran out of memory, n when all are done.
    """
    blocks, packed = Blocks(*blocks), Packed(*packed)
    heads, words, data, at, rows = blocks.heads, blocks.words, packed.data, packed.at, packed.rows
    for i in range(begin, rows.size):
        row, (body, stop) = rows[i], _body(data, at[i], packed.ends[i])
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
        if not make_block(blocks, 0, row, count, LEAST, MOST, ENTRY):
            return i
        start = heads[row, START]
        time, position = packed.newest[i], body
        for to in range(start + ENTRY * (count - 1), start - 1, -ENTRY):
            delta, position = get_varint(data, position, stop)
            event_id, position = get_word(data, position, stop)
            time -= np.int64(delta)
            words[to], words[to + 1] = time, event_id
        at[i] = stop
    return rows.size


@lean_kernel
def skip_seen(data: Bytes, at: Ints, ends: Ints) -> None:
    """Skip what `pack_seen` wrote, which reads do not need: advance `at` (n,) past it, to -1 if bytes are damaged."""
    for i in range(at.size):
        _, at[i] = _body(data, at[i], ends[i])


@part
def _body(data: Bytes, at: Int, end: Int) -> tuple[Int, Int]:
    """Begin and end of the entries of a packed row; the end is -1 if bytes are damaged."""
    if at < 0:
        return np.int64(0), np.int64(-1)
    size, begin = get_varint(data, at, end)
    if begin < 0 or size > np.uint64(end - begin):
        return np.int64(0), np.int64(-1)
    return begin, begin + np.int64(size)


@part
def _index_of(words: Ints, start: Int, count: Int, time: Int, event_id: Int) -> Int:
    """First of `count` entries that is not before (time, event_id). Most events are newer than all entries."""
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
def _make_room(blocks: Blocks, row: Int, oldest: Int, keep: Int) -> bool:
    """Make room for one more entry in the row's full block; False if there is no memory."""
    heads = blocks.heads
    count = heads[row, COUNT]
    dropped = max(_index_of(blocks.words, heads[row, START], count, oldest + 1, _FIRST), count - keep)
    grows = bool(heads[row, ORDER] == 0 or 2 * dropped < count)
    return drop_first(blocks, 0, row, dropped, grows, LEAST, MOST, ENTRY)


@part
def _varint_bytes(value: np.uint64) -> np.uint64:
    size = np.uint64(1)
    while value >= np.uint64(128):
        value >>= np.uint64(7)
        size += np.uint64(1)
    return size
