"""Lossless casts of frames from files and messages to the declared columns.

Types are compared per column: one that cannot be cast to the declared type is an error for the whole frame. Values are
compared per row: one that the cast would change, or that the declared type cannot hold, makes its row bad.
"""

import difflib
import functools
import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from headrace.errors import SchemaError
from headrace.schemas.event import EventSpec
from headrace.schemas.fields import DECIMAL_DIGITS, FieldType, default_column
from headrace.schemas.rejects import BadRow, Rejects
from headrace.schemas.row_json import YEAR_1_US, YEAR_10000_US, value_texts
from headrace.schemas.time_units import UNITS_PER_S, TimeUnit

_DAY_US = 86_400_000_000
_INT_MAX = 2**63 - 1
_FLOAT_DIGITS = 15  # decimal digits that every float64 keeps


class MissingColumnError(SchemaError):
    """A required column is missing."""


def conform(frame: pl.DataFrame, spec: EventSpec) -> pl.DataFrame:
    """Cast `frame` to the declared columns, in declared order and types; other columns are dropped.

    Casts are lossless: whole numbers to int, exactly representable numbers and decimals to float, categories and
    decimals to text, dates and other time units to microseconds. Nanoseconds are rounded down to microseconds. A
    datetime without a zone is UTC; a number is a time only if the event declares a `time_unit`. A column that is
    optional, or has a default, may be missing. If a column's name is missing, the field's old names are tried. Nulls
    are left to `Quality`, where they make bad rows.

    Raises:
        SchemaError: a column is missing, or has values that the declared type cannot hold; names event, column, types.
    """
    fitted, bad = conform_rows(frame, spec)
    if bad:
        raise SchemaError(f"{bad[0].detail} (row {bad[0].index}, and {len(bad) - 1:,} more)")
    return fitted


def conform_rows(frame: pl.DataFrame, spec: EventSpec) -> tuple[pl.DataFrame, Rejects[BadRow]]:
    """Cast a frame row by row: a row with a value that does not fit is bad (`wrong_type`) and does not affect others.

    Returns the good rows as `conform` would, and the bad ones by their index in `frame`.

    Raises:
        SchemaError: a column is missing, or its type has no values that can be cast to the declared type.
    """
    if list(frame.schema.items()) == list(spec.polars.items()):
        return frame, Rejects.none(BadRow)
    fitter = _Fitter(spec.time_unit)
    columns = []
    for name, wanted in spec.types.items():
        path = f"event {spec.name}.{name}"
        present = wanted.name_in(frame.columns, name)
        if present is None:
            columns.append(_absent(frame.columns, wanted, path, spec.types).alias(name))
        else:
            columns.append(fitter.fit(pl.col(present), frame.schema[present], wanted, path, present).alias(name))
    try:
        fitted = frame.select(columns)
        bad = Rejects.merged(BadRow, list(_lost_rows(frame, fitter.losses)))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as exc:
        raise SchemaError(f"event {spec.name}: the columns cannot be cast: {exc}") from exc
    if not bad:
        return fitted, bad
    keep = np.ones(frame.height, np.bool_)
    keep[bad.indexes] = False
    return fitted.filter(pl.Series(keep)), bad


@dataclass(frozen=True, slots=True)
class _Loss:
    """Rows whose value in `column` the cast would change: `lost` is a Boolean column without nulls."""

    column: str
    text: str
    lost: pl.Expr


def _lost_rows(frame: pl.DataFrame, losses: Sequence[_Loss]) -> Iterable[Rejects[BadRow]]:
    """Yield the rows of each loss, without those of earlier losses, with the value in the detail."""
    if not losses or not frame.select(pl.any_horizontal([loss.lost.any() for loss in losses])).item():
        return
    seen = np.zeros(frame.height, np.bool_)
    for loss in losses:
        lost = frame.select(loss.lost).to_series().to_numpy() & ~seen
        seen |= lost
        index = np.flatnonzero(lost)
        yield Rejects.same(BadRow, index, "wrong_type", f"{loss.text}: " + value_texts(frame[loss.column][index]))


