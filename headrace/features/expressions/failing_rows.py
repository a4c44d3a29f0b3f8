"""Evaluate expressions where they raise on some rows: those rows are identified, the others are evaluated.

    frame.select(e)  ok ------------------------------------------> values of all rows
                     raises --> where its conversions fail (one pass) --> the rest at once --> values of the others
                                                                          raises --> halves of the rest, to the row

The first line is all that a good batch costs. A bad one costs some passes more, whether one row is bad or half of
them; only where an expression raises in a way that strictness.py does not know are rows tried, each different input
once. A row fails if the expression raises on that row alone, so what else is in a batch decides nothing.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.features.expressions.strictness import raises_where

VALUE_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
"""What Polars raises where it has no value; a panic of its Rust code is a BaseException."""

_ALONE = 16
"""Rows of a part that raises from which on they are tried one by one: most of them may fail."""
_MESSAGE_CHARS = 200
_ROW = "__row"


@dataclass(frozen=True, slots=True)
class Failures:
    """Rows on which expressions raise, m of them.

    Attributes:
        index: (m,) int64, rows of the frame, ascending.
        causes: (m,) int64, for each row the position of the first expression that raises on it.
        messages: position of an expression -> what Polars says of it, without the values.
    """

    index: NDArray[np.int64]
    causes: NDArray[np.int64]
    messages: dict[int, str]


def select_rows(frame: pl.DataFrame, expressions: Sequence[pl.Expr]) -> tuple[pl.DataFrame, Failures | None]:
    """`frame.select(expressions)` over the rows on which none of them raises, and the others.

    The expressions are row-wise, with a name each, and fit the columns. Returns (values (n - m,), failures, None where
    there are none).
    """
    try:
        return frame.select(expressions), None
    except VALUE_ERRORS:
        roots = dict.fromkeys(root for expression in expressions for root in expression.meta.root_names())
        frame = frame.select(list(roots)) if roots else frame
    causes = _causes(frame, expressions)
    index = np.flatnonzero(causes >= 0)
    failures = Failures(index, causes[index], _messages(frame, expressions, causes))
    return _values(frame.filter(causes < 0), expressions), failures


def _values(frame: pl.DataFrame, expressions: Sequence[pl.Expr]) -> pl.DataFrame:
    """Values of rows that have some each; a few of Polars' functions raise where there are several of them."""
    try:
        return frame.select(expressions)
    except VALUE_ERRORS:
        return pl.concat([frame[row : row + 1].select(expressions) for row in range(frame.height)])


def rows_where(frame: pl.DataFrame, condition: pl.Expr) -> tuple[pl.DataFrame, int]:
    """The rows for which a row-wise condition holds, and how many of the others it has no value for."""
    values, failures = select_rows(frame, [condition.alias("holds")])
    holds, failed = values["holds"], 0
    if failures is not None:
        failed = len(failures.index)
        frame = frame[np.delete(np.arange(frame.height), failures.index)]
    return frame.filter(holds if len(holds) == frame.height else holds.new_from_index(0, frame.height)), failed


def _causes(frame: pl.DataFrame, expressions: Sequence[pl.Expr]) -> NDArray[np.int64]:
    """(n,) the first of the expressions that raises on each row, -1 where none does."""
    causes, left = np.full(frame.height, -1, np.int64), np.arange(frame.height)
    for position, expression in enumerate(expressions):
        if _raises(frame, expression):
            failed = _failed(frame, expression)
            causes[left[failed]] = position
            left, frame = left[~failed], frame.filter(~failed)
    return causes


def _failed(frame: pl.DataFrame, expression: pl.Expr) -> NDArray[np.bool_]:
    """(n,) where an expression that raises on the frame raises on the row alone."""
    failed = _conversion_failures(frame, expression)
    rest = frame.filter(~failed)
    if _raises(rest, expression):
        failed[~failed] = _tried(rest, expression)
    return failed


def _conversion_failures(frame: pl.DataFrame, expression: pl.Expr) -> NDArray[np.bool_]:
    """(n,) where a conversion of the expression fails; nowhere if that cannot be told from its form."""
    condition, none = raises_where(expression), np.zeros(frame.height, np.bool_)
    if condition is None:
        return none
    try:
        failed = none | frame.select(condition.alias("failed"))["failed"].to_numpy()
    except VALUE_ERRORS:
        return none
    first = int(np.argmax(failed))
    return failed if _raises(frame[first : first + 1], expression) else none


def _raises(frame: pl.DataFrame, expression: pl.Expr) -> bool:
    try:
        frame.select(expression)
    except VALUE_ERRORS:
        return True
    return False


def _tried(frame: pl.DataFrame, expression: pl.Expr) -> NDArray[np.bool_]:
    """(n,) where the expression raises on the row alone; rows of equal input are tried once."""
    roots = list(dict.fromkeys(expression.meta.root_names()))
    if not roots:
        return np.ones(frame.height, np.bool_)
    inputs = frame.select(roots)
    equal = inputs.with_row_index(_ROW).group_by(roots).agg(_ROW)[_ROW]
    failed = np.zeros(frame.height, np.bool_)
    failing = _halved(inputs[equal.list.first().to_numpy()], expression)
    failed[equal.filter(pl.Series(failing)).explode().drop_nulls().to_numpy()] = True
    return failed


def _halved(frame: pl.DataFrame, expression: pl.Expr) -> NDArray[np.bool_]:
    """(n,) where the expression raises on the row alone: a part that raises is cut in two until it is short."""
    failed = np.zeros(frame.height, np.bool_)
    parts = [(0, frame.height)]
    while parts:
        begin, end = parts.pop()
        if not _raises(frame[begin:end], expression):
            continue
        if end - begin == 1:
            failed[begin] = True
        elif end - begin <= _ALONE:
            parts += [(row, row + 1) for row in range(begin, end)]
        else:
            middle = (begin + end) // 2
            parts += [(begin, middle), (middle, end)]
    return failed


def _messages(frame: pl.DataFrame, expressions: Sequence[pl.Expr], causes: NDArray[np.int64]) -> dict[int, str]:
    """What Polars says of the first row that each expression raises on."""
    messages = {}
    for position in np.unique(causes[causes >= 0]).tolist():
        row = int(np.argmax(causes == position))
        try:
            frame[row : row + 1].select(expressions[position])
        except VALUE_ERRORS as exc:
            messages[position] = _without_values(str(exc))
    return messages


def _without_values(message: str) -> str:
    """Polars' message without the values of one row, since it is reported for other rows too.

    >>> _without_values("conversion from `str` to `i64` failed in column 'x' for 1 out of 1 values")
    'conversion from `str` to `i64` failed'
    """
    first = re.sub(r" (in column '|for \d+ value|supplied).*", "", message.split("\n", 1)[0])
    return re.sub(r"""\s?(\(.*?\)|'.*?'|".*?"|\[.*?\])""", "", first)[:_MESSAGE_CHARS]
