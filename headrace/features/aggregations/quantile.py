"""Quantile: a sketch with a known relative error."""

import math
import sys
from collections.abc import Sequence
from dataclasses import KW_ONLY
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.features.aggregations.aggregation import Arrays, Output, Tally, Types, Windowed, aggregation
from headrace.features.argument_types import Value
from headrace.features.expressions.event_columns import as_expr
from headrace.features.state.tallies.read import QUANTILE

SMALLEST = 1e-12
"""Numbers closer to zero count as zero."""
ERROR_MIN = 1e-6
"""With a smaller error, bucket numbers would need more than 64 bits."""
_LOG_MAX = math.nextafter(math.log(sys.float_info.max), 0)
"""Logarithm of the largest float. The upper end of the last bucket lies beyond it."""


@aggregation
class Quantile(Windowed):
    """Quantiles of a number, as features `<name>_p50_<window>` for 0.5; null if no event has a value.

    The q-quantile of n numbers is the one with rank floor(q * (n - 1)), counted from 0. The result is within a relative
    `error` of it as long as no hop of the window fills more than `keep` buckets, whose bounds are powers of
    g = (1 + error) / (1 - error). With an error of 2 %, 256 buckets span a factor of 28,000; with 1 %, a factor of 167.
    Negative numbers have separate buckets. Numbers closer to zero than 1e-12 share one bucket, which is read as 0.

    In a fuller hop all pairs of adjacent buckets are merged, repeatedly until they fit, and the window is read at the
    resolution of its coarsest hop. After L merges the bounds are powers of g ** (2 ** L): the buckets span 2 ** L times
    as many powers of ten, and the relative error is tanh(2 ** L * atanh(error)), which for 2 % is 4 %, 8 %, 16 % for
    L = 1, 2, 3 (DDSketch: Masson, Rim, Lee 2019; UDDSketch: Epicoco et al. 2020, "UDDSketch: accurate tracking of
    quantiles in data streams").

    An entity takes 24 bytes of memory for each bucket in each hop of the window, at most `keep` per hop, and up to as
    much again as room to grow; in Redis 2 to 4 bytes per bucket.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(value=Quantile("value", q=0.5, windows="lifetime", error=0.001))
    {'value_p50_lifetime': 4.002823400834141}
    """

    value: Value
    _: KW_ONLY
    q: float | Sequence[float] = (0.5, 0.9, 0.99)
    error: float = 0.02
    keep: int = 256

    def problem(self) -> str | None:
        """Report a quantile outside [0, 1] or given twice, or an error outside [1e-6, 0.5)."""
        quantiles = self._quantiles
        if not quantiles or len(set(quantiles)) < len(quantiles) or not all(0 <= q <= 1 for q in quantiles):
            return f"q={self.q}; write quantiles from 0 to 1, each once, as q=(0.5, 0.9)"
        if not ERROR_MIN <= self.error < 0.5:
            return f"error={self.error}; write a relative error from {ERROR_MIN} to 0.5, such as 0.02"
        return None

    def state(self, types: Types) -> Tally:
        """The buckets of each tile and their counts."""
        types.require_number(self.value)
        log_gamma = math.log((1 + self.error) / (1 - self.error))
        outputs = [
            Output("float", partial(_read, index, log_gamma), suffix=f"p{100 * q:g}".replace(".", "_"))
            for index, q in enumerate(self._quantiles)
        ]
        bucket = _bucket(as_expr(self.value), log_gamma)
        return Tally(bucket, QUANTILE, self.keep, outputs, quantiles=self._quantiles)

    @property
    def _quantiles(self) -> list[float]:
        return [self.q] if isinstance(self.q, int | float) else list(self.q)


def _shift(log_gamma: float) -> int:
    """Offset that makes the bucket number of every magnitude from `SMALLEST` up positive."""
    return 1 - math.ceil(math.log(SMALLEST) / log_gamma)


def _bucket(value: pl.Expr, log_gamma: float) -> pl.Expr:
    """Bucket of a number, increasing with it: 0 for 0, negative for negative numbers, null if not finite."""
    number = value.cast(pl.Float64)
    size = (number.abs().log() / log_gamma).ceil() + _shift(log_gamma)
    bucket = pl.when(number.abs() < SMALLEST).then(0.0).otherwise(number.sign() * size)
    return pl.when(number.is_finite()).then(bucket).cast(pl.Int64)


def _read(index: int, log_gamma: float, tally: Arrays) -> NDArray[np.float64]:
    """Midpoint (n,), by relative error, of the quantile's bucket; a bucket at level L spans 2**L buckets of level 0."""
    bucket, wide = tally.outputs[0][:, index], 2.0 ** tally.outputs[3]
    upper = (np.abs(bucket) * wide - _shift(log_gamma)) * log_gamma
    size = np.exp(np.minimum(upper + math.log(2) - np.logaddexp(0, wide * log_gamma), _LOG_MAX))
    middle = np.where(bucket == 0, 0.0, np.sign(bucket) * size)
    return np.where(tally.outputs[2] == 0, np.nan, middle)
