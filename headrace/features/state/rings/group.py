"""A ring group: all cells of one (window, hop) of a view, in one ring of tiles an entity."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.features.state.layout import NO_READS, Events, Group, Operations, Outputs, PackedReads
from headrace.features.state.rings.cells import FIRST, MAX, TAKES_BITS, WIDTH, start_value
from headrace.features.state.rings.packing import pack_ring
from headrace.features.state.rings.unpacking import unpack_ring
from headrace.features.state.rings.update import EMPTY, most_tiles, run_number_ring, run_ring
from headrace.features.state.states import Blocks
from headrace.features.windows import Window
from headrace.kernels.bit_columns import SPARE
from headrace.kernels.compile import Floats, Int, Ints, interpreted


@dataclass(frozen=True, slots=True, eq=False)
class RingGroup:
    """Group of a window's cells; see rings/update.py for the arrays.

    items (m, 4) int64: code, first cell, flag column, value column; params (m,) float64; `text` describes them. Its
    packed form refers to the ring `donor` with hop `donor_hop`, span `donor_span` and empty tile donor_starts (d,);
    links (k,) tell which of the donor's cells each of ours is, -1 none.
    """

    window: Window
    items: NDArray[np.int64]
    params: NDArray[np.float64]
    text: str
    starts: NDArray[np.float64]
    donor: int | None = None
    donor_hop: int = 0
    donor_span: int = 0
    donor_starts: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0, np.float64))
    links: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @classmethod
    def of(cls, window: Window, items: NDArray[np.int64], params: NDArray[np.float64], text: str) -> "RingGroup":
        """A ring without a donor."""
        starts = np.empty(sum(WIDTH[code] for code in items[:, 0].tolist()), np.float64)
        for code, first, *_ in items.tolist():
            starts[first : first + WIDTH[code]] = [interpreted(start_value)(code, j) for j in range(WIDTH[code])]
        return cls(window, items, params, text, starts)

    def linked(self, earlier: Sequence[Group]) -> "RingGroup":
        """The ring with the donor among `earlier` that has most of its cells, the longest such; itself if none has."""
        best, most = self, 0
        for number, other in enumerate(earlier):
            if isinstance(other, RingGroup) and other.window.hop_us and self.window.hop_us % other.window.hop_us == 0:
                links = _links(self, other)
                count = int((links >= 0).sum())
                if count > most or (count == most > 0 and other.window.window_us >= _window_us(best, earlier)):
                    best = replace(
                        self,
                        donor=number,
                        donor_hop=other.window.hop_us,
                        donor_span=other.window.span,
                        donor_starts=other.starts,
                        links=links,
                    )
                    most = count
        return best

    @property
    def needs_ids(self) -> bool:
        """Whether event ids matter: they break ties of First."""
        return bool((self.items[:, 0] == FIRST).any())

    @property
    def width(self) -> int:
        """Cells of a tile."""
        return len(self.starts)

    def make(self, capacity: int) -> Blocks:
        """State of `capacity` rows; a row must be cleared before it is used."""
        return Blocks(capacity, self._most * (self.width + 1), self.width + 1, EMPTY)

    def clear(self, state: Any, rows: NDArray[np.int64]) -> None:
        """Empty rows."""
        state.clear(rows)

    def outputs(self, reads: int, *, close: bool = False) -> Outputs:  # noqa: ARG002
        """Answers of `reads` reads, empty: cells (reads, k)."""
        out = np.empty((reads, self.width), np.float64)
        out[:1], done = self.starts, 1
        while done < reads:  # copies that double: NumPy writes a short row, again and again, at a seventh of the speed
            out[done : 2 * done] = out[: min(done, reads - done)]
            done *= 2
        return (out,)

    def placed(self, state: Any, parts: Sequence[Operations], out: Outputs) -> Outputs:  # noqa: ARG002
        """The same: every answer has its place."""
        return out

    def walk(self, state: Any, number: int, ops: Operations, begin: int, out: Outputs) -> Int:
        """Add events and answer reads, in order, from operation `begin` on."""
        events, answers = ops.events, out[0].reshape(-1)
        plain = bool((self.items[:, 0] <= MAX).all())
        run = run_number_ring if plain else run_ring
        return run(
            state.heads,
            state.words,
            state.floats,
            state.rooms,
            number,
            self._most,
            self.width,
            self.items,
            None if plain else self.params,
            self.window.hop_us,
            self.window.span,
            ops.rows,
            ops.times,
            events.event_ids,
            ops.ops,
            begin,
            events.flags,
            events.numbers,
            events.bits,
            ops.late,
            np.empty(self.width, np.float64),
            answers,
        )

    def reaches(
        self, events: Events, picked: NDArray[np.int64], times: NDArray[np.int64], newest: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether each event picked (m,) is wanted and not too old."""
        wanted = np.zeros(len(times), np.bool_)
        for code, _, flag, column in self.items.tolist():
            admits = events.flags[picked, flag] != 0
            if code not in TAKES_BITS and column >= 0:
                admits &= np.isfinite(events.numbers[picked, column])
            wanted |= admits
        return np.asarray(wanted & (times >= self.window.start_us(newest)), np.bool_)

    def pack(
        self,
        state: Any,
        donor: Any,
        rows: NDArray[np.int64],
        newest: NDArray[np.int64],  # noqa: ARG002
        out: NDArray[np.uint8],
        ends: NDArray[np.int64],
    ) -> None:
        """Write rows one after the other."""
        pack_ring(
            state.heads,
            state.words,
            state.floats,
            self.starts,
            self.window.hop_us,
            self.window.span,
            *self._donated(donor),
            rows,
            np.empty((4, self.window.tiles), np.int64),
            np.empty(self.window.tiles, np.float64),
            out,
            ends,
        )

    def unpack(
        self,
        state: Any,
        donor: Any,
        rows: NDArray[np.int64],
        newest: NDArray[np.int64],
        data: NDArray[np.uint8],
        at: NDArray[np.int64],
        ends: NDArray[np.int64],
        reading: PackedReads | None = None,
    ) -> None:
        """Fill empty rows from `data[at:ends]`, or read them."""
        read = reading or NO_READS
        out = read.out[0].reshape(-1) if reading else np.empty(0, np.float64)

        def walk(begin: int) -> Int:
            return unpack_ring(
                state.heads,
                state.words,
                state.floats,
                state.rooms,
                self._most,
                self.starts,
                self.window.hop_us,
                self.window.span,
                *self._donated(donor),
                rows,
                newest,
                data,
                at,
                ends,
                begin,
                np.empty((3, self.window.tiles), np.int64),
                np.empty((self.width, self.window.tiles + SPARE), np.float64),
                np.empty(self.width, np.float64),
                self.items,
                self.params,
                read.keeps,
                read.moments,
                read.reads,
                out,
            )

        state.fill(len(rows), walk)

    @property
    def _most(self) -> int:
        return most_tiles(self.window.span)

    def _donated(self, donor: Any) -> tuple[Ints, Ints, Floats, Floats, int, int, Ints]:
        """What rings/packing.py wants to know of the donor."""
        facts = self.donor_starts, self.donor_hop, self.donor_span, self.links
        return donor.heads, donor.words, donor.floats, *facts


def _links(ring: RingGroup, donor: RingGroup) -> NDArray[np.int64]:
    """(k,) the donor's cell that keeps the same as each of the ring's, -1 where none does."""
    first = {_what(donor, item): int(donor.items[item, 1]) for item in range(len(donor.items))}
    links = np.full(ring.width, -1, np.int64)
    for item in range(len(ring.items)):
        found, own, width = first.get(_what(ring, item)), int(ring.items[item, 1]), WIDTH[int(ring.items[item, 0])]
        if found is not None:
            links[own : own + width] = np.arange(found, found + width)
    return links


def _what(ring: RingGroup, item: int) -> tuple[float, ...]:
    code, _, flag, column = ring.items[item].tolist()
    return code, flag, column, float(ring.params[item])


def _window_us(ring: RingGroup, earlier: Sequence[Group]) -> int:
    """Length of the donor's window."""
    donor = None if ring.donor is None else earlier[ring.donor]
    return donor.window.window_us if isinstance(donor, RingGroup) else 0
