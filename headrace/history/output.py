"""Writes the output file of a replay, piece by piece, in the format of its suffix.

    .parquet                     zstd
    .arrow .ipc .feather         the Arrow IPC file format, lz4
    .csv                         times as ISO 8601, lists as JSON; null is an empty value, an empty text is ""
    .jsonl .ndjson               one object per line, times as ISO 8601, floats that are not finite as "NaN", "Infinity"

The file gets its name only once it is complete.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.atomic import open_file
from headrace.errors import ConfigError
from headrace.schemas import rows_as_json
from headrace.schemas.row_json import json_values

_ISO = "%Y-%m-%dT%H:%M:%S%.6f"


def check_output(out: Path, *, overwrite: bool) -> None:
    """Check that the file `out` can be written.

    Raises:
        ConfigError: its suffix is not of a known format, it is a folder, its folder does not exist or is not writable,
            or it exists and `overwrite` is not set.
    """
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file in it, as {out / 'training.parquet'}")
    if out.suffix.lower() not in WRITERS:
        raise ConfigError(f"--out {out}: {out.suffix or 'no suffix'} is no format; use one of {', '.join(WRITERS)}")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}; make it, or name another")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {out}: nothing can be written in {out.parent}; open it for writing, or name another")
    if out.exists() and not overwrite:
        raise ConfigError(f"--out {out} is there already; --overwrite replaces it, or name another")


def write_output(pieces: Iterable[pl.DataFrame], out: Path) -> int:
    """Write frames of one schema, at least one, and return the number of rows.

    Raises:
        ConfigError: the file cannot be written, for example because the disk is full.
    """
    rows = 0

    def counted() -> Iterator[pl.DataFrame]:
        nonlocal rows
        for piece in pieces:
            yield piece
            rows += piece.height

    try:
        with open_file(out) as file:
            WRITERS[out.suffix.lower()](file, counted())
    except OSError as exc:
        raise ConfigError(f"--out {out} cannot be written: {exc}; mend that, and go on with --resume") from exc
    return rows


def _write_parquet(file: IO[bytes], pieces: Iterator[pl.DataFrame]) -> None:
    head = _arrow(next(pieces))
    with pq.ParquetWriter(file, head.schema, compression="zstd") as writer:
        for table in chain([head], map(_arrow, pieces)):
            writer.write_table(table.cast(head.schema))


def _write_arrow(file: IO[bytes], pieces: Iterator[pl.DataFrame]) -> None:
    head = _arrow(next(pieces))
    with pa.ipc.new_file(file, head.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        for table in chain([head], map(_arrow, pieces)):
            writer.write_table(table.cast(head.schema))


def _write_csv(file: IO[bytes], pieces: Iterator[pl.DataFrame]) -> None:
    for index, piece in enumerate(pieces):
        texts = _with_text_times(piece)
        nested = [name for name, dtype in texts.schema.items() if dtype.is_nested() or dtype == pl.Binary]
        columns = [_json_texts(texts[name]) if name in nested else texts[name] for name in texts.columns]
        pl.DataFrame(columns).write_csv(file, include_header=index == 0)


def _write_json_lines(file: IO[bytes], pieces: Iterator[pl.DataFrame]) -> None:
    for piece in pieces:
        file.writelines(line + b"\n" for line in rows_as_json(_with_text_times(piece)))


WRITERS: dict[str, Callable[[IO[bytes], Iterator[pl.DataFrame]], None]] = {
    ".parquet": _write_parquet,
    **dict.fromkeys((".arrow", ".ipc", ".feather"), _write_arrow),
    ".csv": _write_csv,
    **dict.fromkeys((".jsonl", ".ndjson"), _write_json_lines),
}
"""Suffix -> function that writes frames of one schema, at least one, to a file."""


def _arrow(frame: pl.DataFrame) -> pa.Table:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())


def _with_text_times(frame: pl.DataFrame) -> pl.DataFrame:
    """Format times as ISO 8601, in UTC with a Z if they have a zone, also inside lists and structs."""
    return frame.select(_text_times(pl.col(name), dtype).alias(name) for name, dtype in frame.schema.items())


def _text_times(values: pl.Expr, dtype: Any) -> pl.Expr:
    if isinstance(dtype, pl.Datetime):
        return (
            values.dt.strftime(_ISO)
            if dtype.time_zone is None
            else values.dt.convert_time_zone("UTC").dt.strftime(_ISO + "Z")
        )
    if isinstance(dtype, pl.List):
        return values.list.eval(_text_times(pl.element(), dtype.inner))
    if isinstance(dtype, pl.Struct):
        fields = [_text_times(values.struct.field(each.name), each.dtype).alias(each.name) for each in dtype.fields]
        return pl.when(values.is_not_null()).then(pl.struct(fields))
    return values


def _json_texts(column: pl.Series) -> pl.Series:
    """Format lists, structs and bytes as JSON; null stays null."""
    return json_values(column).set(column.is_null(), None).alias(column.name)
