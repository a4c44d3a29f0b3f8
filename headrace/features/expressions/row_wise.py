"""Check that an expression is row-wise: its value for a row depends neither on the batch nor on the process.

Batches differ from run to run: which events arrive together, and which entities are read together, is not fixed. So
each row's value must follow from that row alone, and be equal in every process. An expression is checked by its form,
never by its values on sample rows: each node must be of a kind that is computed row by row, and so must its inputs.

The test of this module tries every method of Polars' expressions: every allowed expression gives a row the same value
alone, in any batch and in another process.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from headrace.clock import wall_us
from headrace.errors import DeclarationError
from headrace.features.expressions.nodes import Node, expr_of, function_name, inputs_of, kind_of_node, node_of, walk

_IS_IN = ("Boolean", "IsIn")
_CODES = {("ToPhysical",), ("Categorical", "Physical")}
_LOOKS_UP = {"IsIn", "Business"}
"""Functions that look values up in a literal Series, whose length need not match the rows."""
_COMPARISONS = {"Eq", "NotEq", "Lt", "LtEq", "Gt", "GtEq"}
_NOW_US = 60_000_000
_ZONE_US = 900_000_000
"""A literal time with microseconds is taken for the current time of its declaration if it differs from the clock by
less than `_NOW_US`, modulo quarters of an hour (time zones, `now() - timedelta(days=30)`)."""

_OTHER_ROWS = (
    "looks at other rows, so its value would depend on what comes together; write an expression of one row's columns"
)
_ROW_COUNT = (
    "gives another number of rows than it gets; write an expression of one value a row, for lists such as "
    'col("x").list.sum() or col("x").list.len()'
)
_OPAQUE = (
    "runs a function, or an expression over a list's elements, that Polars cannot look into; write it with Polars' "
    "expressions of one row"
)
_RANDOM = "is random, so a replay would not reproduce it; remove the random or sampling call"
_HASH = (
    "hashes with Polars' own function, whose values change with its version; use the value itself: lists, keys and "
    "categorical inputs take texts as they are"
)
_JSON = (
    "decodes a column as lines of JSON, so an empty text or one with a line break shifts the values of the rows after "
    'it; write col("x").str.json_path_match("$.a")'
)
_STRUCT = (
    "makes a struct of a value, which Polars does for one row and not for several; use a struct's fields, "
    'col("x").struct.field("a")'
)
_REFUSED: dict[str, str] = {
    "Random": _RANDOM,
    "Sample": _RANDOM,
    "AnonymousFunction": _OPAQUE,
    "FfiPlugin": _OPAQUE,
    "Eval": _OPAQUE,
    "StructEval": _OPAQUE,
    "Hash": _HASH,
    "JsonDecode": _JSON,
    "Explode": _ROW_COUNT,
    "Filter": _ROW_COUNT,
}
"""Rejected nodes and functions: name -> what is wrong and what to write."""


def row_type(expression: pl.Expr, schema: Mapping[str, pl.DataType], role: str, target: str) -> pl.DataType:
    """The type of an expression's value over columns of `schema`.

    For error messages, `role` describes the expression ("view shop · feature dear: where") and `target` the schema
    ("event Sale").

    Raises:
        DeclarationError: the expression does not fit the schema, returns several columns, looks at other rows, changes
            the number of rows, differs between processes, or is null for every row.
    """
    what = f"{role} {expression!s}"
    if expression.meta.has_multiple_outputs():
        raise DeclarationError(f"{what} gives several columns; write one expression for one")
    try:
        tree = node_of(expression)
        _check(tree, what)
    except (pl.exceptions.ComputeError, pl.exceptions.ColumnNotFoundError) as exc:
        raise DeclarationError(f"{what} {_OPAQUE}") from exc
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as exc:
        raise DeclarationError(f"{what} does not fit {target}: {_first_line(exc)}") from exc
    try:
        dtypes = pl.DataFrame(schema=dict(schema)).select(expression).dtypes
        if not expression.meta.root_names():
            pl.select(expression)  # a constant either evaluates now or fails for every row
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, IndexError) as exc:
        raise DeclarationError(f"{what} does not fit {target}: {_first_line(exc)}") from exc
    if len(dtypes) != 1:
        raise DeclarationError(f"{what} gives {len(dtypes)} columns; write one expression for one")
    _check_types(tree, schema, what)
    return dtypes[0]


def _first_line(error: BaseException) -> str:
    """The first line of Polars' message; further lines repeat the expression."""
    return str(error).partition("\n")[0]


def _check(node: Node, what: str) -> None:
    """Raise if the value of a node or of its inputs depends on other rows or on the process."""
    _check_node(node, what)
    inputs = inputs_of(node) or []
    for child in inputs:
        if not (_LOOKS_UP & set(function_name(node)) and _literal_values(child) is not None):
            _check(child, what)


