"""Tables of a shard set beside its records: offsets of the shards, and the last use of each record.

The next offset of every partition for each shard, in memory and in the store:

                topic/0   topic/1          a column is added when a partition is first seen
shard 3             120        96          -1: the shard has not seen the partition
shard 7             118        96
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_NEVER = -1
"""Offset of a partition that a shard has not seen."""


class OffsetTable:
    """Next offsets of n shards, one row per shard; `stored` has partition -> next offset of each, from the store.

    `starts` has partition -> the first offset that the shard has applied, -1 where it is not known. It equals the next
    offset until the partition has had a row.
    """

    def __init__(self, stored: Sequence[Mapping[str, int]], starts: Sequence[Mapping[str, int]]) -> None:
        names = sorted({name for offsets in stored for name in offsets})
        self._columns = {name: column for column, name in enumerate(names)}
        self._next = self._filled(stored)
        self._starts = self._filled(starts)
        self._stored, self._stored_starts = self._next.copy(), self._starts.copy()

    def _filled(self, offsets_of_shards: Sequence[Mapping[str, int]]) -> NDArray[np.int64]:
        table = np.full((len(offsets_of_shards), len(self._columns)), _NEVER, np.int64)
        for row, offsets in enumerate(offsets_of_shards):
            for name, offset in offsets.items():
                if name in self._columns:
                    table[row, self._columns[name]] = offset
        return table

    def positions(self) -> dict[str, int]:
        """Partition -> the smallest next offset over the shards, for partitions seen by every shard."""
        least = self._next.min(axis=0, initial=np.iinfo(np.int64).max)
        return {name: int(least[column]) for name, column in sorted(self._columns.items()) if least[column] != _NEVER}

    def reached(self) -> dict[str, list[int]]:
        """Partition -> the distinct next offsets of the shards, for partitions seen by any shard."""
        seen = {name: np.unique(self._next[:, column]) for name, column in self._columns.items()}
        return {name: offsets[offsets != _NEVER].tolist() for name, offsets in seen.items() if offsets[-1] != _NEVER}

    def furthest(self) -> dict[str, int]:
        """Partition -> the largest next offset over the shards, for partitions seen by any shard."""
        furthest = self._next.max(axis=0, initial=_NEVER).tolist()
        return {name: furthest[column] for name, column in sorted(self._columns.items()) if furthest[column] != _NEVER}

    def column(self, partition: str) -> int:
        """Column of a partition for `applied`; added if new."""
        if partition not in self._columns:
            self._columns[partition] = len(self._columns)
            unseen = np.full((len(self._next), 1), _NEVER, np.int64)
            self._next, self._stored, self._starts, self._stored_starts = (
                np.hstack([table, unseen]) for table in (self._next, self._stored, self._starts, self._stored_starts)
            )
        return self._columns[partition]

    def span(self, partition: str) -> tuple[int, int]:
        """Smallest and largest next offset of a partition over the shards; -1 for a shard that has not seen it."""
        column = self.column(partition)  # first, since it may replace the array
        offsets = self._next[:, column]
        return int(offsets.min()), int(offsets.max())

    def applied(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], offsets: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Mask (m,) of the offsets (m,) that a shard, given by row (m,), has applied of a partition, by column (m,)."""
        return np.asarray(offsets < self._next[rows, columns], np.bool_)

    def advance(self, partition: str, next_offset: int) -> None:
        """Mark rows before `next_offset` as applied by all shards."""
        column = self.column(partition)
        np.maximum(self._next[:, column], next_offset, out=self._next[:, column])

    def begin(self, partition: str, first: int) -> None:
        """Note that the next rows of a partition begin at `first`, before `advance`; only shards without rows move."""
        column = self.column(partition)
        next_offsets = self._next[:, column]
        is_start = (next_offsets == _NEVER) | (self._starts[:, column] == next_offsets)
        self._starts[is_start, column] = np.maximum(first, next_offsets[is_start])

    def moved(self, row: int) -> dict[str, int]:
        """Next offsets of a shard that have changed since they were stored."""
        return self._changed(self._next[row], self._stored[row])

    def begun(self, row: int) -> dict[str, int]:
        """First offsets of a shard that have changed since they were stored."""
        return self._changed(self._starts[row], self._stored_starts[row])

    def _changed(self, offsets: NDArray[np.int64], stored: NDArray[np.int64]) -> dict[str, int]:
        names = list(self._columns)  # in the order of their columns
        return {names[column]: int(offsets[column]) for column in np.flatnonzero(offsets != stored).tolist()}

    def settle(self, written: NDArray[np.bool_]) -> None:
        """Mark the offsets of the shards in the mask `written` (n,) as stored."""
        self._stored[written] = self._next[written]
        self._stored_starts[written] = self._starts[written]


class UseTable:
    """For each record in memory, by slab row, the last batch that used it and the time it was last loaded or written.

    `tick` counts the batches. A record of the current batch is never evicted.
    """

    def __init__(self) -> None:
        self.tick = 0
        self._used = np.full(1024, _NEVER, np.int64)  # (slab rows,) tick of the last batch; -1: the row is free
        self._written_us = np.zeros(1024, np.int64)  # (slab rows,)

    def touch(self, at: NDArray[np.int64]) -> None:
        """Mark rows (m,) as used by the current batch."""
        if at.size:
            while int(at.max()) >= self._used.size:
                self._used = np.concatenate([self._used, np.full_like(self._used, _NEVER)])
                self._written_us = np.concatenate([self._written_us, np.zeros_like(self._written_us)])
            self._used[at] = self.tick

    def written(self, at: NDArray[np.int64], now_us: int) -> None:
        """Mark rows (m,) as equal to the store at `now_us`."""
        self._written_us[at] = now_us

    def drop(self, at: NDArray[np.int64]) -> None:
        """Mark rows (m,) as free."""
        self._used[at] = _NEVER

    def evictable(self, dirty: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows that are occupied, not `dirty`, and not used by the current batch."""
        is_free = (self._used != _NEVER) & (self._used < self.tick)
        is_free[dirty[dirty < is_free.size]] = False
        return np.flatnonzero(is_free)

    def oldest(self, rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """The `count` least recently used of `rows`."""
        return rows[np.argpartition(self._used[rows], count - 1)[:count]]

    def expired(self, rows: NDArray[np.int64], before_us: int) -> NDArray[np.int64]:
        """Those of `rows` that were last loaded or written at `before_us` or earlier."""
        return rows[self._written_us[rows] <= before_us]
