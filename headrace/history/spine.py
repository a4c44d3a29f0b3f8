"""The spine: rows of entity keys and times, in memory or in files. Each row is answered as of its time.

A spine has each view's entity columns and `event_time`, a datetime (naive is UTC), or whole numbers with a given unit.
Other columns are passed through. A null key is answered like an entity without events.

Several files form one spine, their rows in order, with one schema even if the files differ:

    a.parquet   key, event_time[ms, UTC]                      columns by name, in the order in which they appear first;
    b.parquet   event_time[us, Europe/Paris], label, key      a file without a column has null in it; times of several
                                                              units or zones become UTC in the finest of the units

Parquet is read piece by piece, any other format as a whole. Keys, times and request fields have the types that the
views declare, also in CSV, where the types of other columns (number, boolean, text) are inferred from their content.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import SchemaError, SourceError, SpineError
from headrace.features.expressions.derived import request_columns
from headrace.features.keys import fitted_keys
from headrace.features.view import ViewPlan
from headrace.schemas.row_json import YEAR_1_US, YEAR_10000_US
from headrace.schemas.time_units import TIME_UNITS, UNIT_NAMES, UNITS_PER_S, TimeUnit, likely_unit
from headrace.streams.files.finder import EventFile, find_files
from headrace.streams.files.path_columns import folder_values
from headrace.streams.files.reading import TEXT_FORMATS, iter_file, read_file, read_schema
from headrace.streams.files.text_times import TimeTexts, are_numbers, as_numbers
from headrace.streams.files.wanted import Wanted

TIME = "event_time"

_US = UNITS_PER_S["us"]
_PIECE_ROWS = 250_000
_UNITS = ("ms", "us", "ns")  # of datetimes, from coarse to fine


def with_times(spine: pl.DataFrame, unit: TimeUnit | None, place: str = "spine") -> pl.DataFrame:
    """Convert whole numbers in the spine's time column to datetimes in UTC; other columns stay as they are.

    `place` is named in errors.

    Raises:
        SpineError: there are numbers without a unit, or their size does not fit the unit, or a time is not a whole
            number of microseconds.
    """
    if unit not in (None, *TIME_UNITS):
        raise SpineError(f"time_unit {unit!r}: use one of {', '.join(TIME_UNITS)}")
    if TIME not in spine.columns or not spine.schema[TIME].is_integer():
        return spine
    times = spine[TIME].drop_nulls()
    whole = times.cast(pl.Int64, strict=False)
    if whole.null_count():
        raise SpineError(f"{place}: column {TIME!r} has {times.filter(whole.is_null())[0]}, beyond 64 bits; correct it")
    numbers = whole.to_numpy()
    ends = [int(numbers.max()), int(numbers.min())] if len(numbers) else []
    likely = likely_unit(ends[0]) if ends else None
    hint = f"; by their size they are {UNIT_NAMES[likely]}" if likely else ""
    if unit is None and ends:
        raise SpineError(
            f"{place}: column {TIME!r} is {spine.schema[TIME]}, numbers without a unit{hint}. Say which it is, "
            f'time_unit="{likely or "ms"}" or --spine-time-unit {likely or "ms"}, or give datetimes'
        )
    unit = unit or "us"  # of no numbers any will do
    wrong = [number for number in ends if likely_unit(number) != unit]
    if wrong:
        raise SpineError(
            f"{place}: column {TIME!r} has {wrong[0]}, no time of the years 1971 to 2969 in {UNIT_NAMES[unit]}{hint}. "
            "Give the unit that they are of"
        )
    factor, divisor = max(_US // UNITS_PER_S[unit], 1), max(UNITS_PER_S[unit] // _US, 1)
    if (numbers % divisor).any():
        raise SpineError(f"{place}: column {TIME!r} has times between two microseconds; round them")
    times = spine[TIME].cast(pl.Int64) // divisor * factor
    return spine.with_columns(times.cast(pl.Datetime("us")).dt.replace_time_zone("UTC"))


def spine_times(spine: pl.DataFrame, view: str) -> NDArray[np.int64]:
    """Return the time of each row in microseconds UTC: (n,). Whole numbers are microseconds. `view` is named in errors.

    Raises:
        SpineError: the column is missing, has nulls or is not a time, or a time is out of range or not a whole number
            of microseconds.
    """
    if TIME not in spine.columns:
        raise SpineError(
            f"view {view}: the spine has no column {TIME!r}; there are {_listed(spine)}; rename the one that tells when"
        )
    column = spine[TIME]
    if not (column.dtype.is_integer() or column.dtype == pl.Datetime):
        raise SpineError(
            f"view {view}: spine column {TIME!r} is {column.dtype}; use a datetime, or whole numbers and their unit"
        )
    if column.null_count():
        raise SpineError(
            f"view {view}: spine column {TIME!r} is null in {column.null_count()} of {spine.height} rows; drop them"
        )
    if isinstance(column.dtype, pl.Datetime):
        if column.dtype.time_unit == "ns" and (column.to_physical() % 1_000 != 0).any():
            raise SpineError(
                f"view {view}: spine column {TIME!r} has times between two microseconds, and events have none; "
                'round them, as pl.col("event_time").dt.round("1us")'
            )
        numbers = column.to_physical().to_numpy()
        _check_range(numbers, column.dtype.time_unit, f"view {view}: spine column {TIME!r}")
        column = column.dt.cast_time_unit("us")
    return column.cast(pl.Int64).to_numpy(writable=True)


def _check_range(numbers: NDArray[np.int64], unit: TimeUnit, place: str) -> None:
    """Refuse datetimes outside the years of `datetime`, which result from numbers read in a wrong unit.

    Raises:
        SpineError: a time is outside these years.
    """
    for number in (numbers.min(), numbers.max()) if len(numbers) else ():
        if not YEAR_1_US <= int(number) * _US // UNITS_PER_S[unit] < YEAR_10000_US:
            likely = likely_unit(int(number))
            hint = f"; by its size it is {UNIT_NAMES[likely]}" if likely else ""
            raise SpineError(f"{place} has {number} {UNIT_NAMES[unit]}, no time of the years 1 to 9999{hint}")


def check_spine(plans: Sequence[ViewPlan], spine: pl.DataFrame) -> None:
    """Check that every view can answer the spine.

    Raises:
        SpineError: a column that a view needs is missing or of another type, or a column has the name of a feature; the
            message names the view and the column.
    """
    head = spine.head(0)
    for plan in plans:
        fitted_keys(plan, spine)
        floats = [name for name in plan.entity if len(plan.entity) > 1 and spine.schema[name].is_float()]
        if floats:  # parts of a replay split entities by the text of the key
            raise SpineError(
                f"view {plan.name}: entity column {floats[0]} is {spine.schema[floats[0]]}; cast it before, as "
                f'pl.col("{floats[0]}").cast(pl.Int64)'
            )
        taken = [feature.full_name for feature in plan.features if feature.full_name in spine.columns]
        if taken:
            raise SpineError(
                f"view {plan.name}: the spine has a column {taken[0]!r} already; drop or rename it, as "
                f"spine.drop({', '.join(map(repr, taken))})"
            )
        request_columns(plan.name, plan.layout.request, head)
        spine_times(head, plan.name)
    spine_times(spine, plans[0].name)


def _listed(spine: pl.DataFrame) -> str:
    return ", ".join(spine.columns) or "none"


@dataclass(frozen=True, slots=True)
class SpineFormat:
    """Format of times in a spine: unit of bare numbers in `event_time`, and strptime format in CSV files."""

    time_unit: TimeUnit | None = None
    csv_time_format: str | None = None


class SpineFiles:
    """Reads the rows of the files that `paths` name, for the views of `plans`.

    Raises:
        SourceError: there are no files, or a file is missing or cannot be read.
    """

    def __init__(
        self, paths: str | Path | Sequence[str | Path], plans: Sequence[ViewPlan], written: SpineFormat
    ) -> None:
        self.files = find_files(paths, csv_time_format=written.csv_time_format).files
        if not self.files:
            raise SourceError("spine: no files given")
        self._unit = written.time_unit
        self._types = _declared_types(plans)
        self._whole: dict[str, pl.DataFrame] = {}

    @cached_property
    def schema(self) -> dict[str, pl.DataType]:
        """Columns of all files, with their types.

        Raises:
            SpineError: the types of a column in two files have no common type; the message names column and files.
        """
        schema: dict[str, tuple[pl.DataType, str]] = {}
        for file in self.files:
            for name, dtype in self._schema_of(file).items():
                known, url = schema.get(name, (dtype, file.url))
                schema[name] = (_common(name, known, dtype, (url, file.url)), url)
        return {name: dtype for name, (dtype, _) in schema.items()}

    def pieces(self, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """Yield all rows in order, in pieces with all columns of the schema, or with those in `columns` that exist.

        Raises:
            SourceError, SchemaError, SpineError: a file cannot be read, or its times need a unit.
        """
        schema = {name: dtype for name, dtype in self.schema.items() if columns is None or name in columns}
        selection = Wanted(self._types, None if columns is None else tuple(((name,), False) for name in columns))
        for file in self.files:
            for piece in self._pieces_of(file, selection):
                yield pl.DataFrame([_fitted(piece, name, dtype) for name, dtype in schema.items()])

    def read(self) -> pl.DataFrame:
        """Read all rows.

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
        """Read a file other than Parquet as a whole, once."""
        if file.location not in self._whole:
            self._whole[file.location] = self._typed(read_file(file, Wanted(self._types, None)), file)
        return self._whole[file.location]

    def _typed(self, frame: pl.DataFrame, file: EventFile) -> pl.DataFrame:
        """Return the file's rows with the columns that its folders' names give, and with times as datetimes."""
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
    """Return column -> type for columns that views need; keys that are both integers and texts have none."""
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
    """Return the type that can hold values of both."""
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
    """Return a column of a piece with the type of the schema; null if the file lacks it."""
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
