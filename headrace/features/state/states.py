"""What the groups of a view keep for the rows of a slab: blocks of words that the rows share."""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.features.state.blocks import END, FREE, NEXT, ORDERS, clear_blocks
from headrace.kernels.compile import LINE_WORDS, Int
from headrace.kernels.threads import run_all

EXTENT_MIN, GROWTH_MIN, GROWTH = 4_096, 1 << 24, 4
"""Words that a part is given at least; words, and times the words, that there is room for at least after growing.

Room to spare costs address space, not memory; growing copies what is in use.
"""


Walk: TypeAlias = Callable[[int, int], Int]
"""(number of a part, first operation) -> the first operation that found no room, their count when all are done."""


class Blocks:
    """Rows with a block each, of up to `largest` words, see state/blocks.py; a row must be cleared before it is used.

    An element takes `width` words; `own` is the group's number of an empty row. Several threads may work on rows of
    their own, each as another part.
    """

    def __init__(self, capacity: int, largest: int, width: int, own: int) -> None:
        self._own, self._largest, self._width = own, largest, width
        self._lock = threading.Lock()
        self.heads = _heads(capacity)
        self.rooms = _rooms(1)
        self._used = 0
        self._adopt(_from_a_line(np.empty, max(EXTENT_MIN, largest)))

    def clear(self, rows: NDArray[np.int64]) -> None:
        """Empty rows (n,)."""
        clear_blocks(self.heads, self.words, self.rooms, self._own, rows)

    def grow(self, capacity: int) -> None:
        """Have `capacity` rows; those that there were keep what they hold."""
        heads = _heads(capacity)
        heads[: len(self.heads)] = self.heads
        self.heads = heads

    def nbytes(self, rows: int) -> int:
        """Memory, of which rows past the first `rows` take none."""
        return self.heads[:rows].nbytes + 8 * self._used

    def fill(self, count: int, work: Callable[[int], Int]) -> None:
        """Have `work(begin)` done from 0 to `count`; it returns where it found no room, and goes on there."""
        begin = 0
        while (begin := int(work(begin))) < count:
            self.extend(0, count - begin)

    def have_parts(self, count: int) -> None:
        """Let there be parts 0 to `count`; while no thread is at work."""
        if count > len(self.rooms):
            self.rooms = np.concatenate([self.rooms, _rooms(count - len(self.rooms))])

    def extend(self, number: int, elements: int, *, in_place: bool = False) -> bool:
        """Give a part another extent, for as many elements if there can be; whether it was given.

        Others may be at work meanwhile only if it is `in_place`: then there must be room for it already.
        """
        size = max(EXTENT_MIN, self._largest, elements * self._width)
        with self._lock:
            if self._used + size > len(self.words):
                if in_place:
                    return False
                grown = _from_a_line(np.empty, max(GROWTH * len(self.words), GROWTH_MIN, self._used + size))
                grown[: self._used] = self.words[: self._used]
                self._adopt(grown)
            if self.rooms[number, END] != self._used:  # another part's is in between
                self.rooms[number, NEXT] = self._used
            self._used += size
            self.rooms[number, END] = self._used
            return True

    def _adopt(self, words: NDArray[np.int64]) -> None:
        self.words, self.floats = words, words.view(np.float64)


def run_parts(states: Sequence[Blocks], walks: Sequence[Walk], counts: Sequence[int]) -> None:
    """Have every walk, one a state, done for every part, from 0 to its count; the parts side by side."""
    for state in states:
        state.have_parts(len(counts))
    to_come = {number: (0, 0) for number, count in enumerate(counts) if count}
    while to_come:
        works = [partial(_run_part, states, walks, number, counts[number], *at) for number, at in to_come.items()]
        to_come = {number: at for number, at in zip(to_come, run_all(works), strict=True) if at is not None}
        for number, (which, begin) in to_come.items():
            states[which].extend(number, counts[number] - begin)


def _run_part(
    states: Sequence[Blocks], walks: Sequence[Walk], number: int, count: int, which: int, begin: int
) -> tuple[int, int] | None:
    """The walks of a part from number `which` on; returns where one waits for its state to grow, None at the end.

    Blocks cannot grow while others are at work in them.
    """
    for index in range(which, len(walks)):
        while (begin := int(walks[index](number, begin))) < count:
            if not states[index].extend(number, count - begin, in_place=True):
                return index, begin
        begin = 0
    return None


def _from_a_line(make: Callable[..., NDArray[np.int64]], count: int) -> NDArray[np.int64]:
    """Words (count,) by np.zeros or np.empty, from the beginning of a line of memory on.

    NumPy's large arrays begin 16 bytes into one, where every second head is in two: two misses in place of one.
    """
    words = make(count + LINE_WORDS, np.int64)
    skip = -(words.ctypes.data // words.itemsize) % LINE_WORDS
    return words[skip : skip + count]


def _heads(capacity: int) -> NDArray[np.int64]:
    """Heads (capacity, 4) of rows that have nothing yet; none is in two lines."""
    return _from_a_line(np.zeros, 4 * capacity).reshape(capacity, 4)


def _rooms(parts: int) -> NDArray[np.int64]:
    """Rooms of parts that have nothing yet."""
    rooms = np.full((parts, FREE + ORDERS), -1, np.int64)
    rooms[:, NEXT] = rooms[:, END] = 0
    return rooms
