"""The state of a view's entities: groups of arrays, and the readings that compute features from them.

    aggregations --bind--> columns of an event (flags, numbers, bits)   inputs from events, each expression once
                           groups (rings, lists, tallies)               state, shared wherever it is equal
                           readings                                     features computed from the state

A group is any object with the methods of `Group`; a new kind of state is a new implementation. The fingerprint is a
hash of everything that determines the meaning of a record's bytes. Feature names are not part of it.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.features.answer import NEVER, Answer, Column, Feature, Maybe
from headrace.features.state.blocks import BlockPool
from headrace.features.state.operations import Events, Operations, Outputs, Packed, PackedReads
from headrace.kernels.compile import Int

RECORD_VERSION = 3


class Group(Protocol):
    """One kind of state for all entities, indexed by row. `state` arguments come from the group's own `make`."""

    @property
    def text(self) -> str:
        """Everything that determines the meaning of the bytes; part of the fingerprint."""
        ...

    @property
    def needs_ids(self) -> bool:
        """Whether the group uses event ids."""
        ...

    @property
    def base(self) -> int | None:
        """Number of an earlier group of the view whose rows the packed form may refer to, None for none."""
        ...

    def make(self, capacity: int) -> BlockPool:
        """State of `capacity` rows; a row must be cleared before its first use."""
        ...

    def outputs(self, reads: int, *, contiguous: bool = False) -> Outputs:
        """Output arrays for `reads` reads, initialised as for an empty row.

        If `contiguous`, lists may be stored without gaps; `sized` then assigns their slots.
        """
        ...

    def sized(self, state: BlockPool, parts: Sequence[Operations], out: Outputs) -> Outputs:
        """Return `out` with room for everything that the reads in `parts` can return; parts are sorted by row."""
        ...

    def forget(self, out: Outputs, reads: NDArray[np.int64]) -> None:
        """Reset the answers `reads` (m,), which must be the last ones written, to empty."""
        ...

    def apply(self, state: BlockPool, area: int, ops: Operations, begin: int, out: Outputs) -> Int:
        """Add events and answer reads, in order, from operation `begin` on, in this thread's allocation area.

        Returns the first operation that ran out of memory, or the operation count when all are done. Invariant: the
        state is a function of the set of events.
        """
        ...

    def covers(
        self, events: Events, picked: NDArray[np.int64], times: NDArray[np.int64], newest: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether the group admits each event of picked (m,), and still covers its time.

        newest (m,) is the entity's newest event time when the event was applied, times (m,) the event time.
        """
        ...

    def pack(
        self,
        state: BlockPool,
        base: BlockPool,
        rows: NDArray[np.int64],
        newest: NDArray[np.int64],
        out: NDArray[np.uint8],
        ends: NDArray[np.int64],
    ) -> None:
        """Write rows into `out` one after the other; `ends[i]` is the end of row i, even if `out` is too short.

        Up to ROOM_BYTES of `out` beyond the last end may be overwritten; `ends` does not include them. `base` is the
        state of the base group, or the group's own state if it has no base.
        """
        ...

    def unpack(self, state: BlockPool, base: BlockPool, packed: Packed, reading: PackedReads | None = None) -> None:
        """Fill empty rows from their packed sections.

        The base's rows must be filled before. With `reading`, answer the reads as `apply` would; the rows then need to
        be filled only if other groups refer to them.
        """
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """A feature read from one group: `read(outputs of the group, now_us (n,))` -> column."""

    feature: Feature
    group: int
    read: Callable[[Outputs, NDArray[np.int64]], Column | Maybe]


@dataclass(frozen=True, slots=True)
class Known:
    """Inputs of a derived feature: the features of n entities read so far, and the fields of the request.

    `columns` and `empty` are as in `Answer`; `request` is None without a request.
    """

    columns: dict[str, Column]
    empty: dict[str, NDArray[np.bool_]]
    request: Mapping[str, pl.Series] | None
    count: int


@dataclass(frozen=True, slots=True)
class Derived:
    """A feature computed from others: `read(known)` -> column. `uses` names its inputs; None: any feature before it."""

    feature: Feature
    read: Callable[[Known], Column | Maybe]
    uses: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Groups and readings of a view.

    Attributes:
        columns: numbers of flag, number and bit columns of an event.
        text: the text that the fingerprint hashes.
        request: fields that a read may pass in, and their types.
        dedupe_us: span in which duplicates are recognised, 0 for none.
        unread: numbers of the groups that no reading needs.
    """

    groups: tuple[Group, ...]
    readings: tuple[Reading | Derived, ...]
    columns: tuple[int, int, int]
    needs_ids: bool
    text: str
    request: Mapping[str, pl.DataType] = field(default_factory=dict)
    dedupe_us: int = 0
    unread: frozenset[int] = frozenset()

    def only(self, names: Collection[str]) -> "Layout":
        """The layout for reading only the features `names` and the features that they are computed from."""
        needed, readings = set(names), []
        for index in range(len(self.readings) - 1, -1, -1):
            reading = self.readings[index]
            if reading.feature.name in needed:
                readings.append(reading)
                if isinstance(reading, Derived):
                    before = (earlier.feature.name for earlier in self.readings[:index])
                    needed |= set(before if reading.uses is None else reading.uses)
        read = {reading.group for reading in readings if isinstance(reading, Reading)}
        unread = frozenset(range(len(self.groups))) - read
        return replace(self, readings=tuple(reversed(readings)), unread=unread)

    def make(self, capacity: int) -> list[BlockPool]:
        """State of `capacity` rows for each group; a row must be cleared before its first use."""
        return [group.make(capacity) for group in self.groups]

    def with_bases(self, states: Sequence[BlockPool]) -> Iterator[tuple[Group, BlockPool, BlockPool]]:
        """Each group with its state and its base's state (its own without a base); `states` are those of `make`."""
        for group, state in zip(self.groups, states, strict=True):
            yield group, state, state if group.base is None else states[group.base]

    def outputs(self, reads: int, *, contiguous: bool = False) -> list[Outputs]:
        """Output arrays of each group for `reads` reads, empty for groups that are not read; see `Group.outputs`."""
        unread = self.unread
        return [
            group.outputs(0 if number in unread else reads, contiguous=contiguous)
            for number, group in enumerate(self.groups)
        ]

    def no_events(self) -> Events:
        """The events of a run that only reads: none."""
        flags, numbers, bits = self.columns
        return Events(
            np.zeros(0, np.int64),
            np.zeros((0, flags), np.uint8),
            np.zeros((0, numbers), np.float64),
            np.zeros((0, bits), np.int64),
        )

    def read_operations(self, rows: NDArray[np.int64], now_us: NDArray[np.int64]) -> Operations:
        """Reads of rows (n,) as of now_us (n,)."""
        return Operations(rows, now_us, np.arange(len(rows)), self.no_events(), np.zeros(0, np.uint8))

    def answer(
        self,
        outputs: list[Outputs],
        newest_us: NDArray[np.int64],
        now_us: NDArray[np.int64],
        request: Mapping[str, pl.Series] | None = None,
    ) -> Answer:
        """Compute the features from the groups' outputs; newest_us (n,) is each row's newest event time, NEVER if none.

        `request` has the fields of `self.request`, (n,) each; without it, the features that need one have no value.
        """
        known = Known({}, {}, request, len(now_us))
        for reading in self.readings:
            name = reading.feature.name
            if isinstance(reading, Reading):
                column = reading.read(outputs[reading.group], now_us)
            else:
                column = reading.read(known)
            if isinstance(column, Maybe):
                known.columns[name], known.empty[name] = column.values, column.empty
            else:
                known.columns[name] = column
        exists = newest_us != NEVER
        ahead = newest_us >= now_us  # NEVER is before any read time
        age_us = np.where(exists, np.maximum(now_us - newest_us, 0), -1)
        features = tuple(reading.feature for reading in self.readings)
        return Answer(known.columns, exists, age_us, ahead, features, known.empty)
