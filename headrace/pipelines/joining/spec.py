"""JoinSpec: which engagements label which requests. JoinSpecs: several labels of a request, each with its window."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from headrace.errors import DeclarationError
from headrace.schemas import Event, spec_of

if TYPE_CHECKING:  # learners need torch, an optional package
    from headrace.learners import Label, Learner
    from headrace.learners.labels.policy import LabelPolicy

STEPS_PER_WINDOW = 16
"""A request waits up to within / STEPS_PER_WINDOW longer than needed, which saves scans of the engagements."""
STEPS_PER_AGE = 4
"""Number of steps in the first age of a policy that does not wait for the whole window."""
LABEL_COLUMNS = ("labels", "label_times", "label_ids", "label_appended_us")
"""Columns of a single label; with several labels they are `labels_<name>` and so on."""
EMITTED, IS_FIRST, LATE_SHARE, POSITIVE_WEIGHT = "emitted_step", "is_first", "late_share", "positive_weight"
"""Columns of a policy that does not wait."""


def label_column(column: str, name: str) -> str:
    """Name of one of `LABEL_COLUMNS` for the label `name`, which is "" for a single label.

    >>> label_column("labels", "buy"), label_column("labels", "")
    ('labels_buy', 'labels')
    """
    return f"{column}_{name}" if name else column


@dataclass(frozen=True, slots=True, eq=False)
class JoinSpec:
    """The declaration of which engagements label which requests.

    `candidates` is the list column of `request`, and `candidate` the column of `engagement` that names one of them.
    `positive` selects positive engagements, None: all; `negative` selects negative engagements. `value` is the label of
    a positive engagement, None: 1. A candidate without an engagement is 0, or null if `absent_is_unknown`. `within_us`
    is the label window. The entity columns default to the events' keys, and `request_id` to the request's declared id.
    `ages_us` are the ages at which a request is examined, the last being `within_us`. Several ages belong to a policy
    that does not wait, which `corrects` its early examples or weighs them.

    Raises:
        DeclarationError: a column is missing, or two columns to compare differ in type.
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
    ages_us: tuple[int, ...] = ()
    corrects: bool = False

    @staticmethod
    def of_label(
        label: "Label", request: type[Event], candidates: str, *, policy: "LabelPolicy | None" = None, **options: Any
    ) -> "JoinSpec":
        """The join of a label; `options` are further arguments of `JoinSpec`, such as `request_entity`.

        Raises:
            DeclarationError: as in `JoinSpec`, or the policy's `after` is not shorter than the window.
        """
        ages: dict[str, Any] = {}
        if policy is not None:
            from headrace.learners.labels.policy import Correct, ages_us

            ages = {"ages_us": ages_us(policy, label.within_us), "corrects": isinstance(policy, Correct)}
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
            **ages,
            **options,
        )

    @staticmethod
    def of_learner(
        learner: "type[Learner]", request: type[Event], candidates: str, **options: Any
    ) -> "JoinSpec | JoinSpecs":
        """The join of a learner's label or labels, with its policy; `options` as for `of_label`.

        Raises:
            DeclarationError: the learner has no label, or as in `of_label`.
        """
        labels = learner.labels()
        if not labels:
            raise DeclarationError(f"learner {learner.name}: no label to join by; declare `label = Label(...)`")
        specs = {
            name: JoinSpec.of_label(label, request, candidates, policy=learner.policy, **options)
            for name, label in labels.items()
        }
        return specs[""] if "" in specs else JoinSpecs(specs)

    def __post_init__(self) -> None:
        request, engagement = spec_of(self.request), spec_of(self.engagement)
        object.__setattr__(self, "request_id", self.request_id or request.id)
        object.__setattr__(self, "request_entity", self.request_entity or request.key)
        object.__setattr__(self, "engagement_entity", self.engagement_entity or engagement.key)
        object.__setattr__(self, "ages_us", self.ages_us or (self.within_us,))
        where = f"join of {request.name} with {engagement.name}"
        for spec, columns in (
            (request, (self.request_id, self.candidates, *self.request_entity)),
            (engagement, (engagement.id, self.candidate, *self.engagement_entity)),
        ):
            for column in columns:
                if column not in spec.polars:
                    what = "an id, and it declares none" if column is None else f"column {column!r}"
                    raise DeclarationError(f"{where}: needs {what}; {spec.name} has {', '.join(spec.polars)}")
        added = (*LABEL_COLUMNS, "appended_us", EMITTED, IS_FIRST, LATE_SHARE, POSITIVE_WEIGHT)
        taken = [column for column in added if column in request.polars]
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
        if self.is_early and self.value is not None:
            raise DeclarationError(f"{where}: a policy that does not wait weighs labels of 0 and 1, not of `value`")

    @property
    def joins(self) -> "dict[str, JoinSpec]":
        """The single label, named ""."""
        return {"": self}

    @property
    def engagements(self) -> tuple[type[Event], ...]:
        """The class of the engagements."""
        return (self.engagement,)

    @property
    def label_dtype(self) -> pl.DataType:
        """Type of one label: 0 and 1 are Int8, numeric labels Float32."""
        return pl.Int8() if self.value is None else pl.Float32()

    @property
    def is_early(self) -> bool:
        """Whether requests are emitted before their window has closed."""
        return len(self.ages_us) > 1

    @property
    def step_us(self) -> int:
        """Requests are emitted when the watermark passes a multiple of this."""
        return max(self.ages_us[0] // STEPS_PER_AGE, 1) if self.is_early else step_us_of(self.within_us)


@dataclass(frozen=True, slots=True, eq=False)
class JoinSpecs:
    """Several labels of one request, by name. A request is emitted when the longest of their windows has closed.

    Raises:
        DeclarationError: they differ in the request, its candidates, id or lateness, or one does not wait.
    """

    joins: dict[str, JoinSpec]

    def __post_init__(self) -> None:
        if not self.joins:
            raise DeclarationError("join of several labels: there is none")
        for name, spec in self.joins.items():
            if _shared(spec) != _shared(self._first):
                raise DeclarationError(f"label {name!r}: all labels need one request, candidates, id and lateness")
            if spec.is_early:
                raise DeclarationError(f"label {name!r}: several labels wait for their windows; leave the policy out")

    @property
    def _first(self) -> JoinSpec:
        return next(iter(self.joins.values()))

    @property
    def request(self) -> type[Event]:
        """The event of the requests."""
        return self._first.request

    @property
    def request_id(self) -> str | None:
        """Column of the requests' id."""
        return self._first.request_id

    @property
    def engagements(self) -> tuple[type[Event], ...]:
        """Classes of the engagements."""
        return tuple(dict.fromkeys(spec.engagement for spec in self.joins.values()))

    @property
    def lateness_us(self) -> int:
        """How far behind the newest event another may arrive, in event time."""
        return self._first.lateness_us

    @property
    def within_us(self) -> int:
        """The longest window."""
        return max(spec.within_us for spec in self.joins.values())

    @property
    def ages_us(self) -> tuple[int, ...]:
        """The single age at which a request is emitted."""
        return (self.within_us,)

    @property
    def corrects(self) -> bool:
        """False: nothing is emitted early, so nothing is corrected."""
        return False

    @property
    def is_early(self) -> bool:
        """False: nothing is emitted early."""
        return False

    @property
    def step_us(self) -> int:
        """Requests are emitted when the watermark passes a multiple of this."""
        return step_us_of(self.within_us)


def fingerprint(specs: Mapping[str, JoinSpec]) -> dict[str, Any]:
    """The declaration of these joins, saved with their state, for JSON. Defaults of later options are left out."""
    return _fingerprint(specs[""]) if "" in specs else {name: _fingerprint(spec) for name, spec in specs.items()}


def _fingerprint(spec: JoinSpec) -> dict[str, Any]:
    later = {"negative": spec.negative, "value": spec.value}  # left out by default: old states stay valid
    policy = {"ages_us": list(spec.ages_us), "corrects": spec.corrects} if spec.is_early else {}
    return {
        **policy,
        **{name: str(expression) for name, expression in later.items() if expression is not None},
        "request": spec_of(spec.request).name,
        "engagement": spec_of(spec.engagement).name,
        "columns": [spec.candidates, spec.candidate, *spec.request_entity, *spec.engagement_entity],
        "positive": str(spec.positive),
        "within_us": spec.within_us,
    }


def _shared(spec: JoinSpec) -> Iterable[Any]:
    return (spec.request, spec.candidates, spec.request_id, spec.lateness_us)


def step_us_of(within_us: int) -> int:
    """Length of a step in microseconds of event time; requests are emitted at multiples of it."""
    return max(within_us // STEPS_PER_WINDOW, 1)


def micros(column: str) -> pl.Expr:
    """A column of times as microseconds."""
    return pl.col(column).dt.epoch("us")
