"""Evaluate expressions that raise on some rows: identify those rows, and evaluate the others.

    frame.select(e)  ok ------------------------------------------> values of all rows
                     raises --> where its conversions fail (one pass) --> the rest at once --> values of the others
                                                                          raises --> halves of the rest, to the row

A good batch costs the first line only. A bad batch costs a few more passes, whether one row is bad or half of them.
Only if an expression raises in a way that strictness.py does not know are rows tried, each distinct input once. A row
fails if the expression raises on that row alone, so the result does not depend on the other rows of a batch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.features.expressions.strictness import raises_where

VALUE_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
"""What Polars raises for a value it cannot compute. A panic of its Rust code is a BaseException."""

_ALONE = 16
"""A failing part of at most this many rows is tried row by row, since most of its rows may fail."""
_MESSAGE_CHARS = 200
_ROW = "__row"


@dataclass(frozen=True, slots=True)
class Failures:
    """The m rows on which expressions raise.

    Attributes:
        index: (m,) int64, rows of the frame, ascending.
        causes: (m,) int64, for each row the position of the first expression that raises on it.
        messages: position of an expression -> Polars' error message, without the values.
    """

    index: NDArray[np.int64]
    causes: NDArray[np.int64]
    messages: dict[int, str]


def select_rows(frame: pl.DataFrame, expressions: Sequence[pl.Expr]) -> tuple[pl.DataFrame, Failures | None]:
    """Run `frame.select(expressions)` over the rows on which none of them raises, and report the other m rows.

    The expressions must be row-wise and named, and fit the columns. Returns the values (n - m rows) and the failures,
    None if there are none.
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
    """Evaluate rows that succeed alone, one by one if they raise together, as with a few of Polars' functions."""
    try:
        return frame.select(expressions)
    except VALUE_ERRORS:
        return pl.concat([frame[row : row + 1].select(expressions) for row in range(frame.height)])


def rows_where(frame: pl.DataFrame, condition: pl.Expr) -> tuple[pl.DataFrame, int]:
    """The rows for which a row-wise condition holds, and the number of rows on which it raises."""
    values, failures = select_rows(frame, [condition.alias("holds")])
    holds, failed = values["holds"], 0
    if failures is not None:
        failed = len(failures.index)
        frame = frame[np.delete(np.arange(frame.height), failures.index)]
    return frame.filter(holds if len(holds) == frame.height else holds.new_from_index(0, frame.height)), failed


def _causes(frame: pl.DataFrame, expressions: Sequence[pl.Expr]) -> NDArray[np.int64]:
    """(n,) position of the first expression that raises on each row, -1 where none does."""
    causes, left = np.full(frame.height, -1, np.int64), np.arange(frame.height)
    for position, expression in enumerate(expressions):
        if _raises(frame, expression):
            failed = _failed(frame, expression)
            causes[left[failed]] = position
            left, frame = left[~failed], frame.filter(~failed)
    return causes


def _failed(frame: pl.DataFrame, expression: pl.Expr) -> NDArray[np.bool_]:
    """(n,) whether an expression that raises on the frame raises on each row alone."""
    failed = _conversion_failures(frame, expression)
    rest = frame.filter(~failed)
    if _raises(rest, expression):
        failed[~failed] = _tried(rest, expression)
    return failed


def _conversion_failures(frame: pl.DataFrame, expression: pl.Expr) -> NDArray[np.bool_]:
    """(n,) whether a conversion of the expression fails; all False if its form does not tell."""
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
    """(n,) whether the expression raises on each row alone; rows of equal input are tried once."""
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
    """(n,) whether the expression raises on each row alone, by bisection of the parts that raise."""
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
    """Polars' error message for the first row that each expression raises on."""
    messages = {}
    for position in np.unique(causes[causes >= 0]).tolist():
        row = int(np.argmax(causes == position))
        try:
            frame[row : row + 1].select(expressions[position])
        except VALUE_ERRORS as exc:
            messages[position] = _without_values(str(exc))
    return messages


def _without_values(message: str) -> str:
    """Polars' message without the values of its row, since it is reported for other rows too.

    >>> _without_values("conversion from `str` to `i64` failed in column 'x' for 1 out of 1 values")
    'conversion from `str` to `i64` failed'
    """
    first = re.sub(r" (in column '|for \d+ value|supplied).*", "", message.split("\n", 1)[0])
    return re.sub(r"""\s?(\(.*?\)|'.*?'|".*?"|\[.*?\])""", "", first)[:_MESSAGE_CHARS]
