"""Source columns of an `InputSpec`: checking them against the views, and building them from answers or a data frame."""

import difflib
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from headrace.errors import DeclarationError, SchemaError
from headrace.features import Answer, Lists, ViewPlan
from headrace.learners.ids import as_ids
from headrace.learners.input_spec import Bag, Categorical, Column, Dense, Derived, Field, InputSpec, Match
from headrace.learners.inputs import PAD

_READ_FACTS = {"_found": "int", "_age_s": "float"}
"""Columns that each view has beside its features, with types: whether a record was found, and its age in seconds."""
_IDS = {"int", "text"}
_LISTS = {"list[int]", "list[text]"}
_FIXES = {
    "Categorical": "it takes an int or a text; read numbers with Dense, lists with Bag",
    "Bag": "it takes a list of ints or texts, as LastN gives; read single ids with Categorical, numbers with Dense",
    "Dense": "it takes a number; read lists with Bag or Match, texts with Categorical, times with TimeSince",
    "Match": "it takes a list of ints or texts, as LastN gives",
    "candidate": "it takes an int or a text",
}


def columns_of(answers: Mapping[str, Answer], request: Mapping[str, Column] | None = None) -> dict[str, Column]:
    """Convert answers, by view name, to source columns: `<view>.<feature>`, `<view>._found`, `<view>._age_s`.

    `request` columns are added under their own names. An age is in seconds, NaN without a record. An integer feature
    without a value is PAD.
    """
    columns: dict[str, Column] = {}
    for view, answer in answers.items():
        for name, column in answer.columns.items():
            empty = answer.empty.get(name)
            columns[f"{view}.{name}"] = column if empty is None else np.where(empty, PAD, np.asarray(column))
        columns[f"{view}._found"] = answer.found
        columns[f"{view}._age_s"] = answer.age_s
    return columns | dict(request or {})


def column_of(series: pl.Series) -> Column:
    """Convert a column of a frame to a source column, exactly, with missing values marked.

    Integers, booleans, times and durations (microseconds) become int64 with PAD where null, floats float64 with NaN,
    texts an object array with None, and lists `Lists` of int64 (texts by their hash) or float64.

    Raises:
        SchemaError: the column has another type, or an integer beyond 64 signed bits.
    """
    if isinstance(series.dtype, pl.List | pl.Array):
        return _lists_of(series)
    if series.dtype == pl.Duration:
        series = series.cast(pl.Duration("us")).cast(pl.Int64)
    elif series.dtype.is_temporal() and series.dtype != pl.Time:
        series = series.cast(pl.Datetime("us")).cast(pl.Int64)
    if series.dtype.is_float() or series.dtype.is_decimal():
        return series.cast(pl.Float64).fill_null(np.nan).to_numpy()
    if series.dtype.is_integer() or series.dtype in (pl.Boolean, pl.Null):
        try:
            return series.cast(pl.Int64).fill_null(PAD).to_numpy()
        except pl.exceptions.InvalidOperationError as exc:
            raise SchemaError(f"column {series.name}: an integer beyond 64 signed bits; give it as text") from exc
    if series.dtype in (pl.String, pl.Categorical, pl.Enum):
        return np.array(series.cast(pl.String).to_list(), dtype=object)
    raise SchemaError(f"column {series.name}: {series.dtype} is no id and no number; select other columns, or cast it")


def _lists_of(series: pl.Series) -> Lists:
    lists = series.cast(pl.List(series.dtype.inner))  # type: ignore[attr-defined]  # a list or an array has it
    lengths = lists.list.len().fill_null(0).to_numpy().astype(np.int64)
    flat = np.asarray(column_of(lists.list.explode(empty_as_null=False, keep_nulls=False)))
    flat = flat if flat.dtype.kind == "f" else as_ids(flat)
    values = np.zeros((len(lengths), int(lengths.max(initial=0))), flat.dtype)
    values[np.arange(values.shape[1]) < lengths[:, None]] = flat
    return Lists(values, lengths)


def check_fields(learner: str, spec: InputSpec, plans: Sequence[ViewPlan]) -> None:
    """Check that each column that names a feature exists in the views, with a type that its field can read.

    Raises:
        DeclarationError: a feature is missing or has another type; names learner, field, column and fix.
    """
    types = {f"{plan.name}.{feature.name}": feature.dtype for plan in plans for feature in plan.features}
    types |= {f"{plan.name}.{fact}": dtype for plan in plans for fact, dtype in _READ_FACTS.items()}
    windowed = {feature.name: feature.full_name for plan in plans for feature in plan.features if feature.window}
    for field in spec.fields:
        for role, column, wanted in _columns(field):
            what = f"learner {learner} · inputs · {type(field).__name__} {field.name!r}: column {column!r}"
            if column in windowed:
                raise DeclarationError(f"{what} has no view; did you mean {windowed[column]!r}?")
            if "." in column:
                _check_column(what, column, types)
                if wanted and types[column] not in wanted:
                    raise DeclarationError(f"{what} is {types[column]}; {_FIXES[role]}")


def _columns(field: Field) -> list[tuple[str, str, set[str]]]:
    """(role, column, allowed types) of each column that a field reads; an empty set allows any type."""
    match field:
        case Categorical():
            return [("Categorical", field.column, _IDS)]
        case Bag():
            return [("Bag", field.column, _LISTS)]
        case Dense():
            return [("Dense", field.column, {"int", "float"})]
        case Match():
            return [("candidate", field.candidate, _IDS), ("Match", field.column, _LISTS)]
        case Derived():
            return [("Derived", column, set()) for column in field.columns]


def _check_column(what: str, column: str, types: Mapping[str, str]) -> None:
    if column not in types:
        near = difflib.get_close_matches(column, types, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"its views have {', '.join(types) or 'no feature'}"
        raise DeclarationError(f"{what}: no such feature; {hint}")
