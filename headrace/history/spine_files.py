"""A spine in files: its rows in order, with one schema whatever the files differ in.

    a.parquet   key, event_time[ms, UTC]                      columns by name, in the order in which they appear first;
    b.parquet   event_time[us, Europe/Paris], label, key      a file without a column has null in it; times of several
                                                              units or zones become UTC in the finest of the units

Parquet is read piece by piece, any other format as a whole. Keys, times and fields of the request are of the types that
the views declare, also in CSV, where other columns are numbers, booleans or texts by what is written in them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from headrace.errors import SchemaError, SourceError, SpineError
from headrace.features.view import ViewPlan
from headrace.history.spine import TIME, with_times
from headrace.schemas.time_units import TimeUnit
from headrace.streams.files.finder import EventFile, find_files
from headrace.streams.files.path_columns import folder_values
from headrace.streams.files.reading import TEXT_FORMATS, iter_file, read_file, read_schema
from headrace.streams.files.text_times import TimeTexts, are_numbers, as_numbers
from headrace.streams.files.wanted import Wanted

_PIECE_ROWS = 250_000
_UNITS = ("ms", "us", "ns")


@dataclass(frozen=True, slots=True)
class SpineFormat:
    """How a spine is written: unit of bare numbers in `event_time`, and strptime format of its times in CSV files."""

    time_unit: TimeUnit | None = None
    csv_time_format: str | None = None


class SpineFiles:
    """The rows of the files that `paths` name, for the views of `plans`.

    Raises:
        SourceError: there are no files, or one is not there or cannot be read.
    """

    def __init__(
        self, paths: str | Path | Sequence[str | Path], plans: Sequence[ViewPlan], written: SpineFormat
    ) -> None:
        self.files = find_files(paths, csv_time_format=written.csv_time_format)
        if not self.files:
            raise SourceError("spine: no files given")
        self._unit = written.time_unit
        self._types = _declared_types(plans)
        self._whole: dict[str, pl.DataFrame] = {}

    @cached_property
    def schema(self) -> dict[str, pl.DataType]:
        """Columns of all files and their types.

        Raises:
            SpineError: a column is of types in two files that have none in common; names the column and the files.
        """
        schema: dict[str, tuple[pl.DataType, str]] = {}
        for file in self.files:
            for name, dtype in self._schema_of(file).items():
                known, url = schema.get(name, (dtype, file.url))
                schema[name] = (_common(name, known, dtype, (url, file.url)), url)
        return {name: dtype for name, (dtype, _) in schema.items()}

    def pieces(self, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """All rows in order, in pieces of the schema, of all columns or of those named that there are.

        Raises:
            SourceError, SchemaError, SpineError: a file cannot be read, or its times need a unit.
        """
        schema = {name: dtype for name, dtype in self.schema.items() if columns is None or name in columns}
        selection = Wanted(self._types, None if columns is None else tuple(((name,), False) for name in columns))
        for file in self.files:
            for piece in self._pieces_of(file, selection):
                yield pl.DataFrame([_fitted(piece, name, dtype) for name, dtype in schema.items()])

    def read(self) -> pl.DataFrame:
        """All rows.

        Raises:
            SourceError, SchemaError, SpineError: as `pieces`.
        """
        return pl.concat([pl.DataFrame(schema=self.schema), *self.pieces()])

    def _schema_of(self, file: EventFile) -> Mapping[str, pl.DataType]:
        if file.suffix != ".parquet":
            return self._read(file).schema
        return self._typed(read_schema(file), file).schema

    def _pieces_of(self, file: EventFile, selection: Wanted) -> Iterator[pl.DataFrame]:
        if file.suffix != ".parquet":
            yield from self._read(file).iter_slices(_PIECE_ROWS)
        else:
            yield from (self._typed(piece, file) for piece in iter_file(file, _PIECE_ROWS, selection))

    def _read(self, file: EventFile) -> pl.DataFrame:
        """A file that names no types in front, once."""
        if file.location not in self._whole:
            self._whole[file.location] = self._typed(read_file(file, Wanted(self._types, None)), file)
        return self._whole[file.location]

    def _typed(self, frame: pl.DataFrame, file: EventFile) -> pl.DataFrame:
        """The file's rows with columns that its folders give, and with times that are times."""
        folders = folder_values(file)
        given = [
            _of_folder(name, dtype, folders[name], file).new_from_index(0, frame.height)
            for name, dtype in self._types.items()
            if name in folders and name not in frame.columns
        ]
        frame = frame.with_columns(given)
        texts = frame[TIME] if file.suffix in TEXT_FORMATS and TIME in frame.columns else None
        if texts is not None and texts.dtype == pl.String:
            place = f"file {file.url} · column {TIME}"
            is_number = are_numbers(texts)
            times = as_numbers(texts) if is_number else TimeTexts(place, lambda: texts).parse(texts)
            frame = frame.with_columns(times)
        return with_times(frame, self._unit, f"file {file.url}")


def _declared_types(plans: Sequence[ViewPlan]) -> dict[str, Any]:
    """Column that a view needs -> its type; a key that is an integer in one event and a text in another is no one's."""
    types: dict[str, Any] = {TIME: pl.Datetime("us", "UTC")}
    for plan in plans:
        types |= plan.layout.request
        types |= {
            name: pl.Int64() if kind == "int" else pl.String()
            for name, kind in zip(plan.entity, plan.key_kinds, strict=True)
            if kind != "any"
        }
    return types


def _common(name: str, first: pl.DataType, second: pl.DataType, urls: tuple[str, str]) -> pl.DataType:
    """The type that holds values of both."""
    if pl.Null in (first, second) or first == second:
        return second if first == pl.Null else first
    times = [dtype for dtype in (first, second) if isinstance(dtype, pl.Datetime)]
    if len(times) == 2:
        return pl.Datetime(max((time.time_unit for time in times), key=_UNITS.index), "UTC")
    if {first.is_integer(), second.is_integer()} == {True} or {first.is_float(), second.is_float()} == {True}:
        return pl.Int64() if first.is_integer() else pl.Float64()
    if {first.base_type(), second.base_type()} <= {pl.String, pl.Categorical, pl.Enum}:
        return pl.String()
    raise SpineError(
        f"spine column {name} is {first} in file {urls[0]} and {second} in file {urls[1]}; cast one of them, so that "
        "all files have one type"
    )


def _fitted(piece: pl.DataFrame, name: str, dtype: pl.DataType) -> pl.Series:
    """A column of a piece as the schema has it; null where the file lacks it."""
    if name not in piece.columns:
        return pl.Series(name, [None], dtype).new_from_index(0, piece.height)
    column = piece[name]
    if isinstance(dtype, pl.Datetime) and isinstance(column.dtype, pl.Datetime) and column.dtype != dtype:
        column = column.dt.replace_time_zone("UTC") if column.dtype.time_zone is None else column
        column = column.dt.convert_time_zone("UTC").dt.cast_time_unit(dtype.time_unit)
    return column.cast(dtype)


def _of_folder(name: str, dtype: Any, text: str | None, file: EventFile) -> pl.Series:
    try:
        return pl.Series(name, [text], pl.String).cast(dtype)
    except pl.exceptions.PolarsError as exc:
        raise SchemaError(f"file {file.url}: folder {name}={text} is no {dtype}; name the folder so") from exc
