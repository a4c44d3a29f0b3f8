"""What becomes of an event: taken in, left out of some windows, too late for all of them, or a duplicate.

A window leaves an event out that it could never show again: the event is older than the window that ends at its
entity's newest event. That loses nothing. An event is too late for a view when this is all that happened to it: some
window wanted it, and no window, list or lifetime that wanted it still reaches back to it. It changed nothing then.
"""

import numpy as np
from numpy.typing import NDArray

from headrace.features.state.layout import Group, Operations
from headrace.features.state.seen_kernels import DUPLICATE as DUPLICATE  # noqa: PLC0414

TAKEN, LATE, TOO_LATE = 0, 1, 2
"""Marks of an event in `Operations.late`, beside DUPLICATE; LATE: left out of some window, TOO_LATE: of all."""


def mark_too_late(groups: tuple[Group, ...], ops: Operations, older: NDArray[np.int64]) -> None:
    """Make LATE events TOO_LATE that no group reaches; `older` (e, 2) as `run_newest` wrote it."""
    left = np.flatnonzero(ops.late == LATE)
    for group in reversed(groups):  # lists and the longest windows tend to come last, and reach most
        if not left.size:
            return
        times, newest = older[left].T
        left = left[~group.reaches(ops.events, left, times, newest)]
    ops.late[left] = TOO_LATE
