"""Frames from files, made to fit a declaration without losing anything."""

import difflib
from collections.abc import Sequence
from typing import Any

import polars as pl
from pydantic_core import PydanticUndefined

from headrace.errors import SchemaError
from headrace.schemas.event import EventSpec
from headrace.schemas.field_types import FieldType, plain


def conform(frame: pl.DataFrame, spec: EventSpec) -> pl.DataFrame:
    """The declared columns of `frame`, in order and of the declared types; others are left out.

    Casts are lossless: whole numbers to int and exact ones to float, categories to text, dates and other time units to
    microseconds. A datetime without a zone is UTC. A column that is optional, or has a default, may be absent; one
    that lacks its name is looked for under the field's old names. Nulls
    are left to `Quality`: they are bad rows, not a bad file.

    Raises:
        SchemaError: a column is absent, or holds values that the declared type cannot; names event, column and types.
    """
    if list(frame.schema.items()) == list(spec.polars.items()):
        return frame
    columns = [
        _fit(frame[there], found, f"event {spec.name}.{name}").alias(name)
        if (there := _present(name, found, frame.columns))
        else _absent(frame.columns, frame.height, found, spec.name, name)
        for name, found in spec.types.items()
    ]
    return pl.DataFrame(columns)


def _present(name: str, found: FieldType, columns: Sequence[str]) -> str | None:
    """The name under which the field is there."""
    return next((each for each in (name, *found.aliases) if each in columns), None)


def _absent(present: list[str], height: int, found: FieldType, event: str, name: str) -> pl.Series:
    if found.required:
        near = difflib.get_close_matches(name, present, 1)
        hint = f"; did you mean {near[0]!r}? Rename it" if near else ""
        raise SchemaError(
            f"event {event}.{name}: no such column, wanted {found.polars()}; there are {', '.join(present)}{hint}"
        )
    value = None if found.default in (None, PydanticUndefined) else plain(found.default)
    if found.kind == "time" and value is not None:
        return pl.Series(name, [value], pl.Int64).cast(found.polars()).new_from_index(0, height)
    return pl.Series(name, [value], found.polars()).new_from_index(0, height)


def _fit(column: pl.Series, wanted: FieldType, path: str) -> pl.Series:
    """`column` as the wanted type, structs field by field."""
    if column.dtype == wanted.polars():
        return column
    if wanted.kind == "struct" and isinstance(column.dtype, pl.Struct):
        present = [field.name for field in column.dtype.fields]
        fields = [
            _fit(column.struct.field(there), inner, f"{path}.{name}").alias(name)
            if (there := _present(name, inner, present))
            else _absent(present, len(column), inner, path, name)
            for name, inner in wanted.fields
        ]
        return pl.select(pl.when(column.is_not_null()).then(pl.struct(fields))).to_series()
    failure = f"{path}: found {column.dtype}, wanted {wanted.polars()}"
    if not _castable(column.dtype, wanted):
        raise SchemaError(f"{failure}; cast it before, or change the declaration")
    try:
        fitted = column.cast(wanted.polars(), strict=True)
    except pl.exceptions.PolarsError as exc:
        raise SchemaError(f"{failure}; a value does not fit: {exc}") from exc
    if not _is_text(column.dtype) and not fitted.cast(column.dtype, strict=False).eq_missing(column).all():
        raise SchemaError(f"{failure}; the cast would lose digits, so it is not made")
    return fitted


def _is_text(found: Any) -> bool:
    while isinstance(found, pl.List | pl.Array):
        found = found.inner
    return found in (pl.String, pl.Categorical, pl.Enum)


def _castable(found: Any, wanted: FieldType) -> bool:
    """May values of `found` be read as `wanted`, if each of them survives the cast?"""
    if found == pl.Null or found == wanted.polars():
        return True
    match wanted.kind:
        case "int" | "float":
            return bool(found.is_integer() or found.is_float())
        case "text":
            return found in (pl.Categorical, pl.Enum)
        case "time":
            return found in (pl.Date, pl.Datetime)
        case "list":
            assert wanted.item is not None
            return isinstance(found, pl.List | pl.Array) and _castable(found.inner, wanted.item)
    return False


def refuse_nulls(frame: pl.DataFrame, spec: EventSpec) -> None:
    """Raise where a frame of the event's own types holds a null that the event does not declare.

    Raises:
        SchemaError: names the event and the column.
    """
    if not frame.height:
        return
    found = frame.select(_nulls(pl.col(name), field).any().alias(name) for name, field in spec.types.items())
    for name, broken in found.row(0, named=True).items():
        if broken:
            raise SchemaError(
                f"event {spec.name}.{name}: null where the event declares none; fill it or write `| None`"
            )


def _nulls(values: pl.Expr, found: FieldType) -> pl.Expr:
    broken = pl.lit(value=False) if found.nullable else values.is_null()
    if found.item is not None and not _always_null_free(found.item):
        below = values.list.eval(_nulls(pl.element(), found.item)).list.any().fill_null(value=False)
        return broken | below
    for name, inner in found.fields:
        broken |= values.is_not_null() & _nulls(values.struct.field(name), inner)
    return broken


def _always_null_free(found: FieldType) -> bool:
    """Can nothing below be wrong, because all of it may be null?"""
    return found.nullable and found.item is None and not found.fields
