"""Columns given by folder names (Hive partitioning), as Spark, DuckDB and pyarrow write them.

    log/country=DE/day=2026-01-01/part-0.parquet        country is "DE", day is 2026-01-01 in every row
    log/country=__HIVE_DEFAULT_PARTITION__/...          country is null

Names and values are percent-encoded. Only declared columns are used, with their types; a path that names one of them
twice is an error. A file may contain the column as well, if every row has the folder's value; a null differs from it.
Folders of an archive have no such names.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl

from headrace.errors import SchemaError
from headrace.schemas.codecs.codec import Decoded
from headrace.schemas.codecs.json import JsonCodec
from headrace.schemas.event import EventSpec
from headrace.schemas.fields import FieldType
from headrace.schemas.rejects import BadPayload
from headrace.streams.files.finder import EventFile
from headrace.streams.files.text_times import TimeTexts

NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"

_BOOLS = {"true": True, "false": False}


def path_columns(file: EventFile, spec: EventSpec) -> dict[str, pl.Series]:
    """Declared column -> its value (1,) from the file's folders.

    Raises:
        SchemaError: a value is not valid for the column's type, or two folders name the same column.
    """
    fields = {each: (name, field) for name, field in spec.types.items() for each in (name, *field.aliases)}
    columns: dict[str, pl.Series] = {}
    for written_name, text in _named_folders(file):
        if written_name not in fields:
            continue
        name, field = fields[written_name]
        if name in columns:
            raise SchemaError(
                f"file {file.url}: folder {written_name}={text} lies in another folder of the column {name}; a path "
                "gives a column one value, so move the file"
            )
        columns[name] = _typed(text, name, field, f"file {file.url}: folder {written_name}={text}")
    return columns


def folder_values(file: EventFile) -> dict[str, str | None]:
    """Column -> its value as text, from all folders of the file; None is null, and the deepest folder counts."""
    return dict(_named_folders(file))


def _named_folders(file: EventFile) -> list[tuple[str, str | None]]:
    """(Column, value as text) of every folder with a column, from the root down; None is null."""
    if file.is_archived:
        return []
    folders = (Path(file.path).absolute().as_posix() if file.is_local else file.path).split("/")[:-1]
    return [
        (unquote(name), None if value == NULL_FOLDER else unquote(value))
        for name, equals, value in (folder.partition("=") for folder in folders)
        if name and equals
    ]


def fill_columns(frame: pl.DataFrame, columns: Mapping[str, pl.Series], spec: EventSpec) -> pl.DataFrame:
    """Add the columns that the frame lacks, under all of their names."""
    absent = [name for name in columns if spec.types[name].name_in(frame.columns, name) is None]
    return frame.with_columns(columns[name].new_from_index(0, frame.height) for name in absent)


def refuse_others(frame: pl.DataFrame, columns: Mapping[str, pl.Series]) -> None:
    """Check that the frame, of the declared types, agrees with the folders' values.

    Raises:
        SchemaError: a row has a different value.
    """
    for name, value in columns.items():
        differs = frame[name].ne_missing(value.new_from_index(0, frame.height))
        if differs.any():
            raise SchemaError(
                f"column {name} is {frame[name].filter(differs)[0]!r} in a row and {value[0]!r} by the file's folder; "
                "drop the column from the file, or move the file"
            )


class PathCodec:
    """A codec for JSON payloads of a file whose folders give some columns, which payloads may omit."""

    def __init__(self, spec: EventSpec, columns: Mapping[str, pl.Series]) -> None:
        # The folder's value is the default, so that a missing column differs from a null.
        optional = {
            name: dataclasses.replace(
                spec.types[name],
                nullable=spec.types[name].nullable or value[0] is None,
                default=value[0],
            )
            for name, value in columns.items()
        }
        self._columns = columns
        self._whole = JsonCodec(spec)
        self._lacking = JsonCodec(dataclasses.replace(spec, types={**spec.types, **optional}))

    def encode(self, frame: pl.DataFrame) -> list[bytes]:
        """Encode each row as one object, with every column.

        Raises:
            SchemaError: the frame does not fit the declaration.
        """
        return self._whole.encode(frame)

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Decode payloads to columns; a payload with another value than the folder, or null, is "wrong_path"."""
        decoded = self._lacking.decode(payloads)
        frame, index, bad = decoded.frame, decoded.payload_index, list(decoded.bad)
        for name, value in self._columns.items():
            whole = value.new_from_index(0, frame.height)
            differs = frame[name].ne_missing(whole).to_numpy()
            bad += [
                BadPayload(row, "wrong_path", f"{name}: another value than {value[0]!r}, which the file's folder says")
                for row in index[differs].tolist()
            ]
            frame, index = frame.with_columns(whole).filter(~differs), index[~differs]
        return Decoded(frame, index, sorted(bad, key=lambda payload: payload.index))


def _typed(text: str | None, name: str, field: FieldType, place: str) -> pl.Series:
    """A folder's value converted to its column's type, (1,)."""
    try:
        value = None if text is None else _value(text, field, place)
        return pl.Series(name, [value], field.polars())
    except (ValueError, KeyError, OverflowError, TypeError) as exc:
        raise SchemaError(f"{place} is no {field.polars()}; name the folder so, or leave the column out") from exc


def _value(text: str, field: FieldType, place: str) -> Any:
    if field.kind == "text":
        return text
    if not text:
        return None
    match field.kind:
        case "int" if re.fullmatch(r"[+-]?[0-9]+", text):
            return int(text)
        case "float" if "_" not in text and text.isascii():
            return float(text)
        case "bool":
            return _BOOLS[text.lower()]
        case "time":
            texts = pl.Series([text])
            return TimeTexts(place, lambda: texts).parse(texts)[0]
    raise ValueError(text)
