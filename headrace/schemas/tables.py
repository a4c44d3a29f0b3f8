"""Tables of other libraries, and of plain Python, as Polars frames.

pandas frames, pyarrow tables, batches and readers, relations of DuckDB, and whatever else speaks Arrow's C interface or
the dataframe interchange protocol; lists of dicts and dicts of lists. None of these libraries is needed for it. Named
levels of a pandas index are columns, a nameless index is left out.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import polars as pl
import pyarrow as pa
from pyarrow.interchange import from_dataframe

from headrace.errors import SchemaError
from headrace.schemas.arrow_tables import to_polars

TableLike: TypeAlias = Any
"""A Polars frame, lazy or not, or anything that `frame_of` makes one of."""

_NAMELESS_INDEX = re.compile(r"__index_level_\d+__")


def frame_of(table: TableLike) -> pl.DataFrame | pl.LazyFrame | None:
    """A table as a frame; None where `table` is no table, as paths and lists of keys are.

    Raises:
        SchemaError: it is a table that cannot be read, such as one with columns of different lengths or mixed types.
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
