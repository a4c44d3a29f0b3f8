"""Expressions over rows of which some have no value: the rows it has none for are found, the others are used.

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

from headrace.features.strictness import raises_where

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
        causes = _causes(frame, expressions)
    assert (causes >= 0).any() or frame.height > 1, "an expression that raises on no row"
    index = np.flatnonzero(causes >= 0)
    rest = frame[np.flatnonzero(causes < 0)]
    failing = Failures(index, causes[index], _messages(frame, expressions, causes))
    try:
        return rest.select(expressions), failing
    except VALUE_ERRORS:  # some of Polars' functions raise on rows together that have values alone
        return pl.concat([rest[row : row + 1].select(expressions) for row in range(rest.height)]), failing


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
    causes = np.full(frame.height, -1, np.int64)
    for position, expression in enumerate(expressions):
        condition = raises_where(expression)
        if condition is not None:
            _mark(causes, _conversion_failures(frame, expression, condition), position)
    if _raises(frame[np.flatnonzero(causes < 0)], expressions):
        for position, expression in enumerate(expressions):
            left = np.flatnonzero(causes < 0)
            failed = np.zeros(frame.height, np.bool_)
            failed[left] = _tried(frame[left], expression)
            _mark(causes, failed, position)
    return causes


def _mark(causes: NDArray[np.int64], failed: NDArray[np.bool_], position: int) -> None:
    causes[failed & (causes < 0)] = position


def _conversion_failures(frame: pl.DataFrame, expression: pl.Expr, condition: pl.Expr) -> NDArray[np.bool_]:
    """(n,) where the condition holds; nowhere if it cannot be computed, or its first row does not raise after all."""
    try:
        found = frame.select(condition.alias("failed"))["failed"]
    except VALUE_ERRORS:
        return np.zeros(frame.height, np.bool_)
    failed = np.broadcast_to(found.to_numpy(), frame.height)
    first = int(np.argmax(failed)) if failed.any() else None
    if first is None or not _raises(frame[first : first + 1], [expression]):
        return np.zeros(frame.height, np.bool_)
    return failed


def _raises(frame: pl.DataFrame, expressions: Sequence[pl.Expr]) -> bool:
    try:
        frame.select(expressions)
    except VALUE_ERRORS:
        return True
    return False


def _tried(frame: pl.DataFrame, expression: pl.Expr) -> NDArray[np.bool_]:
    """(n,) where the expression raises on the row alone; rows of equal input are tried once."""
    if not _raises(frame, [expression]):
        return np.zeros(frame.height, np.bool_)
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
        if not _raises(frame[begin:end], [expression]):
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
    """Polars' words without the values of one row, for they are said of others too.

    >>> _without_values("conversion from `str` to `i64` failed in column 'x' for 1 out of 1 values")
    'conversion from `str` to `i64` failed'
    """
    first = re.sub(r" (in column '|for \d+ value|supplied).*", "", message.split("\n", 1)[0])
    return re.sub(r"""\s?(\(.*?\)|'.*?'|".*?"|\[.*?\])""", "", first)[:_MESSAGE_CHARS]
