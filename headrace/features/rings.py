"""A ring group: all cells of one (window, hop) of a view, in one ring of tiles an entity."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.features.kernels.cells import FIRST, WIDTH
from headrace.features.kernels.ring_codec import pack_ring, unpack_ring
from headrace.features.kernels.rings import EMPTY, clear_out, run_ring
from headrace.features.layout import Events, Operations, State
from headrace.features.windows import Window


@dataclass(frozen=True, slots=True, eq=False)
class RingGroup:
    """Group of a window's cells; see kernels/rings.py for the arrays.

    items (m, 4) int64: code, first cell, flag column, value column; params (m,) float64; `text` describes them.
    """

    window: Window
    items: NDArray[np.int64]
    params: NDArray[np.float64]
    text: str

    @property
    def needs_ids(self) -> bool:
        """Whether event ids matter: they break ties of First."""
        return bool((self.items[:, 0] == FIRST).any())

    @property
    def width(self) -> int:
        """Cells of a tile."""
        return sum(WIDTH[int(code)] for code in self.items[:, 0])

    def make(self, capacity: int) -> State:
        """State of `capacity` rows, to be cleared before use: memory that no row uses is never touched."""
        tiles = (capacity, self.window.tiles)
        return np.empty(tiles, np.int64), np.empty(capacity, np.int64), np.empty((*tiles, self.width), np.float64)

    def clear(self, state: State, rows: NDArray[np.int64]) -> None:
        """Empty rows."""
        state[0][rows] = EMPTY
        state[1][rows] = EMPTY

    def outputs(self, reads: int) -> State:
        """Answers of `reads` reads, empty: cells (reads, k)."""
        out = np.empty((reads, 1, self.width), np.float64)
        clear_out(self.items, out)
        return (out.reshape(reads, self.width),)

    def run(self, state: State, ops: Operations, out: State) -> None:
        """Add events and answer reads, in order."""
        tiles, heads, cells = state
        events = ops.events
        run_ring(
            tiles,
            heads,
            cells,
            self.items,
            self.params,
            self.window.hop_us,
            self.window.span,
            ops.rows,
            ops.times,
            events.event_ids,
            ops.ops,
            events.flags,
            events.numbers,
            events.bits,
            ops.late,
            np.empty((1, 1, self.width), np.float64),
            out[0].reshape(len(out[0]), 1, self.width),
        )

    def reaches(self, events: Events, times: NDArray[np.int64], newest: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each event (e,) is wanted and not too old."""
        wanted = np.zeros(len(times), np.bool_)
        for code, _, flag, column in self.items.tolist():
            admits = events.flags[:, flag] != 0
            if code != FIRST and column >= 0:
                admits &= np.isfinite(events.numbers[:, column])
            wanted |= admits
        return np.asarray(wanted & (times >= self.window.start_us(newest)), np.bool_)

    def pack(
        self,
        state: State,
        rows: NDArray[np.int64],
        newest: NDArray[np.int64],  # noqa: ARG002
        out: NDArray[np.uint8],
        ends: NDArray[np.int64],
    ) -> None:
        """Write rows one after the other."""
        tiles, heads, cells = state
        pack_ring(tiles, heads, cells, cells.view(np.int64), self.items, rows, out, ends)

    def unpack(
        self,
        state: State,
        rows: NDArray[np.int64],
        newest: NDArray[np.int64],
        data: NDArray[np.uint8],
        at: NDArray[np.int64],
        ends: NDArray[np.int64],
    ) -> None:
        """Fill empty rows from `data[at:ends]`."""
        tiles, heads, cells = state
        bits = cells.view(np.int64)
        unpack_ring(tiles, heads, cells, bits, self.items, self.window.hop_us, rows, newest, data, at, ends)
