"""What the groups of a view keep for the rows of a slab: plain arrays by row, or blocks of words that rows share."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.features.kernels.blocks import END, FREE, NEXT, ORDERS, clear_blocks
from headrace.features.kernels.compile import Int
from headrace.features.threads import run_all

EXTENT_MIN, GROWTH_MIN, GROWTH = 4_096, 1 << 24, 4
"""Words that a part is given at least; words, and times the words, that there is room for at least after growing.

Room to spare costs address space, not memory; growing copies what is in use.
"""


class State(Protocol):
    """State of some rows."""

    def grow(self, capacity: int) -> None:
        """Have `capacity` rows; those that there were keep what they hold."""
        ...

    def nbytes(self, rows: int) -> int:
        """Memory, of which rows past the first `rows` take none."""
        ...


class Arrays:
    """Arrays whose first axis is the row, as `make(capacity)` makes them."""

    def __init__(self, make: Callable[[int], tuple[NDArray[Any], ...]], capacity: int) -> None:
        self._make = make
        self.arrays = make(capacity)

    def grow(self, capacity: int) -> None:
        """See `State`."""
        grown = self._make(capacity)
        for old, new in zip(self.arrays, grown, strict=True):
            new[: len(old)] = old
        self.arrays = grown

    def nbytes(self, rows: int) -> int:
        """See `State`."""
        return sum(array[:rows].nbytes for array in self.arrays)


class Blocks:
    """Rows with a block each, of up to `largest` words, see kernels/blocks.py; a row must be cleared before it is used.

    `own` is the group's number of an empty row. Several threads may work on rows of their own, each as another part.
    """

    def __init__(self, capacity: int, largest: int, own: int) -> None:
        self._own, self._largest = own, largest
        self.heads = np.zeros((capacity, 4), np.int64)
        self.rooms = _rooms(1)
        self._used = 0
        self._adopt(np.empty(max(EXTENT_MIN, largest), np.int64))

    def clear(self, rows: NDArray[np.int64]) -> None:
        """Empty rows (n,)."""
        clear_blocks(self.heads, self.words, self.rooms, self._own, rows)

    def grow(self, capacity: int) -> None:
        """See `State`."""
        heads = np.zeros((capacity, 4), np.int64)
        heads[: len(self.heads)] = self.heads
        self.heads = heads

    def nbytes(self, rows: int) -> int:
        """See `State`."""
        return self.heads[:rows].nbytes + 8 * self._used

    def fill(self, counts: Sequence[int], width: int, work: Callable[[int, int], Int]) -> None:
        """Have `work(part, begin)` done for every part, side by side, from 0 to its count.

        It returns where it found no room, and is then called again from there. An element takes `width` words.
        """
        if len(counts) == 1:
            begin = 0
            while (begin := int(work(0, begin))) < counts[0]:
                self._extend(0, (counts[0] - begin) * width)
            return
        if len(counts) > len(self.rooms):
            self.rooms = np.concatenate([self.rooms, _rooms(len(counts) - len(self.rooms))])
        waiting = {number: 0 for number, count in enumerate(counts) if count}
        while waiting:
            stops = run_all([partial(work, number, begin) for number, begin in waiting.items()])
            waiting = {number: int(stop) for number, stop in zip(waiting, stops, strict=True) if stop < counts[number]}
            for number, begin in waiting.items():
                self._extend(number, (counts[number] - begin) * width)

    def _extend(self, number: int, likely: int) -> None:
        """Give a part another extent, of the words that it is likely to need."""
        size = max(EXTENT_MIN, self._largest, likely)
        if self._used + size > len(self.words):
            grown = np.empty(max(GROWTH * len(self.words), GROWTH_MIN, self._used + size), np.int64)
            grown[: self._used] = self.words[: self._used]
            self._adopt(grown)
        if self.rooms[number, END] != self._used:  # another part's is in between
            self.rooms[number, NEXT] = self._used
        self._used += size
        self.rooms[number, END] = self._used

    def _adopt(self, words: NDArray[np.int64]) -> None:
        self.words, self.floats = words, words.view(np.float64)


def _rooms(parts: int) -> NDArray[np.int64]:
    """Rooms of parts that have nothing yet."""
    rooms = np.full((parts, FREE + ORDERS), -1, np.int64)
    rooms[:, NEXT] = rooms[:, END] = 0
    return rooms
