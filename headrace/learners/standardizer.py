"""Running standardisation of a model's numbers, with missing values, outliers and drift.

    x (B, D), NaN where missing  ->  (B, 2 D):  z = (x - mean) / sd, 0 where missing  |  1.0 where missing, else 0.0

A missing number becomes the mean (z = 0) with its indicator set, so a feature far from zero keeps its scale when some
of its values are missing. Statistics are updated per row, not per batch, so a row's weight does not depend on the size
of its batch. They are:

- robust at the start: the first `WARM_ROWS` present values of a feature are kept, and mean and variance are computed
  from them, clipped to `OUTLIER_SDS` robust deviations from their median;
- robust later: a value further than `OUTLIER_SDS` standard deviations from the mean counts as one at that distance, so
  one row of 1e9 moves a standard deviation over 100,000 rows by less than 0.5 %, while the statistics follow a real
  change of scale within a few thousand rows;
- forgetting: a row's weight falls by a factor e every `MEMORY_ROWS` later rows.

Predictions never change the statistics, and a batch is standardised by the rows before it.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import SnapshotError
from headrace.kernels.compile import kernel

CLIP_SDS = 8.0
"""Standardised values are clipped to this range."""
OUTLIER_SDS = 30.0
"""Distance from the mean, in standard deviations, beyond which a value's influence no longer grows."""
MEMORY_ROWS = 200_000
"""Rows after which an old row's weight has fallen to 1/e."""
WARM_ROWS = 64
"""Number of present values that the first statistics of a feature are computed from."""

_NORMAL_MAD = 1.4826  # standard deviation of a normal distribution over its median absolute deviation
_STATE = ("weight", "mean", "var", "first", "first_count")

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


class Standardizer:
    """Statistics of D numbers.

    Attributes:
        weight, mean, var: (D,) float64; `weight` is the effective number of rows, at most `MEMORY_ROWS`.
        first, first_count: (WARM_ROWS, D) float32 and (D,) int64, the first present values of each number.
    """

    def __init__(self, width: int) -> None:
        self.weight = np.zeros(width)
        self.mean = np.zeros(width)
        self.var = np.zeros(width)
        self.first = np.zeros((WARM_ROWS, width), np.float32)
        self.first_count = np.zeros(width, np.int64)

    def __len__(self) -> int:
        return len(self.mean)

    def transform(self, x: Floats) -> Floats:
        """Standardised numbers and missing-value indicators, (B, 2 D) float32, of x (B, D) with NaN where missing.

        A feature without any value so far has no scale, and its numbers become 0.
        """
        out = np.empty((len(x), 2 * len(self)), np.float32)
        transform_rows(np.ascontiguousarray(x), self.weight, self.mean, self.var, out)
        return out

    def observe(self, x: Floats) -> None:
        """Update the statistics with x (B, D); NaN and infinite values are skipped."""
        if not len(self):
            return
        rows = np.ascontiguousarray(x)
        begin = np.zeros(len(self), np.int64)  # first row of each feature after those in `first`
        for index in np.flatnonzero(self.first_count < WARM_ROWS).tolist():
            begin[index] = self._warm_up(index, rows[:, index])
        observe_rows(rows, begin, self.weight, self.mean, self.var)

    def needs_warm_up(self, x: Floats) -> NDArray[np.bool_]:
        """Mask (B,) of the rows of x (B, D) with a present value of a feature whose first values are not complete."""
        cold = np.flatnonzero(self.first_count < WARM_ROWS)
        return np.asarray(np.isfinite(x[:, cold]).any(axis=1))

    def _warm_up(self, index: int, values: Floats) -> int:
        """Keep the first values of one feature; returns the number of `values` (B,) that were consumed."""
        present = np.flatnonzero(np.isfinite(values))
        count = int(self.first_count[index])
        taken = present[: WARM_ROWS - count]
        if taken.size:
            self.first[count : count + taken.size, index] = values[taken]
            self.first_count[index] += taken.size
            self._start(index)
        return int(taken[-1]) + 1 if self.first_count[index] == WARM_ROWS else len(values)

    def _start(self, index: int) -> None:
        """Compute the statistics of one feature from its first values."""
        values = self.first[: self.first_count[index], index].astype(np.float64)
        median = np.median(values)
        distance = np.abs(values - median)
        # Only values off the median count: most values of a sparse feature are equal, and would make the scale zero.
        scale = _NORMAL_MAD * float(np.median(distance[distance > 0])) if (distance > 0).any() else 0.0
        bounded = np.clip(values, median - OUTLIER_SDS * scale, median + OUTLIER_SDS * scale)
        self.weight[index], self.mean[index], self.var[index] = len(values), bounded.mean(), bounded.var()

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Copies of all state."""
        return {name: np.array(getattr(self, name)) for name in _STATE}

    def load_state_dict(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Load what `state_dict` returned.

        Raises:
            SnapshotError: arrays are missing, or have another number of features.
        """
        for name in _STATE:
            present: NDArray[Any] = getattr(self, name)
            if name not in arrays or arrays[name].shape != present.shape:
                saved = arrays[name].shape if name in arrays else "no array"
                raise SnapshotError(f"statistics of the numbers · {name}: {saved}, wanted shape {present.shape}")
            present[:] = arrays[name]


@kernel
def transform_rows(x: Floats, weight: Doubles, mean: Doubles, var: Doubles, out: Floats) -> None:
    """Write standardised numbers and missing-value indicators of x (B, D) to `out` (B, 2 D)."""
    width = x.shape[1]
    for j in range(width):
        # A constant has no scale; a floor relative to its size keeps rounding differences small.
        sd = max(math.sqrt(var[j]), 1e-6 * max(abs(mean[j]), 1e-6))
        for i in range(x.shape[0]):
            value = np.float64(x[i, j])
            is_missing = math.isnan(value)
            out[i, width + j] = 1.0 if is_missing else 0.0
            out[i, j] = 0.0 if is_missing or weight[j] == 0.0 else min(max((value - mean[j]) / sd, -CLIP_SDS), CLIP_SDS)


@kernel
def observe_rows(x: Floats, begin: NDArray[np.int64], weight: Doubles, mean: Doubles, var: Doubles) -> None:
    """Apply Welford's update row by row, from row `begin` (D,) on, with bounded values and exponential forgetting."""
    for j in range(x.shape[1]):
        for i in range(begin[j], x.shape[0]):
            value = np.float64(x[i, j])
            if not math.isfinite(value):
                continue
            # Before a feature has varied, the magnitude of its mean is the only scale.
            bound = OUTLIER_SDS * (math.sqrt(var[j]) if var[j] > 0.0 else max(abs(mean[j]), 1.0))
            shift = min(max(value - mean[j], -bound), bound)
            weight[j] = min(weight[j] + 1.0, MEMORY_ROWS)
            rate = 1.0 / weight[j]
            mean[j] += rate * shift
            var[j] = (1.0 - rate) * (var[j] + rate * shift * shift)
