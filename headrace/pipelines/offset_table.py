"""How far some shards have come: the next offset of every partition, in memory and in the store.

                topic/0   topic/1          a column is added when a partition is first met
shard 3             120        96          of a partition that it has not seen a shard has applied nothing
shard 7             118        96
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

_NEVER = -1
"""Offset of a partition that a shard has not seen."""


class OffsetTable:
    """Next offsets of n shards, by their row, as the store holds them: partition -> next offset, for each shard."""

    def __init__(self, stored: Sequence[Mapping[str, int]]) -> None:
        names = sorted({name for offsets in stored for name in offsets})
        self._columns = {name: column for column, name in enumerate(names)}
        self._next = np.full((len(stored), len(names)), _NEVER, np.int64)
        for row, offsets in enumerate(stored):
            for name, next_offset in offsets.items():
                self._next[row, self._columns[name]] = next_offset
        self._stored = self._next.copy()

    def positions(self) -> dict[str, int]:
        """Partition -> the least next offset over the shards, where every shard has seen it."""
        least = self._next.min(axis=0, initial=np.iinfo(np.int64).max)
        return {name: int(least[column]) for name, column in sorted(self._columns.items()) if least[column] != _NEVER}

    def reached(self) -> dict[str, list[int]]:
        """Partition -> the different next offsets that shards have of it, where any shard has seen it."""
        known = {name: np.unique(self._next[:, column]) for name, column in self._columns.items()}
        return {name: offsets[offsets >= 0].tolist() for name, offsets in known.items() if offsets.max(initial=-1) >= 0}

    def furthest(self) -> dict[str, int]:
        """Partition -> the greatest next offset over the shards, where any shard has seen it."""
        furthest = self._next.max(axis=0, initial=_NEVER)
        return {name: int(furthest[column]) for name, column in sorted(self._columns.items())}

    def column(self, partition: str) -> int:
        """Column of a partition, for `applied`."""
        if partition not in self._columns:
            self._columns[partition] = len(self._columns)
            unseen = np.full((len(self._next), 1), _NEVER, np.int64)
            self._next = np.hstack([self._next, unseen])
            self._stored = np.hstack([self._stored, unseen])
        return self._columns[partition]

    def span(self, partition: str) -> tuple[int, int]:
        """The least and the greatest next offset of a partition over the shards; below 0 where one has not seen it."""
        column = self.column(partition)  # before the array, which it may replace
        offsets = self._next[:, column]
        return int(offsets.min()), int(offsets.max())

    def applied(
        self, rows: NDArray[np.int64], columns: NDArray[np.int64], offsets: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether each offset (m,) of a partition, by its column (m,), has been applied by a shard, by its row (m,)."""
        return np.asarray(offsets < self._next[rows, columns], np.bool_)

    def advance(self, partition: str, next_offset: int) -> None:
        """All shards have applied what is before an offset."""
        column = self.column(partition)
        np.maximum(self._next[:, column], next_offset, out=self._next[:, column])

    def moved(self, row: int) -> dict[str, int]:
        """What the store does not know of a shard."""
        columns = np.flatnonzero(self._next[row] != self._stored[row]).tolist()
        names = list(self._columns)  # in the order of their columns
        return {names[column]: int(self._next[row, column]) for column in columns}

    def settle(self, written: NDArray[np.bool_]) -> None:
        """The store knows all of the shards that a mask (n,) picks."""
        self._stored[written] = self._next[written]
