"""Quantile: a sketch whose relative error is known."""

import math
import sys
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.features.aggregation import Source, Value, Windows
from headrace.features.argument_types import declared
from headrace.features.binder import Binder
from headrace.features.expressions.event_columns import as_expr
from headrace.features.state.layout import Reading
from headrace.features.state.operations import Outputs
from headrace.features.state.tallies.read import QUANTILE

SMALLEST = 1e-12
"""Numbers nearer to zero count as zero."""
ERROR_MIN = 1e-6
"""Of a smaller error the buckets' numbers would need more bits than they have."""
_LOG_MAX = math.nextafter(math.log(sys.float_info.max), 0)
"""Of the largest float: the bucket of the largest ones reaches beyond it."""


@declared
@dataclass(frozen=True, slots=True, eq=False)
class Quantile:
    """Quantiles of a number, as features <name>_p50_<window> for 0.5; none where no event has one.

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
    """

    value: Value
    _: KW_ONLY
    q: float | Sequence[float] = (0.5, 0.9, 0.99)
    windows: Windows = ()
    error: float = 0.02
    keep: int = 256
    where: Value | None = None
    hop: str | None = None
    source: Source = None

    def bind(self, binder: Binder) -> Sequence[Reading]:
        """One feature a quantile and window.

        Raises:
            DeclarationError: a quantile outside [0, 1] or written twice, an error outside [1e-6, 0.5), no number.
        """
        wanted = [self.q] if isinstance(self.q, int | float) else list(self.q)
        if not wanted or len(set(wanted)) < len(wanted) or not all(0 <= q <= 1 for q in wanted):
            raise DeclarationError(
                f"{binder.path}: q={self.q}; write quantiles from 0 to 1, each once, as q=(0.5, 0.9)"
            )
        if not ERROR_MIN <= self.error < 0.5:
            raise DeclarationError(
                f"{binder.path}: error={self.error}; write a relative error from {ERROR_MIN} to 0.5, such as 0.02"
            )
        binder.number(self.value, self.source)  # for its refusal of what is no number
        log_gamma = math.log((1 + self.error) / (1 - self.error))
        found = binder.tallies(self, QUANTILE, self.keep, key=_bucket(as_expr(self.value), log_gamma), quantiles=wanted)
        return [
            Reading(
                binder.feature("float", window.label, suffix=f"p{100 * q:g}".replace(".", "_")),
                group,
                partial(_read, index, log_gamma),
            )
            for window, group, _ in found
            for index, q in enumerate(wanted)
        ]


def _shift(log_gamma: float) -> int:
    """What is added to the bucket of a number's size, so that it is positive from `SMALLEST` up."""
    return 1 - math.ceil(math.log(SMALLEST) / log_gamma)


def _bucket(value: pl.Expr, log_gamma: float) -> pl.Expr:
    """Bucket of a number, ascending with it: 0 for 0, negative for negative numbers, null for what is not finite."""
    number = value.cast(pl.Float64)
    size = (number.abs().log() / log_gamma).ceil() + _shift(log_gamma)
    bucket = pl.when(number.abs() < SMALLEST).then(0.0).otherwise(number.sign() * size)
    return pl.when(number.is_finite()).then(bucket).cast(pl.Int64)


def _read(index: int, log_gamma: float, outputs: Outputs, now_us: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: ARG001
    """The middle, by relative error, of the quantile's bucket, which at level L spans 2**L of the first: (n,)."""
    bucket, wide = outputs[0][:, index], 2.0 ** outputs[3]
    upper = (np.abs(bucket) * wide - _shift(log_gamma)) * log_gamma
    size = np.exp(np.minimum(upper + math.log(2) - np.logaddexp(0, wide * log_gamma), _LOG_MAX))
    found = np.where(bucket == 0, 0.0, np.sign(bucket) * size)
    return np.where(outputs[2] == 0, np.nan, found)
