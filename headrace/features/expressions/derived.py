"""Features that are expressions over other features of the view and fields of the request, without stored state.

    class CustomerActivity(FeatureView, source=Engagement, entity="customer_id", request={"price": float}):
        bought = Count(where=col("action") == "purchase", windows=("1h", "24h"))
        spent = Sum("amount", windows="24h")
        mean_price = col("spent_24h") / col("bought_24h")
        is_dear = col("price") > 2 * col("mean_price")

Polars computes them when a record is read. A missing value is null in the expression, and a null or non-finite result
is a missing value. A boolean becomes an int of 0 or 1. If an expression fails for an entity, as a strict cast of an
invalid value does, that entity's value is null and is counted; the other entities are not affected.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import DeclarationError, SpineError
from headrace.features.answer import Column, Feature, Maybe, column_series
from headrace.features.expressions.failing_rows import select_rows
from headrace.features.expressions.row_wise import row_type
from headrace.features.failure_counts import count_failed_features
from headrace.features.state.layout import Derived, Known

REQUEST_TYPES: dict[Any, pl.DataType] = {
    int: pl.Int64(),
    float: pl.Float64(),
    bool: pl.Boolean(),
    str: pl.String(),
    datetime: pl.Datetime("us", "UTC"),
}
_TYPES: dict[str, pl.DataType] = {
    "int": pl.Int64(),
    "float": pl.Float64(),
    "text": pl.String(),
    "time": pl.Datetime("us", "UTC"),
}


def request_types(view: str, declared: Mapping[str, Any]) -> dict[str, pl.DataType]:
    """Polars types of the request's fields.

    Raises:
        DeclarationError: a field has a type that is not in `REQUEST_TYPES`.
    """
    for name, kind in declared.items():
        if kind not in list(REQUEST_TYPES):  # a list, so that an unhashable type gets this error as well
            known = ", ".join(each.__name__ for each in REQUEST_TYPES)
            raise DeclarationError(f"view {view} · request field {name}: type {kind!r}; use one of {known}")
    return {name: REQUEST_TYPES[kind] for name, kind in declared.items()}


def request_columns(view: str, request: Mapping[str, pl.DataType], frame: pl.DataFrame) -> dict[str, pl.Series]:
    """The request's fields, taken from the columns of the requesting frame.

    Raises:
        SpineError: a field is missing or has another type.
    """
    columns = {}
    for name, dtype in request.items():
        if name not in frame.columns:
            raise SpineError(
                f"view {view}: its features need the request's field {name!r} ({dtype}) as a column beside the entity; "
                f"there are {', '.join(frame.columns)}"
            )
        try:
            columns[name] = frame[name].cast(dtype)
        except pl.exceptions.PolarsError as exc:
            raise SpineError(f"view {view}: request field {name!r} is {frame[name].dtype}, not {dtype}") from exc
    return columns


@dataclass(frozen=True, slots=True)
class Expressions:
    """Expression features of one view. Each may use the features bound before it."""

    view: str
    request: Mapping[str, pl.DataType]

    def in_order(self, declared: Mapping[str, pl.Expr]) -> list[str]:
        """The attributes sorted so that each comes after those it uses.

        Raises:
            DeclarationError: attributes depend on each other in a cycle.
        """
        waiting, ordered = dict(declared), []
        while waiting:
            ready = [
                name for name, expr in waiting.items() if not set(expr.meta.root_names()) & (set(waiting) - {name})
            ]
            if not ready:
                raise DeclarationError(
                    f"view {self.view}: features {', '.join(waiting)} depend on each other; break the cycle"
                )
            ordered += ready
            waiting = {name: expr for name, expr in waiting.items() if name not in ready}
        return ordered

    def bind(self, name: str, expression: pl.Expr, known: Mapping[str, Feature]) -> Derived:
        """Bind the feature `name`; `known` are the features bound so far.

        Raises:
            DeclarationError: a name is neither a feature nor a request field, or the value is not a number.
        """
        path, roots = f"view {self.view} · feature {name}", expression.meta.root_names()
        for root in roots:
            if root not in known and root not in self.request:
                names = [*known, *self.request]
                near = difflib.get_close_matches(root, names, 1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise DeclarationError(
                    f"{path}: no feature or request field {root!r}; {hint}there are {', '.join(names)}"
                )
            if root in known and root in self.request:
                raise DeclarationError(f"{path}: {root!r} is a feature and a request field; rename one")
        schema = {root: self.request.get(root) or _polars_type(known[root].dtype) for root in roots}
        dtype = _result_type(path, expression, schema)
        feature = Feature(name, f"{self.view}.{name}", "float" if dtype.is_float() else "int", "expression", name)
        used = {root: known[root].dtype for root in roots if root in known}
        needed = [root for root in roots if root in self.request]
        return Derived(feature, partial(_evaluate, self.view, feature, expression, used, needed), tuple(used))


def _polars_type(dtype: str) -> pl.DataType:
    if dtype.startswith("list["):
        return pl.List(_TYPES[dtype[5:-1]])
    return _TYPES[dtype]


def _result_type(path: str, expression: pl.Expr, schema: Mapping[str, pl.DataType]) -> pl.DataType:
    dtype = row_type(expression, schema, f"{path}:", "the features")
    if not (dtype.is_numeric() or dtype == pl.Boolean):
        raise DeclarationError(f"{path}: {expression!s} is {dtype}; make it a number or a truth value")
    return dtype


def _evaluate(
    view: str, feature: Feature, expression: pl.Expr, used: Mapping[str, str], needed: list[str], known: Known
) -> Column | Maybe:
    if needed and known.request is None:
        none = pl.repeat(None, known.count, dtype=pl.Float64 if feature.dtype == "float" else pl.Int64, eager=True)
        return _column(none, feature.dtype)
    series = [column_series(name, kind, known.columns[name], known.empty.get(name)) for name, kind in used.items()]
    if needed:
        assert known.request is not None
        series += [known.request[name].alias(name) for name in needed]
    frame = pl.DataFrame(series) if series else pl.DataFrame({"_": np.zeros(known.count)})
    kept = expression.cast(pl.Float64 if feature.dtype == "float" else pl.Int64)
    values, failures = select_rows(frame, [kept.alias("value")])
    column = values["value"]
    if failures is not None:
        count_failed_features(view, feature.name, len(failures.index), f"{expression!s}: {failures.messages.get(0)}")
        column = _with_nulls(column, failures.index, known.count)
    return _column(column if len(column) == known.count else column.new_from_index(0, known.count), feature.dtype)


def _with_nulls(values: pl.Series, missing: NDArray[np.int64], count: int) -> pl.Series:
    """Insert nulls into values (n - m,) at the ascending positions `missing` (m,): (n,)."""
    places = np.full(count, len(values))
    places[np.delete(np.arange(count), missing)] = np.arange(len(values))
    return values.extend_constant(None, 1).gather(places)


def _column(series: pl.Series, dtype: str) -> Column | Maybe:
    """Convert a series of floats or integers to a column of the answer."""
    if dtype == "float":
        floats = series.fill_null(np.nan).to_numpy(writable=True)
        floats[~np.isfinite(floats)] = np.nan
        return floats
    values = series.fill_null(0).to_numpy(writable=True)
    return Maybe(values, series.is_null().to_numpy()) if series.null_count() else values
