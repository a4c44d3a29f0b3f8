"""EmbeddingTable: one exact row per id, growing, with admission, expiry and a hard budget.

    id --IdMap--> row --> weights (rows, W)   float32: a vector of `dim` and, last, a linear weight
                          state   (rows, S)   float32: the optimizer's
                          seen_us (rows,)     int64:   event time of the last use
                          count   (rows,)     int64:   uses
                          owners  (rows,)     int64:   the id itself, PAD for a free row

Invariant: no two ids share a row. The values of an id, and the effect of a batch on them, depend neither on row numbers
nor on the order in which ids arrived: a new row is initialised from a hash of its id, and of equally old ids the
smaller is evicted first. An id without a row (never seen, not yet admitted, expired, evicted, or PAD) has row -1: it
reads as zeros and takes no gradient.

Uses of ids that wait for admission are counted for at most as many ids as the budget; the least recently seen are
dropped first, so a rare id may be admitted late. Not optimal: growing copies the arrays once.

Source of the idea: Liu et al. (2022), "Monolith: Real Time Recommendation System With Collisionless Embedding Table",
arXiv:2209.07663, section 2.2. Differs in: an open-addressing map instead of a cuckoo map.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge

from headrace.errors import DeclarationError, SnapshotError
from headrace.features import IdMap
from headrace.features.argument_types import checked
from headrace.learners.inputs import PAD
from headrace.learners.tables import admission
from headrace.learners.tables.live_copy import LiveCopy
from headrace.learners.tables.optimizers import Optimizer

ROWS = Gauge("headrace_embedding_rows", "Rows of an embedding table.", ["table"])
REMOVED = Counter("headrace_embedding_rows_removed_total", "Rows expired or evicted.", ["table", "reason"])

LIVE_BYTES_MIN = 4 << 20
"""Smallest size at which a table is copied in a thread during training; a smaller one is copied in a millisecond."""
_FIRST_ROWS = 1024
_SLACK = 64  # an eviction frees 1/64 of the budget, so that finding the oldest rows costs once for many new ids


@checked
@dataclass(frozen=True, slots=True)
class TablePolicy:
    """Rules by which ids get and lose their row.

    Args:
        min_count: uses in training after which an id gets its row.
        rows_max: largest number of rows; beyond it the least recently seen are evicted.
        expire_us: age since the last use at which `expire` removes a row, microseconds of event time; None: never.
        init_scale: new vectors are uniform in [-init_scale, init_scale).
    """

    min_count: int = 1
    rows_max: int = 2_000_000
    expire_us: int | None = None
    init_scale: float = 0.02

    def __post_init__(self) -> None:
        if self.min_count < 1 or self.rows_max < 1 or (self.expire_us is not None and self.expire_us < 1):
            raise DeclarationError(f"{self}: min_count, rows_max and expire_us must be at least 1")
        if self.init_scale < 0:
            raise DeclarationError(f"{self}: init_scale must be at least 0")


class EmbeddingTable:
    """Rows of weights by id; see the module docstring.

    Args:
        name: of the table; new rows are initialised from a hash of the name, the seed and the id.
        dim: length of a vector; 0 for a linear weight alone.
        optimizer: steps the rows and defines their state.
        policy: rules of admission and removal.
        seed: seed of the initial vectors.

    Attributes:
        weights, state, seen_us, count, owners: see the module docstring; growing the table replaces the arrays.
        slots: (rows,) scratch space of a step, -1 between steps.
        arrays: tuple of these six arrays.
    """

    def __init__(
        self, name: str, dim: int, optimizer: Optimizer, policy: TablePolicy | None = None, *, seed: int = 0
    ) -> None:
        self.name = name
        self.width = dim + 1
        self.policy = policy or TablePolicy()
        self._optimizer = optimizer
        self._seed = np.uint64(xxhash.xxh64_intdigest(name.encode(), seed))
        self._map = IdMap(_FIRST_ROWS)
        self._rows = ROWS.labels(table=name)
        self._initial = optimizer.initial_state(self.width)
        self._copy: LiveCopy | None = None
        self._allocate(_FIRST_ROWS)
        self._waiting = _Waiting()

    def __len__(self) -> int:
        return len(self._map)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays, without the map."""
        return sum(array.nbytes for array in self.arrays)

    def locate(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of each id, -1 without one, in the shape of `ids`. Read-only."""
        return self._map.get(np.ascontiguousarray(ids).reshape(-1)).reshape(ids.shape)

    def admit(self, ids: NDArray[np.int64], now_us: int) -> None:
        """Count a use of each of `ids` (n,) at `now_us`, add rows at `min_count` uses, and evict to keep the budget.

        `now_us` is the event time of the batch in microseconds. PAD is ignored; each duplicate counts.
        """
        if self.policy.min_count == 1:
            rows = self._add(ids[ids != PAD])
        else:
            rows = self._map.get(ids)
            fresh = ids[(rows < 0) & (ids != PAD)]
            if fresh.size:
                unique, uses = np.unique(fresh, return_counts=True)
                self._add(self._waiting.count(unique, uses, now_us, self.policy.min_count, self.policy.rows_max))
                rows = self._map.get(ids)
        admission.touch_rows(rows, now_us, self.seen_us, self.count)
        self.note_changed(rows)
        self.keep_budget()

    def keep_budget(self) -> bool:
        """Evict the oldest rows if the table exceeds the budget; returns whether it did."""
        is_over = len(self) > self.policy.rows_max
        if is_over:
            keep = max(self.policy.rows_max - self.policy.rows_max // _SLACK, 1)
            ids, rows = self._items()
            self._remove(ids[_oldest(ids, self.seen_us[rows], len(self) - keep)], "evicted")
        self._rows.set(len(self))
        return is_over

    def make_room(self) -> None:
        """Grow the map if it is full, otherwise the arrays."""
        if self._map.is_full:
            self._map.grow()
        else:
            self._grow(2 * len(self.weights))

    def add(self, ids: NDArray[np.int64]) -> None:
        """Add a row for each of the distinct `ids` (n,), all without one, without counting a use; needs budget."""
        self.note_changed(self._add(ids))
        self._rows.set(len(self))

    def expire(self, now_us: int) -> int:
        """Remove the rows not seen since `now_us - expire_us`; returns the number removed."""
        if self.policy.expire_us is None:
            return 0
        ids, rows = self._items()
        old = ids[self.seen_us[rows] < now_us - self.policy.expire_us]
        self._remove(old, "expired")
        return int(old.size)

    def step(self, unique: NDArray[np.int64], grads: NDArray[np.float64]) -> None:
        """Take one optimizer step of the distinct rows `unique` (n,) with their summed gradients (n, W)."""
        self._optimizer.step(self.weights, self.state, unique, grads)
        self.note_changed(unique)

    def note_changed(self, rows: NDArray[np.int64]) -> None:
        """Tell a copy in progress that `rows` (n,) have changed; -1 is ignored. Call it after the change."""
        if self._copy is not None:
            self._copy.note(rows)

    @property
    def lines(self) -> NDArray[np.int64]:
        """The map from ids to rows, in the form of `IdMap.table`."""
        return self._map.table

    @property
    def map_arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Lines, counts and free rows of the map, see `IdMap`."""
        return self._map.table, self._map.counts, self._map.free

    @property
    def first_values(self) -> tuple[np.uint64, float, NDArray[np.float32]]:
        """Seed and scale of new vectors, and the state (S,) of new rows."""
        return self._seed, self.policy.init_scale, self._initial

    def export(self, *, with_optimizer: bool = False) -> dict[str, NDArray[np.generic]]:
        """Copies of `ids` (n,) ascending and `weights` (n, W); with the optimizer also all training state."""
        high = self._map.high
        arrays = tuple(array[:high] for array in self.arrays[:-1])
        return self._sorted(arrays, self._waiting.export(), with_optimizer=with_optimizer)

    def prepare_capture(self) -> bool:
        """Start to copy the rows in a thread, unless they are few; returns whether `capture` would not have to wait.

        Growing the table discards the copy, and the next call starts a new one.
        """
        if self._copy is None:
            high = self._map.high
            if high * self.nbytes < LIVE_BYTES_MIN * len(self.weights):
                return True
            self._copy = LiveCopy(self.arrays[:-1], high)
        return self._copy.is_near

    @property
    def is_copying(self) -> bool:
        """Whether a copy is in progress, to which changed rows must be reported."""
        return self._copy is not None

    def capture(self) -> Callable[[], dict[str, NDArray[np.generic]]]:
        """Copy the current state in memory order; returns a function that gives it, later and in any thread.

        The function returns what `export` with the optimizer would return now.

        A copy in memory order takes a fraction of the time of sorting and gathering the rows. After `prepare_capture`,
        only the rows that have changed since then are left to copy.
        """
        high, copy = self._map.high, self._copy
        self._copy = None  # a failed copy is not used again
        arrays = self.arrays[:-1] if copy is None else copy.finish()
        copies = tuple(array[:high].copy() if copy is None else array[:high] for array in arrays)
        waiting = self._waiting.export()
        return lambda: self._sorted(copies, waiting, with_optimizer=True)

    def _sorted(
        self,
        arrays: tuple[NDArray[np.generic], ...],
        waiting: Mapping[str, NDArray[np.int64]],
        *,
        with_optimizer: bool,
    ) -> dict[str, NDArray[np.generic]]:
        """Arrays of the rows by ascending id; `arrays` are the table's arrays without the scratch slots."""
        weights, state, seen_us, count, owners = arrays
        rows = np.argsort(owners, kind="stable")
        rows = rows[owners[rows] != PAD]
        ids = owners[rows]
        exported: dict[str, NDArray[np.generic]] = {"ids": ids, "weights": weights[rows]}
        if with_optimizer:
            exported |= {"state": state[rows], "seen_us": seen_us[rows], "count": count[rows]}
            exported["seed"] = np.array([self._seed], dtype=np.uint64)
            exported |= {f"waiting_{key}": array for key, array in waiting.items()}
        return exported

    def load(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Load what `export` returned; without optimizer arrays, their state is initialised.

        Raises:
            SnapshotError: shapes do not fit this table.
        """
        ids, weights = np.asarray(arrays["ids"], dtype=np.int64), np.asarray(arrays["weights"], dtype=np.float32)
        if weights.shape != (ids.size, self.width):
            raise SnapshotError(f"table {self.name}: weights {weights.shape}, expected {(ids.size, self.width)}")
        capacity = max(_FIRST_ROWS, ids.size)
        self._map = IdMap(capacity)
        rows, _ = self._map.get_or_add(ids)
        self._allocate(capacity)
        self.weights[rows], self.owners[rows] = weights, ids
        if "state" in arrays:
            if arrays["state"].shape != (ids.size, self.state.shape[1]):
                raise SnapshotError(f"table {self.name}: state {arrays['state'].shape} of another optimizer")
            self.state[rows], self.seen_us[rows], self.count[rows] = arrays["state"], arrays["seen_us"], arrays["count"]
            self._seed = np.uint64(arrays["seed"][0])
            self._waiting.load(arrays["waiting_ids"], arrays["waiting_uses"], arrays["waiting_seen_us"])
        else:
            self._waiting = _Waiting()

    def _allocate(self, capacity: int) -> None:
        self.weights = np.zeros((capacity, self.width), dtype=np.float32)
        self.state = np.tile(self._initial, (capacity, 1))
        self.seen_us = np.zeros(capacity, dtype=np.int64)
        self.count = np.zeros(capacity, dtype=np.int64)
        self.owners = np.full(capacity, PAD, dtype=np.int64)
        self.slots = np.full(capacity, -1, dtype=np.int64)
        self.arrays = (self.weights, self.state, self.seen_us, self.count, self.owners, self.slots)
        self._copy = None

    def _add(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows of `ids` (n,); ids without a row get one."""
        rows, is_new = self._map.get_or_add(ids)
        if self._map.high > len(self.weights):
            self._grow(max(self._map.high, 2 * len(self.weights)))
        admission.init_rows(ids, rows, is_new, self._seed, self.policy.init_scale, self._initial, self.arrays)
        return rows

    def _grow(self, capacity: int) -> None:
        size, before = len(self.weights), self.arrays
        self._allocate(capacity)
        for number in range(len(before) - 1):  # all except the scratch slots
            np.copyto(self.arrays[number][:size], before[number])

    def _items(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All ids and their rows, by ascending row."""
        rows = np.flatnonzero(self.owners[: self._map.high] != PAD)
        return self.owners[rows], rows

    def _remove(self, ids: NDArray[np.int64], reason: str) -> None:
        if ids.size:
            freed = self._map.remove(ids)
            self.owners[freed] = PAD
            self.note_changed(freed)
            REMOVED.labels(table=self.name, reason=reason).inc(ids.size)


class _Waiting:
    """Use counts of ids without a row: arrays sorted by id, merged once per batch."""

    def __init__(self) -> None:
        self.load(*(np.empty(0, dtype=np.int64) for _ in range(3)))

    def load(self, ids: NDArray[np.generic], uses: NDArray[np.generic], seen_us: NDArray[np.generic]) -> None:
        self._ids, self._uses, self._seen_us = (np.array(array, dtype=np.int64) for array in (ids, uses, seen_us))

    def export(self) -> dict[str, NDArray[np.int64]]:
        """Copies of the arrays, since counting changes them in place."""
        return {"ids": self._ids.copy(), "uses": self._uses.copy(), "seen_us": self._seen_us.copy()}

    def count(
        self, ids: NDArray[np.int64], uses: NDArray[np.int64], now_us: int, min_count: int, ids_max: int
    ) -> NDArray[np.int64]:
        """Add `uses` of the distinct, sorted `ids`; removes and returns the ids that reached `min_count`."""
        positions = np.searchsorted(self._ids, ids)
        known = np.zeros(ids.size, dtype=bool)
        inside = positions < self._ids.size
        known[inside] = self._ids[positions[inside]] == ids[inside]
        self._uses[positions[known]] += uses[known]
        self._seen_us[positions[known]] = now_us
        self._ids = np.insert(self._ids, positions[~known], ids[~known])
        self._uses = np.insert(self._uses, positions[~known], uses[~known])
        self._seen_us = np.insert(self._seen_us, positions[~known], now_us)
        earned = self._ids[self._uses >= min_count]
        self._keep(self._uses < min_count)
        if self._ids.size > ids_max:
            keep = np.ones(self._ids.size, dtype=bool)
            keep[_oldest(self._ids, self._seen_us, self._ids.size - ids_max)] = False
            self._keep(keep)
        return earned

    def _keep(self, mask: NDArray[np.bool_]) -> None:
        self._ids, self._uses, self._seen_us = self._ids[mask], self._uses[mask], self._seen_us[mask]


def _oldest(ids: NDArray[np.int64], seen_us: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Positions of the `count` least recently seen ids; of equally old ids the smaller come first."""
    return np.lexsort((ids, seen_us))[:count]
