"""Where an expression raises: a condition, derived from its form, that is true on the rows where it fails.

In Polars, one value that a strict conversion cannot take fails the whole column. The lenient form of the conversion
returns null there instead, so the strict form raises exactly where the lenient form turns a value into null:

    col("x").cast(pl.Int64)      raises where  x is not null, and x.cast(pl.Int64, strict=False) is
    col("l").list.get(2)         raises where  l has no element 2
    col("k").replace_strict(m)   raises where  k is not null, and not in m

So one pass over a batch finds all of its bad rows, however many there are. Other failures are left to failing_rows.py,
which tries rows.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import polars as pl

from headrace.features.expressions.event_columns import expr_text
from headrace.features.expressions.nodes import (
    Node,
    expr_of,
    function_name,
    inputs_of,
    kind_of_node,
    with_inputs,
)

_NULL: Node = {"Literal": {"Scalar": {"Null": "Null"}}}


def raises_where(expression: pl.Expr) -> pl.Expr | None:
    """A boolean expression that is true where a strict conversion in `expression` fails; None if there is no such one.

    The condition may itself raise, and rows may fail for other reasons, so callers must try the remaining rows.
    """
    return _raises_where(expr_text(expression))


@lru_cache(maxsize=1_000)
def _raises_where(text: str) -> pl.Expr | None:
    failures: list[pl.Expr] = []
    _lenient(json.loads(text), failures)
    different = {expr_text(failure): failure for failure in failures}  # a value used twice appears twice
    return pl.any_horizontal(different.values()).fill_null(value=False) if different else None


def _lenient(node: Node, failures: list[pl.Expr]) -> Node:
    """Make every strict conversion of a node lenient, and append to `failures` where each would raise."""
    children = inputs_of(node)
    if children is None:
        return node
    kind, content = kind_of_node(node)
    if kind == "Ternary":
        return _lenient_ternary(node, failures)
    inputs = [_lenient(child, failures) for child in children]
    node = with_inputs(node, inputs)
    if kind == "Cast" and content["options"] == "Strict":
        return _converted(node, with_inputs({"Cast": {**content, "options": "NonStrict"}}, inputs), failures)
    make = _FUNCTIONS.get(function_name(node)[:2])
    return node if make is None else make(node, failures)


def _lenient_ternary(node: Node, failures: list[pl.Expr]) -> Node:
    """`_lenient` for `when`: Polars computes each branch only on the rows that take it, so only those can fail."""
    predicate, truthy, falsy = inputs_of(node) or []
    chosen, in_truthy, in_falsy = _lenient(predicate, failures), list[pl.Expr](), list[pl.Expr]()
    branches = [_lenient(truthy, in_truthy), _lenient(falsy, in_falsy)]
    takes = expr_of(chosen).fill_null(value=False)
    known = {expr_text(failure) for failure in failures}
    for failure, chance in [(failure, takes) for failure in in_truthy] + [(failure, ~takes) for failure in in_falsy]:
        if expr_text(failure) not in known:  # otherwise it already counts as failing on all rows
            failures.append(failure & chance)
    return with_inputs(node, [chosen, *branches])


def _converted(strict: Node, lenient: Node, failures: list[pl.Expr]) -> Node:
    """Return the lenient conversion, recording a failure where it turns a value or a list's element into null."""
    before, after = expr_of((inputs_of(strict) or [])[0]), expr_of(lenient)
    lost = before.is_not_null() & after.is_null()
    if _makes_lists(strict):
        lost |= before.list.drop_nulls().list.len() > after.list.drop_nulls().list.len()
    failures.append(lost)
    return lenient


def _makes_lists(node: Node) -> bool:
    kind, content = kind_of_node(node)
    dtype = content["dtype"].get("Literal") if kind == "Cast" and isinstance(content["dtype"], dict) else None
    return isinstance(dtype, dict) and "List" in dtype


def _with_function(node: Node, function: Any) -> Node:
    assert isinstance(node, dict)
    return {"Function": {**node["Function"], "function": function}}


def _settings_of(node: Node) -> Any:
    """The settings of a function of two names: `{"ListExpr": {"Get": False}}` -> False."""
    assert isinstance(node, dict)
    [outer] = node["Function"]["function"].values()
    return next(iter(outer.values())) if isinstance(outer, dict) else outer


def _strptime(node: Node, failures: list[pl.Expr]) -> Node:
    dtype, options = _settings_of(node)
    if not options["strict"]:
        return node
    lenient = _with_function(node, {"StringExpr": {"Strptime": [dtype, {**options, "strict": False}]}})
    return _converted(node, lenient, failures)


def _to_integer(node: Node, failures: list[pl.Expr]) -> Node:
    options = _settings_of(node)
    if not options["strict"]:
        return node
    lenient = _with_function(node, {"StringExpr": {"ToInteger": {**options, "strict": False}}})
    return _converted(node, lenient, failures)


def _decode(node: Node, failures: list[pl.Expr]) -> Node:
    group, name = function_name(node)
    if _settings_of(node) is not True:
        return node
    return _converted(node, _with_function(node, {group: {name: False}}), failures)


def _get(node: Node, failures: list[pl.Expr]) -> Node:
    if _settings_of(node) is not False:
        return node
    values, index = map(expr_of, inputs_of(node) or [])
    length = values.list.len().cast(pl.Int64)
    failures.append((index >= length) | (index < -length))
    return _with_function(node, {"ListExpr": {"Get": True}})


def _replace_strict(node: Node, failures: list[pl.Expr]) -> Node:
    inputs = inputs_of(node) or []
    if len(inputs) > 3:
        return node
    values = expr_of(inputs[0])
    failures.append(values.is_not_null() & ~values.is_in(expr_of(inputs[1])))
    return with_inputs(node, [*inputs, _NULL])


def _replace_time_zone(node: Node, failures: list[pl.Expr]) -> Node:
    zone, missing = _settings_of(node)
    times, ambiguous = inputs_of(node) or []
    if missing != "Raise" or ambiguous != {"Literal": {"Scalar": {"String": "raise"}}}:
        return node
    lenient = with_inputs(node, [times, {"Literal": {"Scalar": {"String": "null"}}}])
    return _converted(node, _with_function(lenient, {"TemporalExpr": {"ReplaceTimeZone": [zone, "Null"]}}), failures)


_FUNCTIONS: dict[tuple[str, ...], Callable[[Node, list[pl.Expr]], Node]] = {
    ("StringExpr", "Strptime"): _strptime,
    ("StringExpr", "ToInteger"): _to_integer,
    ("StringExpr", "HexDecode"): _decode,
    ("StringExpr", "Base64Decode"): _decode,
    ("BinaryExpr", "HexDecode"): _decode,
    ("BinaryExpr", "Base64Decode"): _decode,
    ("ListExpr", "Get"): _get,
    ("ReplaceStrict", "return_dtype"): _replace_strict,
    ("ReplaceStrict",): _replace_strict,
    ("TemporalExpr", "ReplaceTimeZone"): _replace_time_zone,
}
