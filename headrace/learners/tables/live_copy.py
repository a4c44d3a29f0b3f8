"""LiveCopy: arrays are copied in a thread while rows of them change, so that who changes them hardly waits for it.

    thread    all rows, then those that changed meanwhile, then those that changed during that, until few are left
    finish    those few, and what has changed since: the copy is that of this moment

A row that is copied while it changes is torn, and copied again, for a change is noted after it was made. The last
rounds are short, since fewer rows change during a shorter round.

Source of the idea: Clark et al. (2005), "Live Migration of Virtual Machines", NSDI; section 3, pre-copy.
"""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

ROUNDS_MAX = 8
"""Rounds of the thread: where rows change as fast as they are copied, `finish` must take the rest."""
LEFT_ROWS = 65_536
"""Changed rows with which the thread ends: `finish` copies them in some ten milliseconds."""


class LiveCopy:
    """A copy of the rows of `arrays`, begun at once. `note` and `finish` are for the thread that changes the arrays.

    Args:
        arrays: of one length, replaced by no others while the copy is made.
        rows: how many rows there are now; those that are added later are changed ones.
    """

    def __init__(self, arrays: tuple[NDArray[np.generic], ...], rows: int) -> None:
        self._arrays = arrays
        self._copies = tuple(np.empty_like(array) for array in arrays)
        self._rows = rows
        self._changed: deque[NDArray[np.int64]] = deque()
        self._is_changed = np.zeros(len(arrays[0]) + 1, np.bool_)  # once the thread has ended; -1 is the last
        thread = ThreadPoolExecutor(1, thread_name_prefix="headrace-table-copy")
        self._copied = thread.submit(self._run)
        thread.shutdown(wait=False)

    @property
    def is_near(self) -> bool:
        """Whether `finish` need not wait for the thread."""
        return self._copied.done()

    def note(self, rows: NDArray[np.int64]) -> None:
        """Say, once it is done, that `rows` (n,) have changed; -1 is none of them. The array stays as it is.

        A copy that nobody finishes for long takes no more memory for it: what changes after the thread is marked.
        """
        if self._copied.done():
            self._is_changed[rows] = True
        else:
            self._changed.append(rows)

    def finish(self) -> tuple[NDArray[np.generic], ...]:
        """Copies of the arrays as they are now; they belong to the caller.

        Raises:
            MemoryError: there was no room for what the thread needs.
        """
        self._copied.result()
        self._copy_changed(self._is_changed)
        return self._copies

    def _run(self) -> None:
        for array, copy in zip(self._arrays, self._copies, strict=True):
            copy[: self._rows] = array[: self._rows]  # NumPy leaves the interpreter to others meanwhile
        for _ in range(ROUNDS_MAX):
            if self._copy_changed(np.zeros_like(self._is_changed)) <= LEFT_ROWS:
                break

    def _copy_changed(self, is_changed: NDArray[np.bool_]) -> int:
        """Copy the rows that were noted until now, and those that are marked; returns how many."""
        for _ in range(len(self._changed)):
            is_changed[self._changed.popleft()] = True
        rows = np.flatnonzero(is_changed[:-1])
        for array, copy in zip(self._arrays, self._copies, strict=True):
            copy[rows] = array[rows]
        return len(rows)
