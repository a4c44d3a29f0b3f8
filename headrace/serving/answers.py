"""Answers: the work of one request, from the validated body to the response's bytes. Runs in a worker thread."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from headrace.clock import Clock
from headrace.errors import SpineError
from headrace.features import FeatureView, plan_of
from headrace.features.keys import keys_of_texts
from headrace.features.store.reader import instant_us
from headrace.serving.impressions import Impression, ImpressionLog
from headrace.serving.messages import RankRequest, ScoreRequest
from headrace.serving.ranker import Ranker, Scored, best
from headrace.serving.refusals import Refusal, nearest
from headrace.serving.swap import LiveModel


@dataclass(frozen=True, slots=True)
class Reply:
    """A successful response: the body, and the version of the model that answered, if any."""

    body: bytes
    model_version: int | None = None


class Answers:
    """Rank, score and features over one ranker.

    Args:
        impressions: log of the served rankings, or None.
        clock: time of requests that have no `event_time`.
    """

    def __init__(self, ranker: Ranker, impressions: ImpressionLog | None, clock: Clock) -> None:
        self._ranker = ranker
        self._impressions = impressions
        self._clock = clock
        self._views = {plan_of(view).name: view for view in ranker.spec.learner.views}

    def ping(self) -> None:
        """Check that the store answers.

        Raises:
            StoreUnavailableError: it does not.
        """
        self._ranker.store.ping()

    def impression_counts(self) -> dict[str, int] | None:
        """Counts of logged and dropped impressions; None without a log."""
        log = self._impressions
        return None if log is None else {"logged": log.logged, "dropped": log.dropped}

    def rank(self, live: LiveModel, ask: RankRequest) -> Reply:
        """The k best candidates, best first; logged as one impression in this order."""
        now_us = self._as_of_us(ask)
        scored = self._ranker.score(live.scorer, ask.entity, ask.candidates, now_us, ask.context)
        order = best(scored.scores, ask.k or len(ask.candidates))
        chosen, scores = [ask.candidates[i] for i in order.tolist()], scored.scores[order]
        request_id = ask.request_id or uuid.uuid4().hex
        body = _header(request_id, live, scored)
        body["ranked"] = [
            {"candidate": candidate, "score": score, "position": position}
            for position, (candidate, score) in enumerate(zip(chosen, scores.tolist(), strict=True))
        ]
        if self._impressions is not None:
            inputs = scored.inputs.take(order)
            self._impressions.log(
                Impression(request_id, now_us, ask.entity, chosen, scores, live.version, inputs, ask.context)
            )
        return Reply(dumps(body), live.version)

    def score(self, live: LiveModel, ask: ScoreRequest) -> Reply:
        """One score a candidate, in the request's order; not logged."""
        now_us = self._as_of_us(ask)
        scored = self._ranker.score(live.scorer, ask.entity, ask.candidates, now_us, ask.context)
        body = _header(ask.request_id or uuid.uuid4().hex, live, scored)
        body["scores"] = scored.scores
        return Reply(dumps(body), live.version)

    def _as_of_us(self, ask: ScoreRequest) -> int:
        return self._clock.now_us() if ask.event_time is None else instant_us(ask.event_time)

    def features(self, view: str, key: str) -> Reply:
        """One record of `view` as of the clock's now."""
        if view not in self._views:
            near = nearest(view, self._views)
            raise Refusal(404, "unknown_view", f"no view {view!r} is served here", f"nearest is {near!r}", "view")
        entity = _entity(self._views[view], key)
        row = self._ranker.store.read(self._views[view], {n: [v] for n, v in entity.items()}, self._clock.now_us())
        values = row.row(0, named=True)
        body = {
            "view": view,
            "entity": entity,
            "status": values.pop("_status"),
            "age_s": values.pop("_age_s"),
            "features": {name: value for name, value in values.items() if name not in entity},
        }
        return Reply(dumps(body))


def dumps(body: Mapping[str, Any]) -> bytes:
    """JSON bytes; NumPy values and datetimes natively, bytes as hexadecimal text."""
    return orjson.dumps(body, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def _header(request_id: str, live: LiveModel, scored: Scored) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "model_version": live.version,
        "features_age_s": None if scored.entity_age_us is None else scored.entity_age_us / 1e6,
        "status": scored.status,
        "views": {
            name: {
                "asked": read.asked,
                "found": read.found,
                "ahead": read.ahead,
                "age_s": None if read.age_us is None else read.age_us / 1e6,
            }
            for name, read in scored.views.items()
        },
    }


def _entity(view: type[FeatureView], key: str) -> dict[str, int | str]:
    """Key columns and values of `key` as written in a path; slashes separate the parts of a composite key."""
    plan = plan_of(view)
    parts = key.split("/") if len(plan.entity) > 1 else [key]
    if len(parts) != len(plan.entity):
        raise Refusal(422, "invalid_request", f"key {key!r}", f"write it as {'/'.join(plan.entity)}", "key")
    try:
        columns = keys_of_texts(plan, [parts])
    except SpineError as exc:
        raise Refusal(422, "invalid_request", f"key {key!r}: {exc}", "send integers for integer keys", "key") from exc
    return {column.name: column[0] for column in columns}
