"""What becomes of an event: taken in, left out of some windows, too late for all of them, or a duplicate.

A window leaves an event out that it could never show again: the event is older than the window that ends at its
entity's newest event. That loses nothing. An event is too late for a view when this is all that happened to it: some
window wanted it, and no window, list or lifetime that wanted it still reaches back to it. It changed nothing then.
"""

import numpy as np
from numpy.typing import NDArray

from headrace.features.kernels.seen_ids import DUPLICATE as DUPLICATE  # noqa: PLC0414
from headrace.features.layout import Events, Group, Operations

TAKEN, LATE, TOO_LATE = 0, 1, 2
"""Marks of an event in `Operations.late`, beside DUPLICATE; LATE: left out of some window, TOO_LATE: of all."""


def mark_too_late(groups: tuple[Group, ...], ops: Operations, newest_then: NDArray[np.int64]) -> None:
    """Make LATE events TOO_LATE that no group reaches; newest_then (e,): their entity's newest time as they came."""
    late = np.flatnonzero(ops.late == LATE)
    if not late.size:
        return
    is_event = ops.ops < 0
    times = np.empty(len(ops.late), np.int64)
    times[~ops.ops[is_event]] = ops.times[is_event]
    found = ops.events
    events = Events(found.event_ids[late], found.flags[late], found.numbers[late], found.bits[late])
    reached = np.zeros(late.size, np.bool_)
    for group in groups:
        reached |= group.reaches(events, times[late], newest_then[late])
    ops.late[late[~reached]] = TOO_LATE
