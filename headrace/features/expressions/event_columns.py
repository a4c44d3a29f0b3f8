"""Columns that a view computes from an event; equal expressions share one column."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from headrace.features.argument_types import Value
from headrace.features.state.lists.update import FLOAT, INT, TEXT
from headrace.features.state.lists.update import TIME as TIME_KIND
from headrace.schemas import Event

DTYPE_OF_KIND = {INT: "int", FLOAT: "float", TEXT: "text", TIME_KIND: "time"}


@dataclass(slots=True)
class EventColumns:
    """Event columns of one kind: column -> expression for each event class, and `texts` that describe the columns.

    `users` lists, for each column, the attributes that use it.
    """

    expressions: dict[type[Event], dict[int, pl.Expr]]
    texts: list[str] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    users: list[list[str]] = field(default_factory=list)

    def add(self, text: str, sources: Sequence[type[Event]], expression: pl.Expr, user: str, kind: int = FLOAT) -> int:
        """Column of `expression` over `sources` for the feature `user`; an equal column is reused."""
        text = f"{text} @ {','.join(source.__name__ for source in sources)}"
        if text in self.texts:
            column = self.texts.index(text)
            self.users[column] += [user] * (user not in self.users[column])
            return column
        self.texts.append(text)
        self.kinds.append(kind)
        self.users.append([user])
        for source in sources:
            self.expressions[source][len(self.texts) - 1] = expression
        return len(self.texts) - 1


def as_expr(value: Value) -> pl.Expr:
    """Convert a column name or an expression to an expression."""
    return pl.col(value) if isinstance(value, str) else value


def expr_text(expression: pl.Expr) -> str:
    """The whole expression as text. `str` shortens long literals, so that two different filters could look equal."""
    return expression.meta.serialize(format="json")


def kind_of(dtype: pl.DataType) -> int | None:
    """Kind in which a value of this type is stored; None if it cannot be stored."""
    if dtype.is_integer() or dtype == pl.Boolean:
        return INT
    if dtype.is_float() or dtype.is_decimal():
        return FLOAT
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return TEXT
    return TIME_KIND if dtype in (pl.Datetime, pl.Date) else None
