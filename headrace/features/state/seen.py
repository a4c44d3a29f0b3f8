"""Events that came lately, so that one that comes again is left out: `dedupe=` of a view.

An event is told apart by its class, its id and its time. Of an entity the events of the last `span` before its newest
event are remembered, duplicates of older ones are not known. What is remembered follows from the set of the entity's
events alone, and is packed with its record: it outlives a restart, an eviction and a backfill's hand-over.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from headrace.features.state.layout import Operations
from headrace.features.state.seen_kernels import (
    DUPLICATE,
    ENTRY,
    KEEP_MAX,
    MOST,
    mark_duplicates,
    pack_seen,
    skip_seen,
    unpack_seen,
)
from headrace.features.state.states import Blocks
from headrace.kernels.compile import Int

__all__ = ["KEEP_MAX", "SeenIds", "skip_seen"]


class SeenIds:
    """What a slab of `capacity` rows remembers of the last `span_us` of each row; see state/seen_kernels.py.

    At most the KEEP_MAX newest events of a row are remembered. An event takes 16 bytes, and 8 to 13 packed.
    """

    def __init__(self, span_us: int, capacity: int) -> None:
        self._span_us = span_us
        self._state = Blocks(capacity, ENTRY * MOST, ENTRY, 0)

    def nbytes(self, rows: int) -> int:
        """Memory, of which rows past the first `rows` take none."""
        return self._state.nbytes(rows)

    def grow(self, capacity: int) -> None:
        """Have `capacity` rows."""
        self._state.grow(capacity)

    def clear(self, rows: NDArray[np.int64]) -> None:
        """Empty rows (n,)."""
        self._state.clear(rows)

    def without_duplicates(self, ops: Operations) -> Operations:
        """The operations less events that came before, whose `late` becomes DUPLICATE; the others are remembered."""
        state = self._state

        def mark(begin: int) -> Int:
            return mark_duplicates(
                state.heads,
                state.words,
                state.rooms,
                self._span_us,
                KEEP_MAX,
                ops.rows,
                ops.times,
                ops.events.event_ids,
                ops.ops,
                begin,
                ops.late,
            )

        state.fill(len(ops.rows), mark)
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
        pack_seen(self._state.heads, self._state.words, self._span_us, KEEP_MAX, rows, newest, out, ends)

    def unpack(
        self,
        rows: NDArray[np.int64],
        newest: NDArray[np.int64],
        data: NDArray[np.uint8],
        at: NDArray[np.int64],
        ends: NDArray[np.int64],
    ) -> None:
        """Fill empty rows from `data[at:ends]`, as `Group.unpack`."""
        state = self._state

        def fill(begin: int) -> Int:
            return unpack_seen(state.heads, state.words, state.rooms, KEEP_MAX, rows, newest, data, at, ends, begin)

        state.fill(len(rows), fill)
