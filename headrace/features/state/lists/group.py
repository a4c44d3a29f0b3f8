"""A list group: the N newest events of an entity, with some values of each."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.features.state.layout import NO_READS, Events, Group, Operations, Outputs, PackedReads
from headrace.features.state.lists.packing import pack_list
from headrace.features.state.lists.unpacking import unpack_list
from headrace.features.state.lists.update import STAMP, TEXT, copy_lists, count_lists, run_list
from headrace.features.state.states import Blocks
from headrace.kernels.bit_columns import SPARE
from headrace.kernels.compile import Int, Ints
from headrace.kernels.text_pool import POOL
from headrace.kernels.threads import run_all


@dataclass(frozen=True, slots=True, eq=False)
class ListGroup:
    """Group of one list; see lists/update.py for the arrays.

    `flag` is the flag column that admits an event, `columns` (m,) the bit columns of its values, `kinds` (m,) what they
    are; `timed` whether reads tell times. Its packed form refers to the list `donor` of donor_size elements with
    donor_width values; links (m,) tell which of the donor's values each of ours is, -1 none.
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
    donor: int | None = None
    donor_size: int = 0
    donor_width: int = 0
    links: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def linked(self, earlier: Sequence[Group]) -> "ListGroup":
        """The list with the donor among `earlier` that has most of its values, the longest such; itself if no list."""
        lists = [(number, other) for number, other in enumerate(earlier) if isinstance(other, ListGroup)]
        if not lists:
            return self
        found = {number: _links(self, other) for number, other in lists}
        best, donor = max(lists, key=lambda known: (int((found[known[0]] >= 0).sum()), known[1].size))
        return replace(self, donor=best, donor_size=donor.size, donor_width=len(donor.columns), links=found[best])

    def make(self, capacity: int) -> Blocks:
        """State of `capacity` rows; a row must be cleared before it is used."""
        return Blocks(capacity, self.size * self._stride, self._stride, 0)

    @property
    def _stride(self) -> int:
        """Words of an element."""
        return STAMP + len(self.columns)

    def clear(self, state: Any, rows: NDArray[np.int64]) -> None:
        """Empty rows."""
        state.clear(rows)

    def outputs(self, reads: int, *, close: bool = False) -> Outputs:
        """Answers of `reads` reads, empty: times (reads, N) or (reads, 0), values (reads, N, m), counts (reads,).

        And starts (reads,), the slot of each list's first element, and an empty array. If `close`, times are (0,),
        values (slots, m), and the last array tells how many slots are in use, (1,).
        """
        counts, none = np.zeros(reads, np.int64), np.zeros(0, np.int64)
        if close and not self.timed:
            values = np.empty((reads * self.size, len(self.columns)), np.int64)
            return none, values, counts, np.zeros(reads, np.int64), np.zeros(1, np.int64)
        times = np.zeros((reads, self.size if self.timed else 0), np.int64)
        values = np.zeros((reads, self.size, len(self.columns)), np.int64)
        return times, values, counts, np.arange(reads) * self.size, none

    def placed(self, state: Any, parts: Sequence[Operations], out: Outputs) -> Outputs:
        """`outputs` with a slot for each element that a read may find; `parts` are sorted by row."""
        times, _, counts, starts, filled = out
        if not filled.size:
            return out
        run_all(
            [
                partial(count_lists, state.heads, self.size, self.flag, part.rows, part.ops, part.events.flags, counts)
                for part in parts
            ]
        )
        np.cumsum(counts[:-1], out=starts[1:])
        filled[0] = counts.sum()
        return times, np.empty((int(filled[0]), len(self.columns)), np.int64), counts, starts, filled

    def walk(self, state: Any, number: int, ops: Operations, begin: int, out: Outputs) -> Int:
        """Add events and answer reads, in order, from operation `begin` on."""
        events = ops.events
        times, values, counts, starts, _ = out
        return run_list(
            state.heads,
            state.words,
            state.rooms,
            number,
            self.size,
            self.flag,
            self.columns,
            self.distinct,
            self.strict,
            ops.rows,
            ops.times,
            events.event_ids,
            ops.ops,
            begin,
            events.flags,
            events.bits,
            times.reshape(-1),
            values.reshape(-1),
            starts,
            counts,
        )

    def reaches(
        self,
        events: Events,
        picked: NDArray[np.int64],
        times: NDArray[np.int64],  # noqa: ARG002
        newest: NDArray[np.int64],  # noqa: ARG002
    ) -> NDArray[np.bool_]:
        """Whether each event picked (m,) is wanted: none is too old, it may only be none of the newest."""
        return np.asarray(events.flags[picked, self.flag] != 0, np.bool_)

    def pack(
        self,
        state: Any,
        donor: Any,
        rows: NDArray[np.int64],
        newest: NDArray[np.int64],
        out: NDArray[np.uint8],
        ends: NDArray[np.int64],
    ) -> None:
        """Write rows one after the other."""
        pack_list(
            state.heads,
            state.words,
            self.size,
            self.kinds,
            *self._donated(donor),
            rows,
            newest,
            *POOL.arrays(),
            np.empty((6, self.size), np.int64),
            np.empty(self.size, np.float64),
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
        """Fill empty rows from `data[at:ends]`, or read them, and teach the pool the texts."""
        texts = np.empty((len(rows) * self.size * int((self.kinds == TEXT).sum()), 3), np.int64)
        found, room = np.zeros(1, np.int64), self.size + SPARE
        scratch, column = np.empty((3, room), np.int64), np.empty(room, np.float64)
        read = reading or replace(NO_READS, out=self.outputs(0))
        times, values, counts, starts, filled = read.out

        def walk(begin: int) -> Int:
            return unpack_list(
                state.heads,
                state.words,
                state.rooms,
                self.size,
                self.kinds,
                *self._donated(donor),
                rows,
                newest,
                data,
                at,
                ends,
                begin,
                texts,
                found,
                self.strict,
                read.keeps,
                read.moments,
                read.reads,
                scratch,
                column,
                times.reshape(-1),
                values.reshape(-1),
                starts,
                counts,
                filled,
            )

        state.fill(len(rows), walk)
        if found[0]:
            hashes, starts, stops = np.ascontiguousarray(texts[: found[0]].T)
            POOL.learn(hashes, data, starts, stops)

    def _donated(self, donor: Any) -> tuple[Ints, Ints, int, int, bool, Ints]:
        """What lists/packing.py wants to know of the donor."""
        return donor.heads, donor.words, self.donor_size, self.donor_width, self.donor is not None, self.links


def read_lists(out: Outputs, column: int, lengths: NDArray[np.int64], *, reverses: bool) -> NDArray[np.int64]:
    """One value of the first lengths (n,) elements of each list, newest first or `reverses`, in a form of `Lists`.

    Close lists lie in the order of the reads, so where no slot in use is left out there is nothing to do.
    """
    _, values, counts, starts, filled = out
    width = values.shape[-1]
    is_whole = width == 1 and not reverses and lengths is counts
    if filled.size:
        total = int(lengths.sum())
        if is_whole and total == filled[0]:
            return values.reshape(-1)[:total]
        bits, places = np.empty(total, np.int64), np.cumsum(lengths) - lengths
    elif is_whole:
        return values.reshape(values.shape[:2])
    else:
        bits, places = np.zeros(values.shape[:2], np.int64), starts
    copy_lists(values.reshape(-1), width, column, starts, lengths, reverses, bits.reshape(-1), places)
    return bits


def _links(group: ListGroup, donor: ListGroup) -> NDArray[np.int64]:
    """(m,) the donor's value from the same column as each of the group's, -1 where there is none."""
    theirs = donor.columns.tolist()
    return np.array([theirs.index(x) if x in theirs else -1 for x in group.columns.tolist()], np.int64)
