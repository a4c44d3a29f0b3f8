"""The spine: rows of entity keys and times, each to be answered as of its time.

A spine has each view's entity columns and `event_time`, a datetime (naive is UTC), or whole numbers of a unit that is
given. Other columns are carried along. A null key is answered as an entity that was never seen.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import SpineError
from headrace.features.expressions.derived import request_columns
from headrace.features.keys import fitted_keys
from headrace.features.view import ViewPlan
from headrace.schemas.row_json import YEAR_1_US, YEAR_10000_US
from headrace.schemas.time_units import TIME_UNITS, UNIT_NAMES, UNITS_PER_S, TimeUnit, likely_unit

TIME = "event_time"

_US = UNITS_PER_S["us"]


def with_times(spine: pl.DataFrame, unit: TimeUnit | None, place: str = "spine") -> pl.DataFrame:
    """The spine with numbers of a unit in its time column as datetimes, UTC; other columns stay as they are.

    `place` is named in errors.

    Raises:
        SpineError: there are numbers and no unit, or another than they are of by their size, or a time lies between two
            microseconds.
    """
    if unit not in (None, *TIME_UNITS):
        raise SpineError(f"time_unit {unit!r}: use one of {', '.join(TIME_UNITS)}")
    if TIME not in spine.columns or not spine.schema[TIME].is_integer():
        return spine
    numbers = spine[TIME].drop_nulls().cast(pl.Int64).to_numpy()
    ends = [int(numbers.max()), int(numbers.min())] if len(numbers) else []
    likely = likely_unit(ends[0]) if ends else None
    hint = f"; by their size they are {UNIT_NAMES[likely]}" if likely else ""
    if unit is None and ends:
        raise SpineError(
            f"{place}: column {TIME!r} is {spine.schema[TIME]}, numbers without a unit{hint}. Say which it is, "
            'time_unit="ms" or --spine-time-unit ms, or give datetimes'
        )
    unit = unit or "us"  # of no numbers any will do
    wrong = [number for number in ends if likely_unit(number) != unit]
    if wrong:
        raise SpineError(
            f"{place}: column {TIME!r} has {wrong[0]}, no time of the years 1971 to 2969 in {UNIT_NAMES[unit]}{hint}. "
            "Give the unit that they are of"
        )
    factor, divisor = max(_US // UNITS_PER_S[unit], 1), max(UNITS_PER_S[unit] // _US, 1)
    if (numbers % divisor).any():
        raise SpineError(f"{place}: column {TIME!r} has times between two microseconds; round them")
    times = spine[TIME].cast(pl.Int64) // divisor * factor
    return spine.with_columns(times.cast(pl.Datetime("us")).dt.replace_time_zone("UTC"))


def spine_times(spine: pl.DataFrame, view: str) -> NDArray[np.int64]:
    """Time of each row in microseconds UTC: (n,). `view` is named in errors. Numbers are microseconds.

    Raises:
        SpineError: the column is missing, null somewhere, or no time, or a time lies between two microseconds.
    """
    if TIME not in spine.columns:
        raise SpineError(
            f"view {view}: the spine has no column {TIME!r}; there are {_listed(spine)}; rename the one that tells when"
        )
    column = spine[TIME]
    if not (column.dtype.is_integer() or column.dtype == pl.Datetime):
        raise SpineError(
            f"view {view}: spine column {TIME!r} is {column.dtype}; use a datetime, or whole numbers and their unit"
        )
    if column.null_count():
        raise SpineError(
            f"view {view}: spine column {TIME!r} is null in {column.null_count()} of {spine.height} rows; drop them"
        )
    if isinstance(column.dtype, pl.Datetime):
        if column.dtype.time_unit == "ns" and (column.to_physical() % 1_000 != 0).any():
            raise SpineError(
                f"view {view}: spine column {TIME!r} has times between two microseconds, and events have none; "
                'round them, as pl.col("event_time").dt.round("1us")'
            )
        numbers = column.to_physical().to_numpy()
        _check_range(numbers, column.dtype.time_unit, f"view {view}: spine column {TIME!r}")
        column = column.dt.cast_time_unit("us")
    return column.cast(pl.Int64).to_numpy(writable=True)


def _check_range(numbers: NDArray[np.int64], unit: TimeUnit, place: str) -> None:
    """Refuse datetimes beyond the years of `datetime`, which numbers of another unit became.

    Raises:
        SpineError: there is one.
    """
    for number in (numbers.min(), numbers.max()) if len(numbers) else ():
        if not YEAR_1_US <= int(number) * _US // UNITS_PER_S[unit] < YEAR_10000_US:
            likely = likely_unit(int(number))
            hint = f"; by its size it is {UNIT_NAMES[likely]}" if likely else ""
            raise SpineError(f"{place} has {number} {UNIT_NAMES[unit]}, no time of the years 1 to 9999{hint}")


def check_spine(plans: Sequence[ViewPlan], spine: pl.DataFrame) -> None:
    """See that the spine can be answered by every view.

    Raises:
        SpineError: a column that a view needs is missing or of another type, or one has the name of a feature; names
            view, column and the columns found.
    """
    head = spine.head(0)
    for plan in plans:
        fitted_keys(plan, spine)
        floats = [name for name in plan.entity if len(plan.entity) > 1 and spine.schema[name].is_float()]
        if floats:  # parts of a replay are cut by the text of the key
            raise SpineError(
                f"view {plan.name}: entity column {floats[0]} is {spine.schema[floats[0]]}; cast it before, as "
                f'pl.col("{floats[0]}").cast(pl.Int64)'
            )
        taken = [feature.full_name for feature in plan.features if feature.full_name in spine.columns]
        if taken:
            raise SpineError(
                f"view {plan.name}: the spine has a column {taken[0]!r} already; drop or rename it, as "
                f"spine.drop({', '.join(map(repr, taken))})"
            )
        request_columns(plan.name, plan.layout.request, head)
        spine_times(head, plan.name)
    spine_times(spine, plans[0].name)


def _listed(spine: pl.DataFrame) -> str:
    return ", ".join(spine.columns) or "none"