class _Fitter:
    """Builder of the cast expressions of a frame; `losses` collects the casts that may change a value."""

    def __init__(self, unit: TimeUnit | None) -> None:
        self._unit = unit
        self.losses: list[_Loss] = []

    def fit(self, values: pl.Expr, dtype: Any, wanted: FieldType, path: str, column: str) -> pl.Expr:
        """Cast values of type `dtype` to the wanted type."""
        fitted, lost = self._fit(values, dtype, wanted, path)
        for text, where in lost:
            self.losses.append(_Loss(column, text, where.fill_null(value=False)))
        return fitted

    def _fit(
        self, values: pl.Expr, dtype: Any, wanted: FieldType, path: str
    ) -> tuple[pl.Expr, list[tuple[str, pl.Expr]]]:
        """The cast values, and a list of (message, Boolean expression that is true where a value is lost)."""
        if dtype == wanted.polars():
            return values, []
        if wanted.kind == "struct" and isinstance(dtype, pl.Struct):
            return self._fit_struct(values, dtype, wanted, path)
        if wanted.item is not None and isinstance(dtype, pl.List | pl.Array):
            lists = values.arr.to_list() if isinstance(dtype, pl.Array) else values
            item, lost = self._fit(pl.element(), dtype.inner, wanted.item, f"{path}[]")
            below = [(text, lists.list.eval(where.fill_null(value=False)).list.any()) for text, where in lost]
            return lists.list.eval(item), below
        cast = _cast(dtype, wanted, self._unit)
        if cast is None:
            hint = _hint(dtype, wanted, self._unit)
            raise SchemaError(
                f"{path}: found {dtype}, wanted {wanted.polars()}; cast it before, or change the declaration{hint}"
            )
        fitted, where = cast(values)
        text = f"{path}: found {dtype}, wanted {wanted.polars()}; the cast would lose digits or overflow"
        return fitted, [] if where is None else [(text, values.is_not_null() & where)]

    def _fit_struct(
        self, values: pl.Expr, dtype: pl.Struct, wanted: FieldType, path: str
    ) -> tuple[pl.Expr, list[tuple[str, pl.Expr]]]:
        present = {field.name: field.dtype for field in dtype.fields}
        fields, lost = [], []
        for name, inner in wanted.fields:
            written_name = inner.name_in(present, name)
            if written_name is None:
                fields.append(_absent(list(present), inner, f"{path}.{name}", dict(wanted.fields)).alias(name))
                continue
            fitted, below = self._fit(values.struct.field(written_name), present[written_name], inner, f"{path}.{name}")
            fields.append(fitted.alias(name))
            lost += below
        return pl.when(values.is_not_null()).then(pl.struct(fields)), lost


def _absent(present: list[str], wanted: FieldType, path: str, declared: Collection[str]) -> pl.Expr:
    """The default of a missing field, for every row; no other field that is `declared` is taken for a misspelt one."""
    if wanted.required:
        others = [name for name in present if name not in declared]
        near = difflib.get_close_matches(path.rpartition(".")[2], others, 1)
        hint = f"; did you mean {near[0]!r}? Rename it" if near else ""
        raise MissingColumnError(
            f"{path}: no such column, wanted {wanted.polars()}; there are {', '.join(present)}{hint}"
        )
    column = pl.from_arrow(default_column(wanted))
    assert isinstance(column, pl.Series)
    return pl.lit(column.cast(wanted.polars())).first()


_Cast = Callable[[pl.Expr], tuple[pl.Expr, pl.Expr | None]]
"""values -> (values of the wanted type, true where the cast changes a value; None: it never does)."""


def _cast(dtype: Any, wanted: FieldType, unit: TimeUnit | None) -> _Cast | None:
    """The cast from a type to `wanted`; None if there is none."""
    if dtype == pl.Null:
        return lambda values: (values.cast(wanted.polars()), None)
    match wanted.kind:
        case "int" | "float" if dtype.is_numeric():
            return functools.partial(_exact, dtype=dtype, wanted=wanted.polars())
        case "text" if dtype in (pl.Categorical, pl.Enum, pl.Decimal):
            return lambda values: (values.cast(pl.String), None)
        case "time":
            return _time_cast(dtype, unit)
    return None


