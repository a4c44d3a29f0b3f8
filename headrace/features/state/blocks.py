"""A pool of word blocks for the rows of a group: each row holds one block, whose size doubles as it fills.

    heads (rows, 4) int64    START: first word of the row's block | ORDER: its size class, 0 for none
                             COUNT: elements in use | TAG: one number that belongs to the group
    words (a,) int64         all blocks; floats (a,) is the same memory as float64
    free (areas, 2 + ORDERS) allocation areas, each used by one thread at a time:
                             NEXT: first word never handed out | END: where the area ends
                             FREE + order: first free block of that order, -1 for none; a free block holds the first
                             word of the next free one in its own first word

A block of order o fits `least << (o - 1)` elements, at most `most`. Invariant: blocks of different rows never overlap,
and the memory of a cleared row goes to the free list of its order, so a warmed-up pool stops growing. A kernel that
runs out of memory returns the operation at which it stopped; after `extend` it is called again from there.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compile import LINE_WORDS, Floats, Int, Ints, lean_kernel, part, plain
from headrace.kernels.threads import run_all

START, ORDER, COUNT, TAG = 0, 1, 2, 3
NEXT, END, FREE = 0, 1, 2
ORDERS = 22
"""Size classes: the largest block has 2**21 times the least elements."""
EXTENT_MIN, GROWTH_MIN, GROWTH = 4_096, 1 << 24, 4
"""Words of the smallest extent of an area; minimum words, and factor, by which the memory of a pool grows.

