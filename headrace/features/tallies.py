"""A tally group: how often each value came, by tiles of one window, in bounded room."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.features.kernels.id_lists import TEXT
from headrace.features.kernels.rings import EMPTY
from headrace.features.kernels.tallies import DISTINCT, TOP, run_tally
from headrace.features.kernels.tally_codec import pack_tally, unpack_tally
from headrace.features.kernels.text_pool import POOL
from headrace.features.layout import Events, Operations, Outputs, PackedReads
from headrace.features.states import Arrays
from headrace.features.threads import run_all
from headrace.features.windows import Window

ENTRIES_PER_KEEP = 4
"""Entries of a row for each key that one tile may keep."""
KEEP_MAX = 4_096


@dataclass(frozen=True, slots=True, eq=False)
class TallyGroup:
    """Group of one tally of one window; see kernels/tallies.py for the arrays and bounds.

    `flag` admits an event, bit column `column` of kind `kind` is its key; a tile keeps `keep` keys; `collapse` is for
    keys whose order has a meaning. `mode` is what a read gives: `width` keys and counts, an estimate, or the keys of
    `quantiles`. A row takes 24 bytes for each of its 4 * keep entries.
    """

    window: Window
    flag: int
    column: int
    kind: int
    keep: int
    collapse: bool
    mode: int
    width: int
    quantiles: NDArray[np.float64]
    text: str
    needs_ids: bool = False
    donor: int | None = None

    @property
    def _room(self) -> int:
        """Entries of a row, and one to spare."""
        return ENTRIES_PER_KEEP * self.keep + 1

    def make(self, capacity: int) -> Arrays:
        """State of `capacity` rows, to be cleared before use: memory that no row uses is never touched."""

        def arrays(count: int) -> Outputs:
            words = [np.empty(count, np.int64) for _ in range(3)]
            tiles, keys = (np.empty((count, self._room), np.int64) for _ in range(2))
            return *words, tiles, keys, np.empty((count, self._room), np.float64)

        return Arrays(arrays, capacity)

    def clear(self, state: Any, rows: NDArray[np.int64]) -> None:
        """Empty rows."""
        heads, floors, sizes, *_ = state.arrays
        heads[rows] = EMPTY
        floors[rows] = EMPTY
        sizes[rows] = 0

    def outputs(self, reads: int) -> Outputs:
        """Answers of `reads` reads, empty: keys (reads, k), counts (reads, k), lengths (reads,), estimates (reads,)."""
        width = 0 if self.mode == DISTINCT else self.width
        counts = np.zeros((reads, width if self.mode == TOP else 0), np.float64)
        return np.zeros((reads, width), np.int64), counts, np.zeros(reads, np.int64), np.zeros(reads, np.float64)

    def run(self, state: Any, parts: Sequence[Operations], out: Outputs) -> None:
        """Add events and answer reads, in order."""
        run_all([partial(self._run, state, ops, out) for ops in parts])

    def _run(self, state: Any, ops: Operations, out: Outputs) -> None:
        heads, floors, sizes, tiles, keys, counts = state.arrays
        events = ops.events
        run_tally(
            heads,
            floors,
            sizes,
            tiles,
            keys,
            counts,
            self.flag,
            self.column,
            self.keep,
            self.collapse,
            self.window.hop_us,
            self.window.span,
            ops.rows,
            ops.times,
            ops.ops,
            events.flags,
            events.bits,
            ops.late,
            self.mode,
            self.quantiles,
            np.empty(self._room, np.int64),
            np.empty(self._room, np.float64),
            out[0],
            out[1],
            out[2],
            out[3],
        )

    def reaches(self, events: Events, times: NDArray[np.int64], newest: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each event (e,) is wanted and not too old."""
        return np.asarray((events.flags[:, self.flag] != 0) & (times >= self.window.start_us(newest)), np.bool_)

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
        heads, floors, sizes, tiles, keys, counts = state.arrays
        pool = POOL.arrays()
        span = self.window.span
        pack_tally(heads, floors, sizes, tiles, keys, counts, self.kind, span, rows, *pool, out, ends)

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
        """Fill rows from `data[at:ends]`, and teach the pool the texts."""
        heads, floors, sizes, tiles, keys, counts = state.arrays
        texts = np.empty((len(rows) * self._room if self.kind == TEXT else 0, 3), np.int64)
        found = unpack_tally(
            heads,
            floors,
            sizes,
            tiles,
            keys,
            counts,
            self.kind,
            self.window.hop_us,
            self.window.span,
            rows,
            newest,
            data,
            at,
            ends,
            texts,
        )
        if found:
            hashes, starts, stops = np.ascontiguousarray(texts[:found].T)
            POOL.learn(hashes, data, starts, stops)
        if reading is not None:
            self.run(state, [reading.operations(rows)], reading.out)
