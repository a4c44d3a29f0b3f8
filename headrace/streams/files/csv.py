"""CSV files by declared types: each declared column is read as its type, others are skipped or their type is guessed.

RFC 4180: commas, a header, and quoted values that may contain commas and newlines. An empty value is null; a quoted ""
is an empty text, and null in columns of other types. A row whose number of values differs from the header is an error,
as is a value that its column's type cannot hold; both errors name the line.

pyarrow reads the types that it knows. A file with a value that it rejects, such as 1.0 in a column of integers, is read
as text and converted value by value.
"""

import csv
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from headrace.errors import DecodeError, SchemaError
from headrace.streams.files.lines import refuse_wide
from headrace.streams.files.text_times import TimeTexts, are_numbers, as_numbers
from headrace.streams.files.wanted import Wanted

_BLOCK_BYTES = (1 << 20, 1 << 25)
_ROW_BYTES = 128
_ARROW_TYPES = {pl.Int64: pa.int64(), pl.Float64: pa.float64(), pl.Boolean: pa.bool_()}
_WORDS = {pl.Int64: "whole number of 64 bits", pl.Float64: "number", pl.Boolean: "true or false"}
_BOOLS = {"true": True, "false": False, "1": True, "0": False}
_INT, _FLOAT, _BOOL = r"^-?(0|[1-9]\d*)$", r"^-?(0|[1-9]\d{0,14})(\.\d+)?([eE][+-]?\d+)?$", r"^(true|false)$"
_DECIMAL_COMMA = r"-?\d+,\d+"
_OTHER_SEPARATORS = ";\t|"


def read_csv(path: Path, wanted: Wanted) -> pl.DataFrame:
    """Read all rows. Undeclared columns become numbers or booleans if all their values are written as such.

    Raises:
        DecodeError: no usable header, a row whose number of values differs from it, or text that is not UTF-8.
        SchemaError: a value does not fit its column's type; names column and line.
    """
    return _CsvFile(path, wanted).read()


def iter_csv(path: Path, wanted: Wanted, rows: int) -> Iterator[pl.DataFrame]:
    """Like `read_csv`, in pieces of at most `rows` rows."""
    return _CsvFile(path, wanted).pieces(rows)


class _CsvFile:
    """A reader of one CSV file, which reads values as text after pyarrow has rejected one."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self._path = path
        self._declared = wanted.types
        header = _header(path)
        self._columns = _present(header, wanted.types, others=wanted.among(header) is None)
        _refuse_open_quote(path)
        self._is_text = False
        self._time_format = wanted.time_format
        self._times = {
            name: TimeTexts(f"column {name}", partial(self._text_column, name), wanted.time_format)
            for name, dtype in self._columns.items()
            if dtype == pl.Datetime
        }

    def read(self) -> pl.DataFrame:
        try:
            return self._typed(self._table(), 0)
        except pa.ArrowInvalid as exc:
            self._note(exc)
        return self._typed(self._table(), 0)

    def pieces(self, rows: int) -> Iterator[pl.DataFrame]:
        done, is_done = 0, False
        while not is_done:
            try:
                skipped = 0
                for batch in pa_csv.open_csv(self._path, **self._options(max(rows, 1) * _ROW_BYTES)):
                    known = min(done - skipped, batch.num_rows)
                    skipped += known
                    frame = self._typed(pa.table(batch[known:]), done)
                    done, skipped = done + frame.height, skipped + frame.height
                    yield from frame.iter_slices(rows)
                is_done = True
            except pa.ArrowInvalid as exc:
                self._note(exc)

    def _note(self, exc: pa.ArrowInvalid) -> None:
        """Switch to reading values as text, if `exc` is about a value.

        Raises:
            DecodeError: it is about something else.
        """
        if self._is_text or "conversion error" not in str(exc):
            raise _refusal(self._path, exc) from exc
        self._is_text = True

    def _table(self) -> pa.Table:
        return pa_csv.read_csv(self._path, **self._options(_BLOCK_BYTES[1]))

    def _options(self, block_bytes: int) -> dict[str, Any]:
        low, high = _BLOCK_BYTES
        texts = dict.fromkeys(self._columns, pa.large_string())
        typed = {} if self._is_text else {n: _ARROW_TYPES[d] for n, d in self._columns.items() if d in _ARROW_TYPES}
        return {
            "read_options": pa_csv.ReadOptions(block_size=max(low, min(high, block_bytes))),
            "parse_options": pa_csv.ParseOptions(newlines_in_values=True),
            "convert_options": pa_csv.ConvertOptions(
                column_types={**texts, **typed},
                include_columns=list(self._columns),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        }

    def _text_column(self, name: str) -> pl.Series:
        """A whole column as text."""
        options = self._options(_BLOCK_BYTES[1])
        options["convert_options"].include_columns = [name]
        options["convert_options"].column_types = {name: pa.large_string()}
        return _without_empty(pl.Series(pa_csv.read_csv(self._path, **options)[name]))

    def _typed(self, table: pa.Table, first: int) -> pl.DataFrame:
        """Convert rows to the declared types; `first` is the number of rows before them."""
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame.with_columns(self._fitted(frame[name], first) for name in frame.columns)

    def _fitted(self, column: pl.Series, first: int) -> pl.Series:
        dtype = self._columns[column.name]
        if column.dtype != pl.String or (dtype == pl.String and column.name in self._declared):
            return column
        if column.name not in self._declared:
            return _guessed(column)
        column = _without_empty(column)
        if dtype == pl.Datetime:
            is_numbers = self._time_format is None and are_numbers(column)
            return as_numbers(column) if is_numbers else self._times[column.name].parse(column)
        if dtype not in _ARROW_TYPES:  # a CSV cannot contain values of such a type
            return column.cast(pl.Null) if column.null_count() == len(column) else column
        fitted = _values(column.str.strip_chars(), dtype)
        wrong = fitted.is_null() & column.is_not_null()
        if wrong.any():
            value, line = column.filter(wrong)[0], _line(self._path, first + int(wrong.arg_true()[0]))
            hint = "; decimal commas are not read, write points" if re.fullmatch(_DECIMAL_COMMA, value) else ""
            raise SchemaError(f"line {line} · column {column.name}: {value!r} is no {_WORDS[dtype]}{hint}")
        return fitted


def _present(header: list[str], columns: Mapping[str, Any], *, others: bool) -> dict[str, Any]:
    """Types of the columns to read, in the file's order."""
    twice = [name for name in header if header.count(name) > 1 and (others or name in columns)]
    if twice:
        raise DecodeError(f"column {twice[0]!r} is in the header {header.count(twice[0])} times; rename all but one")
    marks = [mark for mark in _OTHER_SEPARATORS if len(header) == 1 and mark in header[0]]
    if marks and header[0] not in columns:
        raise DecodeError(
            f"the header {header[0]!r} is parted by {marks[0]!r}, and values of a CSV are parted by commas; write it so"
        )
    types = {name: columns.get(name, pl.String()) for name in header if others or name in columns}
    return types or {name: pl.String() for name in header[:1]}  # without a column the number of rows would be unknown


