"""Arrow tables as Polars frames, including time zones given as offsets and unused columns of types Polars lacks.

Polars knows zones by name only: it refuses, or panics at, a column of timestamp[us, tz=+05:30], read or not. Such
columns become UTC, which is the same moments; a column of a type that it lacks altogether is an error where it is asked
for, and is left out where it is not.
"""

import functools
from collections.abc import Collection

import polars as pl
import pyarrow as pa

from headrace.errors import SchemaError

_DIGITS_MAX = 38
"""Digits of the widest Polars decimal."""


def is_plain(schema: pa.Schema) -> bool:
    """Whether Polars reads every column of a file of this schema by itself."""
    return all(_is_plain(field.type) for field in schema)


def to_polars(table: pa.Table, asked: Collection[str] | None = None) -> pl.DataFrame:
    """A table as a frame. `asked` names the columns that must be there; None: all.

    Raises:
        SchemaError: a column that is asked for is of a type that Polars lacks.
    """
    columns = []
    for name, values in zip(table.column_names, table.columns, strict=True):
        try:
            columns.append(_series(name, values))
        except (pa.ArrowException, pl.exceptions.PolarsError, NotImplementedError, TypeError, ValueError) as exc:
            if asked is None or name in asked:
                raise SchemaError(f"column {name}: type {values.type} cannot be read: {exc}; cast or drop it") from exc
    return pl.DataFrame(columns)


def _series(name: str, values: pa.ChunkedArray) -> pl.Series:
    dtype = values.type if _is_plain(values.type) else _plain(values.type)
    if not _is_plain(dtype):  # Polars would panic
        raise TypeError(f"Polars has no {dtype}")
    return pl.Series(name, pl.from_arrow(values.cast(dtype)))


def _is_plain(dtype: pa.DataType) -> bool:
    if pa.types.is_timestamp(dtype):
        return dtype.tz is None or _is_zone(dtype.tz)
    if pa.types.is_decimal(dtype):
        return bool(dtype.precision <= _DIGITS_MAX)
    return all(_is_plain(inner) for inner in _inner_types(dtype))


def _inner_types(dtype: pa.DataType) -> list[pa.DataType]:
    if pa.types.is_dictionary(dtype):
        return [dtype.value_type]
    return [dtype.field(index).type for index in range(dtype.num_fields)]


def _plain(dtype: pa.DataType) -> pa.DataType:
    """The type with UTC in place of every zone that Polars does not know."""
    if pa.types.is_timestamp(dtype) and not _is_plain(dtype):
        return pa.timestamp(dtype.unit, "UTC")
    if pa.types.is_struct(dtype):
        return pa.struct([field.with_type(_plain(field.type)) for field in dtype])
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return pa.large_list(_plain(dtype.value_type))
    return dtype


@functools.lru_cache(maxsize=256)
def _is_zone(name: str) -> bool:
    try:
        pl.Series([], dtype=pl.Datetime("us", name))
    except pl.exceptions.PolarsError:
        return False
    return True
