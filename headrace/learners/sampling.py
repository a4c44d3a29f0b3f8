"""Negative sampling by recent popularity, with results that do not depend on how the stream is batched.

The sampler remembers the last `capacity` values. The negatives of the value with sequence number s are uniform over the
values numbered s - capacity .. s - 1, so a value is drawn in proportion to its recent popularity. Draw j of value s is
a hash of (seed, s, j), so there is no generator state, and other batch boundaries give the same negatives.

Sampling changes the base rate, and popularity sampling changes it differently for each value: a popular value is as
often a negative as a positive, so a model of the samples unlearns popularity. `log_rate` corrects the base rate, and
`Negatives.log_popularity` the rate of each value; see the log-rates in `headrace.learners.online`.

Source of the correction: Bengio, Senecal (2008), "Adaptive Importance Sampling to Accelerate Training of a Neural
Probabilistic Language Model", and Yi et al. (2019), "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
Recommendations", RecSys. Differs in: Q is counted exactly in the sampler's own window, with one more for each value.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from headrace.errors import DeclarationError, SnapshotError
from headrace.features import IdMap
from headrace.kernels.compile import kernel
from headrace.kernels.hashing import mix, splitmix64
from headrace.learners.ids import as_ids

ROUNDS = 8  # redraws of a negative that is the positive itself


def log_rate(negatives: float, reference: float) -> float:
    """Log-odds offset of examples with `negatives` per positive, if the model's logit is for `reference` per positive.

    >>> round(log_rate(9, 99), 3)
    2.398
    """
    if negatives <= 0 or reference <= 0:
        raise DeclarationError(f"log_rate of {negatives} and {reference} negatives a positive: both must be above 0")
    return math.log(reference / negatives)


@dataclass(frozen=True, slots=True, eq=False)
class Negatives:
    """Negatives of n positives, k each.

    Attributes:
        values: (n, k) drawn values, of the positives' type.
        valid: (n, k) False where the draws gave only the positive itself.
        log_popularity: (n, 1 + k) of each positive and its negatives: log(Q(value) * number of values), where Q is the
            probability of drawing the value just before the positive. It compares Q with a uniform draw, and is 0 if
            all values are equally popular.
    """

    values: NDArray[Any]
    valid: NDArray[np.bool_]
    log_popularity: NDArray[np.float64]


class RecentPopularity:
    """Draws negatives from recent positives; see the module docstring. Values are ints or text, never null.

    Args:
        capacity: number of recent values to draw from.
        seed: of all draws.
    """

    def __init__(self, capacity: int = 100_000, seed: int = 0) -> None:
        if capacity < 1:
            raise DeclarationError(f"sampler capacity {capacity}: at least 1")
        self.capacity = capacity
        self.seen = 0
        self._seed = splitmix64(np.array([seed]))[0]
        self._forget()

    def draw(self, positives: NDArray[Any], k: int) -> Negatives:
        """Draw k negatives for each of `positives` (n,), in event order, and remember the positives.

        Draws are with replacement and never the positive itself. The first value has no earlier value to draw, so its
        negatives are not valid.
        """
        rows = self._rows(positives)
        drawn, log_popularity = np.empty((len(rows), k), np.int64), np.empty((len(rows), 1 + k), np.float64)
        _draw(rows, self.seen, self._seed, self._ring, self._counts, self._distinct, drawn, log_popularity)
        self.seen += len(rows)
        valid = drawn >= 0
        values = np.zeros(drawn.shape, self._values.dtype)
        values[valid] = self._values[drawn[valid]]
        return Negatives(values, valid, log_popularity)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """All state as arrays; text as JSON bytes."""
        arrays: dict[str, NDArray[Any]] = {"seen": np.array([self.seen]), "seed": np.array([self._seed])}
        arrays["capacity"] = np.array([self.capacity])
        if self.seen:
            ring = self._values[self._ring[: min(self.seen, self.capacity)]]
            if ring.dtype == object:
                arrays["texts"] = np.frombuffer(orjson.dumps(ring.tolist()), dtype=np.uint8)
            else:
                arrays["ring"] = ring
        return arrays

    def load_state_dict(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Load what `state_dict` returned.

        Raises:
            SnapshotError: it was saved with another capacity.
        """
        seen = int(arrays["seen"][0])
        texts = orjson.loads(arrays["texts"].tobytes()) if "texts" in arrays else None
        ring = np.array(texts, dtype=object) if texts is not None else arrays.get("ring", np.empty(0, np.int64))
        capacity = int(arrays["capacity"][0])
        if capacity != self.capacity:
            raise SnapshotError(f"sampler: saved with capacity {capacity}, this one has {self.capacity}")
        self._forget()
        self.seen, self._seed = seen, arrays["seed"][0]
        self._ring[: len(ring)] = self._rows(ring)
        _count(self._ring[: len(ring)], self._counts, self._distinct)

    def _forget(self) -> None:
        self._map = IdMap()
        self._ring = np.full(self.capacity, -1, np.int64)  # rows of the map, by sequence number modulo capacity
        self._counts = np.zeros(16, np.int64)  # of each row: how often it is in the ring
        self._distinct = np.zeros(1, np.int64)
        self._values = np.zeros(16, np.int64)  # of each row: the value itself

    def _rows(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Row of each value (n,) in the map."""
        ids = as_ids(values)
        if len(self._map) > 2 * self.capacity:  # at least as many have left the ring
            known, rows = self._map.items()
            self._map.remove(known[self._counts[rows] == 0])
        rows, is_new = self._map.get_or_add(ids)
        if values.dtype.kind not in "iu":
            self._values = self._values.astype(object, copy=False)
        if self._map.high > len(self._counts):
            room = max(self._map.high, 2 * len(self._counts)) - len(self._counts)
            self._counts = np.concatenate([self._counts, np.zeros(room, np.int64)])
            self._values = np.concatenate([self._values, np.zeros(room, self._values.dtype)])
        self._values[rows[is_new]] = values[is_new]
        return rows


@kernel
def _draw(
    rows: NDArray[np.int64],
    seen: int,
    seed: np.uint64,
    ring: NDArray[np.int64],
    counts: NDArray[np.int64],
    distinct: NDArray[np.int64],
    drawn: NDArray[np.int64],
    log_popularity: NDArray[np.float64],
) -> None:
    """Draw k rows for each of `rows` (n,) into `drawn` (n, k), -1 if all draws gave the row itself; add it to the ring.

    O(n k), with up to `ROUNDS` attempts for each draw.
    """
    capacity, k = ring.size, drawn.shape[1]
    for i in range(rows.size):
        sequence = seen + i
        reach = min(sequence, capacity)
        # Add-one smoothing with one extra value, so that a new value has a popularity too.
        scale = (distinct[0] + 1.0) / (reach + distinct[0] + 1.0)
        log_popularity[i, 0] = np.log((counts[rows[i]] + 1.0) * scale)
        for j in range(k):
            drawn[i, j], log_popularity[i, 1 + j] = -1, 0.0
            if reach == 0:
                continue
            for attempt in range(ROUNDS):
                word = mix(np.int64(mix((sequence * k + j) * ROUNDS + attempt) ^ seed))
                row = ring[(sequence - 1 - np.int64(word % np.uint64(reach))) % capacity]
                if row != rows[i]:
                    drawn[i, j] = row
                    log_popularity[i, 1 + j] = np.log((counts[row] + 1.0) * scale)
                    break
        slot = sequence % capacity
        if sequence >= capacity:
            counts[ring[slot]] -= 1
            distinct[0] -= counts[ring[slot]] == 0
        ring[slot] = rows[i]
        counts[rows[i]] += 1
        distinct[0] += counts[rows[i]] == 1


@kernel
def _count(rows: NDArray[np.int64], counts: NDArray[np.int64], distinct: NDArray[np.int64]) -> None:
    for row in rows:
        counts[row] += 1
        distinct[0] += counts[row] == 1
