"""Tables of other libraries, and of plain Python, as Polars frames.

Accepts pandas frames, pyarrow tables, batches and readers, DuckDB relations, anything else that supports Arrow's C
interface or the dataframe interchange protocol, lists of dicts and dicts of lists. These libraries need not be
installed. Named levels of a pandas index become columns; an unnamed index is dropped.

Polars knows time zones by name only: it raises or panics at a column of timestamp[us, tz=+05:30], even if the column is
not read. Such columns are converted to UTC, run-end encoded columns are decoded, and extension types become their
storage type. A column of a type that Polars lacks, or whose name occurs twice, is an error if it is requested, and is
dropped otherwise.
"""

import functools
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.interchange import from_dataframe

from headrace.errors import SchemaError
from headrace.schemas.fields import DECIMAL_DIGITS

TableLike: TypeAlias = Any
"""A Polars frame, lazy or not, or anything that `frame_of` converts to one."""

_NAMELESS_INDEX = re.compile(r"__index_level_\d+__")
_LACKING = (
    pa.types.is_list_view,
    pa.types.is_large_list_view,
    pa.types.is_decimal256,
    pa.types.is_run_end_encoded,
    pa.types.is_union,
    pa.types.is_interval,
)
"""Tests for types at which Polars panics."""
_UNREADABLE = (
    pa.ArrowException,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
    NotImplementedError,
    TypeError,
    ValueError,
)


def frame_of(table: TableLike) -> pl.DataFrame | pl.LazyFrame | None:
    """Convert a table to a frame; returns None if `table` is not a table, such as a path or a list of keys.

    Raises:
        SchemaError: the table cannot be read, for example because its columns differ in length or mix types.
    """
    if isinstance(table, pl.DataFrame | pl.LazyFrame):
        return table
    if isinstance(table, Mapping):
        return _of_lists(table) if table and all(isinstance(name, str) for name in table) else None
    if isinstance(table, Sequence) and not isinstance(table, str) and table:
        return _of_dicts(table) if all(isinstance(row, Mapping) for row in table) else None
    if isinstance(table, pl.Series) or not _is_arrow(table):
        return None
    try:
        arrow_table = _arrow_table(table)
    except (TypeError, ValueError, NotImplementedError, pa.ArrowException) as exc:
        raise SchemaError(f"a {type(table).__name__} cannot be read as a table: {exc}; give a frame") from exc
    names = [name for name in arrow_table.column_names if not _NAMELESS_INDEX.fullmatch(name)]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        count = names.count(twice[0])
        raise SchemaError(f"a {type(table).__name__} has {count} columns {twice[0]!r}; rename all but one")
    return to_polars(arrow_table.select(names))


def _is_arrow(table: Any) -> bool:
    return any(hasattr(table, name) for name in ("__arrow_c_stream__", "__arrow_c_array__", "__dataframe__"))


def _arrow_table(table: Any) -> pa.Table:
    if hasattr(table, "__arrow_c_stream__") or hasattr(table, "__arrow_c_array__"):
        return table if isinstance(table, pa.Table) else pa.table(table)
    return from_dataframe(table)


def _of_lists(lists: Mapping[str, Any]) -> pl.DataFrame:
    columns = {name: _column(name, values) for name, values in lists.items()}
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        raise SchemaError(
            f"columns {', '.join(columns)} have {', '.join(str(len(each)) for each in columns.values())} values; give "
            "all of them as many"
        )
    return to_polars(pa.table(columns))


def _of_dicts(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    names = dict.fromkeys(name for row in rows for name in row)
    return to_polars(pa.table({str(name): _column(name, [row.get(name) for row in rows]) for name in names}))


def _column(name: str, values: Any) -> pa.Array:
    """Values of one type as a column."""
    if isinstance(values, pl.Series):
        return values.to_arrow()
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise SchemaError(f"column {name}: {values!r} is no list of values; give one value for each row")
    zoned = {value.tzinfo is not None for value in values if isinstance(value, datetime)}
    if len(zoned) > 1:
        raise SchemaError(f"column {name}: some times have a zone and others none; give all of them one, as tzinfo=UTC")
    try:
        return pa.array(values)
    except (pa.ArrowException, TypeError, OverflowError) as exc:
        raise SchemaError(f"column {name}: its values are of no one type: {exc}; give all of them one") from exc


def is_plain(schema: pa.Schema) -> bool:
    """Whether Polars reads every column of a file of this schema by itself."""
    return len(set(schema.names)) == len(schema) and all(_is_plain(field.type) for field in schema)


def to_polars(table: pa.Table, asked: Collection[str] | None = None) -> pl.DataFrame:
    """Convert a table to a frame. `asked` names the columns that are required; None: all.

    Raises:
        SchemaError: a required column has a type that Polars lacks, or its name occurs several times.
    """
    columns = []
    counts = Counter(table.column_names)
    for name, values in zip(table.column_names, table.columns, strict=True):
        is_asked = asked is None or name in asked
        if counts[name] > 1:
            if is_asked:
                raise SchemaError(f"column {name} is there {counts[name]} times; rename all but one")
            continue
        try:
            columns.append(_series(name, values))
        except _UNREADABLE as exc:
            if is_asked:
                raise SchemaError(f"column {name}: type {values.type} cannot be read: {exc}; cast or drop it") from exc
    return pl.DataFrame(columns)


def _series(name: str, values: pa.ChunkedArray) -> pl.Series:
    if pa.types.is_run_end_encoded(values.type):
        values = pc.run_end_decode(values)
    dtype = values.type if _is_plain(values.type) else _plain(values.type)
    if not _is_plain(dtype):  # Polars would panic
        raise TypeError(f"Polars has no {dtype}")
    return pl.Series(name, pl.from_arrow(values.cast(dtype)))


def _is_plain(dtype: pa.DataType) -> bool:
    if pa.types.is_timestamp(dtype):
        return dtype.tz is None or _is_zone(dtype.tz)
    if isinstance(dtype, pa.BaseExtensionType) or any(is_one(dtype) for is_one in _LACKING):
        return False
    return all(_is_plain(inner) for inner in _inner_types(dtype))


def _inner_types(dtype: pa.DataType) -> list[pa.DataType]:
    if pa.types.is_dictionary(dtype):
        return [dtype.value_type]
    return [dtype.field(index).type for index in range(dtype.num_fields)]


def _plain(dtype: pa.DataType) -> pa.DataType:
    """The nearest type that Polars supports, for example UTC instead of a zone that it does not know."""
    if isinstance(dtype, pa.BaseExtensionType):
        return _plain(dtype.storage_type)
    if pa.types.is_decimal256(dtype) and dtype.precision <= DECIMAL_DIGITS:
        return pa.decimal128(dtype.precision, dtype.scale)
    if pa.types.is_timestamp(dtype) and not _is_plain(dtype):
        return pa.timestamp(dtype.unit, "UTC")
    if pa.types.is_struct(dtype):
        return pa.struct([field.with_type(_plain(field.type)) for field in dtype])
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):  # not views of lists: pyarrow casts them wrongly
        return pa.large_list(_plain(dtype.value_type))
    return dtype


@functools.lru_cache(maxsize=256)
def _is_zone(name: str) -> bool:
    try:
        pl.Series([], dtype=pl.Datetime("us", name))
    except pl.exceptions.PolarsError:
        return False
    return True
