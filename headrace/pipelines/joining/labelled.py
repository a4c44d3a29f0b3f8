"""Labels of events: which are positive, which are explicitly negative, and the numbers of numeric labels."""

from typing import Protocol

import polars as pl

from headrace.features.expressions.failing_rows import rows_where

LABEL, IS_POSITIVE = "__label", "__is_positive"
"""Columns that `labelled_events` adds."""


class LabelRules(Protocol):
    """The expressions of a `Label`, and of a `JoinSpec`."""

    @property
    def positive(self) -> pl.Expr | None:
        """Selects positive events; None: all events that are not negative."""

    @property
    def negative(self) -> pl.Expr | None:
        """Selects negative events; a positive event is never negative."""

    @property
    def value(self) -> pl.Expr | None:
        """Number that labels a positive event; None: 1."""


def labelled_events(frame: pl.DataFrame, rules: LabelRules) -> tuple[pl.DataFrame, int]:
    """The events of `frame` that have a label, in its order, and the number left out because a value is missing.

    Adds the label as Float32 (1 or `value`, and 0 for a negative) and whether the event is positive. Events for which
    an expression fails, and positive events whose `value` is null or not finite, are left out and counted.
    """
    rows = frame.with_row_index("__row")
    failed = 0
    negative = rows.clear()
    if rules.negative is not None:
        negative, count = rows_where(rows, rules.negative)
        failed += count
    if rules.positive is not None:
        positive, count = rows_where(rows, rules.positive)
        failed += count
        negative = negative.join(positive, on="__row", how="anti")
    else:
        positive = rows.join(negative, on="__row", how="anti") if negative.height else rows
    label = pl.lit(1.0) if rules.value is None else rules.value
    positive = positive.with_columns(label.cast(pl.Float32).alias(LABEL), pl.lit(value=True).alias(IS_POSITIVE))
    finite = positive.filter(pl.col(LABEL).is_finite()) if rules.value is not None else positive
    failed += positive.height - finite.height
    negative = negative.with_columns(pl.lit(0.0, pl.Float32).alias(LABEL), pl.lit(value=False).alias(IS_POSITIVE))
    both = pl.concat([finite, negative]).sort("__row") if negative.height else finite
    return both.drop("__row"), failed
