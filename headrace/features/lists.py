"""A list group: the N newest events of an entity, with some values of each."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.features.kernels.id_lists import TEXT, run_list
from headrace.features.kernels.list_codec import pack_list, unpack_list
from headrace.features.kernels.text_pool import POOL
from headrace.features.layout import Events, Operations, State


@dataclass(frozen=True, slots=True, eq=False)
class ListGroup:
    """Group of one list; see kernels/id_lists.py for the arrays.

    `flag` is the flag column that admits an event, `columns` (m,) the bit columns of its values, `kinds` (m,) what they
    are; `timed` whether reads tell times.
    """

    size: int
    distinct: bool
    strict: bool
    flag: int
    columns: NDArray[np.int64]
    kinds: NDArray[np.int64]
    text: str
    needs_ids: bool = True
    timed: bool = False

    def make(self, capacity: int) -> State:
        """State of `capacity` rows, to be cleared before use: memory that no row uses is never touched."""
        stamps = np.empty((capacity, self.size, 2), np.int64)
        return np.empty((capacity, 2), np.int64), stamps, np.empty((capacity, self.size, len(self.columns)), np.int64)

    def clear(self, state: State, rows: NDArray[np.int64]) -> None:
        """Empty rows."""
        state[0][rows] = 0

    def outputs(self, reads: int) -> State:
        """Answers of `reads` reads, empty: times (reads, N) or (reads, 0), values (reads, N, m), counts (reads,)."""
        times = np.zeros((reads, self.size if self.timed else 0), np.int64)
        values = np.zeros((reads, self.size, len(self.columns)), np.int64)
        return times, values, np.zeros(reads, np.int64)

    def run(self, state: State, ops: Operations, out: State) -> None:
        """Add events and answer reads, in order."""
        spans, stamps, values = state
        events = ops.events
        run_list(
            spans,
            stamps,
            values,
            self.flag,
            self.columns,
            self.distinct,
            self.strict,
            ops.rows,
            ops.times,
            events.event_ids,
            ops.ops,
            events.flags,
            events.bits,
            out[0],
            out[1],
            out[2],
        )

    def reaches(
        self,
        events: Events,
        times: NDArray[np.int64],  # noqa: ARG002
        newest: NDArray[np.int64],  # noqa: ARG002
    ) -> NDArray[np.bool_]:
        """Whether each event (e,) is wanted: none is too old, it may only be none of the newest."""
        return np.asarray(events.flags[:, self.flag] != 0, np.bool_)

    def pack(
        self,
        state: State,
        rows: NDArray[np.int64],
        newest: NDArray[np.int64],
        out: NDArray[np.uint8],
        ends: NDArray[np.int64],
    ) -> None:
        """Write rows one after the other."""
        spans, stamps, values = state
        floats = values.view(np.float64)
        pack_list(spans, stamps, values, floats, self.kinds, rows, newest, *POOL.arrays(), out, ends)

    def unpack(
        self,
        state: State,
        rows: NDArray[np.int64],
        newest: NDArray[np.int64],
        data: NDArray[np.uint8],
        at: NDArray[np.int64],
        ends: NDArray[np.int64],
    ) -> None:
        """Fill empty rows from `data[at:ends]`, and teach the pool the texts."""
        spans, stamps, values = state
        texts = np.empty((len(rows) * self.size * int((self.kinds == TEXT).sum()), 3), np.int64)
        floats = values.view(np.float64)
        count = unpack_list(spans, stamps, values, floats, self.kinds, rows, newest, data, at, ends, texts)
        if count:
            hashes, starts, stops = np.ascontiguousarray(texts[:count].T)
            POOL.learn(hashes, data, starts, stops)
