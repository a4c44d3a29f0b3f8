"""Avro container files as frames: by columns if Polars can read them, otherwise record by record.

Polars reads records of plain types, lists of them and nullable ones, compressed with deflate or snappy. It fails on
enums, maps, nulls, fixed and wider unions, or even stops the process. fastavro reads these, and bzip2 and xz, about ten
times slower. For other compressions fastavro needs a package, which the error names.
"""

import contextlib
import io
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import polars as pl

from headrace.errors import DecodeError
from headrace.streams.files.wanted import Wanted

_PLAIN = frozenset({"boolean", "int", "long", "float", "double", "string", "bytes"})
_POLARS_CODECS = frozenset({"null", "deflate", "snappy"})


def read_avro_file(path: Path, wanted: Wanted) -> pl.DataFrame:
    """Read all rows of the file, in order; the frame may have columns that are not wanted.

    Raises:
        OSError: the file cannot be opened.
        DecodeError: the file is not an Avro container file of records or is damaged, or a package for its compression
            is missing.
    """
    with path.open("rb") as file, _damage(path):
        records = fastavro.reader(file)
        schema: Any = records.writer_schema
        rows = None if _is_columnar(schema, records.codec) else list(records)
    return pl.read_avro(path) if rows is None else _frame(rows, schema, wanted)


def iter_avro_file(path: Path, wanted: Wanted, rows: int) -> Iterator[pl.DataFrame]:
    """Like `read_avro_file`, in pieces of whole file blocks, each with at least `rows` rows except the last."""
    with path.open("rb") as file, path.open("rb") as raw:
        with _damage(path):
            blocks = fastavro.block_reader(file)
            schema: Any = blocks.writer_schema
            is_columnar, header = _is_columnar(schema, blocks.codec), b""
        if blocks.codec == "snappy" and is_columnar:  # Polars has it built in; fastavro needs a package to skip a block
            yield pl.read_avro(path)
            return
        pending: list[Any] = []
        while True:
            with _damage(path):
                block = next(blocks, None)
            if block is not None:
                header = header or raw.read(block.offset)
                pending.append(block)
            if pending and (block is None or sum(each.num_records for each in pending) >= rows):
                if is_columnar:
                    raw.seek(pending[0].offset)
                    yield pl.read_avro(io.BytesIO(header + raw.read(sum(each.size for each in pending))))
                else:
                    with _damage(path):
                        records = [row for each in pending for row in each]
                    yield _frame(records, schema, wanted)
                pending = []
            if block is None:
                return


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as exc:  # fastavro passes on any exception of its decoding
        words = str(exc) or type(exc).__name__
        if "you need to install" in words:
            raise DecodeError(f"{path.name}: {words}; or write it with deflate, bzip2 or xz") from exc
        raise DecodeError(f"{path.name} is no readable Avro file: {words}") from exc


def _frame(rows: list[Any], schema: Any, wanted: Wanted) -> pl.DataFrame:
    """Rows as a frame of the wanted columns; values of other columns may not fit a column."""
    fields = [field["name"] for field in schema["fields"]]
    names = wanted.among(fields) or fields
    values = [[_plain_value(row[name]) for name in names] for row in rows]
    return pl.DataFrame(values, schema=names, orient="row", infer_schema_length=None)


def _plain_value(value: Any) -> Any:
    return str(value) if isinstance(value, uuid.UUID) else value


def _is_columnar(schema: Any, codec: str) -> bool:
    """Whether Polars can read every field of the record `schema`, and the compression."""
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise DecodeError(f"an Avro file of {schema!r} holds no records")
    return codec in _POLARS_CODECS and all(_is_plain(field["type"]) for field in schema["fields"])


def _is_plain(kind: Any) -> bool:
    if isinstance(kind, str):
        return kind in _PLAIN
    if isinstance(kind, list):
        others = [each for each in kind if each != "null"]
        return len(kind) == 2 and len(others) == 1 and _is_plain(others[0])
    if kind["type"] == "array":
        return _is_plain(kind["items"])
    return kind["type"] in _PLAIN and kind.get("logicalType") != "decimal"
