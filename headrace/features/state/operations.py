"""Events and reads as input of groups: as arrays for kernels, and sorted by entity before a slab applies them.

    in arrival order    a1 b1 c1 a2 b2 a3?      each operation loads its entity's record into the cache
    sorted by entity    a1 a2 a3? b1 b2 c1      each record is loaded once per batch, in the order of the slab

The answer to a read depends only on the operations of its entity, which keep their order, so answers do not change.
Sorting costs some 30 ns per operation, and saves more as soon as the slab is larger than the cache (measured: from 2.6
to 4.3 M events/s in batches of 262 k over 93 k entities).

Numba compiles named tuples away: their fields become separate arguments. It looks up the type of a plain tuple in C
(0.3 us per call), that of a named one in Python (5 us). So Python passes `plain(...)`, and a kernel first restores the
names: `ops = Ops(*ops)`.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compile import Bytes, Floats, Int, Ints, lean_kernel, plain
from headrace.kernels.threads import PART_MIN, run_all

Outputs: TypeAlias = tuple[NDArray[Any], ...]
"""Answers of a group to reads: arrays whose first axis is the read, except for contiguous lists."""
TAKEN, LATE, TOO_LATE, DUPLICATE = 0, 1, 2, 3
"""Marks of an event: applied; left out of a window; left out of all windows; seen before.

