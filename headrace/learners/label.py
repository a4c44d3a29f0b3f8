"""Label: which later event makes a shown candidate a positive example, and within what time."""

from dataclasses import dataclass

import polars as pl

from headrace.errors import DeclarationError
from headrace.features.argument_types import declared
from headrace.features.expressions.row_wise import row_type
from headrace.features.windows import parse_span_s
from headrace.schemas import Event, spec_of


@declared
@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """A candidate is positive when an `event` of the same entity with it happens in [request, request + within).

    Args:
        event: the event class of the response.
        within: label window, a whole number and a unit, as in "10m".
        positive: boolean expression over the event's columns, of one row each; None: every event counts. Events for
            which it is null are skipped and counted.
        candidate: the event's column that names the candidate.

    Raises:
        DeclarationError: `event` is no event class, `within` is not such a span, `positive` is no such expression, or
            the event has no column `candidate`.
    """

    event: type[Event]
    within: str
    positive: pl.Expr | None = None
    candidate: str = ""

    def __post_init__(self) -> None:
        if not (isinstance(self.event, type) and issubclass(self.event, Event)):
            raise DeclarationError(f"label: event={self.event!r} is no event class; write one, such as SomeEvent")
        parse_span_s(self.within, f"label of {self.event.__name__}")
        if self.candidate and self.candidate not in self.event.model_fields:
            fields = ", ".join(self.event.model_fields)
            raise DeclarationError(f"label candidate={self.candidate!r}: event {self.event.__name__} has {fields}")
        if self.positive is not None:
            self._check_positive(self.positive)

    def _check_positive(self, positive: pl.Expr) -> None:
        what, schema = f"label of {self.event.__name__}: positive", spec_of(self.event).polars
        if not isinstance(positive, pl.Expr):
            raise DeclarationError(f'{what}={positive!r}; write an expression, such as col("action") == "click"')
        unknown = [name for name in positive.meta.root_names() if name not in schema]
        if unknown:
            raise DeclarationError(f"{what} names {unknown[0]!r}; event {self.event.__name__} has {', '.join(schema)}")
        dtype = row_type(positive, schema, what, f"event {self.event.__name__}")
        if dtype != pl.Boolean:
            raise DeclarationError(f'{what} is {dtype}, not Boolean; write a comparison, such as col("x") == 1')

    @property
    def within_us(self) -> int:
        """The label window in microseconds."""
        return parse_span_s(self.within, f"label of {self.event.__name__}") * 1_000_000
