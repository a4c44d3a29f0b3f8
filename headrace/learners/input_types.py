"""The fields of an `InputSpec` against the features that they read: names that exist, of types that fit."""

import difflib
from collections.abc import Mapping, Sequence

from headrace.errors import DeclarationError
from headrace.features import ViewPlan
from headrace.learners.columns import READ_FACTS
from headrace.learners.input_spec import Bag, Categorical, Dense, Derived, Field, InputSpec, Match

_IDS = {"int", "text"}
_LISTS = {"list[int]", "list[text]"}
_FIXES = {
    "Categorical": "it takes an int or a text; read numbers with Dense, lists with Bag",
    "Bag": "it takes a list of ints or texts, as LastN gives; read single ids with Categorical, numbers with Dense",
    "Dense": "it takes a number; read lists with Bag or Match, texts with Categorical, times with TimeSince",
    "Match": "it takes a list of ints or texts, as LastN gives",
    "candidate": "it takes an int or a text",
}


def check_fields(learner: str, spec: InputSpec, plans: Sequence[ViewPlan]) -> None:
    """See that each column that names a feature names one of the views, of a type that its field can read.

    Raises:
        DeclarationError: one does not; names learner, field and column, and what to write.
    """
    types = {f"{plan.name}.{feature.name}": feature.dtype for plan in plans for feature in plan.features}
    types |= {f"{plan.name}.{fact}": dtype for plan in plans for fact, dtype in READ_FACTS.items()}
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
    """(role, column, types that it may have) of each column that a field reads; no types: any."""
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