def _time_cast(dtype: Any, unit: TimeUnit | None) -> _Cast | None:
    """The cast from a type to times, with numbers in `unit`; None if there is none."""
    per_us = UNITS_PER_S["us"]
    if dtype == pl.Date:
        return functools.partial(_scaled, multiplier=_DAY_US, divisor=1)
    if dtype == pl.Datetime:
        return functools.partial(_scaled, multiplier=per_us, divisor=UNITS_PER_S[dtype.time_unit])
    if dtype.is_integer() and unit is not None:
        return functools.partial(_scaled, multiplier=per_us, divisor=UNITS_PER_S[unit])
    if dtype.is_float() and unit in ("s", "ms"):
        return functools.partial(_rounded, factor=per_us // UNITS_PER_S[unit])
    return None


def _exact(values: pl.Expr, *, dtype: Any, wanted: pl.DataType) -> tuple[pl.Expr, pl.Expr]:
    """Cast values, and check that casting back gives the original values."""
    if dtype == pl.Decimal:
        return _of_decimal(values, dtype.scale, wanted)
    fitted = values.cast(wanted, strict=False)
    return fitted, fitted.cast(dtype, strict=False).ne_missing(values)


def _of_decimal(values: pl.Expr, scale: int, wanted: pl.DataType) -> tuple[pl.Expr, pl.Expr]:
    """Cast decimals to integers, or to the float with the same decimal digits."""
    if wanted == pl.Float64:
        text = values.cast(pl.String)
        digits = text.str.replace_all(r"[.-]", "").str.strip_chars_start("0").str.strip_chars_end("0")
        return text.cast(pl.Float64, strict=False), digits.str.len_bytes() > _FLOAT_DIGITS
    fitted = values.cast(wanted, strict=False)
    # A cast to decimals raises on too many digits, strict or not.
    wide = pl.Decimal(DECIMAL_DIGITS, scale)
    is_short = fitted.cast(pl.Float64).abs() < 10.0 ** (DECIMAL_DIGITS - 1 - scale)
    return fitted, pl.when(is_short).then(fitted).cast(wide, strict=False).ne_missing(values.cast(wide))


def _scaled(values: pl.Expr, *, multiplier: int, divisor: int) -> tuple[pl.Expr, pl.Expr]:
    """Integers in a unit as times; rounded down if the unit is finer than a microsecond."""
    whole = values.cast(pl.Int64, strict=False)
    if divisor > multiplier:
        return _as_times(whole // (divisor // multiplier)), whole.is_null()
    factor = multiplier // divisor
    bound = _INT_MAX // factor
    fits = whole.is_between(-bound, bound)
    return _as_times(pl.when(fits).then(whole) * factor), ~fits.fill_null(value=False)


def _rounded(values: pl.Expr, *, factor: int) -> tuple[pl.Expr, pl.Expr]:
    """Floats in a unit as times, rounded to the nearest microsecond."""
    whole = (values.cast(pl.Float64) * factor).round().cast(pl.Int64, strict=False)
    return _as_times(whole), whole.is_null()


def _as_times(micros: pl.Expr) -> pl.Expr:
    return micros.cast(pl.Datetime("us", "UTC"))


def _hint(dtype: Any, wanted: FieldType, unit: TimeUnit | None) -> str:
    if wanted.kind == "time" and unit is None and dtype.is_numeric():
        return '; for numbers of units since 1970, declare the unit, such as `time_unit="ms"`'
    return ""


def refuse_nulls(frame: pl.DataFrame, spec: EventSpec) -> None:
    """Reject a frame, already of the event's types, with a null in a field that is not optional.

    Raises:
        SchemaError: names the event and the column.
    """
    name = _first_with(frame, spec, lambda values, field: None if field.nullable else values.is_null())
    if name is not None:
        raise SchemaError(f"event {spec.name}.{name}: null where the event declares none; fill it or write `| None`")


def refuse_far_times(frame: pl.DataFrame, spec: EventSpec) -> None:
    """Reject a frame, already of the event's types, with a time that ISO 8601 cannot represent.

    Raises:
        SchemaError: names the event and the column.
    """
    name = _first_with(frame, spec, lambda values, field: is_far(values) if field.kind == "time" else None)
    if name is not None:
        raise SchemaError(f"event {spec.name}.{name}: a time outside the years 1 to 9999, which JSON cannot hold")


def is_far(times: pl.Expr) -> pl.Expr:
    """Whether a time (Datetime in microseconds) lies outside the years 1 to 9999."""
    micros = times.cast(pl.Int64)
    return (micros < YEAR_1_US) | (micros >= YEAR_10000_US)


_Test = Callable[[pl.Expr, FieldType], pl.Expr | None]


def _first_with(frame: pl.DataFrame, spec: EventSpec, test: _Test) -> str | None:
    """Name of the first column with a value, at any depth, for which `test` is true; None if there is none."""
    tests = {name: _anywhere(pl.col(name), field, test) for name, field in spec.types.items()}
    flags = [where.any().alias(name) for name, where in tests.items() if where is not None]
    if not flags or frame.is_empty():
        return None
    return next((name for name, is_hit in frame.select(flags).row(0, named=True).items() if is_hit), None)


def _anywhere(values: pl.Expr, field: FieldType, test: _Test) -> pl.Expr | None:
    """Whether `test` is true for a value or one nested in it; None if it applies to none of them."""
    tests = [test(values, field)]
    if field.item is not None and (item := _anywhere(pl.element(), field.item, test)) is not None:
        tests.append(values.list.eval(item).list.any())
    for name, inner in field.fields:
        below = _anywhere(values.struct.field(name), inner, test)
        tests.append(None if below is None else values.is_not_null() & below)
    known = [where.fill_null(value=False) for where in tests if where is not None]
    return functools.reduce(operator.or_, known) if known else None
