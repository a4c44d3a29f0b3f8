"""Label: which later event makes a shown candidate a positive example, and until when."""

from dataclasses import dataclass

import polars as pl

from headrace.errors import DeclarationError
from headrace.features.windows import parse_span_s
from headrace.schemas import Event


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """A candidate is positive when an `event` of the same entity with it happens in [request, request + within).

    Args:
        event: the event class that answers a request.
        within: label window, a whole number and a unit, as in "10m".
        positive: boolean expression over the event's columns; None: every event counts.
        candidate: the event's column that names the candidate.

    Raises:
        DeclarationError: `within` is not such a span, or the event has no column `candidate`.
    """

    event: type[Event]
    within: str
    positive: pl.Expr | None = None
    candidate: str = ""

    def __post_init__(self) -> None:
        parse_span_s(self.within, f"label of {self.event.__name__}")
        if self.candidate and self.candidate not in self.event.model_fields:
            fields = ", ".join(self.event.model_fields)
            raise DeclarationError(f"label candidate={self.candidate!r}: event {self.event.__name__} has {fields}")

    @property
    def within_us(self) -> int:
        """The label window in microseconds."""
        return parse_span_s(self.within, f"label of {self.event.__name__}") * 1_000_000
