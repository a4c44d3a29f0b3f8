"""A list group: the N newest events of an entity, with some values of each."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from headrace.features.state.blocks import BlockPool
from headrace.features.state.layout import Group
from headrace.features.state.lists.packing import ListBase, PackScratch, pack_list
from headrace.features.state.lists.unpacking import ReadScratch, unpack_list
from headrace.features.state.lists.update import STAMP, TEXT, List, ListOut, copy_lists, count_lists, run_list
from headrace.features.state.operations import NO_READS, Events, Operations, Outputs, Packed, PackedReads
from headrace.kernels.bit_columns import SPARE
from headrace.kernels.compile import Int, plain
from headrace.kernels.texts import POOL, TextLines
from headrace.kernels.threads import run_all


@dataclass(frozen=True, eq=False)
class ListGroup:
    """The group of one list. size to kinds are as in `List`; `timed`: whether reads return event times.

    The packed form may refer to the group number `base`, a list of base_size elements with base_width values; links
    (m,) map each value of this list to the base's value, -1 if the base lacks it. See lists/packing.py.
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
    base: int | None = None
    base_size: int = 0
    base_width: int = 0
    links: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def linked(self, earlier: Sequence[Group]) -> "ListGroup":
        """Choose a base: the `earlier` list that shares most of its values, and the longest of several.

        Returns the list itself if there is no earlier list.
        """
        lists = [(number, other) for number, other in enumerate(earlier) if isinstance(other, ListGroup)]
        if not lists:
            return self
        links = {number: _links(self, other) for number, other in lists}
        number, base = max(lists, key=lambda known: (int((links[known[0]] >= 0).sum()), known[1].size))
        return replace(self, base=number, base_size=base.size, base_width=len(base.columns), links=links[number])

    def make(self, capacity: int) -> BlockPool:
        """State of `capacity` rows; a row must be cleared before its first use."""
        stride = STAMP + len(self.columns)
        return BlockPool(capacity, self.size * stride, stride, 0)

    def outputs(self, reads: int, *, contiguous: bool = False) -> Outputs:
        """Empty answers of `reads` reads, in the order of `ListOut`.

        times (reads, N), or (reads, 0) if times are not read; values (reads, N, m); counts (reads,); starts (reads,),
        the slot of each list's first element; filled (0,). If `contiguous`, times are (0,), values (slots, m), and
        filled (1,) counts the slots in use.
        """
        counts, none = np.zeros(reads, np.int64), np.zeros(0, np.int64)
        if contiguous and not self.timed:
            values = np.empty((reads * self.size, len(self.columns)), np.int64)
            return none, values, counts, np.zeros(reads, np.int64), np.zeros(1, np.int64)
        times = np.zeros((reads, self.size if self.timed else 0), np.int64)
        values = np.zeros((reads, self.size, len(self.columns)), np.int64)
        return times, values, counts, np.arange(reads) * self.size, none

    def sized(self, state: BlockPool, parts: Sequence[Operations], out: Outputs) -> Outputs:
        """`out` with a slot for each element that a read may return; `parts` are sorted by row."""
        times, _, counts, starts, filled = out
        if not filled.size:
            return out
        heads = state.blocks[0]
        run_all(
            [
                partial(count_lists, heads, self.size, self.flag, part.rows, part.ops, part.events.flags, counts)
                for part in parts
            ]
        )
        np.cumsum(counts[:-1], out=starts[1:])
        filled[0] = counts.sum()
        return times, np.empty((int(filled[0]), len(self.columns)), np.int64), counts, starts, filled

    def forget(self, out: Outputs, reads: NDArray[np.int64]) -> None:
        """Reset the answers `reads` (m,), which must be the last ones written, to empty."""
        times, values, counts, _, filled = out
        counts[reads] = 0
        if filled.size:
            filled[0] = counts.sum()  # slots are assigned in the order of the reads
        else:
            times[reads], values[reads] = 0, 0

    def apply(self, state: BlockPool, area: int, ops: Operations, begin: int, out: Outputs) -> Int:
        """Add events and answer reads, in order, from operation `begin` on."""
        return run_list(state.blocks, area, self._list, ops.arrays(), begin, _out_arrays(out))

    def covers(
        self,
        events: Events,
        picked: NDArray[np.int64],
        times: NDArray[np.int64],  # noqa: ARG002
        newest: NDArray[np.int64],  # noqa: ARG002
    ) -> NDArray[np.bool_]:
        """Whether the list admits each event of picked (m,). A list covers any time, even if the event is not kept."""
        return np.asarray(events.flags[picked, self.flag] != 0, np.bool_)

    def pack(
        self,
        state: BlockPool,
        base: BlockPool,
        rows: NDArray[np.int64],
        newest: NDArray[np.int64],
        out: NDArray[np.uint8],
        ends: NDArray[np.int64],
    ) -> None:
        """Write rows one after the other."""
        scratch = plain(PackScratch(np.empty((6, self.size), np.int64), np.empty(self.size, np.float64)))
        pack_list(state.blocks, self._list, base.blocks, self._base, rows, newest, POOL.arrays(), scratch, out, ends)

    def unpack(self, state: BlockPool, base: BlockPool, packed: Packed, reading: PackedReads | None = None) -> None:
        """Fill empty rows or answer reads, and add the texts to the pool."""
        lines = TextLines.of(len(packed.rows) * self.size * int((self.kinds == TEXT).sum()))
        room = self.size + SPARE
        scratch = plain(ReadScratch(np.empty((3, room), np.int64), np.empty(room, np.float64)))
        reads = reading or replace(NO_READS, out=self.outputs(0))
        arrays, texts, moments, out = plain(packed), plain(lines), reads.arrays(), _out_arrays(reads.out)
        spec, list_base = self._list, self._base
        state.fill(
            len(packed.rows),
            lambda begin: unpack_list(
                state.blocks, spec, base.blocks, list_base, arrays, begin, texts, moments, scratch, out
            ),
        )
        POOL.learn_lines(lines, packed.data)

    @cached_property
    def _list(self) -> List:
        return plain(List(self.size, self.flag, self.columns, self.kinds, self.distinct, self.strict))

    @cached_property
    def _base(self) -> ListBase:
        return plain(ListBase(self.base_size, self.base_width, self.base is not None, self.links))


