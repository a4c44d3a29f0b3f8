"""A slab: many records of one view in memory, each a row of the groups' arrays.

A record is a function of the set of its events. It does not depend on their order, on how they were batched, or on
whether the record was packed and loaded in between. Float sums agree to 1e-9 relative, everything else to the byte.
Values are exact as of a time after the newest event added; an earlier read may include later events, which
`Answer.ahead` reports. Not thread-safe.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.features.answer import NEVER, Answer
from headrace.features.event_rows import Rows
from headrace.features.keys import KeyTexts
from headrace.features.state.blocks import BlockPool, run_parts
from headrace.features.state.layout import Group
from headrace.features.state.operations import (
    LATE,
    SORTED_MIN,
    TOO_LATE,
    EntityOrder,
    Operations,
    Outputs,
    scatter_late,
)
from headrace.features.state.record import pack_records, unpack_records
from headrace.features.state.seen import SeenIds
from headrace.features.view import ViewPlan
from headrace.kernels.compile import Int, Ints, lean_kernel
from headrace.kernels.id_map import IdMap
from headrace.kernels.spans import Spans, values_of
from headrace.kernels.threads import cut_parts, run_all

GROWTH = 4
"""Factor by which a slab grows. Spare rows cost address space, not memory."""
_GROUP_ROWS = 8_192
"""Records packed or loaded at a time, which bounds the scratch memory."""


class Slab:
    """Records of the view of `plan`, by row. `newest_us[row]` is the newest event time; `drop` frees rows for reuse."""

    def __init__(self, plan: ViewPlan, capacity: int = 1024) -> None:
        self.plan = plan
        self._map = IdMap(capacity)
        self._state: list[BlockPool] = plan.layout.make(capacity)
        self.newest_us = np.full(capacity, NEVER, np.int64)
        self._dirty = np.zeros(capacity, np.bool_)
        self._ids = np.zeros(capacity, np.int64)
        self._texts: dict[int, bytes] = {}  # only keys that are texts
        self._order = EntityOrder()
        self._seen = SeenIds(plan.layout.dedupe_us, capacity) if plan.layout.dedupe_us else None

    def __len__(self) -> int:
        return len(self._map)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that have been in use so far; spare rows are address space only."""
        rows, columns = self._map.high, (self.newest_us, self._dirty, self._ids)
        slab_bytes = sum(state.nbytes(rows) for state in self._state) + sum(column[:rows].nbytes for column in columns)
        return slab_bytes + self._map.nbytes + (self._seen.nbytes(rows) if self._seen else 0)

    def locate(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of each entity, -1 where absent: (n,) -> (n,)."""
        return self._map.get(ids)

    def add(self, ids: NDArray[np.int64], texts: Sequence[bytes]) -> NDArray[np.int64]:
        """Row of each entity, adding absent ones with an empty record: (n,) -> (n,)."""
        rows, is_new = self._map.get_or_add(ids)
        new = np.flatnonzero(is_new)
        new_texts = None if self.plan.key_dtype == "int" else [texts[index] for index in new.tolist()]
        self._admit(ids[new], rows[new], new_texts)
        return rows

    def update(self, rows: Rows, at: NDArray[np.int64] | None = None) -> int:
        """Add events, and entities as needed; their records become dirty. Returns the number of late events.

        `at` (n,): the slab row of each event's entity, if the caller knows it.

        A late event is older than a window that ends at the entity's newest event. It is left out of that window only,
        where no later read would include it.
        """
        marks = self.take_in(rows, at)
        return int(np.count_nonzero((marks == LATE) | (marks == TOO_LATE)))

    def take_in(self, rows: Rows, at: NDArray[np.int64] | None = None) -> NDArray[np.uint8]:
        """Like `update`, but returns for each event (n,) its mark, see operations.py."""
        if at is None:
            at = self.rows_of_events(rows)
        ops = Operations(at, rows.time_us, ~np.arange(len(rows)), rows.events, np.zeros(len(rows), np.uint8))
        self.run(ops, self.plan.layout.outputs(0), np.empty(0, np.int64))
        self.mark_dirty(at)
        return ops.late

    def run(
        self,
        ops: Operations,
        outputs: list[Outputs],
        newest: NDArray[np.int64],
        order: NDArray[np.int64] | None = None,
    ) -> list[Outputs]:
        """Apply events and reads in order; returns `outputs` with the answers, and fills `newest` with event times.

        `newest[i]` gets the newest event time of the row of read i. `order` (n,) is the order in which the operations
        happen, if it differs from their order in `ops`; contiguous outputs require it.
        """
        if order is None and len(ops.late) < SORTED_MIN:
            return self._carry_out(ops, outputs, newest, lambda rows: [(0, len(rows))])
        sorted_ops, source = self._order.sorted(ops, order)
        answers = self._carry_out(sorted_ops, outputs, newest, cut_parts)
        scatter_late(source, sorted_ops.late, ops.late)
        return answers

    def _carry_out(
        self,
        ops: Operations,
        outputs: list[Outputs],
        newest: NDArray[np.int64],
        cut: Callable[[NDArray[np.int64]], list[tuple[int, int]]],
    ) -> list[Outputs]:
        if self._seen is not None:
            ops = self._seen.without_duplicates(ops)
        older = np.empty((len(ops.late), 2), np.int64)
        parts = [ops.cut(begin, end) for begin, end in cut(ops.rows)]
        run_all([partial(run_newest, self.newest_us, part.rows, part.times, part.ops, newest, older) for part in parts])
        groups = self.plan.layout.groups
        answers = [
            group.sized(state, parts, out) for group, state, out in zip(groups, self._state, outputs, strict=True)
        ]
        applies = [
            partial(_apply, group, state, parts, out)
            for group, state, out in zip(groups, self._state, answers, strict=True)
        ]
        run_parts(self._state, applies, [len(part.rows) for part in parts])
        _mark_too_late(groups, ops, older)
        return answers

    def read(
        self,
        rows: NDArray[np.int64],
        now_us: int | NDArray[np.int64],
        request: Mapping[str, pl.Series] | None = None,
    ) -> Answer:
        """Features of rows (n,) as of `now_us`, one time or one per row (n,); row -1 is a missing entity.

        `request`: fields of the request, (n,); without it, features that need one have no value.
        """
        rows = np.require(rows, np.int64, ["C", "W"])
        now = (
            np.full(len(rows), now_us, np.int64)
            if isinstance(now_us, int)
            else np.require(now_us, np.int64, ["C", "W"])
        )
        outputs, newest = self.plan.layout.outputs(len(rows)), np.full(len(rows), NEVER, np.int64)
        self.run(self.plan.layout.read_operations(rows, now), outputs, newest)
        return self.plan.layout.answer(outputs, newest, now, request)

    # Records in and out

    def pack(self, rows: NDArray[np.int64], sequence: int = 0, arrival_us: int = 0) -> list[bytes]:
        """Packed records of rows (n,), with the flush's sequence number and the newest arrival in their headers."""
        sequences = np.full(len(rows), sequence)
        cuts = [slice(start, start + _GROUP_ROWS) for start in range(0, len(rows), _GROUP_ROWS)]
        return [blob for cut in cuts for blob in self.pack_spans(rows[cut], sequences[cut], arrival_us)]

    def pack_spans(self, rows: NDArray[np.int64], sequences: NDArray[np.int64], arrival_us: int) -> Spans:
        """Pack rows with flush sequences (n,). Pass a few thousand rows at most, which bounds the scratch memory."""
        rows = np.require(rows, np.int64, ["C", "W"])
        return pack_records(self.plan, self._state, self.newest_us, rows, sequences, arrival_us, self._seen)

    def load(self, ids: NDArray[np.int64], texts: Sequence[bytes], blobs: Sequence[bytes | None]) -> None:
        """Load packed records into the slab, replacing existing ones; None gives the entity an empty record.

        ids (n,) must be unique. Loaded records are not dirty.

        Raises:
            LayoutError: a record was written by another version of the view, or is damaged.
        """
        self._clear(self._map.get(ids))
        rows = self.add(ids, texts)
        present = [index for index, blob in enumerate(blobs) if blob is not None]
        try:
            for start in range(0, len(present), _GROUP_ROWS):
                picked = present[start : start + _GROUP_ROWS]
                values = values_of([blobs[index] for index in picked])
                unpack_records(self.plan, self._state, self.newest_us, rows[picked], values, self._seen)
        except BaseException:
            self.drop(rows)
            raise

    def drop(self, rows: NDArray[np.int64]) -> None:
        """Remove records (eviction); their rows are reused."""
        self._map.remove(self._ids[rows])
        self._clear(np.require(rows, np.int64, ["C", "W"]))
        if self._texts:
            for row in rows.tolist():
                self._texts.pop(row, None)

    def dirty(self) -> NDArray[np.int64]:
        """Rows whose records changed since `clear_dirty`, ascending."""
        return np.flatnonzero(self._dirty)

    def mark_dirty(self, rows: NDArray[np.int64]) -> None:
        """Mark rows (n,) as changed since they were last packed."""
        self._dirty[rows] = True

    def clear_dirty(self, rows: NDArray[np.int64]) -> None:
        """Mark rows (n,) as unchanged since they were last packed."""
        self._dirty[rows] = False

    def rows(self) -> NDArray[np.int64]:
        """All rows in use, ascending."""
        return self._map.items()[1]

    def ids(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Entity id of each row: (n,)."""
        return self._ids[rows]

    def texts(self, rows: NDArray[np.int64]) -> list[bytes]:
        """Key text of each row."""
        return list(self.key_texts(rows))

    def key_texts(self, rows: NDArray[np.int64]) -> Sequence[bytes]:
        """Key texts of rows (n,); for integer keys without creating an object per text."""
        if self.plan.key_dtype == "int":
            return KeyTexts(self._ids[rows], None)
        return [self._texts[row] for row in rows.tolist()]

    def rows_of_events(self, rows: Rows) -> NDArray[np.int64]:
        """Row (n,) of each event's entity, adding absent ones."""
        at, is_new = self._map.get_or_add(rows.ids)
        new = np.flatnonzero(is_new)
        if new.size:
            self._admit(rows.ids[new], at[new], None if self.plan.key_dtype == "int" else rows.texts(new))
        return at

    def _admit(self, ids: NDArray[np.int64], rows: NDArray[np.int64], texts: Sequence[bytes] | None) -> None:
        """Give new rows (n,) an empty record."""
        if self._map.high > len(self._ids):
            self._grow(max(self._map.high + self._map.high // 4, GROWTH * len(self._ids)))
        self._clear(rows)
        self._ids[rows] = ids
        if texts is not None:
            self._texts.update(zip(rows.tolist(), texts, strict=True))

    def _clear(self, rows: NDArray[np.int64]) -> None:
        rows = rows[rows >= 0]
        if rows.size:
            for state in self._state:
                state.clear(rows)
            if self._seen is not None:
                self._seen.clear(rows)
            self.newest_us[rows] = NEVER
            self._dirty[rows] = False

    def _grow(self, capacity: int) -> None:
        for state in self._state:
            state.grow(capacity)
        if self._seen is not None:
            self._seen.grow(capacity)
        added = capacity - len(self._ids)
        self.newest_us = np.concatenate([self.newest_us, np.full(added, NEVER, np.int64)])
        self._dirty = np.concatenate([self._dirty, np.zeros(added, np.bool_)])
        self._ids = np.concatenate([self._ids, np.zeros(added, np.int64)])


def _apply(group: Group, state: BlockPool, parts: Sequence[Operations], out: Outputs, area: int, begin: int) -> Int:
    return group.apply(state, area, parts[area], begin, out)


def _mark_too_late(groups: tuple[Group, ...], ops: Operations, older: NDArray[np.int64]) -> None:
    """Mark LATE events that no group covers as TOO_LATE; `older` (e, 2) as `run_newest` wrote it."""
    left = np.flatnonzero(ops.late == LATE)
    for group in reversed(groups):  # lists and the longest windows tend to come last, and cover most
        if not left.size:
            return
        times, newest = older[left].T
        left = left[~group.covers(ops.events, left, times, newest)]
    ops.late[left] = TOO_LATE


@lean_kernel
def run_newest(newest: Ints, rows: Ints, times: Ints, ops: Ints, out: Ints, older: Ints) -> None:
    """Update each row's newest event time; a read copies it to out[ops[i]].

    For an event older than its row's newest, `older` (e, 2) gets both times; other rows of it are left unchanged.
    """
    for i in range(rows.size):
        if ops[i] < 0:
            if times[i] < newest[rows[i]]:
                older[~ops[i], 0] = times[i]
                older[~ops[i], 1] = newest[rows[i]]
            else:
                newest[rows[i]] = times[i]
        elif rows[i] >= 0:
            out[ops[i]] = newest[rows[i]]
