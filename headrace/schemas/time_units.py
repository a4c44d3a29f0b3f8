"""Units of bare numbers that represent times: seconds, milliseconds, microseconds or nanoseconds since 1970.

A number carries no unit, but its magnitude tells the likely one: the ranges of the years 1971 to 2969 do not overlap.

    seconds       3.2e7  up to 3.2e10
    milliseconds  3.2e10 up to 3.2e13
    microseconds  3.2e13 up to 3.2e16
    nanoseconds   3.2e16 and more
"""

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

TimeUnit = Literal["s", "ms", "us", "ns"]

TIME_UNITS: tuple[TimeUnit, ...] = get_args(TimeUnit)
"""All units, from coarse to fine."""

UNIT_NAMES: dict[TimeUnit, str] = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}

UNITS_PER_S: dict[TimeUnit, int] = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}

_YEAR_S = 365 * 86_400  # 1971-01-01 in seconds; below it no unit is guessed
_BOUNDS = [_YEAR_S * UNITS_PER_S[unit] for unit in TIME_UNITS]


def likely_unit(number: float) -> TimeUnit | None:
    """Most likely unit of a number that counts units since 1970; None below 3.2e7.

    >>> likely_unit(1_767_268_800), likely_unit(1_767_268_800_000), likely_unit(1_767_268_800_000_000), likely_unit(17)
    ('s', 'ms', 'us', None)
    """
    fitting = [unit for unit, bound in zip(TIME_UNITS, _BOUNDS, strict=True) if number >= bound]
    return fitting[-1] if fitting else None


def likely_units(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Index into `TIME_UNITS` of each number's likely unit, int64 (n,); -1 below 3.2e7.

    >>> likely_units(np.array([17, 1_767_268_800, 1_767_268_800_000])).tolist()
    [-1, 0, 1]
    """
    return np.searchsorted(np.array(_BOUNDS), numbers, side="right") - 1