def _header(path: Path) -> list[str]:
    with path.open("rb") as file:
        refuse_wide(file.read(4))
    row = next(_rows(path), None)
    if row is None:
        raise DecodeError("it has no header")
    return row[1]


def _refuse_open_quote(path: Path) -> None:
    """Check that every quoted value ends: pyarrow would take all rows after the quote for a part of the value.

    Raises:
        DecodeError: one does not.
    """
    with path.open("rb") as file:
        count = sum(block.count(b'"') for block in iter(partial(file.read, _BLOCK_BYTES[0]), b""))
    if count % 2 == 0:
        return
    line = 0
    with path.open(encoding="utf-8-sig", newline="", errors="replace") as file:
        reader = csv.reader(file, strict=True)
        try:
            for _ in reader:
                line = reader.line_num
        except csv.Error as exc:
            raise DecodeError(
                f"the row that begins on line {line + 1} has a quoted value that does not end where it should ({exc}); "
                "close it, and write quotes inside a value twice"
            ) from exc


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line and values of each row that is not blank, the header first. Slow: used for errors only."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            yield from ((reader.line_num, row) for row in reader if row)
    except (csv.Error, UnicodeDecodeError) as exc:
        raise DecodeError(f"it is no CSV of UTF-8 text: {exc}") from exc


def _line(path: Path, row: int) -> int:
    """The 1-based line on which the 0-based row ends."""
    return next((line for index, (line, _) in enumerate(_rows(path), -1) if index == row), 0)


def _refusal(path: Path, exc: pa.ArrowInvalid) -> DecodeError:
    """The error for a file that pyarrow rejected, with the line of a row whose length differs from the header."""
    rows = _rows(path)
    wanted = len(next(rows)[1])
    for line, row in rows:
        if len(row) != wanted:
            return DecodeError(
                f"line {line} has {len(row)} values and the header {wanted}; complete the row, or take it out"
            )
    return DecodeError(f"it is no CSV of UTF-8 text: {exc}")


def _without_empty(texts: pl.Series) -> pl.Series:
    return texts.replace("", None)


def _values(texts: pl.Series, dtype: Any) -> pl.Series:
    """Convert texts to integers, floats or booleans; null if a text is not valid."""
    if dtype == pl.Boolean:
        return texts.str.to_lowercase().replace_strict(_BOOLS, default=None, return_dtype=pl.Boolean)
    values = texts.cast(dtype, strict=False)
    if dtype == pl.Int64:  # whole numbers written as floats
        floats = texts.cast(pl.Float64, strict=False)
        whole = floats.cast(pl.Int64, strict=False)
        exact = (floats == whole.cast(pl.Float64)) & (floats.abs() <= 2**53)
        values = values.zip_with(values.is_not_null(), whole.set(~exact.fill_null(value=False), None))
    return values


def _guessed(texts: pl.Series) -> pl.Series:
    """Convert an undeclared column to numbers or booleans if all its values are written as such."""
    if texts.null_count() < len(texts):
        for pattern, dtype in ((_INT, pl.Int64), (_FLOAT, pl.Float64), (_BOOL, pl.Boolean)):
            if texts.str.contains(pattern).fill_null(value=True).all():
                values = _values(texts, dtype)
                return values if values.null_count() == texts.null_count() else texts
    return texts