A window leaves out an event that no later read of it could include: the event is older than the window that ends at
its entity's newest event, so nothing is lost. An event is too late for a view if some window admits it, but no window,
list or lifetime that admits it still covers its time. It then changed nothing.
"""
DIGIT_BITS = 11
"""Bits of a pass of the radix sort: its 2,048 counters stay in the L1 cache."""
SORTED_MIN = 2_048
"""Minimum number of operations for which sorting pays off."""
_REUSED_MAX = 1 << 20
"""Buffers of up to this many operations are kept between batches; larger ones would hold memory for a rare case."""
_INDEX = np.int64(0xFFFFFFFF)
_NONE = np.zeros(0, np.int64)


class Ops(NamedTuple):
    """Operations and events for kernels; see `Operations` and `Events`."""

    rows: Ints
    times: Ints
    ops: Ints
    event_ids: Ints
    flags: Bytes
    numbers: Floats
    bits: Ints
    late: Bytes


class Packed(NamedTuple):
    """Packed sections of n rows: section i is `data[at[i]:ends[i]]`.

    rows (n,): row to fill. newest (n,): newest event time of its entity. data (bytes,) uint8. at, ends (n,): a reader
    advances `at[i]` past what it read, or sets it to -1 if the bytes are damaged.
    """

    rows: Ints
    newest: Ints
    data: Bytes
    at: Ints
    ends: Ints


class Reads(NamedTuple):
    """Reads of packed rows, if any: row i as of `moments[i]` into answer `reads[i]`. `keeps`: also fill the rows."""

    moments: Ints
    reads: Ints
    keeps: bool


@dataclass(frozen=True, slots=True)
class Events:
    """Columns of e events of a view: event_ids (e,), flags (e, f), numbers (e, v), bits (e, d); ids have 64 bits."""

    event_ids: NDArray[np.int64]
    flags: NDArray[np.uint8]
    numbers: NDArray[np.float64]
    bits: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Operations:
    """Events and reads in the order they happen: rows (n,), times (n,), ops (n,), late (e,).

    `ops[i] >= 0` is the number of a read, otherwise `~ops[i]` is the index of an event. A group sets `late` to LATE for
    an event that is too old for it; see the marks above.
    """

    rows: NDArray[np.int64]
    times: NDArray[np.int64]
    ops: NDArray[np.int64]
    events: Events
    late: NDArray[np.uint8]

    def cut(self, begin: int, end: int) -> "Operations":
        """Operations [begin, end), sharing the event columns."""
        return Operations(self.rows[begin:end], self.times[begin:end], self.ops[begin:end], self.events, self.late)

    def arrays(self) -> Ops:
        """All arrays, for a kernel."""
        events = self.events
        return plain(
            Ops(
                self.rows,
                self.times,
                self.ops,
                events.event_ids,
                events.flags,
                events.numbers,
                events.bits,
                self.late,
            )
        )


@dataclass(frozen=True, slots=True)
class PackedReads:
    """Reads of n packed rows as of moments (n,): row i is answered in `out[...][reads[i]]`. `NO_READS` reads nothing.

    `keeps`: also fill the rows, since other groups refer to them.
    """

    moments: NDArray[np.int64]
    reads: NDArray[np.int64]
    keeps: bool
    out: Outputs

    def operations(self, rows: NDArray[np.int64]) -> Operations:
        """Reads of rows (n,) that have been filled."""
        none = Events(_NONE, np.zeros((0, 0), np.uint8), np.zeros((0, 0)), np.zeros((0, 0), np.int64))
        return Operations(rows, self.moments, self.reads, none, np.zeros(0, np.uint8))

    def arrays(self) -> Reads:
        """Arrays of the reads, for a kernel."""
        return plain(Reads(self.moments, self.reads, self.keeps))


NO_READS = PackedReads(_NONE, _NONE, True, ())


class EntityOrder:
    """Sorts operations by row, reusing its buffers between calls. Not thread-safe."""

    def __init__(self) -> None:
        self._counts = np.zeros(1 << DIGIT_BITS, np.int64)
        self._buffers: tuple[Operations, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None = None

    def sorted(self, ops: Operations, first: NDArray[np.int64] | None = None) -> tuple[Operations, NDArray[np.int64]]:
        """The operations sorted by entity, and the original index of each event (e,); valid until the next call.

        `first` (n,) is the order in which the operations happen, if it differs from their order in `ops`.
        """
        count, events = len(ops.rows), len(ops.events.event_ids)
        buffers, order, other, source = self._buffers_for(count, events, ops.events)
        by_row = Operations(
            buffers.rows[:count],
            buffers.times[:count],
            buffers.ops[:count],
            Events(
                buffers.events.event_ids[:events],
                buffers.events.flags[:events],
                buffers.events.numbers[:events],
                buffers.events.bits[:events],
            ),
            buffers.late[:events],
        )
        by_row.late[:] = 0
        first = _NONE if first is None else first
        order, places, source = order[:count], source[: events + 1], source[:events]
        sort_by_row(ops.rows, first, order, by_row.rows, other[:count], self._counts)
        gather_operations(order, ops.ops, by_row.ops, places)
        works = [
            partial(gather_words, order, _column(ops.times), _column(by_row.times)),
            partial(gather_words, source, _column(ops.events.event_ids), _column(by_row.events.event_ids)),
            partial(gather_words, source, ops.events.numbers.view(np.int64), by_row.events.numbers.view(np.int64)),
            partial(gather_words, source, ops.events.bits, by_row.events.bits),
            partial(gather_bytes, source, ops.events.flags, by_row.events.flags),
        ]
        run_all(works) if count >= PART_MIN else [work() for work in works]
        return by_row, source

    def _buffers_for(
        self, count: int, events: int, like: Events
    ) -> tuple[Operations, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        if self._buffers is not None and len(self._buffers[1]) >= count and len(self._buffers[3]) > events:
            return self._buffers
        count, events = max(count, SORTED_MIN), max(events, SORTED_MIN)
        columns = Events(
            np.empty(events, np.int64),
            np.empty((events, like.flags.shape[1]), np.uint8),
            np.empty((events, like.numbers.shape[1]), np.float64),
            np.empty((events, like.bits.shape[1]), np.int64),
        )
        words = [np.empty(count, np.int64) for _ in range(5)]
        buffers = Operations(words[0], words[1], words[2], columns, np.empty(events, np.uint8))
        room = (buffers, words[3], words[4], np.empty(events + 1, np.int64))
        self._buffers = room if count <= _REUSED_MAX else None
        return room


def _column(words: NDArray[np.int64]) -> NDArray[np.int64]:
    return words.reshape(-1, 1)


@lean_kernel
def sort_by_row(rows: Ints, first: Ints, order: Ints, to_rows: Ints, other: Ints, counts: Ints) -> None:
    """Sort rows (n,) stably into to_rows (n,), and write the sorting indexes to `order` (n,); -1 <= row < 2**31.

    n < 2**32. Equal rows keep the order `first` (n,), or their own if `first` is empty. `other` (n,) and `counts`
    (2**DIGIT_BITS,) are scratch. Radix sort, least significant digit first (Knuth, The Art of Computer Programming 3,
    5.2.5). Row and index share one word, so each pass reads and writes 8 bytes per row.
    """
    highest: Int = 0
    for i in range(rows.size):
        index = first[i] if first.size > 0 else i
        order[i] = ((rows[index] + 1) << np.int64(32)) | index
        highest = max(highest, rows[i] + 1)
    bits = 1
    while highest >> bits:
        bits += 1
    passes = (bits + DIGIT_BITS - 1) // DIGIT_BITS
    width = (bits + passes - 1) // passes
    mask = np.int64((1 << width) - 1)
    source, target = order, other
    for digit in range(passes):
        shift = np.int64(32 + digit * width)
        counts[: 1 << width] = 0
        for i in range(rows.size):
            counts[(source[i] >> shift) & mask] += 1
        start: Int = 0
        for value in range(1 << width):
            count = counts[value]
            counts[value] = start
            start += count
        for i in range(rows.size):
            value = (source[i] >> shift) & mask
            target[counts[value]] = source[i]
            counts[value] += 1
        source, target = target, source
    for i in range(rows.size):
        to_rows[i] = (source[i] >> np.int64(32)) - 1
        order[i] = source[i] & _INDEX


@lean_kernel
def gather_operations(order: Ints, ops: Ints, to_ops: Ints, source: Ints) -> None:
    """Write ops (n,) in `order` (n,), renumbering events consecutively; reads keep their numbers.

    `source` (e + 1,) gets the original index of each event. Its last element is scratch: writing it for every operation
    avoids a branch.
    """
    event: Int = np.int64(0)
    for i in range(order.size):
        op = ops[order[i]]
        source[event] = ~op
        to_ops[i] = ~event if op < 0 else op
        event += np.int64(op < 0)


@lean_kernel
def gather_words(order: Ints, words: Ints, out: Ints) -> None:
    """`out[i] = words[order[i]]` for rows of words (n, c), one column at a time so that the loads of a loop overlap."""
    for c in range(words.shape[1]):
        for i in range(order.size):
            out[i, c] = words[order[i], c]


@lean_kernel
def gather_bytes(order: Ints, source: Bytes, out: Bytes) -> None:
    """`out[i] = source[order[i]]` for rows of source (n, c)."""
    for i in range(order.size):
        for c in range(source.shape[1]):
            out[i, c] = source[order[i], c]


@lean_kernel
def scatter_late(source: Ints, marks: Bytes, late: Bytes) -> None:
    """`late[source[i]] = marks[i]` where `marks[i]` is not 0."""
    for i in range(source.size):
        if marks[i] != 0:
            late[source[i]] = marks[i]
