"""Answers of the service as frozen dataclasses.

Unknown fields of an answer are ignored, so that a client can read the answers of newer services.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

Key = int | str
"""Value of a key column."""


@dataclass(frozen=True, slots=True)
class ViewRead:
    """Records of one view that were read.

    `asked` and `found` are counts of records; `ahead` counts those with an event at or after the request's time;
    `age_s` is the age of the newest event among them in seconds, None without a record.
    """

    asked: int
    found: int
    ahead: int
    age_s: float | None

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        """Read the object of one view."""
        return cls(body["asked"], body["found"], body["ahead"], body["age_s"])


@dataclass(frozen=True, slots=True)
class Ranked:
    """One candidate of a ranking; `position` is 0 for the best."""

    candidate: Key
    score: float
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelAnswer:
    """Fields that answers of rank and score share.

    `features_age_s` is the age of the entity's newest event in seconds, None without a record. `status` is "ok" if all
    records were found, "partial" if some were, "missing" if none of the entity's was. `live_at_start` and `live_at_end`
    are the versions that were live when the work on the request began and ended; None: the service does not state them.
    """

    request_id: str
    model_version: int
    status: Literal["ok", "partial", "missing"]
    features_age_s: float | None
    views: dict[str, ViewRead]
    live_at_start: int | None = None
    live_at_end: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankAnswer(_ModelAnswer):
    """The best candidates, best first."""

    ranked: list[Ranked]

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        """Read the body of an answer.

        Raises:
            KeyError, TypeError, AttributeError: the body has another form.
        """
        ranked = [Ranked(each["candidate"], each["score"], each["position"]) for each in body["ranked"]]
        return cls(**_of_model(body), ranked=ranked)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreAnswer(_ModelAnswer):
    """One score per candidate, in the order of the request."""

    scores: list[float]

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        """Read the body of an answer; raises as `RankAnswer.read` does."""
        return cls(**_of_model(body), scores=body["scores"])


@dataclass(frozen=True, slots=True)
class FeaturesAnswer:
    """One record of one view as of now.

    `status` is "missing" without a record, "ahead" if it holds an event at or after now, else "fresh"; `age_s` is the
    age of its newest event in seconds.
    """

    view: str
    entity: dict[str, Key]
    status: Literal["fresh", "ahead", "missing"]
    age_s: float | None
    features: dict[str, Any]

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        """Read the body of an answer; raises as `RankAnswer.read` does."""
        return cls(body["view"], body["entity"], body["status"], body["age_s"], body["features"])


def _of_model(body: Mapping[str, Any]) -> dict[str, Any]:
    fields = ("request_id", "model_version", "status", "features_age_s")
    views = {name: ViewRead.read(of_view) for name, of_view in body["views"].items()}
    live = {name: body.get(name) for name in ("live_at_start", "live_at_end")}
    return {**{name: body[name] for name in fields}, **live, "views": views}
