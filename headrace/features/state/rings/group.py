"""A ring group: all cells of one (window, hop) of a view, in one ring of tiles per entity."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from headrace.features.state.blocks import BlockPool
from headrace.features.state.layout import Group
from headrace.features.state.operations import NO_READS, Events, Operations, Outputs, Packed, PackedReads
from headrace.features.state.rings.cells import FIRST, MAX, TAKES_BITS, WIDTH, start_value
from headrace.features.state.rings.codec import Base, Scratch, pack_ring, unpack_ring
from headrace.features.state.rings.update import EMPTY, Ring, most_tiles, run_ring
from headrace.features.windows import Window
from headrace.kernels.bit_columns import SPARE
from headrace.kernels.compile import Int, interpreted, plain


@dataclass(frozen=True, eq=False)
class RingGroup:
    """The group of a window's cells. items and starts are as in `Ring`, params (m,) as in `run_ring`.

    `text` describes the cells. The packed form may refer to the group number `base`, a ring with hop `base_hop`, span
    `base_span` and empty tile base_starts (d,); links (k,) map each cell to the base's cell, -1 if the base lacks it.
    See rings/codec.py.
    """

    window: Window
    items: NDArray[np.int64]
    params: NDArray[np.float64]
    text: str
    starts: NDArray[np.float64]
    base: int | None = None
    base_hop: int = 0
    base_span: int = 0
    base_starts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0, np.float64))
    links: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, window: Window, items: NDArray[np.int64], params: NDArray[np.float64], text: str) -> "RingGroup":
        """A ring without a base."""
        starts = np.empty(sum(WIDTH[code] for code in items[:, 0].tolist()), np.float64)
        for code, first, *_ in items.tolist():
            starts[first : first + WIDTH[code]] = [interpreted(start_value)(code, j) for j in range(WIDTH[code])]
        return cls(window, items, params, text, starts)

    def linked(self, earlier: Sequence[Group]) -> "RingGroup":
        """Choose a base: the `earlier` ring that shares most of its cells, and the longest of several.

        Only a ring whose hop divides this ring's hop qualifies. Returns the ring itself if none shares a cell.
        """
        best, most = self, 0
        for number, other in enumerate(earlier):
            if isinstance(other, RingGroup) and other.window.hop_us and self.window.hop_us % other.window.hop_us == 0:
                links = _links(self, other)
                count = int((links >= 0).sum())
                if count > most or (count == most > 0 and other.window.window_us >= _base_window_us(best, earlier)):
                    best = replace(
                        self,
                        base=number,
                        base_hop=other.window.hop_us,
                        base_span=other.window.span,
                        base_starts=other.starts,
                        links=links,
                    )
                    most = count
        return best

    @property
    def needs_ids(self) -> bool:
        """Whether event ids are used: they break ties of First."""
        return bool((self.items[:, 0] == FIRST).any())

    @property
    def width(self) -> int:
        """Cells of a tile."""
        return len(self.starts)

    def make(self, capacity: int) -> BlockPool:
        """State of `capacity` rows; a row must be cleared before its first use."""
        return BlockPool(capacity, self._ring_most * (self.width + 1), self.width + 1, EMPTY)

    def outputs(self, reads: int, *, contiguous: bool = False) -> Outputs:  # noqa: ARG002
        """Empty answers of `reads` reads: cells (reads, k)."""
        out = np.empty((reads, self.width), np.float64)
        out[:1], done = self.starts, 1
        while done < reads:  # copies of doubling size: broadcasting a short row runs at a seventh of the speed
            out[done : 2 * done] = out[: min(done, reads - done)]
            done *= 2
        return (out,)

    def sized(self, state: BlockPool, parts: Sequence[Operations], out: Outputs) -> Outputs:  # noqa: ARG002
        """Return `out` unchanged: every answer has a fixed size."""
        return out

    def forget(self, out: Outputs, reads: NDArray[np.int64]) -> None:
        """Reset the answers `reads` (m,) to empty."""
        out[0][reads] = self.starts

    def apply(self, state: BlockPool, area: int, ops: Operations, begin: int, out: Outputs) -> Int:
        """Add events and answer reads, in order, from operation `begin` on."""
        closed = np.empty(self.width, np.float64)
        return run_ring(
            state.blocks, area, self._ring, self._update_params, ops.arrays(), begin, closed, out[0].reshape(-1)
        )

    def covers(
        self, events: Events, picked: NDArray[np.int64], times: NDArray[np.int64], newest: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether a cell admits each event of picked (m,), and the window still covers its time."""
        admitted = np.zeros(len(times), np.bool_)
        for code, _, flag, column in self.items.tolist():
            admits = events.flags[picked, flag] != 0
            if code not in TAKES_BITS and column >= 0:
                admits &= np.isfinite(events.numbers[picked, column])
            admitted |= admits
        return np.asarray(admitted & (times >= self.window.start_us(newest)), np.bool_)

    def pack(
        self,
        state: BlockPool,
        base: BlockPool,
        rows: NDArray[np.int64],
        newest: NDArray[np.int64],  # noqa: ARG002
        out: NDArray[np.uint8],
        ends: NDArray[np.int64],
    ) -> None:
        """Write rows one after the other."""
        scratch, column = np.empty((4, self.window.tiles), np.int64), np.empty(self.window.tiles, np.float64)
        pack_ring(state.blocks, self._ring, base.blocks, self._base, rows, scratch, column, out, ends)

    def unpack(self, state: BlockPool, base: BlockPool, packed: Packed, reading: PackedReads | None = None) -> None:
        """Fill empty rows or answer reads."""
        reads = reading or NO_READS
        out = reads.out[0].reshape(-1) if reading else np.empty(0, np.float64)
        scratch = plain(
            Scratch(
                np.empty((3, self.window.tiles), np.int64),
                np.empty((self.width, self.window.tiles + SPARE), np.float64),
                np.empty(self.width, np.float64),
            )
        )
        arrays, moments, ring, ring_base = plain(packed), reads.arrays(), self._ring, self._base
        state.fill(
            len(packed.rows),
            lambda begin: unpack_ring(
                state.blocks, ring, base.blocks, ring_base, arrays, begin, scratch, moments, self.params, out
            ),
        )

    @property
    def _ring_most(self) -> int:
        return most_tiles(self.window.span)

    @cached_property
    def _ring(self) -> Ring:
        return plain(Ring(self.items, self.starts, self.window.hop_us, self.window.span, self._ring_most))

    @cached_property
    def _update_params(self) -> NDArray[np.float64] | None:
        return self.params if (self.items[:, 0] > MAX).any() else None

    @cached_property
    def _base(self) -> Base:
        return plain(Base(self.base_starts, self.base_hop, self.base_span, self.links))


def _links(ring: RingGroup, base: RingGroup) -> NDArray[np.int64]:
    """(k,) for each cell of the ring, the base's cell with the same content, -1 if there is none."""
    base_cells = {_item_key(base, item): int(base.items[item, 1]) for item in range(len(base.items))}
    links = np.full(ring.width, -1, np.int64)
    for item in range(len(ring.items)):
        base_cell = base_cells.get(_item_key(ring, item))
        code, cell = ring.items[item, :2].tolist()
        if base_cell is not None:
            links[cell : cell + WIDTH[code]] = np.arange(base_cell, base_cell + WIDTH[code])
    return links


def _item_key(ring: RingGroup, item: int) -> tuple[float, ...]:
    """The values that determine the content of an item's cells."""
    code, _, flag, column = ring.items[item].tolist()
    return code, flag, column, float(ring.params[item])


def _base_window_us(ring: RingGroup, earlier: Sequence[Group]) -> int:
    """Length of the base's window, 0 without a base."""
    base = None if ring.base is None else earlier[ring.base]
    return base.window.window_us if isinstance(base, RingGroup) else 0
