"""Label: which later event makes a shown candidate a positive example, and until when."""

from dataclasses import dataclass

import polars as pl

from headrace.errors import DeclarationError
from headrace.schemas import Event

_UNITS_US = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """A candidate is positive when an `event` of the same entity with it happens in [request, request + within).

    Args:
        event: the event class that answers a request.
        within: label window, a whole number and one of s, m, h, d: "10m".
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
        number, unit = self.within[:-1], self.within[-1:]
        if unit not in _UNITS_US or not number.isdecimal() or int(number) < 1:
            raise DeclarationError(f"label within={self.within!r}: write a whole number and s, m, h or d, as in '10m'")
        if self.candidate and self.candidate not in self.event.model_fields:
            raise DeclarationError(
                f"label candidate={self.candidate!r}: event {self.event.__name__} has {', '.join(self.event.model_fields)}"
            )

    @property
    def within_us(self) -> int:
        """The label window in microseconds."""
        return int(self.within[:-1]) * _UNITS_US[self.within[-1]]
