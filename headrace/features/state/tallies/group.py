"""A tally group: how often each value came, by tiles of one window, in bounded room."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.features.state.layout import Events, Operations, Outputs, PackedReads
from headrace.features.state.lists.update import TEXT
from headrace.features.state.rings.update import EMPTY
from headrace.features.state.states import Blocks
from headrace.features.state.tallies.codec import pack_tally, unpack_tally
from headrace.features.state.tallies.count_sketch import ENTRY, ROWS
from headrace.features.state.tallies.read import DISTINCT, TOP
from headrace.features.state.tallies.update import most_entries, run_tally
from headrace.features.windows import Window
from headrace.kernels.compile import Int
from headrace.kernels.text_pool import POOL

KEEP_MIN, KEEP_MAX = 3, 4_096
"""Keys of a tile: with fewer the buckets of negative, no and positive numbers would not fit."""
ENTRIES_MAX = 2_097_152
"""Entries of a row at most: 50 MB of memory."""


@dataclass(frozen=True, slots=True, eq=False)
class TallyGroup:
    """Group of one tally of one window; see tallies/update.py for the arrays and bounds.

    `flag` admits an event, bit column `column` of kind `kind` is its key; a tile keeps `keep` keys. `mode` is what a
    read gives: TOP `width` keys and counts, DISTINCT an estimate, QUANTILE the buckets of `quantiles`. A row takes 24
    bytes for each pair of tile and key that it holds, and up to as much again to grow.
    """

    window: Window
    flag: int
    column: int
    kind: int
    keep: int
    mode: int
    width: int
    quantiles: NDArray[np.float64]
    text: str
    needs_ids: bool = False
    donor: int | None = None

    def make(self, capacity: int) -> Blocks:
        """State of `capacity` rows; a row must be cleared before it is used."""
        return Blocks(capacity, self._most * ENTRY, ENTRY, EMPTY)

    def clear(self, state: Any, rows: NDArray[np.int64]) -> None:
        """Empty rows."""
        state.clear(rows)

    def outputs(self, reads: int, *, close: bool = False) -> Outputs:  # noqa: ARG002
        """Answers of `reads` reads, empty: keys (reads, k), counts (reads, k), lengths (reads,), estimates (reads,)."""
        width = 0 if self.mode == DISTINCT else self.width
        counts = np.zeros((reads, width if self.mode == TOP else 0), np.int64)
        return np.zeros((reads, width), np.int64), counts, np.zeros(reads, np.int64), np.zeros(reads, np.float64)

    def placed(self, state: Any, parts: Sequence[Operations], out: Outputs) -> Outputs:  # noqa: ARG002
        """The same: every answer has its place."""
        return out

    def walk(self, state: Any, number: int, ops: Operations, begin: int, out: Outputs) -> Int:
        """Add events and answer reads, in order, from operation `begin` on."""
        events = ops.events
        room = self._most if len(out[2]) else 0
        return run_tally(
            state.heads,
            state.words,
            state.rooms,
            number,
            self._most,
            self.flag,
            self.column,
            self.keep,
            self.window.hop_us,
            self.window.span,
            ops.rows,
            ops.times,
            ops.ops,
            begin,
            events.flags,
            events.bits,
            ops.late,
            self.mode,
            self.quantiles,
            np.empty((2, room), np.int64),
            np.empty((2, room), np.int64),
            np.empty(self.window.tiles + 1, np.int64),
            np.empty((2, ROWS * self.keep + 2 if self.mode == TOP else 0), np.int64),
            out[0],
            out[1],
            out[2],
            out[3],
        )

    def reaches(
        self, events: Events, picked: NDArray[np.int64], times: NDArray[np.int64], newest: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether each event picked (m,) is wanted and not too old."""
        return np.asarray((events.flags[picked, self.flag] != 0) & (times >= self.window.start_us(newest)), np.bool_)

    def pack(
        self,
        state: Any,
        donor: Any,  # noqa: ARG002
        rows: NDArray[np.int64],
        newest: NDArray[np.int64],  # noqa: ARG002
        out: NDArray[np.uint8],
        ends: NDArray[np.int64],
    ) -> None:
        """Write rows one after the other."""
        table, offsets, texts = POOL.arrays()
        facts = self.kind, self.mode, self.keep, self.window.span
        pack_tally(state.heads, state.words, *facts, rows, table, offsets, texts, out, ends)

    def unpack(
        self,
        state: Any,
        donor: Any,  # noqa: ARG002
        rows: NDArray[np.int64],
        newest: NDArray[np.int64],
        data: NDArray[np.uint8],
        at: NDArray[np.int64],
        ends: NDArray[np.int64],
        reading: PackedReads | None = None,
    ) -> None:
        """Fill empty rows from `data[at:ends]`, or read them, and teach the pool the texts."""
        bytes_left = int(np.sum(ends - at, where=at >= 0)) if self.kind == TEXT else 0
        texts, found = np.empty((bytes_left, 3), np.int64), np.zeros(1, np.int64)

        def walk(begin: int) -> Int:
            return unpack_tally(
                state.heads,
                state.words,
                state.rooms,
                self._most,
                self.kind,
                self.mode,
                self.keep,
                self.window.hop_us,
                self.window.span,
                rows,
                newest,
                data,
                at,
                ends,
                begin,
                texts,
                found,
            )

        state.fill(len(rows), walk)
        if found[0]:
            hashes, starts, stops = np.ascontiguousarray(texts[: found[0]].T)
            POOL.learn(hashes, data, starts, stops)
        if reading is not None:
            ops = reading.operations(rows)
            state.fill(len(rows), lambda begin: self.walk(state, 0, ops, begin, reading.out))

    @property
    def _most(self) -> int:
        return most_entries(self.window.span, self.mode, self.keep)