def _check_node(node: Node, what: str) -> None:
    kind, content = kind_of_node(node)
    for name in (kind, *function_name(node)):
        if name in _REFUSED:
            raise DeclarationError(f"{what} {_REFUSED[name]}")
    if inputs_of(node) is None:
        raise DeclarationError(f"{what} {_ROW_COUNT if kind in ('Slice', 'Gather') else _OTHER_ROWS}")
    match kind:
        case "Literal":
            _check_literal(content, what)
        case "Cast" if "Struct" in str(content["dtype"]):
            raise DeclarationError(f"{what} {_STRUCT}")
        case "BinaryExpr" if content["op"] in _COMPARISONS:
            _check_comparison(content, what)
        case "Function":
            _check_function(node, what)


def _check_literal(content: Any, what: str) -> None:
    scalar = content.get("Scalar")
    if "Series" in content:
        raise DeclarationError(f"{what} {_ROW_COUNT}; a Series has a length of its own")
    if not isinstance(scalar, dict):
        return
    if {"Struct", "StructOwned"} & scalar.keys():
        raise DeclarationError(f"{what} {_STRUCT}")
    if "Datetime" in scalar and _is_of_clock(*scalar["Datetime"][:2]):
        raise DeclarationError(
            f"{what} holds the clock's time of its declaration, which every process has another of; use a fixed time, "
            "or TimeSince and windows, which are read as of now"
        )


def _is_of_clock(time: int, unit: str) -> bool:
    return unit == "Microseconds" and time % 1_000 not in (0, 999) and (wall_us() - time) % _ZONE_US < _NOW_US


def _check_comparison(content: Mapping[str, Any], what: str) -> None:
    for side, other in ((content["left"], content["right"]), (content["right"], content["left"])):
        if _is_null(side):
            column = expr_of(other)
            raise DeclarationError(
                f"{what} compares with None, which is null for every row, never true; write {column!s}.is_null() or "
                f"{column!s}.is_not_null()"
            )


def _is_null(node: Node) -> bool:
    """Whether a node is a null literal, of any type."""
    kind, content = kind_of_node(node)
    if kind in ("Cast", "Alias"):
        return _is_null((inputs_of(node) or [""])[0])
    return kind == "Literal" and isinstance(content.get("Scalar"), dict) and "Null" in content["Scalar"]


def _check_function(node: Node, what: str) -> None:
    """Raise for a function that looks at other rows or changes their number; its inputs are checked separately."""
    if function_name(node)[:2] == _IS_IN:
        _check_members(node, what)
    elif function_name(node) == ("ArrayExpr", "Get") and kind_of_node((inputs_of(node) or [])[1])[0] != "Literal":
        raise DeclarationError(f"{what} takes an array's index from a column, which Polars refuses for several rows")
    alone = expr_of(node)
    if not alone.meta.is_row_separable():
        raise DeclarationError(f"{what} {_OTHER_ROWS}")
    if not (alone.meta.is_length_preserving() or alone.meta.is_scalar()):
        raise DeclarationError(f"{what} {_ROW_COUNT}")


def _check_members(node: Node, what: str) -> None:
    """Raise if `is_in` lists None, which it would never match."""
    assert isinstance(node, dict)
    value, members = node["Function"]["input"]
    listed = _literal_values(members)
    if (
        listed is not None
        and listed.null_count()
        and not node["Function"]["function"]["Boolean"]["IsIn"]["nulls_equal"]
    ):
        column = expr_of(value)
        raise DeclarationError(
            f"{what} looks for None with is_in, which never matches it; write {column!s}.is_null() | "
            f"{column!s}.is_in([...]), or is_in([...], nulls_equal=True)"
        )


def _literal_values(node: Node) -> pl.Series | None:
    """The values of a literal list or Series, None for other nodes."""
    kind, content = kind_of_node(node)
    if kind != "Literal":
        return None
    if "Series" in content:
        return pl.select(expr_of(node)).to_series()
    if isinstance(content.get("Scalar"), dict) and "List" in content["Scalar"]:
        values: pl.Series = pl.select(expr_of(node)).to_series()[0]
        return values
    return None


def _check_types(tree: Node, schema: Mapping[str, pl.DataType], what: str) -> None:
    """Raise for nodes whose validity depends on the types of their inputs."""
    empty = pl.DataFrame(schema=dict(schema))
    for node in walk(tree):
        name = function_name(node)
        if name in _CODES and _is_categorical(_dtype_of_input(node, 0, empty)):
            raise DeclarationError(
                f"{what} uses the codes of a Categorical, which every process counts in its own order; use the text "
                "itself, or cast to pl.Enum([...]), whose codes are fixed"
            )
        if (
            name[:2] == _IS_IN
            and _literal_values((inputs_of(node) or [])[1]) is None
            and not isinstance(_dtype_of_input(node, 1, empty), pl.List | pl.Array)
        ):
            raise DeclarationError(f"{what} {_OTHER_ROWS}")


def _dtype_of_input(node: Node, index: int, empty: pl.DataFrame) -> pl.DataType:
    return empty.select(expr_of((inputs_of(node) or [])[index])).dtypes[0]


def _is_categorical(dtype: Any) -> bool:
    """Whether a type, or one nested in it, is Categorical."""
    nested = [getattr(dtype, "inner", None), *(field.dtype for field in getattr(dtype, "fields", ()))]
    return dtype == pl.Categorical or any(_is_categorical(inner) for inner in nested if inner is not None)
