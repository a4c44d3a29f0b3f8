"""Parquet files on this disk: whole, in pieces, and some rows of them.

Polars reads them. A file with a column of a type that Polars lacks is read by pyarrow, whole or in pieces but not in
part, so that such a column costs nothing to those who do not ask for it.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.schemas.tables import is_plain, to_polars
from headrace.streams.files.wanted import Wanted


def read_parquet(path: Path, wanted: Wanted) -> pl.DataFrame:
    """All rows."""
    if is_plain(pq.read_schema(path)):
        return scan_parquet(path, wanted).collect()
    with pq.ParquetFile(path) as file:
        return to_polars(file.read(wanted.among(file.schema_arrow.names)), wanted.asked)


def read_schema(path: Path) -> pl.DataFrame:
    """All columns, without rows."""
    schema = pq.read_schema(path)
    return pl.scan_parquet(path, glob=False).head(0).collect() if is_plain(schema) else to_polars(schema.empty_table())


def iter_parquet(path: Path, wanted: Wanted, rows: int) -> Iterator[pl.DataFrame]:
    """`read_parquet`, in pieces of about `rows` rows."""
    if is_plain(pq.read_schema(path)):
        yield from scan_parquet(path, wanted).collect_batches(chunk_size=rows, maintain_order=True)
        return
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(rows, columns=wanted.among(file.schema_arrow.names)):
            yield to_polars(pa.Table.from_batches([batch]), wanted.asked)


def reads_parts(path: Path, time: str) -> bool:
    """Whether the file can be asked for some of its rows, and for the values of the column `time` in these."""
    schema = pq.read_schema(path)
    return is_plain(schema) and time in schema.names


def count_rows(path: Path) -> int:
    """How many rows the file has."""
    return int(pq.read_metadata(path).num_rows)


def row_groups(path: Path, rows_max: int) -> list[tuple[int, int]]:
    """(first row, rows) of the row groups, small ones joined up to `rows_max` rows."""
    about = pq.read_metadata(path)
    groups: list[tuple[int, int]] = []
    for index in range(about.num_row_groups):
        count = about.row_group(index).num_rows
        start, rows = groups.pop() if groups else (0, 0)
        joined = (
            [(start, rows + count)] if rows + count <= rows_max or not rows else [(start, rows), (start + rows, count)]
        )
        groups += joined
    return groups


def time_range(path: Path, time: pl.Expr, start: int, rows: int) -> tuple[int | None, int | None]:
    """Least and greatest value of `time` over some rows; None where all are null.

    Read from the column: a file's statistics may be absent, or of another unit.
    """
    part = pl.scan_parquet(path, glob=False).slice(start, rows)
    low, high = part.select(time.min().alias("low"), time.max().alias("high")).collect().row(0)
    return low, high


def is_in_order(path: Path, column: str) -> bool:
    """Whether the rows are sorted by a column of times or integers; False where there is none such."""
    scan = pl.scan_parquet(path, glob=False)
    dtype = scan.collect_schema().get(column, pl.Null())
    if not (dtype.is_integer() or dtype.is_temporal()):
        return False
    return bool(scan.select(column).collect()[column].is_sorted())


def scan_parquet(path: Path, wanted: Wanted) -> pl.LazyFrame:
    """The columns that are wanted of a file that Polars reads by itself."""
    scan = pl.scan_parquet(path, glob=False)
    names = wanted.among(scan.collect_schema().names())
    return scan if names is None else scan.select(names)
