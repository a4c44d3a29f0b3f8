"""Label: which later event makes a shown candidate a positive or a negative example, and within what period."""

from dataclasses import dataclass
from typing import Literal

import polars as pl

from headrace.errors import DeclarationError
from headrace.features.argument_types import declared
from headrace.features.expressions.row_wise import row_type
from headrace.features.windows import parse_span_s
from headrace.schemas import Event, spec_of


@declared
@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """Labels a candidate positive if the entity has an `event` with it in [request, request + within).

    Args:
        event: the event class of the response.
        within: label window, a whole number and a unit, as in "10m".
        positive: row-wise boolean expression over the event's columns; None: every event is positive. Events for which
            it is null are skipped and counted.
        candidate: the event's column that names the candidate.
        negative: boolean expression that selects negative events, such as `col("rating") < 4`: a candidate with such an
            event and no positive event is negative. An event for which both expressions are true is positive.
        value: number that labels a positive event, such as `col("seconds")`; None: 1. A negative is 0. For models whose
            loss takes numbers. Events whose value is null or not finite are skipped and counted.
        absent: label of a shown candidate without an event within the window: "negative", or "unknown", which is not
            learned from.

    Raises:
        DeclarationError: `event` is not an event class, `within` is not a span, `positive` or `negative` is not a
            boolean expression, `value` is not a number, `absent` is another word, or the event has no column
            `candidate`.
    """

    event: type[Event]
    within: str
    positive: pl.Expr | None = None
    candidate: str = ""
    negative: pl.Expr | None = None
    value: pl.Expr | None = None
    absent: Literal["negative", "unknown"] = "negative"

    def __post_init__(self) -> None:
        if not (isinstance(self.event, type) and issubclass(self.event, Event)):
            raise DeclarationError(f"label: event={self.event!r} is no event class; write one, such as SomeEvent")
        parse_span_s(self.within, f"label of {self.event.__name__}")
        if self.candidate and self.candidate not in self.event.model_fields:
            fields = ", ".join(self.event.model_fields)
            raise DeclarationError(f"label candidate={self.candidate!r}: event {self.event.__name__} has {fields}")
        for name, expression in (("positive", self.positive), ("negative", self.negative)):
            if expression is not None and (dtype := self._type_of(name, expression)) != pl.Boolean:
                where = f"label of {self.event.__name__}: {name}"
                raise DeclarationError(f'{where} is {dtype}, not Boolean; write a comparison, such as col("x") == 1')
        if self.value is not None and not (dtype := self._type_of("value", self.value)).is_numeric():
            raise DeclarationError(
                f'label of {self.event.__name__}: value is {dtype}; write a number, as col("seconds")'
            )
        if self.absent not in ("negative", "unknown"):
            raise DeclarationError(
                f'label of {self.event.__name__}: absent={self.absent!r}; write "negative" or "unknown"'
            )

    def _type_of(self, name: str, expression: pl.Expr) -> pl.DataType:
        """Type of a row-wise expression over the event's columns."""
        what, schema = f"label of {self.event.__name__}: {name}", spec_of(self.event).polars
        if not isinstance(expression, pl.Expr):
            raise DeclarationError(f'{what}={expression!r}; write an expression, such as col("action") == "click"')
        unknown = [column for column in expression.meta.root_names() if column not in schema]
        if unknown:
            raise DeclarationError(f"{what} names {unknown[0]!r}; event {self.event.__name__} has {', '.join(schema)}")
        return row_type(expression, schema, what, f"event {self.event.__name__}")

    @property
    def within_us(self) -> int:
        """The label window in microseconds."""
        return parse_span_s(self.within, f"label of {self.event.__name__}") * 1_000_000
