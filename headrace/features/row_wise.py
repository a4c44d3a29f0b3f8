"""Expressions of one row: what a view may be asked to work out, whatever else comes in the same batch.

How events are batched, and which entities are read together, is chance. So an expression must give each row its value
from that row alone: no aggregate or neighbour, no row more or less, nothing drawn by lot.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import polars as pl

from headrace.errors import DeclarationError
from headrace.features.event_columns import expr_text

_SAMPLE_ROWS = 7
"""A count that no list, and hardly a series, of an expression has as well."""
_OTHER_ROWS = ('{"Agg":',)
_ROW_COUNT = ('{"Explode":', '{"Filter":', '"function":"DropNulls"', '"function":"DropNans"')
_BY_LOT = ('{"Random":', '{"Sample":')


def row_type(expression: pl.Expr, schema: Mapping[str, pl.DataType], role: str, wanted: str) -> pl.DataType:
    """The type of an expression's value over columns of `schema`.

    `role` says in errors what it is ("view shop · feature dear: where"), `wanted` what it does not fit ("event Sale").

    Raises:
        DeclarationError: it does not fit the columns, gives several, looks at other rows, changes their number, or is
            not the same each time.
    """
    what = f"{role} {expression!s}"
    if expression.meta.has_multiple_outputs():
        raise DeclarationError(f"{what} gives several columns; write one expression for one")
    try:
        text, separable = expr_text(expression), expression.meta.is_row_separable()
    except (pl.exceptions.ComputeError, pl.exceptions.ColumnNotFoundError) as exc:
        raise DeclarationError(
            f"{what} runs a function, or an expression over a list's elements, that Polars cannot look into; write it "
            "with Polars' expressions of one row"
        ) from exc
    try:
        if any(node in text for node in _BY_LOT):
            raise DeclarationError(f"{what} is drawn by lot, so a replay would give another value; take the lot out")
        if not separable or any(node in text for node in _OTHER_ROWS):
            raise DeclarationError(
                f"{what} looks at other rows, so its value would depend on what comes together; write an expression of "
                "one row's columns",
            )
        if any(node in text for node in _ROW_COUNT) or not _keeps_rows(expression, schema):
            raise DeclarationError(
                f"{what} gives another number of rows than it gets; write an expression of one value a row, for lists "
                'such as col("x").list.sum() or col("x").list.len()',
            )
        dtypes = pl.DataFrame(schema=dict(schema)).select(expression).dtypes
    except (pl.exceptions.PolarsError, IndexError) as exc:
        raise DeclarationError(f"{what} does not fit {wanted}: {exc}") from exc
    if len(dtypes) != 1:
        raise DeclarationError(f"{what} gives {len(dtypes)} columns; write one expression for one")
    return dtypes[0]


def _keeps_rows(expression: pl.Expr, schema: Mapping[str, pl.DataType]) -> bool:
    """Whether some rows come out as many as they go in. Values that an expression refuses are no matter of its form."""
    roots = expression.meta.root_names()
    if not roots:
        return pl.select(expression).height == 1
    sample = pl.DataFrame([_sample(root, schema[root]) for root in dict.fromkeys(roots)])
    try:
        return sample.select(expression).height == _SAMPLE_ROWS
    except pl.exceptions.ShapeError:
        return False
    except pl.exceptions.PolarsError:
        return True


@lru_cache(maxsize=1_000)
def _sample(name: str, dtype: pl.DataType) -> pl.Series:
    """Some values of a type, and a null."""
    return pl.Series(name, [None, *(_value(dtype, i) for i in range(1, _SAMPLE_ROWS))], dtype=dtype)


def _value(dtype: Any, i: int) -> Any:
    if isinstance(dtype, pl.List):
        return [_value(dtype.inner, i)] * (i % 3)
    if isinstance(dtype, pl.Struct):
        return {field.name: _value(field.dtype, i) for field in dtype.fields}
    if isinstance(dtype, pl.Datetime):
        return datetime(2000, 1, 1, tzinfo=UTC) + timedelta(hours=i)
    if dtype == pl.Binary:
        return b"x" * i
    if dtype == pl.Boolean:
        return i % 2 == 0
    return f"x{i}" if dtype == pl.String else i
