"""Features that are expressions over other features of the view, and over fields of the request: nothing is stored.

    class CustomerActivity(FeatureView, source=Engagement, entity="customer_id", request={"price": float}):
        bought = Count(where=col("action") == "purchase", windows=("1h", "24h"))
        spent = Sum("amount", windows="24h")
        mean_price = col("spent_24h") / col("bought_24h")
        is_dear = col("price") > 2 * col("mean_price")

They are worked out by Polars when a record is read. A feature without a value is null in them, and a null result is no
value; numbers that are not finite have no value either. A truth value is an int of 0 and 1.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from headrace.errors import DeclarationError, SpineError
from headrace.features.answer import Column, Feature, Maybe, column_series
from headrace.features.layout import Derived, Known
from headrace.features.row_wise import row_type

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
        DeclarationError: a type that a request cannot have.
    """
    for name, kind in declared.items():
        if kind not in list(REQUEST_TYPES):  # a list: a type that cannot be hashed is wrong too
            known = ", ".join(found.__name__ for found in REQUEST_TYPES)
            raise DeclarationError(f"view {view} · request field {name}: type {kind!r}; use one of {known}")
    return {name: REQUEST_TYPES[kind] for name, kind in declared.items()}


def request_columns(view: str, request: Mapping[str, pl.DataType], frame: pl.DataFrame) -> dict[str, pl.Series]:
    """The request's fields, columns of the frame that asks.

    Raises:
        SpineError: one is missing, or of another type.
    """
    found = {}
    for name, dtype in request.items():
        if name not in frame.columns:
            raise SpineError(
                f"view {view}: its features need the request's field {name!r} ({dtype}) as a column beside the entity; "
                f"there are {', '.join(frame.columns)}"
            )
        try:
            found[name] = frame[name].cast(dtype)
        except pl.exceptions.PolarsError as exc:
            raise SpineError(f"view {view}: request field {name!r} is {frame[name].dtype}, not {dtype}") from exc
    return found


@dataclass(frozen=True, slots=True)
class Expressions:
    """The expressions of one view, bound one after the other so that each may use those before it."""

    view: str
    request: Mapping[str, pl.DataType]

    def in_order(self, declared: Mapping[str, pl.Expr]) -> list[str]:
        """Attributes in an order in which each comes after those it names.

        Raises:
            DeclarationError: some name each other in a circle.
        """
        waiting, ordered = dict(declared), []
        while waiting:
            ready = [
                name for name, expr in waiting.items() if not set(expr.meta.root_names()) & (set(waiting) - {name})
            ]
            if not ready:
                raise DeclarationError(f"view {self.view}: features {', '.join(waiting)} are made of each other")
            ordered += ready
            waiting = {name: expr for name, expr in waiting.items() if name not in ready}
        return ordered

    def bind(self, name: str, expression: pl.Expr, known: Mapping[str, Feature]) -> Derived:
        """The feature `name`; `known` are the features so far.

        Raises:
            DeclarationError: it names what is neither a feature nor a request field, or its value is no number.
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
        return Derived(feature, partial(_evaluate, expression, used, needed, feature.dtype))


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
    expression: pl.Expr, used: Mapping[str, str], needed: list[str], dtype: str, known: Known
) -> Column | Maybe:
    if needed and known.request is None:
        none = pl.Series([None], dtype=pl.Float64).new_from_index(0, known.count)
        return _column(none, dtype)
    series = [column_series(name, kind, known.columns[name], known.empty.get(name)) for name, kind in used.items()]
    if needed:
        assert known.request is not None
        series += [known.request[name].alias(name) for name in needed]
    frame = pl.DataFrame(series) if series else pl.DataFrame({"_": np.zeros(known.count)})
    found = frame.select(expression.alias("value"))["value"]
    return _column(found if len(found) == known.count else found.new_from_index(0, known.count), dtype)


def _column(series: pl.Series, dtype: str) -> Column | Maybe:
    """A column of the answer; booleans are 0 and 1."""
    if dtype == "float":
        floats = series.cast(pl.Float64).fill_null(np.nan).to_numpy(writable=True)
        floats[~np.isfinite(floats)] = np.nan
        return floats
    values = series.cast(pl.Int64).fill_null(0).to_numpy(writable=True)
    return Maybe(values, series.is_null().to_numpy()) if series.null_count() else values
