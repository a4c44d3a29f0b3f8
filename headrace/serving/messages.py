"""Request and response bodies of the HTTP API, validated once.

Requests are validated directly from the body's bytes; an unknown field is an error, so that a misspelt `k` is not
silently ignored. Responses are described here for OpenAPI and clients, but written by orjson: building 100 pydantic
objects per response would cost more than the rest of the ranking's bookkeeping.

Every response of a model has its `model_version` in the body and in the header `X-Model-Version`.
"""

import re
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

CANDIDATES_MAX = 5_000  # of one request: about 40 KB of JSON, and 15 ms of a DeepFM 256-128 on one core
K_MAX = CANDIDATES_MAX
REQUEST_ID_CHARS_MAX = 128
KEY_CHARS_MAX = 512

Key = (
    Annotated[int, Field(strict=True, ge=-(2**63), le=2**63 - 1)]
    | Annotated[str, Field(strict=True, min_length=1, max_length=KEY_CHARS_MAX)]
)
Status = Literal["ok", "partial", "missing"]
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?!\d)")


def _moment(value: object) -> object:
    """Accept unambiguous times only: pydantic would read other numbers as seconds, by their size, sign or fraction."""
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if value is None or is_whole or (isinstance(value, str) and _DATE.match(value)):
        return value
    raise ValueError("write ISO 8601, as 2026-03-01T12:00:00Z, or whole microseconds since 1970 UTC")


Moment = Annotated[datetime | Annotated[int, Field(strict=True, ge=0, lt=2**62)] | None, BeforeValidator(_moment)]


def _number(value: object) -> object:
    """Accept JSON numbers only, 3.0 included: pydantic would also accept true and "3"."""
    is_lax = isinstance(value, bool | str)
    if not is_lax:
        return value
    raise ValueError("write a whole number")


Whole = Annotated[int, BeforeValidator(_number)]


class Body(BaseModel):
    """A request body: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ScoreRequest(Body):
    """One entity and the candidates to score for it."""

    entity: dict[str, Key] = Field(
        min_length=1, max_length=16, description="Key column -> value, for example {'account': 7}."
    )
    candidates: list[Key] = Field(min_length=1, max_length=CANDIDATES_MAX)
    request_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=REQUEST_ID_CHARS_MAX,
        description="Default: the header X-Request-Id; made when both are absent.",
    )
    min_version: Whole | None = Field(
        default=None, ge=1, le=2**63 - 1, description="Oldest model version that may answer; else 409."
    )
    exact_version: Whole | None = Field(
        default=None,
        ge=1,
        le=2**63 - 1,
        description="The model version that must answer, the live one or one of those kept in memory; else 409.",
    )
    event_time: Moment = Field(
        default=None,
        description="As-of time of the features: ISO 8601 or µs since 1970 UTC. Default: the service's clock.",
    )
    context: dict[str, str | int | Annotated[float, Field(allow_inf_nan=False)] | bool | None] = Field(
        default_factory=dict,
        max_length=64,
        description="Values of this request that the model reads beside the features.",
    )


class RankRequest(ScoreRequest):
    """One entity and the candidates to rank for it; the served order is logged as one impression."""

    k: Whole | None = Field(default=None, ge=1, le=K_MAX, description="How many to return. Default: all.")


class ViewRead(BaseModel):
    """Records of one view that were read."""

    asked: int = Field(description="Records asked for.")
    found: int = Field(description="Records that exist.")
    ahead: int = Field(description="Records with an event at or after the request's time, which values may include.")
    age_s: float | None = Field(
        description="Age of the newest event among the found records, in seconds; null: none found."
    )
    resident_age_s: float | None = Field(
        default=None,
        description="Seconds from the reading of values kept in memory to the request; null: all come from the store.",
    )


class Reading(BaseModel):
    """Fields of every response of a model."""

    request_id: str
    model_version: int = Field(description="The version that answered.")
    live_at_start: int = Field(description="The version that was live when the work on the request began.")
    live_at_end: int = Field(description="The version that was live when it ended.")
    features_age_s: float | None = Field(description="Age of the entity's newest event, in seconds; null: no record.")
    status: Status = Field(description="ok: all records found; partial: some; missing: none of the entity's.")
    views: dict[str, ViewRead]


class Ranked(BaseModel):
    """One candidate of an answer; `position` is 0 for the best."""

    candidate: int | str
    score: float
    position: int


class RankResponse(Reading):
    """The `k` best candidates, best first."""

    ranked: list[Ranked]


class ScoreResponse(Reading):
    """One score a candidate, in the request's order."""

    scores: list[float]


class FeaturesResponse(BaseModel):
    """One record of one view as of now."""

    view: str
    entity: dict[str, int | str]
    status: Literal["fresh", "ahead", "missing"] = Field(
        description="missing: no record; ahead: it holds an event at or after now, which values may include."
    )
    age_s: float | None
    features: dict[str, object]


class ModelResponse(BaseModel):
    """The live model of this replica."""

    model_version: int
    replica: int = Field(description="Process id of the replica that answers.")
    swapped_us: int
    age_s: float = Field(description="Seconds since it became live.")
    kept: list[int] = Field(
        description="Earlier versions in memory: requests may ask for them, a rollback reaches them without loading."
    )
    refused: dict[str, object] | None = Field(
        default=None, description="A newer version that was refused: model_version, reason, refused_us; null: none."
    )
    published: dict[str, object] = Field(
        description="The newest published version, when the directory was last read (µs), whether the live version is "
        "newer than all of it or its folder holds another model (live_is_unpublished), and why the last look failed "
        "(fault)."
    )
    manifest: dict[str, object]


class ErrorResponse(BaseModel):
    """Body of every response that is not 2xx."""

    error: str = Field(description="A stable word: invalid_request, unknown_view, store_unavailable, ...")
    detail: str = Field(description="What was found, and where.")
    fix: str = Field(description="What to do about it.")
    field: str | None = Field(default=None, description="Path of the value that is wrong, for example candidates[3].")
    request_id: str | None = Field(default=None, description="As in the header X-Request-Id and in the replica's log.")
