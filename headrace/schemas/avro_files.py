"""Avro container files as frames: by columns where Polars can, record by record where it cannot.

Polars reads records of plain types, of lists of them and of nullable ones. Enums, maps, fixed and wider unions make it
fail, or stop the process; fastavro reads them, some ten times slower.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import polars as pl

from headrace.errors import DecodeError

_PLAIN = frozenset({"null", "boolean", "int", "long", "float", "double", "string", "bytes"})


def read_avro_file(path: str | Path) -> pl.DataFrame:
    """All rows of the file, in order.

    Raises:
        OSError: it cannot be opened.
        DecodeError: it is no Avro container file of records, or it is damaged.
    """
    path = Path(path)
    with path.open("rb") as file, _damage(path):
        records = fastavro.reader(file)
        schema: Any = records.writer_schema
        rows = None if _is_columnar(schema) else list(records)
    return pl.read_avro(path) if rows is None else _frame(rows, schema)


def iter_avro_file(path: str | Path, rows: int) -> Iterator[pl.DataFrame]:
    """The same, in pieces of whole blocks of the file, each of at least `rows` rows but the last."""
    path = Path(path)
    with path.open("rb") as file, path.open("rb") as raw:
        with _damage(path):
            blocks = fastavro.block_reader(file)
            schema: Any = blocks.writer_schema
            is_columnar, header = _is_columnar(schema), b""
        held: list[Any] = []
        while True:
            with _damage(path):
                block = next(blocks, None)
            if block is not None:
                header = header or raw.read(block.offset)
                held.append(block)
            if held and (block is None or sum(each.num_records for each in held) >= rows):
                if is_columnar:
                    raw.seek(held[0].offset)
                    yield pl.read_avro(io.BytesIO(header + raw.read(sum(each.size for each in held))))
                else:
                    with _damage(path):
                        found = [row for each in held for row in each]
                    yield _frame(found, schema)
                held = []
            if block is None:
                return


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as exc:  # fastavro raises whatever its decoding ran into
        raise DecodeError(f"{path.name} is no readable Avro file: {exc or type(exc).__name__}") from exc


def _frame(rows: list[Any], schema: Any) -> pl.DataFrame:
    names = [field["name"] for field in schema["fields"]]
    return pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None)


def _is_columnar(schema: Any) -> bool:
    """Whether Polars reads every field of the record `schema`."""
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise DecodeError(f"an Avro file of {schema!r} holds no records")
    return all(_is_plain(field["type"]) for field in schema["fields"])


def _is_plain(kind: Any) -> bool:
    if isinstance(kind, str):
        return kind in _PLAIN
    if isinstance(kind, list):
        return len(kind) == 2 and "null" in kind and all(_is_plain(each) for each in kind)
    if kind["type"] == "array":
        return _is_plain(kind["items"])
    return kind["type"] in _PLAIN and kind.get("logicalType") != "decimal"
