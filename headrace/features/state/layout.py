"""What a view keeps for an entity: groups of arrays, and how features are read from them.

    aggregations --bind--> columns of an event (flags, numbers, bits)   what is picked from events, each expression once
                           groups (rings, lists)                        what is kept, shared wherever it is equal
                           readings                                     what is made of it when read

A group is anything with the methods of `Group`; an aggregation that needs another kind of state brings its own. The
fingerprint is a hash of everything that decides the meaning of a record's bytes: names of features are not part of it.
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
    """One kind of state, for all entities by the row of the entity; states are what the group's own `make` gave."""

    @property
    def text(self) -> str:
        """All that decides the meaning of the bytes; part of the fingerprint."""
        ...

    @property
    def needs_ids(self) -> bool:
        """Whether event ids matter."""
        ...

    @property
    def base(self) -> int | None:
        """Number of an earlier group of the view whose rows the packed form may refer to."""
        ...

    def make(self, capacity: int) -> BlockPool:
        """State of `capacity` rows; a row must be cleared before it is used."""
        ...

    def outputs(self, reads: int, *, contiguous: bool = False) -> Outputs:
        """Answers of `reads` reads, as an empty row would give them.

        If `contiguous`, lists may follow each other without gaps; `sized` then gives them their slots.
        """
        ...

    def sized(self, state: BlockPool, parts: Sequence[Operations], out: Outputs) -> Outputs:
        """The arrays `out` with room for all that operations, sorted by row and cut into parts, can return."""
        ...

    def forget(self, out: Outputs, reads: NDArray[np.int64]) -> None:
        """Make answers `reads` (m,) empty again, the last that were written."""
        ...

    def apply(self, state: BlockPool, area: int, ops: Operations, begin: int, out: Outputs) -> Int:
        """Add events and answer reads, in order, from operation `begin` on, in an allocation area of this thread.

        Returns the first operation that found no memory, or their count when all are done. Invariant: the state is a
        function of the set of events.
        """
        ...

    def covers(
        self, events: Events, picked: NDArray[np.int64], times: NDArray[np.int64], newest: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether the group admits each event of picked (m,), and still covers its time.

        newest (m,) is the entity's newest event time by then, times (m,) the event's own.
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
        """Write rows into `out` one after the other; `ends[i]` is where row i ends, also where `out` is too short.

        Bytes of `out` beyond may be written as well, of which ROOM_BYTES are not counted in what is needed. `base` is
        the base's state, the group's own if it has none.
        """
        ...

    def unpack(self, state: BlockPool, base: BlockPool, packed: Packed, reading: PackedReads | None = None) -> None:
        """Fill rows, which are empty, from their packed sections.

        The base's rows must be filled before. With `reading` the rows are read as `apply` would, and filled if need be.
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
    """What a derived feature may use: the features read so far, of n entities, and fields of the request.

    `columns` and `empty` are as in `Answer`; `request` is None where there is no request.
    """

    columns: dict[str, Column]
    empty: dict[str, NDArray[np.bool_]]
    request: Mapping[str, pl.Series] | None
    count: int


@dataclass(frozen=True, slots=True)
class Derived:
    """A feature made of others: `read(what is known)` -> column; `uses` names these, None: it may be any before it."""

    feature: Feature
    read: Callable[[Known], Column | Maybe]
    uses: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Groups and readings of a view; `columns` counts (flags, numbers, bits) of an event; `text` is what is hashed.

    `request` are the fields that a read may bring along, and their types; `dedupe_us` the span in which duplicates are
    known, 0 for none; `unread` are the numbers of groups that no reading needs.
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
        """The layout for readers of the features `names` alone, and of those that they are made of."""
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
        """State of `capacity` rows for each group; a row must be cleared before it is used."""
        return [group.make(capacity) for group in self.groups]

    def with_bases(self, states: Sequence[BlockPool]) -> Iterator[tuple[Group, BlockPool, BlockPool]]:
        """Each group with its state and its base's (its own without a base), of `states` as `make` returns them."""
        for group, state in zip(self.groups, states, strict=True):
            yield group, state, state if group.base is None else states[group.base]

    def outputs(self, reads: int, *, contiguous: bool = False) -> list[Outputs]:
        """Arrays for the answers of `reads` reads, none of groups that are not read; see `Group.outputs`."""
        unread = self.unread
        return [
            group.outputs(0 if number in unread else reads, contiguous=contiguous)
            for number, group in enumerate(self.groups)
        ]

    def no_events(self) -> Events:
        """Events of a run that only reads."""
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
        """Columns from the groups' outputs; newest_us (n,) is each row's newest event time, NEVER where missing.

        `request` has the fields of `self.request`, n long; without it the features that need one have no value.
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
        ahead = newest_us >= now_us  # NEVER is before any moment
        age_us = np.where(exists, np.maximum(now_us - newest_us, 0), -1)
        features = tuple(reading.feature for reading in self.readings)
        return Answer(known.columns, exists, age_us, ahead, features, known.empty)
