"""Polars expressions as trees, in the format of `Expr.meta.serialize(format="json")`.

    col("x").cast(pl.Int64) > 1     {"BinaryExpr": {"left": {"Cast": {"expr": {"Column": "x"}, ...}}, "op": "Gt", ...}}

A node is a dict of one name and its content, or a bare name. Only functions and the kinds in `_PLACES` compute a row's
value from that row alone, so no other kind needs to be understood.
"""

import copy
import io
import json
from collections.abc import Iterator
from typing import Any, TypeAlias

import polars as pl

from headrace.features.expressions.event_columns import expr_text

Node: TypeAlias = dict[str, Any] | str

_PLACES: dict[str, tuple[str | int, ...]] = {
    "Column": (),
    "Literal": (),
    "Alias": (0,),
    "RenameAlias": ("expr",),
    "Cast": ("expr",),
    "BinaryExpr": ("left", "right"),
    "Ternary": ("predicate", "truthy", "falsy"),
}
"""Where the content of a node kind holds its inputs; a function has a list of them."""


def node_of(expression: pl.Expr) -> Node:
    """The tree of an expression.

    Raises:
        polars.exceptions.ComputeError: the expression calls a Python function.
    """
    tree: Node = json.loads(expr_text(expression))
    return tree


def expr_of(node: Node) -> pl.Expr:
    """The expression of a tree."""
    return pl.Expr.deserialize(io.StringIO(json.dumps(node)), format="json")


def kind_of_node(node: Node) -> tuple[str, Any]:
    """(name, content) of a node; a bare name has no content."""
    return (node, None) if isinstance(node, str) else next(iter(node.items()))


def inputs_of(node: Node) -> list[Node] | None:
    """The inputs of a node, None for kinds that are not computed row by row."""
    kind, content = kind_of_node(node)
    if kind == "Function":
        return list(content["input"])
    if kind == "KeepName":
        return [content]
    places = _PLACES.get(kind)
    return None if places is None else [content[place] for place in places]


def with_inputs(node: Node, inputs: list[Node]) -> Node:
    """A copy of the node with other inputs, given in the order of `inputs_of`."""
    kind, content = kind_of_node(node)
    if kind == "Function":
        return {kind: {**content, "input": inputs}}
    if kind == "KeepName":
        return {kind: inputs[0]}
    changed = copy.copy(content)
    for place, child in zip(_PLACES[kind], inputs, strict=True):
        changed[place] = child
    return {kind: changed}


def walk(node: Node) -> Iterator[Node]:
    """Iterate over the node and its inputs, outermost first; the inputs of unknown kinds are skipped."""
    yield node
    for child in inputs_of(node) or ():
        yield from walk(child)


def function_name(node: Node) -> tuple[str, ...]:
    """The names of a function node from the outside in, such as ("ListExpr", "Get"); () for other nodes."""
    kind, content = kind_of_node(node)
    names: list[str] = []
    inner = content["function"] if kind == "Function" else None
    while isinstance(inner, dict) and len(inner) == 1:
        name, inner = next(iter(inner.items()))
        names.append(name)
    return (*names, inner) if isinstance(inner, str) else tuple(names)
