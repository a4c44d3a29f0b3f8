"""Events and reads as input of groups, and the tuples that pass their arrays to kernels.

Numba compiles named tuples away: their fields become separate arguments. It looks up the type of a plain tuple in C
(0.3 us per call), that of a named one in Python (5 us). So Python passes `plain(...)`, and a kernel first restores the
names: `ops = Ops(*ops)`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compile import Bytes, Floats, Ints, plain

Outputs: TypeAlias = tuple[NDArray[Any], ...]
"""Answers of a group to reads: arrays whose first axis is the read, except for contiguous lists."""
TAKEN, LATE, TOO_LATE, DUPLICATE = 0, 1, 2, 3
"""Marks of an event: applied; left out of a window; left out of all windows; seen before.

A window leaves out an event that no later read of it could include: the event is older than the window that ends at
its entity's newest event, so nothing is lost. An event is too late for a view if some window admits it, but no window,
list or lifetime that admits it still covers its time. It then changed nothing.
"""


class Ops(NamedTuple):
    """Operations and events for kernels; see `Operations` and `Events`."""

    rows: Ints
    times: Ints
    ops: Ints
    event_ids: Ints
    flags: Bytes
    numbers: Floats
    bits: Ints
    late: Bytes


class Packed(NamedTuple):
    """Packed sections of n rows: section i is `data[at[i]:ends[i]]`.

    rows (n,): row to fill. newest (n,): newest event time of its entity. data (bytes,) uint8. at, ends (n,): a reader
    advances `at[i]` past what it read, or sets it to -1 if the bytes are damaged.
    """

    rows: Ints
    newest: Ints
    data: Bytes
    at: Ints
    ends: Ints


class Reads(NamedTuple):
    """Reads of packed rows, if any: row i as of `moments[i]` into answer `reads[i]`. `keeps`: also fill the rows."""

    moments: Ints
    reads: Ints
    keeps: bool


@dataclass(frozen=True, slots=True)
class Events:
    """Columns of e events of a view: event_ids (e,), flags (e, f), numbers (e, v), bits (e, d); ids have 64 bits."""

    event_ids: NDArray[np.int64]
    flags: NDArray[np.uint8]
    numbers: NDArray[np.float64]
    bits: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Operations:
    """Events and reads in the order they happen: rows (n,), times (n,), ops (n,), late (e,).

    `ops[i] >= 0` is the number of a read, otherwise `~ops[i]` is the index of an event. A group sets `late` to LATE for
    an event that is too old for it; see the marks above.
    """

    rows: NDArray[np.int64]
    times: NDArray[np.int64]
    ops: NDArray[np.int64]
    events: Events
    late: NDArray[np.uint8]

    def cut(self, begin: int, end: int) -> "Operations":
        """Operations [begin, end), sharing the event columns."""
        return Operations(self.rows[begin:end], self.times[begin:end], self.ops[begin:end], self.events, self.late)

    def arrays(self) -> Ops:
        """All arrays, for a kernel."""
        events = self.events
        return plain(
            Ops(
                self.rows,
                self.times,
                self.ops,
                events.event_ids,
                events.flags,
                events.numbers,
                events.bits,
                self.late,
            )
        )


_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class PackedReads:
    """Reads of n packed rows as of moments (n,): row i is answered in `out[...][reads[i]]`. `NO_READS` reads nothing.

    `keeps`: also fill the rows, since other groups refer to them.
    """

    moments: NDArray[np.int64]
    reads: NDArray[np.int64]
    keeps: bool
    out: Outputs

    def operations(self, rows: NDArray[np.int64]) -> Operations:
        """Reads of rows (n,) that have been filled."""
        none = Events(_NONE, np.zeros((0, 0), np.uint8), np.zeros((0, 0)), np.zeros((0, 0), np.int64))
        return Operations(rows, self.moments, self.reads, none, np.zeros(0, np.uint8))

    def arrays(self) -> Reads:
        """Arrays of the reads, for a kernel."""
        return plain(Reads(self.moments, self.reads, self.keeps))


NO_READS = PackedReads(_NONE, _NONE, True, ())
