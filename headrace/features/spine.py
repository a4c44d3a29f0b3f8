"""The spine: rows of entity keys and times, each to be answered as of its time.

A spine has each view's entity columns and `event_time`, a datetime (naive is UTC) or int64 microseconds. Other columns
are carried along. A null key is answered as an entity that was never seen.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import SpineError
from headrace.features.expressions import request_columns
from headrace.features.keys import fitted_keys
from headrace.features.view import ViewPlan

TIME = "event_time"


def spine_times(spine: pl.DataFrame, view: str) -> NDArray[np.int64]:
    """Time of each row in microseconds UTC: (n,). `view` is named in errors.

    Raises:
        SpineError: the column is missing, null somewhere, or no time.
    """
    if TIME not in spine.columns:
        raise SpineError(
            f"view {view}: the spine has no column {TIME!r}; there are {_listed(spine)}; rename the one that tells when"
        )
    column = spine[TIME]
    if not (column.dtype.is_integer() or column.dtype == pl.Datetime):
        raise SpineError(
            f"view {view}: spine column {TIME!r} is {column.dtype}; use a datetime, or int64 microseconds UTC"
        )
    if column.null_count():
        raise SpineError(
            f"view {view}: spine column {TIME!r} is null in {column.null_count()} of {spine.height} rows; drop them"
        )
    if column.dtype == pl.Datetime:
        column = column.dt.cast_time_unit("us")
    return column.cast(pl.Int64).to_numpy(writable=True)


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
