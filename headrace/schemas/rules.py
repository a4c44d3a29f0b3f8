"""Constraints of a field: `Field(...)` and annotation metadata as rules that can be checked on columns."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import annotated_types
import polars as pl
import pydantic
from pydantic.fields import FieldInfo

from headrace.errors import DeclarationError

_BOUNDS: dict[type, str] = {
    annotated_types.Ge: "ge",
    annotated_types.Gt: "gt",
    annotated_types.Le: "le",
    annotated_types.Lt: "lt",
    annotated_types.MinLen: "min_length",
    annotated_types.MaxLen: "max_length",
    annotated_types.MultipleOf: "multiple_of",
}
_RULE_KINDS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("ge", "gt", "le", "lt"), ("int", "float", "text", "bytes", "time")),
    **dict.fromkeys(("min_length", "max_length"), ("text", "bytes", "list")),
    "multiple_of": ("int", "float"),
    "pattern": ("text",),
    "finite": ("float",),
}


@dataclass(frozen=True, slots=True)
class Rule:
    """One constraint: `name` is ge, gt, le, lt, min_length, max_length, multiple_of, pattern or finite."""

    name: str
    value: Any


def refuse_unfit(rules: Iterable[Rule], kind: str, path: str) -> None:
    """Reject rules that do not apply to values of a kind.

    Raises:
        DeclarationError: names the field, the rule and the kinds to which it applies.
    """
    for rule in rules:
        if kind not in _RULE_KINDS[rule.name]:
            raise DeclarationError(
                f"{path}: {rule.name} is a rule for {', '.join(_RULE_KINDS[rule.name])}, not for {kind}; leave it out"
            )


def rules_in(item: Any, path: str) -> list[Rule]:
    """The rules in one item of annotation metadata; purely descriptive items have none."""
    if type(item) in _BOUNDS:
        name = _BOUNDS[type(item)]
        bound = getattr(item, name)
        if isinstance(bound, float) and math.isnan(bound):
            raise DeclarationError(f"{path}: {name}=NaN refuses every value; give a number")
        if name == "multiple_of" and not 0 < bound < math.inf:  # older pydantics panic at the first value
            raise DeclarationError(f"{path}: 'multiple_of' must be a finite number greater than 0, and is {bound!r}")
        return [Rule(name, bound)]
    if isinstance(item, pydantic.StringConstraints):
        return _text_rules(item, path)
    if isinstance(item, FieldInfo | annotated_types.GroupedMetadata):
        pieces = item.metadata if isinstance(item, FieldInfo) else item
        return [rule for piece in pieces for rule in rules_in(piece, path)]
    general = isinstance(item, annotated_types.BaseMetadata) and hasattr(item, "__dict__")  # Field(pattern=...)
    if general or isinstance(item, pydantic.AllowInfNan):
        return _general_rules(vars(item), path)
    if isinstance(item, annotated_types.BaseMetadata) or hasattr(item, "__get_pydantic_core_schema__"):
        raise DeclarationError(
            f"{path}: {type(item).__name__} is a Python function or an unknown rule, and events are checked as "
            "columns; write the rule with Field(ge=, le=, min_length=, pattern=, ...) or Literal",
        )
    return []


def _text_rules(item: pydantic.StringConstraints, path: str) -> list[Rule]:
    if item.strip_whitespace or item.to_upper or item.to_lower:
        raise DeclarationError(f"{path}: strip_whitespace and to_upper/to_lower change values; do so in a view")
    lengths = [("min_length", item.min_length), ("max_length", item.max_length)]
    rules = [Rule(name, value) for name, value in lengths if value is not None]
    return rules if item.pattern is None else [*rules, _pattern(item.pattern, path)]


def _general_rules(settings: dict[str, Any], path: str) -> list[Rule]:
    rules = []
    for name, value in settings.items():
        if name == "pattern":
            rules.append(_pattern(value, path))
        elif name == "allow_inf_nan":
            rules += [] if value else [Rule("finite", True)]
        elif name not in {"strict", "coerce_numbers_to_str", "union_mode"}:
            raise DeclarationError(f"{path}: Field({name}=...) has no column rule; leave it out")
    return rules


def _pattern(value: str | re.Pattern[str], path: str) -> Rule:
    pattern = value if isinstance(value, str) else value.pattern
    try:
        pl.Series([""]).str.contains(pattern)
    except pl.exceptions.PolarsError as exc:
        raise DeclarationError(
            f"{path}: pattern {pattern!r} is none of the Rust regex engine, which has no look-around and no "
            "back-references; rewrite it"
        ) from exc
    return Rule("pattern", pattern)
