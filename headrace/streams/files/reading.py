"""Reading files of events as frames, whole or in pieces, with the table of formats by suffix.

Formats are Parquet, Arrow IPC, Avro, JSON lines and CSV; JSON lines and CSV may be compressed. A piece has about the
requested number of rows, in file order, so a file of any size is read in little memory. Remote and compressed files are
first copied to a temporary folder. A file in folders such as `country=DE` also has their columns.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import prometheus_client
import pyarrow as pa

from headrace.errors import DecodeError, SchemaError, SourceError
from headrace.redaction import has_secrets, redacted
from headrace.schemas.codecs.choose import codec_for
from headrace.schemas.codecs.codec import Codec
from headrace.schemas.conform import conform
from headrace.schemas.event import Event, spec_of
from headrace.schemas.paced_log import PacedLog
from headrace.streams.files import parquet as parquet_files
from headrace.streams.files.archive_names import OFFSET_COLUMN
from headrace.streams.files.arrow import iter_arrow, read_arrow
from headrace.streams.files.avro import iter_avro_file, read_avro_file
from headrace.streams.files.csv import iter_csv, read_csv
from headrace.streams.files.finder import COMPRESSIONS, EventFile
from headrace.streams.files.lines import iter_blocks, without_blank
from headrace.streams.files.path_columns import PathCodec, fill_columns, path_columns, refuse_others
from headrace.streams.files.wanted import Wanted

UNFINISHED = "unfinished_line"
"""Reason for a last line without its end, which is not an event yet."""

_JSON_LINES = (".jsonl", ".ndjson")
TEXT_FORMATS = (*_JSON_LINES, ".csv")

LEFT_OUT = prometheus_client.Counter(
    "headrace_replay_rows_left_out_total", "Rows of a history that a replay could not use.", ["event", "reason"]
)
_left_out_log = PacedLog("bad_rows_left_out", "rows")


@dataclass(frozen=True, slots=True)
class Format:
    """The readers of one format: for whole files, and for pieces of about n rows."""

    read: Callable[[Path, Wanted], pl.DataFrame]
    pieces: Callable[[Path, Wanted, int], Iterator[pl.DataFrame]]


def read_file(file: EventFile, wanted: Wanted) -> pl.DataFrame:
    """Read all rows of a file, unconverted, with the wanted columns.

    Raises:
        SourceError: the format is unknown, or the file is damaged.
        SchemaError: a value or a column cannot be read; names file and column.
    """
    kind = format_of(file)
    with file.local() as path, reading(file):
        return kind.read(path, replace(wanted, time_format=file.csv_time_format))


def iter_file(file: EventFile, rows: int, wanted: Wanted) -> Iterator[pl.DataFrame]:
    """Like `read_file`, in pieces of about `rows` rows."""
    kind = format_of(file)
    with file.local() as path, reading(file):
        yield from kind.pieces(path, replace(wanted, time_format=file.csv_time_format), rows)


def read_schema(file: EventFile) -> pl.DataFrame:
    """Read all columns of a Parquet file, without rows.

    Raises:
        SourceError: the file is damaged.
        SchemaError: a column has a type that cannot be read.
    """
    with file.local() as path, reading(file):
        return parquet_files.read_schema(path)


def read_events(file: EventFile, event: type[Event]) -> pl.DataFrame:
    """Read all events of a file, with the declared columns and types.

    Raises:
        SourceError: the format is unknown, or the file is damaged.
        SchemaError: a column is missing or has another type, or a line is not an event; names file and column or line.
    """
    if is_lines(file):
        pieces = list(_iter_line_events(file, event, None))
        return pl.concat(pieces) if pieces else pl.DataFrame(schema=spec_of(event).polars)
    given = path_columns(file, spec_of(event))
    return _fitted(file, event, read_file(file, Wanted.of(spec_of(event), given)), given)


def read_archived(file: EventFile, event: type[Event]) -> tuple[pl.DataFrame, pl.Series | None]:
    """Read all events of an archived file, and their offsets in the topic if the file has them.

    Raises:
        SourceError, SchemaError: see `read_events`.
    """
    wanted = Wanted.of(spec_of(event))
    assert wanted.fields is not None
    rows = read_file(file, replace(wanted, fields=(*wanted.fields, ((OFFSET_COLUMN,), False))))
    return _fitted(file, event, rows, {}), rows[OFFSET_COLUMN] if OFFSET_COLUMN in rows.columns else None


def iter_events(file: EventFile, event: type[Event], rows: int) -> Iterator[pl.DataFrame]:
    """Like `read_events`, in pieces of about `rows` rows."""
    if is_lines(file):
        yield from _iter_line_events(file, event, rows)
        return
    given = path_columns(file, spec_of(event))
    for piece in iter_file(file, rows, Wanted.of(spec_of(event), given)):
        yield _fitted(file, event, piece, given)


def rows_of(file: EventFile) -> int | None:
    """Row count from a file's metadata; None if the format has none.

    Raises:
        SourceError: the file is damaged.
    """
    if file.suffix != ".parquet" or not file.is_local:
        return None
    with reading(file):
        return parquet_files.count_rows(Path(file.path))


def reads_row_groups(file: EventFile, event: type[Event]) -> bool:
    """Whether ranges of a file's rows, and their times, can be read.

    Raises:
        SourceError: the file is damaged.
    """
    if file.suffix != ".parquet" or not file.is_local or spec_of(event).time in path_columns(file, spec_of(event)):
        return False
    with reading(file):
        return parquet_files.reads_parts(Path(file.path), spec_of(event).time)


def row_groups(file: EventFile, rows_max: int) -> list[tuple[int, int]]:
    """(first row, number of rows) of a local Parquet file's row groups, small ones joined up to `rows_max` rows.

    Raises:
        SourceError: the file is damaged.
    """
    with reading(file):
        return parquet_files.row_groups(Path(file.path), rows_max)


def time_range(file: EventFile, time: pl.Expr, start: int, rows: int) -> tuple[int | None, int | None]:
    """Minimum and maximum of `time` over a range of rows of a local Parquet file; None if all values are null.

    Raises:
        SourceError: the file is damaged, or lacks the column.
    """
    with reading(file):
        return parquet_files.time_range(Path(file.path), time, start, rows)


def read_range(file: EventFile, event: type[Event], start: int, rows: int) -> pl.DataFrame:
    """Read a range of rows of a local Parquet file; this is fast for whole row groups.

    Raises:
        SourceError, SchemaError: see `read_events`.
    """
    given = path_columns(file, spec_of(event))
    with reading(file):
        scan = parquet_files.scan_parquet(Path(file.path), Wanted.of(spec_of(event), given))
        frame = scan.slice(start, rows).collect()
    return _fitted(file, event, frame, given)


class RowGroups:
    """The events of a local Parquet file in file order, of which a few row groups are in memory."""

    def __init__(self, file: EventFile, event: type[Event], rows_max: int) -> None:
        self._file = file
        self._event = event
        self._groups = row_groups(file, rows_max)
        self._held = (0, pl.DataFrame())

    def __len__(self) -> int:
        start, rows = self._groups[-1] if self._groups else (0, 0)
        return start + rows

    def take(self, begin: int, rows_max: int) -> pl.DataFrame:
        """Rows from `begin` on, at most `rows_max`; fewer if a row group ends, none at the end of the file.

        Raises:
            SourceError, SchemaError: see `read_events`.
        """
        start, rows_read = self._held
        if not start <= begin < start + rows_read.height:
            holds = ((start, rows) for start, rows in self._groups if start <= begin < start + rows)
            start, rows = next(holds, (begin, 0))
            rows_read = read_range(self._file, self._event, start, rows)
            self._held = (start, rows_read)
        return rows_read[begin - start : begin - start + rows_max]


def is_in_order(file: EventFile, column: str) -> bool:
    """Whether a local Parquet file is sorted by a column of times or integers; False if it has no such column.

    Raises:
        SourceError: the file is damaged.
    """
    with reading(file):
        return parquet_files.is_in_order(Path(file.path), column)


def format_of(file: EventFile) -> Format:
    """The format of a file, by its suffix.

    Raises:
        SourceError: the suffix is unknown, or the file is compressed although its format has built-in compression.
    """
    if file.suffix not in FORMATS:
        raise SourceError(
            f"file {file.url}: no reader for {file.suffix!r}; use one of {', '.join(FORMATS)}, of which "
            f"{', '.join(TEXT_FORMATS)} may be compressed ({', '.join(COMPRESSIONS)})"
        )
    if file.compression is not None and file.suffix not in TEXT_FORMATS:
        raise SourceError(
            f"file {file.url}: only {', '.join(TEXT_FORMATS)} are read compressed as a whole; decompress it"
        )
    return FORMATS[file.suffix]


def is_lines(file: EventFile) -> bool:
    """Whether a file holds JSON lines, which a codec decodes."""
    return file.suffix in _JSON_LINES


def path_codec(file: EventFile, event: type[Event]) -> Codec | None:
    """The codec for the lines of a file whose folders give some columns; None if they give none.

    Raises:
        SchemaError: a folder's value is not valid for its column's type.
    """
    given = path_columns(file, spec_of(event))
    return PathCodec(spec_of(event), given) if given else None


def leave_out(event: str, place: str, rows: int, reason: str, detail: str) -> None:
    """Count and log rows of a history that are left out; `detail` describes the first row.

    They are not written to dead letters, since the live flow has already written them for the same rows.
    """
    LEFT_OUT.labels(event=event, reason=reason).inc(rows)
    _left_out_log.add(rows, detail, log=place, reason=reason)


@contextlib.contextmanager
def reading(file: EventFile) -> Iterator[None]:
    """Name the file in errors of the libraries that read it, including panics, which are no `Exception`."""
    try:
        yield
    except (OSError, DecodeError, pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException) as exc:
        reason = redacted(str(exc), file.path)
        raise SourceError(f"file {file.url} cannot be read: {reason}") from (None if has_secrets(file.path) else exc)
    except SchemaError as exc:
        raise SchemaError(f"file {file.url} · {exc}") from exc


def _fitted(file: EventFile, event: type[Event], rows: pl.DataFrame, given: dict[str, pl.Series]) -> pl.DataFrame:
    if rows.is_empty():
        rows = pl.DataFrame(schema=dict.fromkeys(rows.columns, pl.Null))  # a file without rows may not have types
    spec = spec_of(event)
    try:
        fitted = conform(fill_columns(rows, given, spec), spec)
        refuse_others(fitted, given)
    except SchemaError as exc:
        raise SchemaError(f"file {file.url}: {exc}") from exc
    return fitted


def _iter_line_events(file: EventFile, event: type[Event], rows: int | None) -> Iterator[pl.DataFrame]:
    """Events of JSON lines in pieces of at most `rows` rows; None: one piece per block."""
    codec = path_codec(file, event) or codec_for(event, "json")
    with reading(file), file.local() as path, path.open("rb") as stream:
        for block in iter_blocks(stream):
            if block.is_unfinished:
                detail = f"line {block.first + 1} has no end: its writer is not done, or was cut off"
                leave_out(spec_of(event).name, file.url, 1, UNFINISHED, detail)
                return
            lines, kept = without_blank(block.lines)
            numbers: Sequence[int] = range(block.first + 1, block.end + 1)
            numbers = numbers if kept is None else [numbers[index] for index in kept]
            for start in range(0, len(lines), rows or max(len(lines), 1)):
                part = slice(start, start + (rows or len(lines)))
                yield _decoded(codec, lines[part], numbers[part])


def _decoded(codec: Codec, lines: list[bytes], numbers: Sequence[int]) -> pl.DataFrame:
    """Decode lines to events; `numbers` are their line numbers for the error."""
    decoded = codec.decode(lines)
    if decoded.bad:
        bad = decoded.bad[0]
        raise SchemaError(
            f"line {numbers[bad.index]}: {bad.detail}; {len(decoded.bad)} of {len(lines)} lines cannot be read"
        )
    return decoded.frame


def _read_lines(path: Path, wanted: Wanted) -> pl.DataFrame:
    """Read JSON lines as a frame, with the columns that the objects have."""
    del wanted
    with path.open("rb") as stream:
        lines = b"".join(block.data for block in iter_blocks(stream))
    return pl.read_ndjson(io.BytesIO(lines), infer_schema_length=None)


def _line_pieces(path: Path, wanted: Wanted, rows: int) -> Iterator[pl.DataFrame]:
    return _read_lines(path, wanted).iter_slices(rows)


FORMATS: dict[str, Format] = {
    ".parquet": Format(parquet_files.read_parquet, parquet_files.iter_parquet),
    **dict.fromkeys((".arrow", ".ipc", ".feather"), Format(read_arrow, iter_arrow)),
    ".avro": Format(read_avro_file, iter_avro_file),
    ".csv": Format(read_csv, iter_csv),
    **dict.fromkeys(_JSON_LINES, Format(_read_lines, _line_pieces)),
}
"""File suffix -> format. JSON lines are read this way only if they are not events, as in a spine."""