def read_lists(out: Outputs, column: int, lengths: NDArray[np.int64], *, reverses: bool) -> NDArray[np.int64]:
    """One value of the first lengths (n,) elements of each list, newest first unless `reverses`, in a form of `Lists`.

    Contiguous lists are in the order of the reads, so nothing is copied if every slot in use is read.
    """
    _, values, counts, starts, filled = out
    width = values.shape[-1]
    is_whole = width == 1 and not reverses and lengths is counts
    if filled.size:
        total = int(lengths.sum())
        if is_whole and total == filled[0]:
            return values.reshape(-1)[:total]
        bits, to = np.empty(total, np.int64), np.cumsum(lengths) - lengths
    elif is_whole:
        return values.reshape(values.shape[:2])
    else:
        bits, to = np.zeros(values.shape[:2], np.int64), starts
    copy_lists(values.reshape(-1), width, column, starts, lengths, reverses, bits.reshape(-1), to)
    return bits


def _out_arrays(out: Outputs) -> ListOut:
    times, values, counts, starts, filled = out
    return plain(ListOut(times.reshape(-1), values.reshape(-1), counts, starts, filled))


def _links(group: ListGroup, base: ListGroup) -> NDArray[np.int64]:
    """(m,) for each value of the group, the base's value from the same column, -1 if the base lacks it."""
    base_columns = base.columns.tolist()
    return np.array([base_columns.index(x) if x in base_columns else -1 for x in group.columns.tolist()], np.int64)