Spare memory costs address space only, whereas growing copies the memory in use.
"""


class Blocks(NamedTuple):
    """Arrays of a pool for kernels; see the module docstring for their layout."""

    heads: Ints
    words: Ints
    floats: Floats
    free: Ints


Apply: TypeAlias = Callable[[int, int], Int]
"""(area, first operation) -> the first operation that ran out of memory, or the operation count when all are done."""


class BlockPool:
    """A pool of rows with one block each, of up to `largest` words. A row must be cleared before its first use.

    An element takes `width` words; an empty row has the tag `tag`. Several threads may work on disjoint rows, each in
    its own allocation area.
    """

    def __init__(self, capacity: int, largest: int, width: int, tag: int) -> None:
        self._tag, self._largest, self._width = tag, largest, width
        self._lock = threading.Lock()
        self._heads, self._free = _empty_heads(capacity), _empty_areas(1)
        self._used = 0
        self._words = _aligned(np.empty, max(EXTENT_MIN, largest))
        self._publish()

    def clear(self, rows: NDArray[np.int64]) -> None:
        """Empty rows (n,) and free their blocks."""
        clear_blocks(self.blocks, self._tag, rows)

    def grow(self, capacity: int) -> None:
        """Grow to `capacity` rows, keeping the contents of existing rows."""
        heads = _empty_heads(capacity)
        heads[: len(self._heads)] = self._heads
        self._heads = heads
        self._publish()

    def nbytes(self, rows: int) -> int:
        """Bytes in use, assuming that only the first `rows` rows are."""
        return self._heads[:rows].nbytes + 8 * self._used

    def fill(self, count: int, work: Callable[[int], Int]) -> None:
        """Run `work(begin)` from 0 until it returns `count`, extending area 0 each time it runs out of memory."""
        begin = 0
        while (begin := int(work(begin))) < count:
            self.extend(0, count - begin)

    def ensure_areas(self, count: int) -> None:
        """Ensure allocation areas 0..count-1 exist. Must not run concurrently with workers."""
        if count > len(self._free):
            self._free = np.concatenate([self._free, _empty_areas(count - len(self._free))])
            self._publish()

    def extend(self, area: int, elements: int, *, in_place: bool = False) -> bool:
        """Give an area another extent, sized for `elements` elements; returns whether there was memory for it.

        Pass `in_place` while other threads work in the pool: memory is then not moved, and may not suffice.
        """
        size = max(EXTENT_MIN, self._largest, elements * self._width)
        with self._lock:
            if self._used + size > len(self._words):
                if in_place:
                    return False
                grown = _aligned(np.empty, max(GROWTH * len(self._words), GROWTH_MIN, self._used + size))
                grown[: self._used] = self._words[: self._used]
                self._words = grown
                self._publish()
            if self._free[area, END] != self._used:  # not adjacent: another area's extent lies in between
                self._free[area, NEXT] = self._used
            self._used += size
            self._free[area, END] = self._used
            return True

    def _publish(self) -> None:
        words = self._words
        self.blocks: Blocks = plain(Blocks(self._heads, words, words.view(np.float64), self._free))


def run_parts(pools: Sequence[BlockPool], applies: Sequence[Apply], counts: Sequence[int]) -> None:
    """Run each function of `applies`, one per pool, on each part; part i has `counts[i]` operations.

    Parts run in parallel, part i in allocation area i. Pools grow only between rounds, when no thread works in them.
    """
    for pool in pools:
        pool.ensure_areas(len(counts))
    pending = {area: (0, 0) for area, count in enumerate(counts) if count}
    while pending:
        works = [partial(_run_part, pools, applies, area, counts[area], *state) for area, state in pending.items()]
        pending = {area: state for area, state in zip(pending, run_all(works), strict=True) if state is not None}
        for area, (index, begin) in pending.items():
            pools[index].extend(area, counts[area] - begin)


def _run_part(
    pools: Sequence[BlockPool], applies: Sequence[Apply], area: int, count: int, first: int, begin: int
) -> tuple[int, int] | None:
    """Run a part, starting with `applies[first]` at operation `begin`.

    Returns (pool, operation) if the pool must grow first, None when the part is done.
    """
    for index in range(first, len(applies)):
        while (begin := int(applies[index](area, begin))) < count:
            if not pools[index].extend(area, count - begin, in_place=True):
                return index, begin
        begin = 0
    return None


def _aligned(make: Callable[..., NDArray[np.int64]], count: int) -> NDArray[np.int64]:
    """Words (count,) of np.zeros or np.empty, aligned to a cache line.

    NumPy's large arrays start 16 bytes into a line, so every second head would straddle two lines and cost two misses.
    """
    words = make(count + LINE_WORDS, np.int64)
    skip = -(words.ctypes.data // words.itemsize) % LINE_WORDS
    return words[skip : skip + count]


def _empty_heads(capacity: int) -> NDArray[np.int64]:
    """Heads (capacity, 4) of rows without a block."""
    return _aligned(np.zeros, 4 * capacity).reshape(capacity, 4)


def _empty_areas(count: int) -> NDArray[np.int64]:
    """Areas (count, 2 + ORDERS) without memory or free blocks."""
    free = np.full((count, FREE + ORDERS), -1, np.int64)
    free[:, NEXT] = free[:, END] = 0
    return free


@part
def room_of(order: Int, least: Int, most: Int) -> Int:
    """Number of elements that fit into a block of the given order."""
    return min(least << (order - 1), most) if order > 0 else 0


@part
def order_of(count: Int, least: Int, most: Int) -> Int:
    """Smallest order that fits `count` elements, count <= most."""
    order: Int = 0
    while room_of(order, least, most) < count:
        order += 1
    return order


@part
def take_block(blocks: Blocks, area: Int, order: Int, size: Int) -> Int:
    """Allocate a block of `size` words; returns its first word, -1 if the area has no memory left. Cost: O(1)."""
    block: Int = blocks.free[area, FREE + order]
    if block >= 0:
        blocks.free[area, FREE + order] = blocks.words[block]
        return block
    block = blocks.free[area, NEXT]
    if block + size > blocks.free[area, END]:
        return -1
    blocks.free[area, NEXT] = block + size
    return block


@part
def give_block(blocks: Blocks, area: Int, order: Int, block: Int) -> None:
    """Put a block on the free list of its order."""
    blocks.words[block] = blocks.free[area, FREE + order]
    blocks.free[area, FREE + order] = block


@part
def make_block(blocks: Blocks, area: Int, row: Int, count: Int, least: Int, most: Int, width: Int) -> bool:
    """Give an empty row a block of `count` elements of `width` words; False if the area has no memory left."""
    order = order_of(count, least, most)
    start: Int = 0
    if order > 0:
        start = take_block(blocks, area, order, room_of(order, least, most) * width)
        if start < 0:
            return False
    blocks.heads[row, START] = start
    blocks.heads[row, ORDER] = order
    blocks.heads[row, COUNT] = count
    return True


@part
def drop_first(
    blocks: Blocks, area: Int, row: Int, dropped: Int, grows: bool, least: Int, most: Int, width: Int
) -> bool:
    """Drop the first `dropped` elements of a row's block; if it `grows`, move the rest to a block of the next order.

    Returns False, and changes nothing, if the area has no memory left. Cost: a copy of the remaining words.
    """
    heads, words = blocks.heads, blocks.words
    start, order, count = heads[row, START], heads[row, ORDER], heads[row, COUNT]
    target = start
    if grows:
        target = take_block(blocks, area, order + 1, room_of(order + 1, least, most) * width)
        if target < 0:
            return False
    first = start + dropped * width
    for word in range((count - dropped) * width):  # ascending: source and target may overlap, and the target is lower
        words[target + word] = words[first + word]
    if grows:
        if order > 0:
            give_block(blocks, area, order, start)
        heads[row, START] = target
        heads[row, ORDER] = order + 1
    heads[row, COUNT] = count - dropped
    return True


@part
def linked_equal(words: Ints, first: Int, base_words: Ints, base_first: Int, links: Ints) -> bool:
    """Whether the linked words of an element are bitwise equal to those of a base's; `links[m]` < 0: no link."""
    same = True
    for m in range(links.size):
        if links[m] >= 0:
            same &= words[first + m] == base_words[base_first + links[m]]
    return same


@lean_kernel
def clear_blocks(blocks: Blocks, tag: Int, rows: Ints) -> None:
    """Empty rows (n,), free their blocks into area 0 and set their tags to `tag`."""
    blocks = Blocks(*blocks)
    heads = blocks.heads
    for i in range(rows.size):
        row = rows[i]
        if heads[row, ORDER] > 0:
            give_block(blocks, 0, heads[row, ORDER], heads[row, START])
        heads[row, START] = 0
        heads[row, ORDER] = 0
        heads[row, COUNT] = 0
        heads[row, TAG] = tag
