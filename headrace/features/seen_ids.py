"""Events that came lately, so that one that comes again is left out: `dedupe=` of a view.

An event is told apart by its class, its id and its time. Of an entity the events of the last `span` before its newest
event are remembered, duplicates of older ones are not known. What is remembered follows from the set of the entity's
events alone, and is packed with its record: it outlives a restart, an eviction and a backfill's hand-over.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from headrace.features.kernels.compile import Int
from headrace.features.kernels.seen_ids import (
    DUPLICATE,
    KEEP_MAX,
    ORDERS,
    clear_seen,
    mark_duplicates,
    pack_seen,
    skip_seen,
    unpack_seen,
)
from headrace.features.layout import Operations

__all__ = ["KEEP_MAX", "SeenIds", "skip_seen"]

_ENTRIES = 1_024


class SeenIds:
    """What a slab of `capacity` rows remembers of the last `span_us` of each row; see kernels/seen_ids.py.

    At most the KEEP_MAX newest events of a row are remembered. An event takes 16 bytes, and 8 to 13 packed.
    """

    def __init__(self, span_us: int, capacity: int) -> None:
        self._span_us = span_us
        self._blocks = np.zeros((capacity, 3), np.int64)
        self._entries = np.empty((_ENTRIES, 2), np.int64)
        self._free = np.full(ORDERS + 1, -1, np.int64)
        self._free[0] = 0

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return self._blocks.nbytes + self._entries.nbytes

    def grow(self, capacity: int) -> None:
        """Have `capacity` rows."""
        blocks = np.zeros((capacity, 3), np.int64)
        blocks[: len(self._blocks)] = self._blocks
        self._blocks = blocks

    def clear(self, rows: NDArray[np.int64]) -> None:
        """Empty rows (n,)."""
        clear_seen(self._blocks, self._entries, self._free, rows)

    def without_duplicates(self, ops: Operations) -> Operations:
        """The operations less events that came before, whose `late` becomes DUPLICATE; the others are remembered."""
        done: Int = 0
        while len(ops.late):
            done = mark_duplicates(
                self._blocks,
                self._entries,
                self._free,
                self._span_us,
                KEEP_MAX,
                ops.rows,
                ops.times,
                ops.events.event_ids,
                ops.ops,
                done,
                ops.late,
            )
            if done == len(ops.rows):
                break
            self._double()
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
        """Write rows one after the other, as `Group.pack`; newest (n,) are their newest event times."""
        pack_seen(self._blocks, self._entries, self._span_us, KEEP_MAX, rows, newest, out, ends)

    def unpack(
        self,
        rows: NDArray[np.int64],
        newest: NDArray[np.int64],
        data: NDArray[np.uint8],
        at: NDArray[np.int64],
        ends: NDArray[np.int64],
    ) -> None:
        """Fill empty rows from `data[at:ends]`, as `Group.unpack`."""
        done: Int = 0
        while True:
            done = unpack_seen(self._blocks, self._entries, self._free, KEEP_MAX, rows, newest, data, at, ends, done)
            if done == len(rows):
                return
            self._double()

    def _double(self) -> None:
        entries = np.empty((2 * len(self._entries), 2), np.int64)
        entries[: len(self._entries)] = self._entries
        self._entries = entries
