"""A tally group: how often each value occurred, per tile of one window, in bounded memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from headrace.features.state.blocks import BlockPool
from headrace.features.state.lists.update import TEXT
from headrace.features.state.operations import Events, Operations, Outputs, Packed, PackedReads
from headrace.features.state.rings.update import EMPTY
from headrace.features.state.tallies.codec import pack_tally, unpack_tally
from headrace.features.state.tallies.count_sketch import ENTRY, ROWS
from headrace.features.state.tallies.read import DISTINCT, TOP, Tally, TallyOut, TallyScratch
from headrace.features.state.tallies.update import most_entries, run_tally
from headrace.features.windows import Window
from headrace.kernels.compile import Int, plain
from headrace.kernels.texts import POOL, TextLines

KEEP_MIN, KEEP_MAX = 3, 4_096
"""Bounds of the keys kept per tile. Fewer than 3 would not fit the buckets of negative, zero and positive numbers."""
ENTRIES_MAX = 2_097_152
"""Maximum entries of a row: 50 MB of memory."""


@dataclass(frozen=True, eq=False)
class TallyGroup:
    """The group of one tally of one window; see tallies/update.py for the arrays and bounds.

    Flag column `flag` admits an event, bit column `column` of kind `kind` holds its key, and a tile keeps `keep` keys.
    `mode` determines the result of a read: TOP returns `width` keys and counts, DISTINCT an estimate, QUANTILE the
    buckets of `quantiles`. A row takes 24 bytes for each pair of tile and key, and up to as much again as room to grow.
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
    base: int | None = None

    def make(self, capacity: int) -> BlockPool:
        """State of `capacity` rows; a row must be cleared before its first use."""
        return BlockPool(capacity, self._most * ENTRY, ENTRY, EMPTY)

    def outputs(self, reads: int, *, contiguous: bool = False) -> Outputs:  # noqa: ARG002
        """Empty answers of `reads` reads: keys (reads, k), counts (reads, k), lengths (reads,), estimates (reads,)."""
        width = 0 if self.mode == DISTINCT else self.width
        counts = np.zeros((reads, width if self.mode == TOP else 0), np.int64)
        return np.zeros((reads, width), np.int64), counts, np.zeros(reads, np.int64), np.zeros(reads, np.float64)

    def sized(self, state: BlockPool, parts: Sequence[Operations], out: Outputs) -> Outputs:  # noqa: ARG002
        """Return `out` unchanged: every answer has a fixed size."""
        return out

    def forget(self, out: Outputs, reads: NDArray[np.int64]) -> None:
        """Reset the answers `reads` (m,) to empty."""
        for array in out:
            array[reads] = 0

    def apply(self, state: BlockPool, area: int, ops: Operations, begin: int, out: Outputs) -> Int:
        """Add events and answer reads, in order, from operation `begin` on."""
        room = self._most if len(out[2]) else 0
        scratch = plain(
            TallyScratch(
                np.empty((2, room), np.int64),
                np.empty((2, room), np.int64),
                np.empty(self.window.tiles + 1, np.int64),
                np.empty((2, ROWS * self.keep + 2 if self.mode == TOP else 0), np.int64),
            )
        )
        return run_tally(state.blocks, area, self._tally, ops.arrays(), begin, scratch, plain(TallyOut(*out)))

    def covers(
        self, events: Events, picked: NDArray[np.int64], times: NDArray[np.int64], newest: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether the tally admits each event of picked (m,), and the window still covers its time."""
        return np.asarray((events.flags[picked, self.flag] != 0) & (times >= self.window.start_us(newest)), np.bool_)

    def pack(
        self,
        state: BlockPool,
        base: BlockPool,  # noqa: ARG002
        rows: NDArray[np.int64],
        newest: NDArray[np.int64],  # noqa: ARG002
        out: NDArray[np.uint8],
        ends: NDArray[np.int64],
    ) -> None:
        """Write rows one after the other."""
        pack_tally(state.blocks, self._tally, rows, POOL.arrays(), out, ends)

    def unpack(
        self,
        state: BlockPool,
        base: BlockPool,  # noqa: ARG002
        packed: Packed,
        reading: PackedReads | None = None,
    ) -> None:
        """Fill empty rows, answer reads if any, and add the texts to the pool."""
        bytes_left = int(np.sum(packed.ends - packed.at, where=packed.at >= 0)) if self.kind == TEXT else 0
        lines = TextLines.of(bytes_left)
        arrays, texts, tally = plain(packed), plain(lines), self._tally
        state.fill(len(packed.rows), lambda begin: unpack_tally(state.blocks, tally, arrays, begin, texts))
        POOL.learn_lines(lines, packed.data)
        if reading is not None and len(reading.moments):
            ops = reading.operations(packed.rows)
            state.fill(len(packed.rows), lambda begin: self.apply(state, 0, ops, begin, reading.out))

    @property
    def _most(self) -> int:
        return most_entries(self.window.span, self.mode, self.keep)

    @cached_property
    def _tally(self) -> Tally:
        hop_us, span = self.window.hop_us, self.window.span
        facts = (self.mode, self.kind, self.flag, self.column, self.keep, hop_us, span, self._most)
        return plain(Tally(*facts, self.quantiles))
