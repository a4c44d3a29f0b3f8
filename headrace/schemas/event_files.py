"""Files of events as frames, whole or piece by piece: the one table of formats, by suffix.

Parquet, Arrow IPC, Avro, JSON lines and CSV. A piece has about as many rows as are asked for, in the file's order, so a
file of any size is read in little memory. Files elsewhere than on this disk are copied to a temporary folder first.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import DecodeError, SchemaError, SourceError
from headrace.redaction import has_secrets, redacted
from headrace.schemas.avro_files import iter_avro_file, read_avro_file
from headrace.schemas.codec import codec_for
from headrace.schemas.conform import conform
from headrace.schemas.event import Event, spec_of
from headrace.schemas.file_finder import EventFile

Columns = Mapping[str, Any]
"""Declared columns and their Polars types; others need not be read, and those of a text in a CSV are not guessed."""


@dataclass(frozen=True, slots=True)
class Format:
    """How files of one kind are read: wholly, and by pieces of about n rows."""

    read: Callable[[Path, Columns], pl.DataFrame]
    pieces: Callable[[Path, Columns, int], Iterator[pl.DataFrame]]


def read_file(file: EventFile, columns: Columns | None = None) -> pl.DataFrame:
    """All rows of a file, its own columns or those of `columns` that it has.

    Raises:
        SourceError: no such format, or the file is damaged.
    """
    kind = format_of(file)
    with file.local() as path, _named(file):
        return kind.read(path, columns or {})


def read_lines(file: EventFile) -> list[bytes]:
    """The lines of a file of JSON lines that are not blank.

    Raises:
        SourceError: it cannot be read.
    """
    with file.local() as path, _named(file):
        return [line for line in path.read_bytes().splitlines() if line.strip()]


def iter_file(file: EventFile, rows: int, columns: Columns | None = None) -> Iterator[pl.DataFrame]:
    """The same as `read_file`, in pieces of about `rows` rows."""
    kind = format_of(file)
    with file.local() as path, _named(file):
        yield from kind.pieces(path, columns or {}, rows)


def read_events(file: EventFile, event: type[Event]) -> pl.DataFrame:
    """All events of a file, of the declared columns and types.

    Raises:
        SourceError: no such format, or the file is damaged.
        SchemaError: a column is missing or of another type, or a line is no event; names file and column or line.
    """
    if is_lines(file):
        return _decoded(file, event, read_lines(file), 0)
    return _fitted(file, event, read_file(file, spec_of(event).polars))


def iter_events(file: EventFile, event: type[Event], rows: int) -> Iterator[pl.DataFrame]:
    """The same as `read_events`, in pieces of about `rows` rows."""
    if not is_lines(file):
        for piece in iter_file(file, rows, spec_of(event).polars):
            yield _fitted(file, event, piece)
        return
    with file.local() as path, _named(file):
        done = 0
        for lines in _iter_lines(path, rows):
            yield _decoded(file, event, lines, done)
            done += len(lines)


def rows_of(file: EventFile) -> int | None:
    """How many rows a file says that it has; None where only reading tells.

    Raises:
        SourceError: the file is damaged.
    """
    if file.suffix != ".parquet" or not file.is_local:
        return None
    with _named(file):
        return int(pl.scan_parquet(file.path, glob=False).select(pl.len()).collect().item())


def row_groups(file: EventFile, rows_max: int) -> list[tuple[int, int]]:
    """(first row, rows) of the row groups of a Parquet file on this disk, small ones joined up to `rows_max` rows.

    Raises:
        SourceError: the file is damaged.
    """
    with _named(file):
        about = pq.read_metadata(file.path)
    found: list[tuple[int, int]] = []
    for index in range(about.num_row_groups):
        count = about.row_group(index).num_rows
        start, rows = found.pop() if found else (0, 0)
        found += (
            [(start, rows + count)] if rows + count <= rows_max or not rows else [(start, rows), (start + rows, count)]
        )
    return found


def time_range(file: EventFile, time: pl.Expr, start: int, rows: int) -> tuple[int | None, int | None]:
    """Least and greatest value of `time` over some rows of a Parquet file on this disk; None where all are null.

    Read from the column: a file's statistics may be absent, or of another unit.

    Raises:
        SourceError: the file is damaged, or lacks the column.
    """
    with _named(file):
        part = pl.scan_parquet(file.path, glob=False).slice(start, rows)
        low, high = part.select(time.min().alias("low"), time.max().alias("high")).collect().row(0)
    return low, high


def read_range(file: EventFile, event: type[Event], start: int, rows: int) -> pl.DataFrame:
    """Some rows of a Parquet file on this disk; they are read fast where they are whole row groups.

    Raises:
        SourceError, SchemaError: as `read_events`.
    """
    with _named(file):
        found = _scan_parquet(Path(file.path), spec_of(event).polars).slice(start, rows).collect()
    return _fitted(file, event, found)


class RowGroups:
    """The events of a Parquet file on this disk in the file's order, of which a few row groups are in memory."""

    def __init__(self, file: EventFile, event: type[Event], rows_max: int) -> None:
        self._file = file
        self._event = event
        self._groups = row_groups(file, rows_max)
        self._held = (0, pl.DataFrame())

    def __len__(self) -> int:
        start, rows = self._groups[-1] if self._groups else (0, 0)
        return start + rows

    def take(self, begin: int, rows_max: int) -> pl.DataFrame:
        """Rows from `begin` on, at most `rows_max`; fewer where row groups end, none at the end of the file.

        Raises:
            SourceError, SchemaError: as `read_events`.
        """
        start, held = self._held
        if not start <= begin < start + held.height:
            holds = ((start, rows) for start, rows in self._groups if start <= begin < start + rows)
            start, rows = next(holds, (begin, 0))
            held = read_range(self._file, self._event, start, rows)
            self._held = (start, held)
        return held[begin - start : begin - start + rows_max]


