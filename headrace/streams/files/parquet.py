"""Local Parquet files: whole, in pieces, and ranges of rows.

Polars reads them. A file with a column type that Polars lacks is read by pyarrow, whole or in pieces but not by ranges,
so that such a column does not matter unless it is requested.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.schemas.tables import is_plain, to_polars
from headrace.streams.files.wanted import Wanted


def read_parquet(path: Path, wanted: Wanted) -> pl.DataFrame:
    """Read all rows."""
    if is_plain(pq.read_schema(path)):
        return scan_parquet(path, wanted).collect()
    with pq.ParquetFile(path) as file:
        return to_polars(file.read(wanted.among(file.schema_arrow.names)), wanted.asked)


def read_schema(path: Path) -> pl.DataFrame:
    """Read all columns, without rows."""
    schema = pq.read_schema(path)
    return pl.scan_parquet(path, glob=False).head(0).collect() if is_plain(schema) else to_polars(schema.empty_table())


def iter_parquet(path: Path, wanted: Wanted, rows: int) -> Iterator[pl.DataFrame]:
    """Like `read_parquet`, in pieces of about `rows` rows."""
    if is_plain(pq.read_schema(path)):
        yield from scan_parquet(path, wanted).collect_batches(chunk_size=rows, maintain_order=True)
        return
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(rows, columns=wanted.among(file.schema_arrow.names)):
            yield to_polars(pa.Table.from_batches([batch]), wanted.asked)


def reads_parts(path: Path, time: str) -> bool:
    """Whether ranges of the file's rows can be read, and it has the column `time`."""
    schema = pq.read_schema(path)
    return is_plain(schema) and time in schema.names


def count_rows(path: Path) -> int:
    """Number of rows in the file."""
    return int(pq.read_metadata(path).num_rows)


def row_groups(path: Path, rows_max: int) -> list[tuple[int, int]]:
    """(first row, number of rows) of the row groups, small ones joined up to `rows_max` rows."""
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
    """Minimum and maximum of `time` over a range of rows; None if all values are null.

    Read from the column, since a file's statistics may be missing or in another unit.
    """
    part = pl.scan_parquet(path, glob=False).slice(start, rows)
    low, high = part.select(time.min().alias("low"), time.max().alias("high")).collect().row(0)
    return low, high


def is_in_order(path: Path, column: str) -> bool:
    """Whether the rows are sorted by a column of times or integers; False if there is no such column."""
    scan = pl.scan_parquet(path, glob=False)
    dtype = scan.collect_schema().get(column, pl.Null())
    if not (dtype.is_integer() or dtype.is_temporal()):
        return False
    return bool(scan.select(column).collect()[column].is_sorted())


def scan_parquet(path: Path, wanted: Wanted) -> pl.LazyFrame:
    """Scan the wanted columns of a file whose column types Polars knows."""
    scan = pl.scan_parquet(path, glob=False)
    names = wanted.among(scan.collect_schema().names())
    return scan if names is None else scan.select(names)
