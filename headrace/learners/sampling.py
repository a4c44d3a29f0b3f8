"""Negatives for positives: drawn from what was popular just before, the same whatever the batching.

The sampler remembers the last `capacity` values seen. The negatives of the value with sequence number s are uniform
over the values numbered s - capacity .. s - 1, so a value is drawn in proportion to its recent popularity. Draw j of
value s is a hash of (seed, s, j): no generator state, and a stream cut into other batches gives the same negatives.

Sampling changes the base rate. `log_rate` tells the learner by how much; see `headrace.learners.learner`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from headrace.errors import DeclarationError, SnapshotError
from headrace.features.kernels.hashing import splitmix64

ROUNDS = 8  # redraws of a negative that is the positive itself


def log_rate(negatives: float, reference: float) -> float:
    """Log-odds offset of examples with `negatives` a positive, when the model's logit is for `reference` a positive.

    >>> round(log_rate(9, 99), 3)
    2.398
    """
    if negatives <= 0 or reference <= 0:
        raise DeclarationError(f"log_rate of {negatives} and {reference} negatives a positive: both must be above 0")
    return math.log(reference / negatives)


@dataclass(frozen=True, slots=True, eq=False)
class Negatives:
    """`values` (n, k), and `valid` (n, k): False where no other value than the positive was found."""

    values: NDArray[Any]
    valid: NDArray[np.bool_]


class RecentPopularity:
    """See the module's head. Values are ints or text.

    Args:
        capacity: how many values back a draw reaches.
        seed: other seeds draw others.
    """

    def __init__(self, capacity: int = 100_000, seed: int = 0) -> None:
        if capacity < 1:
            raise DeclarationError(f"sampler capacity {capacity}: at least 1")
        self.capacity = capacity
        self.seen = 0
        self._seed = splitmix64(np.array([seed]))[0]
        self._ring: NDArray[Any] | None = None

    def draw(self, positives: NDArray[Any], k: int) -> Negatives:
        """K negatives for each of `positives` (n,), which are in event order; then remember these.

        Draws are with replacement and never the positive itself. The first values of all have nothing before them:
            not valid.
        """
        if self._ring is None:
            self._ring = np.zeros(self.capacity, dtype=np.int64 if positives.dtype.kind in "iu" else object)
        sequence = self.seen + np.arange(len(positives))
        reach = np.minimum(sequence, self.capacity)
        values = np.zeros((len(positives), k), dtype=self._ring.dtype)
        valid = np.zeros((len(positives), k), dtype=bool)
        for attempt in range(ROUNDS):
            row, column = np.nonzero(~valid & (reach > 0)[:, None])
            if row.size == 0:
                break
            number = (sequence[row] * k + column) * ROUNDS + attempt
            word = splitmix64((splitmix64(number) ^ self._seed).view(np.int64))
            back = 1 + (word % reach[row].astype(np.uint64)).astype(np.int64)
            found = self._at(sequence[row] - back, positives)
            values[row, column] = found
            valid[row, column] = found != positives[row]
        self._remember(positives)
        return Negatives(values, valid)

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """All state as arrays; text as JSON bytes."""
        arrays: dict[str, NDArray[Any]] = {"seen": np.array([self.seen]), "seed": np.array([self._seed])}
        if self._ring is not None and self._ring.dtype == object:
            arrays["texts"] = np.frombuffer(orjson.dumps(self._ring.tolist()), dtype=np.uint8)
        elif self._ring is not None:
            arrays["ring"] = self._ring.copy()
        return arrays

    def load_state_dict(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Become what `state_dict` came from.

        Raises:
            SnapshotError: of another capacity.
        """
        self.seen, self._seed = int(arrays["seen"][0]), arrays["seed"][0]
        ring: NDArray[Any] | None = None
        if "texts" in arrays:
            ring = np.array(orjson.loads(arrays["texts"].tobytes()), dtype=object)
        elif "ring" in arrays:
            ring = np.array(arrays["ring"], dtype=np.int64)
        if ring is not None and len(ring) != self.capacity:
            raise SnapshotError(f"sampler: {len(ring)} remembered values, capacity is {self.capacity}")
        self._ring = ring

    def _at(self, sequence: NDArray[np.int64], batch: NDArray[Any]) -> NDArray[Any]:
        assert self._ring is not None
        inside = sequence >= self.seen
        found = self._ring[sequence % self.capacity]
        found[inside] = batch[sequence[inside] - self.seen]
        return found

    def _remember(self, positives: NDArray[Any]) -> None:
        assert self._ring is not None
        kept = positives[-self.capacity :]
        start = self.seen + len(positives) - len(kept)
        self._ring[(start + np.arange(len(kept))) % self.capacity] = kept
        self.seen += len(positives)
