"""JoinSpec: which engagements label which requests."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from headrace.errors import DeclarationError
from headrace.schemas import Event, spec_of

if TYPE_CHECKING:  # learners need torch, an optional package
    from headrace.learners import Label

STEPS_PER_WINDOW = 16
"""A request waits at most this fraction of `within` longer than it must; fewer scans of the engagements in return."""
OUTPUT = ("labels", "label_times", "label_ids", "label_appended_us", "appended_us")
"""Columns that the joiner adds to those of the request."""


@dataclass(frozen=True, slots=True, eq=False)
class JoinSpec:
    """Which engagements label which requests.

    `candidates` is the list column of `request`, `candidate` the column of `engagement` that names one of them;
    `positive` picks the engagements that count, None: all; `negative` those that say no; `value` is the number that a
    positive one is labelled with, None: 1; a candidate without either is 0, or null if `absent_is_unknown`; `within_us`
    is the label window. The entity columns default to the events' keys and `request_id` to the request's declared id.

    Raises:
        DeclarationError: a column is missing, or two that are compared differ in type.
    """

    request: type[Event]
    engagement: type[Event]
    candidates: str
    candidate: str
    within_us: int
    positive: pl.Expr | None = None
    lateness_us: int = 0
    request_id: str | None = None
    request_entity: tuple[str, ...] = ()
    engagement_entity: tuple[str, ...] = ()
    negative: pl.Expr | None = None
    value: pl.Expr | None = None
    absent_is_unknown: bool = False

    @staticmethod
    def of_label(label: "Label", request: type[Event], candidates: str, **options: Any) -> "JoinSpec":
        """The join that a learner's label declares; `options` are further arguments, such as `request_entity`.

        Raises:
            DeclarationError: as `JoinSpec`.
        """
        return JoinSpec(
            request,
            label.event,
            candidates=candidates,
            candidate=label.candidate,
            within_us=label.within_us,
            positive=label.positive,
            negative=label.negative,
            value=label.value,
            absent_is_unknown=label.absent == "unknown",
            **options,
        )

    def __post_init__(self) -> None:
        request, engagement = spec_of(self.request), spec_of(self.engagement)
        object.__setattr__(self, "request_id", self.request_id or request.id)
        object.__setattr__(self, "request_entity", self.request_entity or request.key)
        object.__setattr__(self, "engagement_entity", self.engagement_entity or engagement.key)
        where = f"join of {request.name} with {engagement.name}"
        for spec, columns in (
            (request, (self.request_id, self.candidates, *self.request_entity)),
            (engagement, (engagement.id, self.candidate, *self.engagement_entity)),
        ):
            for column in columns:
                if column not in spec.polars:
                    what = "an id, and it declares none" if column is None else f"column {column!r}"
                    raise DeclarationError(f"{where}: needs {what}; {spec.name} has {', '.join(spec.polars)}")
        taken = [column for column in OUTPUT if column in request.polars]
        if taken:
            raise DeclarationError(f"{where}: {', '.join(taken)} is what the joiner adds; rename it in {request.name}")
        left = [pl.List(engagement.polars[self.candidate]), *(engagement.polars[c] for c in self.engagement_entity)]
        right = [request.polars[c] for c in (self.candidates, *self.request_entity)]
        if left != right:
            raise DeclarationError(f"{where}: {request.name} has {right}, {engagement.name} wants {left}")
        if self.within_us <= 0 or self.lateness_us < 0:
            raise DeclarationError(
                f"{where}: within {self.within_us} us, lateness {self.lateness_us} us: must be positive"
            )

    @property
    def label_dtype(self) -> pl.DataType:
        """Type of one label: 0 and 1 are Int8, numeric labels Float32."""
        return pl.Int8() if self.value is None else pl.Float32()

    @property
    def step_us(self) -> int:
        """Requests come out when the watermark passes a multiple of this."""
        return step_us_of(self.within_us)


def step_us_of(within_us: int) -> int:
    """Microseconds of event time of one step: what waits for a window comes out at multiples of it."""
    return max(within_us // STEPS_PER_WINDOW, 1)


def micros(column: str) -> pl.Expr:
    """A column of times as microseconds."""
    return pl.col(column).dt.epoch("us")