def is_in_order(file: EventFile, column: str) -> bool:
    """Whether a Parquet file on this disk is sorted by a column of times or integers; False where it has none such.

    Raises:
        SourceError: the file is damaged.
    """
    with _named(file):
        scan = pl.scan_parquet(file.path, glob=False)
        dtype = scan.collect_schema().get(column, pl.Null())
        if not (dtype.is_integer() or dtype.is_temporal()):
            return False
        return bool(scan.select(column).collect()[column].is_sorted())


def format_of(file: EventFile) -> Format:
    """The format that a file's suffix tells.

    Raises:
        SourceError: it tells none.
    """
    if file.suffix not in FORMATS:
        raise SourceError(f"file {file.url}: no reader for {file.suffix!r}; use one of {', '.join(FORMATS)}")
    return FORMATS[file.suffix]


def is_lines(file: EventFile) -> bool:
    """Whether a file holds JSON lines, which are events by their codec."""
    return file.suffix in _JSON_LINES


@contextlib.contextmanager
def _named(file: EventFile) -> Iterator[None]:
    try:
        yield
    except (OSError, DecodeError, pl.exceptions.PolarsError, pa.ArrowInvalid) as exc:
        reason = redacted(str(exc), file.path)
        raise SourceError(f"file {file.url} cannot be read: {reason}") from (None if has_secrets(file.path) else exc)


def _fitted(file: EventFile, event: type[Event], rows: pl.DataFrame) -> pl.DataFrame:
    if rows.is_empty():
        rows = pl.DataFrame(schema=dict.fromkeys(rows.columns, pl.Null))  # a CSV of no rows tells no types
    try:
        return conform(rows, spec_of(event))
    except SchemaError as exc:
        raise SchemaError(f"file {file.url}: {exc}") from exc


def _decoded(file: EventFile, event: type[Event], lines: list[bytes], before: int) -> pl.DataFrame:
    found = codec_for(event, "json").decode(lines)
    if found.bad:
        bad = found.bad[0]
        raise SchemaError(
            f"file {file.url} · line {before + bad.index + 1}: {bad.detail}; "
            f"{len(found.bad)} lines in all cannot be read"
        )
    return found.frame


def _iter_lines(path: Path, rows: int) -> Iterator[list[bytes]]:
    lines = []
    with path.open("rb") as opened:
        for line in opened:
            if line.strip():
                lines.append(line.rstrip(b"\r\n"))
            if len(lines) == rows:
                yield lines
                lines = []
    if lines:
        yield lines


def _known(scan: pl.LazyFrame, columns: Columns) -> pl.LazyFrame:
    """The declared columns; all of them where one is lacking, for it may have an old name, or else they are told."""
    return scan.select(list(columns)) if columns and set(columns) <= set(scan.collect_schema().names()) else scan


def _scan_parquet(path: Path, columns: Columns) -> pl.LazyFrame:
    return _known(pl.scan_parquet(path, glob=False), columns)


def _scan_csv(path: Path, columns: Columns) -> pl.LazyFrame:
    texts = {name: dtype for name, dtype in columns.items() if dtype == pl.String}
    return pl.scan_csv(path, glob=False, try_parse_dates=True, schema_overrides=texts, infer_schema_length=10_000)


def _batches(scan: pl.LazyFrame, rows: int) -> Iterator[pl.DataFrame]:
    return iter(scan.collect_batches(chunk_size=rows, maintain_order=True))


def _read_ipc(path: Path, columns: Columns) -> pl.DataFrame:
    del columns
    try:
        return pl.read_ipc(path)
    except pl.exceptions.ComputeError:
        return pl.read_ipc_stream(path)


def _ipc_pieces(path: Path, columns: Columns, rows: int) -> Iterator[pl.DataFrame]:
    try:
        scan = _known(pl.scan_ipc(path, glob=False), columns)
    except pl.exceptions.ComputeError:
        with pa.OSFile(str(path)) as opened, pa.ipc.open_stream(opened) as stream:
            yield from (pl.from_arrow(batch) for batch in stream)  # type: ignore[misc]
    else:
        yield from _batches(scan, rows)


FORMATS: dict[str, Format] = {
    ".parquet": Format(
        lambda path, columns: _scan_parquet(path, columns).collect(),
        lambda path, columns, rows: _batches(_scan_parquet(path, columns), rows),
    ),
    **dict.fromkeys((".arrow", ".ipc", ".feather"), Format(_read_ipc, _ipc_pieces)),
    ".avro": Format(lambda path, _: read_avro_file(path), lambda path, _, rows: iter_avro_file(path, rows)),
    ".csv": Format(
        lambda path, columns: _scan_csv(path, columns).collect(),
        lambda path, columns, rows: _batches(_scan_csv(path, columns), rows),
    ),
    **dict.fromkeys(
        (".jsonl", ".ndjson"),
        Format(lambda path, _: pl.read_ndjson(path), lambda path, _, rows: _batches(pl.scan_ndjson(path), rows)),
    ),
}
"""File suffix -> format. JSON lines are read so only where they are no events: a spine."""
_JSON_LINES = (".jsonl", ".ndjson")
