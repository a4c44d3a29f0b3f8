"""LiveCopy: a background copy of arrays while their rows change, so that the training thread waits only briefly.

    thread    copies all rows, then those changed meanwhile, then those changed during that round, until few are left
    finish    copies the rest and later changes, so that the copy is the state at this moment

A row that changes while it is copied may be torn. It is copied again, since a change is noted after it was made. Rounds
get shorter, since fewer rows change during a shorter round.

Source of the idea: Clark et al. (2005), "Live Migration of Virtual Machines", NSDI; section 3, pre-copy.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

ROUNDS_MAX = 8
"""Most rounds of the thread. If rows change as fast as they are copied, `finish` must copy the rest."""
LEFT_ROWS = 65_536
"""Number of changed rows at which the thread ends: `finish` copies so many in some ten milliseconds."""


class LiveCopy:
    """A copy of the rows of `arrays`, started at once. Call `note` and `finish` in the thread that changes the arrays.

    Args:
        arrays: arrays of one length, which must not be replaced while they are copied.
        rows: current number of rows; rows added later count as changed.
    """

    def __init__(self, arrays: tuple[NDArray[np.generic], ...], rows: int) -> None:
        self._arrays = arrays
        self._copies = tuple(np.empty_like(array) for array in arrays)
        self._rows = rows
        self._changed: deque[NDArray[np.int64]] = deque()
        self._is_changed = np.zeros(len(arrays[0]) + 1, np.bool_)  # after the thread's end; row -1 is the last
        thread = ThreadPoolExecutor(1, thread_name_prefix="headrace-table-copy")
        self._copied = thread.submit(self._run)
        thread.shutdown(wait=False)

    @property
    def is_near(self) -> bool:
        """Whether the thread has ended, so that `finish` does not wait for it."""
        return self._copied.done()

    def note(self, rows: NDArray[np.int64]) -> None:
        """Report that `rows` (n,) have changed, after the change; -1 is ignored. `rows` must not be modified later.

        A copy that is not finished for long does not use more and more memory: after the thread, rows are only marked.
        """
        if self._copied.done():
            self._is_changed[rows] = True
        else:
            self._changed.append(rows)

    def finish(self) -> tuple[NDArray[np.generic], ...]:
        """Complete the copy and return copies of the current arrays, owned by the caller.

        Raises:
            MemoryError: the thread ran out of memory.
        """
        self._copied.result()
        self._copy_changed(self._is_changed)
        return self._copies

    def _run(self) -> None:
        for array, copy in zip(self._arrays, self._copies, strict=True):
            copy[: self._rows] = array[: self._rows]  # NumPy releases the GIL meanwhile
        for _ in range(ROUNDS_MAX):
            if self._copy_changed(np.zeros_like(self._is_changed)) <= LEFT_ROWS:
                break

    def _copy_changed(self, is_changed: NDArray[np.bool_]) -> int:
        """Copy the rows noted so far and those marked in `is_changed`; returns their number."""
        for _ in range(len(self._changed)):
            is_changed[self._changed.popleft()] = True
        rows = np.flatnonzero(is_changed[:-1])
        for array, copy in zip(self._arrays, self._copies, strict=True):
            copy[rows] = array[rows]
        return len(rows)
