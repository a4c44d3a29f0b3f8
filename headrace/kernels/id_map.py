"""An exact map from int64 ids to dense row numbers: open addressing, linear probing, rows reused after removal.

A line of the table is (id, row + 1), so a lookup without collisions touches one cache line. At most half of the lines
are used. Removal shifts later lines back, so there are no tombstones, and lookups do not get slower with time.
"""

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compile import Int, Ints, lean_kernel, part, prefetch
from headrace.kernels.hashing import mix

_SIZE, HIGH, FREE = 0, 1, 2
AHEAD = 16
"""Number of ids by which the prefetch of a line precedes its use; in a large table every line is a cache miss."""


class IdMap:
    """A map from ids to rows, `0 <= row < high`.

    `high` is one above the largest row ever assigned: arrays indexed by row need that length. Not thread-safe.

    Attributes:
        table: (lines, 2); see the module docstring.
        counts: (3,) number of ids, `high`, and number of free rows.
        free: rows to reuse, its first `counts[2]` elements.

    >>> rows_of_ids = IdMap(4)
    >>> rows_of_ids.get_or_add(np.array([7, 9, 7]))
    (array([0, 1, 0]), array([ True,  True, False]))
    >>> rows_of_ids.get(np.array([9, 8]))
    array([ 1, -1])
    """

    def __init__(self, capacity: int = 1024) -> None:
        lines = 16
        while lines < 2 * capacity:
            lines *= 2
        self.table = np.zeros((lines, 2), np.int64)
        self.counts = np.zeros(3, np.int64)
        self.free = np.zeros(16, np.int64)

    def __len__(self) -> int:
        return int(self.counts[_SIZE])

    @property
    def high(self) -> int:
        """One above the largest row ever assigned."""
        return int(self.counts[HIGH])

    @property
    def is_full(self) -> bool:
        """Whether the map must grow before it can add an id."""
        return 2 * (len(self) + 1) > len(self.table)

    @property
    def nbytes(self) -> int:
        """Bytes of the map."""
        return self.table.nbytes + self.free.nbytes

    def get(self, ids: Ints) -> Ints:
        """Row of each id, -1 where absent; (n,) -> (n,)."""
        rows = np.empty(len(ids), np.int64)
        find_rows(self.table, _contiguous(ids), rows)
        return rows

    def get_or_add(self, ids: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Row of each id, adding absent ones in order: (n,) -> rows (n,), is_new (n,), True where an id was added."""
        ids = _contiguous(ids)
        rows, is_new = np.empty(len(ids), np.int64), np.zeros(len(ids), np.bool_)
        done: Int = 0
        while True:
            done = add_rows(self.table, self.counts, self.free, ids, done, rows, is_new)
            if done == len(ids):
                return rows, is_new
            self.grow()

    def grow(self) -> None:
        """Double the number of lines."""
        grown = np.zeros((2 * len(self.table), 2), np.int64)
        move_lines(self.table, grown)
        self.table = grown

    def remove(self, ids: Ints) -> Ints:
        """Remove ids and free their rows for reuse; returns the freed rows. Absent ids are ignored."""
        need = int(self.counts[FREE]) + len(ids)
        if need > len(self.free):
            self.free = np.concatenate([self.free, np.zeros(max(need, len(self.free)), np.int64)])
        freed = np.empty(len(ids), np.int64)
        return freed[: remove_rows(self.table, self.counts, self.free, _contiguous(ids), freed)]

    def items(self) -> tuple[Ints, Ints]:
        """All ids and their rows, sorted by row."""
        return items_of(self.table)


def items_of(table: Ints) -> tuple[Ints, Ints]:
    """All ids of a map's `table` and their rows, sorted by row."""
    used = table[table[:, 1] > 0]
    used = used[np.argsort(used[:, 1])]
    return used[:, 0].copy(), used[:, 1] - 1


def _contiguous(ids: Ints) -> Ints:
    """`ids` as a C-contiguous writable int64 array: one kernel signature."""
    return np.require(ids, np.int64, ["C", "W"])


@part
def _line_of(table: Ints, key: Int) -> Int:
    """Line that holds `key`, or the empty line to insert it."""
    mask = table.shape[0] - 1
    line = np.int64(mix(key) & np.uint64(mask))
    while table[line, 1] != 0 and table[line, 0] != key:
        line = (line + 1) & mask
    return line


@part
def _prefetch_line(table: Ints, key: Int) -> None:
    prefetch(table, 2 * np.int64(mix(key) & np.uint64(table.shape[0] - 1)))


@part
def find_row(table: Ints, key: Int) -> Int:
    """Row of one id, -1 where absent."""
    return np.int64(table[_line_of(table, key), 1] - 1)


@part
def _fill(table: Ints, counts: Ints, free: Ints, line: Int, key: Int) -> bool:
    """Assign a row to `key` in an empty line; False if more than half of the table would then be used."""
    if 2 * (counts[_SIZE] + 1) > table.shape[0]:
        return False
    if counts[FREE] > 0:
        counts[FREE] -= 1
        row = free[counts[FREE]]
    else:
        row = counts[HIGH]
        counts[HIGH] += 1
    table[line, 0] = key
    table[line, 1] = row + 1
    counts[_SIZE] += 1
    return True


@part
def add_row(table: Ints, counts: Ints, free: Ints, key: Int) -> Int:
    """Assign a row to an absent id; -1 if the map must grow first."""
    line = _line_of(table, key)
    return np.int64(table[line, 1] - 1 if _fill(table, counts, free, line, key) else -1)


@lean_kernel
def find_rows(table: Ints, ids: Ints, rows: Ints) -> None:
    """`rows[i]` = row of `ids[i]`, -1 where absent."""
    for i in range(ids.size):
        if i + AHEAD < ids.size:
            _prefetch_line(table, ids[i + AHEAD])
        rows[i] = table[_line_of(table, ids[i]), 1] - 1


@lean_kernel
def add_rows(
    table: Ints,
    counts: Ints,
    free: Ints,
    ids: Ints,
    start: Int,
    rows: Ints,
    is_new: NDArray[np.bool_],
) -> Int:
    """Find or add `ids[start:]`; returns the index of the first id that needs a larger table, n when all are done."""
    for i in range(start, ids.size):
        if i + AHEAD < ids.size:
            _prefetch_line(table, ids[i + AHEAD])
        line = _line_of(table, ids[i])
        if table[line, 1] == 0:
            if not _fill(table, counts, free, line, ids[i]):
                return i
            is_new[i] = True
        rows[i] = table[line, 1] - 1
    return ids.size


@lean_kernel
def remove_rows(
    table: Ints,
    counts: Ints,
    free: Ints,
    ids: Ints,
    freed: Ints,
) -> Int:
    """Remove each id, and put its row on the free list and into `freed`; returns the number of removed ids."""
    mask = table.shape[0] - 1
    removed = 0
    for i in range(ids.size):
        hole = _line_of(table, ids[i])
        if table[hole, 1] == 0:
            continue
        freed[removed] = table[hole, 1] - 1
        free[counts[FREE]] = freed[removed]
        removed += 1
        counts[FREE] += 1
        counts[_SIZE] -= 1
        line = (hole + 1) & mask
        while table[line, 1] != 0:
            home = np.int64(mix(table[line, 0]) & np.uint64(mask))
            if ((line - home) & mask) >= ((line - hole) & mask):
                table[hole, 0] = table[line, 0]
                table[hole, 1] = table[line, 1]
                hole = line
            line = (line + 1) & mask
        table[hole, 0] = 0
        table[hole, 1] = 0
    return removed


@lean_kernel
def move_lines(table: Ints, grown: Ints) -> None:
    """Copy every used line into the larger empty table."""
    for i in range(table.shape[0]):
        if table[i, 1] != 0:
            line = _line_of(grown, table[i, 0])
            grown[line, 0] = table[i, 0]
            grown[line, 1] = table[i, 1]
