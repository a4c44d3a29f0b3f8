"""Quantile: a sketch whose relative error is known."""

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
"""Numbers nearer to zero count as zero."""
ERROR_MIN = 1e-6
"""With a smaller error the buckets' numbers would need more than 64 bits."""
_LOG_MAX = math.nextafter(math.log(sys.float_info.max), 0)
"""Logarithm of the largest float; the upper end of the last bucket is beyond it."""


@aggregation
class Quantile(Windowed):
    """Quantiles of a number, as features `<name>_p50_<window>` for 0.5; none where no event has one.

    The q-quantile of n numbers is the one with rank floor(q * (n - 1)), counted from 0. The answer is within `error`,
    relative, of it while no hop of the window fills more than `keep` buckets, which are powers of g = (1 + error) /
    (1 - error); with an error of 2 %, 256 buckets span a factor of 28,000, with 1 % one of 167. Negative numbers have
    buckets of their own, and those nearer to zero than 1e-12 one in common, which is 0.

    In a fuller hop two buckets become one, for all numbers alike, as often as needed until they fit, and the window is
    read as coarsely as the coarsest of its hops: after L times buckets are powers of g ** (2 ** L), so that they span
    2 ** L times as many powers of ten, and the relative error is tanh(2 ** L * atanh(error)): 4 %, 8 %, 16 % for
    L = 1, 2, 3 and 2 % (DDSketch: Masson, Rim, Lee 2019; UDDSketch: Epicoco et al. 2020, "UDDSketch: accurate tracking
    of quantiles in data streams").

    An entity takes 24 bytes of memory for each bucket in each hop of the window, at most `keep` of them, and up to as
    much again to grow; in Redis 2 to 4 bytes each.

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
        """A quantile outside [0, 1] or written twice, or an error outside [1e-6, 0.5)."""
        quantiles = self._quantiles
        if not quantiles or len(set(quantiles)) < len(quantiles) or not all(0 <= q <= 1 for q in quantiles):
            return f"q={self.q}; write quantiles from 0 to 1, each once, as q=(0.5, 0.9)"
        if not ERROR_MIN <= self.error < 0.5:
            return f"error={self.error}; write a relative error from {ERROR_MIN} to 0.5, such as 0.02"
        return None

    def state(self, types: Types) -> Tally:
        """The numbers' buckets in each tile, and how full they are."""
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
    """Offset that makes the bucket of every size from `SMALLEST` up positive."""
    return 1 - math.ceil(math.log(SMALLEST) / log_gamma)


def _bucket(value: pl.Expr, log_gamma: float) -> pl.Expr:
    """Bucket of a number, ascending with it: 0 for 0, negative for negative numbers, null for what is not finite."""
    number = value.cast(pl.Float64)
    size = (number.abs().log() / log_gamma).ceil() + _shift(log_gamma)
    bucket = pl.when(number.abs() < SMALLEST).then(0.0).otherwise(number.sign() * size)
    return pl.when(number.is_finite()).then(bucket).cast(pl.Int64)


def _read(index: int, log_gamma: float, tally: Arrays) -> NDArray[np.float64]:
    """The middle, by relative error, of the quantile's bucket, which at level L spans 2**L of the first: (n,)."""
    bucket, wide = tally.outputs[0][:, index], 2.0 ** tally.outputs[3]
    upper = (np.abs(bucket) * wide - _shift(log_gamma)) * log_gamma
    size = np.exp(np.minimum(upper + math.log(2) - np.logaddexp(0, wide * log_gamma), _LOG_MAX))
    middle = np.where(bucket == 0, 0.0, np.sign(bucket) * size)
    return np.where(tally.outputs[2] == 0, np.nan, middle)
