"""Rows of any frame as JSON, for unusable rows that arrived without payload bytes, and for error messages.

Every column type can be written. Times are ISO 8601 in UTC with microseconds, or, outside the years 1 to 9999, the text
of their number since 1970. Bytes are base64. Non-finite floats are "NaN", "Infinity" and "-Infinity". Decimals,
durations and other types that JSON lacks are text, or the name of the type if Polars cannot convert it to text.
Cost: about 0.5 us per row, 10 us if a float is not finite.
"""

import math
from typing import Any

import orjson
import polars as pl

from headrace.schemas.time_units import UNITS_PER_S, TimeUnit

_ISO = "%Y-%m-%dT%H:%M:%S%.6fZ"

YEAR_1_US, YEAR_10000_US = -62_135_596_800_000_000, 253_402_300_800_000_000
"""Times of the years 1 to 9999, `[YEAR_1_US, YEAR_10000_US)`: the range of ISO 8601 and Python's datetime."""

_VALUE_CHARS = 80
_WITH_TEXT = (pl.String, pl.Decimal, pl.Date, pl.Categorical, pl.Enum)


def json_rows(frame: pl.DataFrame) -> pl.Series:
    """Every row as the text of a JSON object, (n_rows,) strings."""
    if not frame.width:
        return pl.repeat("{}", frame.height, dtype=pl.String, eager=True)
    wire = frame.select(_plain(pl.col(name), dtype).alias(name) for name, dtype in frame.schema.items())
    texts = wire.select(pl.struct(pl.all()).struct.json_encode().alias("json")).to_series()
    odd = frame.select(pl.any_horizontal(pl.lit(value=False), *_odd_columns(frame))).to_series().arg_true()
    if odd.is_empty():
        return texts
    rows = [orjson.dumps(_named_floats(row), default=str).decode() for row in wire[odd].iter_rows(named=True)]
    return texts.scatter(odd, rows)


def rows_as_json(frame: pl.DataFrame) -> list[bytes]:
    """Every row as a JSON object in UTF-8."""
    return json_rows(frame).cast(pl.Binary).to_list()


def json_values(column: pl.Series) -> pl.Series:
    """Every value as JSON, (n,) strings."""
    return json_rows(column.alias("v").to_frame()).str.slice(len('{"v":')).str.head(-1)


def value_texts(column: pl.Series) -> pl.Series:
    """Every value as JSON, cut after 80 characters, (n,) strings: for messages."""
    texts = json_values(column)
    return texts.zip_with(texts.str.len_chars() <= _VALUE_CHARS, texts.str.head(_VALUE_CHARS) + "...")


def _named_floats(value: Any) -> Any:
    """Replace non-finite floats in a JSON value by their names."""
    match value:
        case dict():
            return {name: _named_floats(inner) for name, inner in value.items()}
        case list():
            return [_named_floats(inner) for inner in value]
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _plain(values: pl.Expr, dtype: Any) -> pl.Expr:
    """Convert a column to types that JSON has."""
    match dtype:
        case pl.List():
            return values.list.eval(_plain(pl.element(), dtype.inner))
        case pl.Array():
            return _plain(values.arr.to_list(), pl.List(dtype.inner))
        case pl.Struct():
            fields = [_plain(values.struct.field(field.name), field.dtype).alias(field.name) for field in dtype.fields]
            return pl.when(values.is_not_null()).then(pl.struct(fields))
    return _plain_leaf(values, dtype)


def _plain_leaf(values: pl.Expr, dtype: Any) -> pl.Expr:
    match dtype:
        case pl.Datetime():
            return _time_text(values, dtype.time_unit)
        case pl.Binary():
            return values.bin.encode("base64")
        case pl.Duration():
            return values.dt.to_string("iso")
        case pl.Time():
            return values.dt.to_string("%H:%M:%S%.f")
    if dtype in (pl.Boolean, pl.Null) or dtype.is_integer() or dtype.is_float():
        return values
    return values.cast(pl.String) if dtype in _WITH_TEXT else pl.lit(f"({dtype})")


def _time_text(values: pl.Expr, unit: TimeUnit) -> pl.Expr:
    number = values.cast(pl.Int64)
    low, high = (limit_us * UNITS_PER_S[unit] // UNITS_PER_S["us"] for limit_us in (YEAR_1_US, YEAR_10000_US))
    low, high = max(low, -(2**63)), min(high, 2**63)
    is_near = (number >= low) & (number < high) if high < 2**63 else pl.lit(value=True)
    near = pl.when(is_near).then(number)
    return near.cast(pl.Datetime(unit)).dt.strftime(_ISO).fill_null(number.cast(pl.String))  # type: ignore[arg-type]


def _odd_columns(frame: pl.DataFrame) -> list[pl.Expr]:
    return [
        _odd(pl.col(name), dtype).fill_null(value=False) for name, dtype in frame.schema.items() if _has_floats(dtype)
    ]


def _has_floats(dtype: Any) -> bool:
    match dtype:
        case pl.List() | pl.Array():
            return _has_floats(dtype.inner)
        case pl.Struct():
            return any(_has_floats(field.dtype) for field in dtype.fields)
    return bool(dtype.is_float())


def _odd(values: pl.Expr, dtype: Any) -> pl.Expr:
    """Whether a value is, or contains, a non-finite float."""
    match dtype:
        case pl.List():
            return values.list.eval(_odd(pl.element(), dtype.inner)).list.any()
        case pl.Array():
            return _odd(values.arr.to_list(), pl.List(dtype.inner))
        case pl.Struct():
            floats = [field for field in dtype.fields if _has_floats(field.dtype)]
            return pl.any_horizontal([_odd(values.struct.field(field.name), field.dtype) for field in floats])
    return ~values.is_finite()
