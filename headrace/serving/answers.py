"""Answers batches of requests in a lane's thread, from validated bodies to the bytes of responses."""

import gc
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import structlog

from headrace.clock import Clock
from headrace.errors import ModelError, SchemaError, SpineError, StoreError
from headrace.features import FeatureView, plan_of
from headrace.features.keys import keys_of_texts
from headrace.features.store.reader import instant_us
from headrace.serving.bodies.arrow import MEDIA_TYPE, arrow_answer
from headrace.serving.impressions import ImpressionBatch, ImpressionLog
from headrace.serving.lanes import Job
from headrace.serving.messages import KEY_CHARS_MAX, RankRequest, ScoreRequest
from headrace.serving.queries import Query
from headrace.serving.ranker import Ranker
from headrace.serving.refusals import (
    LAYOUT_FAULT,
    STORE_FAULT,
    Refusal,
    log_store_fault,
    nearest,
    no_model,
    refusal_of,
    store_away,
    version_not_live,
)
from headrace.serving.resident.batch_read import BatchRead, RequestRead, best
from headrace.serving.store.breaker import StoreBreaker
from headrace.serving.store.view_states import ViewStates
from headrace.serving.swap import LiveModel, Swap
from headrace.serving.tracing import trace_batch

WARM_RETRY_S = 1.0
"""Seconds between two attempts to warm up while the store is unreachable."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Reply:
    """A successful response: its body, its media type, and the version of the model that answered, if any."""

    body: bytes
    model_version: int | None = None
    media_type: str = "application/json"


class Answers:
    """Answers rank, score and features requests from one ranker.

    Invariant: `work` chooses the models of a batch from one read of `swap.live`, and one model answers each request.

    Args:
        impressions: log of the served rankings, or None.
        clock: time of requests that have no `event_time`.
    """

    def __init__(self, ranker: Ranker, swap: Swap, impressions: ImpressionLog | None, clock: Clock) -> None:
        self._ranker = ranker
        self._swap = swap
        self._impressions = impressions
        self._clock = clock
        self._views = {plan_of(view).name: view for view in ranker.spec.learner.views}
        self.breaker = StoreBreaker(self.ping)
        self.view_states = ViewStates(ranker.store, map(plan_of, self._views.values()), lambda: self.breaker.is_open)
        self._closed = threading.Event()

    @property
    def is_warm(self) -> bool:
        """Whether warm-up is over. Unless it failed, no request waits for a kernel to compile."""
        return self._ranker.is_warm

    def warm(self) -> None:
        """Run every kernel that requests need once, retrying while the store is unreachable. Runs in its own thread.

        A function of the declaration may fail on the made-up records. This is logged and the replica still becomes
        ready; a request may then wait for a kernel to compile.
        """
        while not self._ranker.is_warm and not self._closed.is_set():
            try:
                self._ranker.warm()
                # Objects made at startup live on: a full collection of them would stop all threads for 0.4 s.
                if gc.get_freeze_count() == 0:  # once a process
                    gc.collect()
                    gc.freeze()
            except StoreError as exc:
                log_store_fault(exc, effect="not warm yet")
                self._closed.wait(WARM_RETRY_S)
            except Exception:
                log.exception("warm_up_failed")  # any error: the thread must not end with the replica unready
                self._ranker.is_warm = True

    def close(self) -> None:
        """Stop warming up and probing the store."""
        self._closed.set()
        self.view_states.close()
        self.breaker.close()

    def require_store(self) -> None:
        """Refuse requests that need the store while it is known to hang, or to have another number of shards.

        Raises:
            Refusal: 503.
        """
        if self.view_states.fault is not None:
            raise refusal_of(self.view_states.fault, "store")
        resident = self._ranker.resident
        if self.breaker.is_open and not (resident is not None and resident.covers_all_views):
            raise store_away()

    def ping(self) -> None:
        """Check that the store answers.

        Raises:
            StoreUnavailableError: it does not.
        """
        self._ranker.store.ping()

    def impression_counts(self) -> dict[str, Any] | None:
        """Counts of logged, delivered and dropped impressions; None without a log."""
        log = self._impressions
        if log is None:
            return None
        by_reason = dict(log.dropped_by_reason)
        return {
            "logged": log.logged,
            "delivered": log.delivered,
            "dropped": log.dropped,
            "dropped_by_reason": by_reason,
        }

    def query(self, ask: ScoreRequest) -> Query:
        """Convert `ask` to a query, checked so that it cannot fail the batch that it joins.

        Raises:
            Refusal: 422, a key, a context value or the time is missing or of the wrong type.
        """
        try:
            now_us = self._clock.now_us() if ask.event_time is None else instant_us(ask.event_time)
        except SpineError as exc:
            fix = "send ISO 8601, or µs since 1970"
            raise Refusal(422, "invalid_request", f"event_time: {exc}", fix, "event_time") from exc
        if now_us < 0:
            detail = f"event_time {ask.event_time} is before 1970"
            raise Refusal(422, "invalid_request", detail, "send a time since 1970", "event_time")
        query = Query(ask.entity, ask.candidates, now_us, ask.context, is_now=ask.event_time is None)
        self._ranker.rules.check(query)
        if self._impressions is not None and isinstance(ask, RankRequest):
            self._impressions.context_of(ask.entity, ask.context)
        return query

    def require_version(self, ask: ScoreRequest) -> None:
        """Check that the model version that `ask` requires is in memory.

        Raises:
            Refusal: 409, it is not; 503, no model is live.
        """
        live = self._swap.live
        if live is None:
            raise no_model()
        self._model_for(ask, live)

    def _model_for(self, ask: ScoreRequest, live: LiveModel) -> LiveModel:
        """Return the model that answers `ask` while `live` is live.

        Raises:
            Refusal: 409, the required version is not in memory.
        """
        model = live
        if ask.exact_version is not None and ask.exact_version != live.version:
            kept = self._swap.loaded(ask.exact_version)
            if kept is None:
                may_come = ask.exact_version > live.version
                raise version_not_live("exact_version", ask.exact_version, live.version, may_come=may_come)
            model = kept
        if ask.min_version is not None and ask.min_version > model.version:
            may_come = ask.exact_version is None
            raise version_not_live("min_version", ask.min_version, model.version, may_come=may_come)
        return model

    def work(self, jobs: Sequence[Job]) -> list[Reply | Exception]:
        """Return the reply of each job, or the exception that ended it, in order.

        Requests that need different models, or whose columns differ in type, are answered in separate batches.
        """
        live = self._swap.live
        if live is None:
            return [no_model()] * len(jobs)
        outcomes: dict[int, Reply | Exception] = {}
        groups: dict[Any, tuple[LiveModel, list[int]]] = {}
        for i, job in enumerate(jobs):
            try:
                model = self._model_for(job.ask, live)
            except Refusal as exc:
                outcomes[i] = exc
                continue
            groups.setdefault((model.version, self._ranker.rules.kind(job.query)), (model, []))[1].append(i)
        for model, indexes in groups.values():
            batch = [jobs[i] for i in indexes]
            outcomes.update(zip(indexes, self._outcomes(model, batch, live.version), strict=True))
        return [outcomes[i] for i in range(len(jobs))]

    def _outcomes(self, model: LiveModel, jobs: Sequence[Job], live_at_start: int) -> list[Reply | Exception]:
        started_s = time.perf_counter()
        try:
            return list(self._replies(model, jobs, live_at_start))
        except StoreError as exc:
            self.breaker.failed(time.perf_counter() - started_s)
            return [refusal_of(exc, jobs[0].route)] * len(jobs)
        except Exception as exc:  # noqa: BLE001  # a model or a function of the declaration may raise anything
            if len(jobs) == 1 and isinstance(exc, SchemaError) and self._ranker.spec.context:
                fix = "send the context's values as the model's inputs read them"  # all others have declared types
                return [Refusal(422, "invalid_request", f"context: {exc}", fix, "context")]
            if len(jobs) == 1:
                return [exc]  # the handler logs it: a traceback takes longer to write than a batch to score
        # Answer each job alone, so that a failing one does not fail the others.
        return [self._outcomes(model, [job], live_at_start)[0] for job in jobs]

    def _replies(self, model: LiveModel, jobs: Sequence[Job], live_at_start: int) -> list[Reply]:
        ends_ns = [time.time_ns()]
        may_ask = not self.breaker.is_open
        deadline_s = max(job.deadline_s for job in jobs)
        batch = self._ranker.read_batch([job.query for job in jobs], deadline_s, may_ask=may_ask)
        STORE_FAULT.succeeded()
        LAYOUT_FAULT.succeeded()
        ends_ns.append(time.time_ns())
        scores = batch.scores(model.scorer)
        ends_ns.append(time.time_ns())
        if not np.isfinite(scores).all():
            count = int((~np.isfinite(scores)).sum())
            raise ModelError(f"model {model.version}: {count} of {len(scores)} scores are not finite")
        live = self._swap.live
        live_at_end = live_at_start if live is None else live.version
        starts, ids = batch.edges.tolist(), [job.request_id for job in jobs]
        orders: list[tuple[int, Any]] = []
        replies = []
        for i, job in enumerate(jobs):
            own = scores[starts[i] : starts[i + 1]]
            body = _header(ids[i], model.version, batch.requests[i])
            body |= {"live_at_start": live_at_start, "live_at_end": live_at_end}
            order = None
            if job.route == "rank":
                order = best(own, job.ask.k or len(own))
                orders.append((i, order))
            replies.append(_reply(job, body, own, order, model.version))
        if self._impressions is not None and orders:
            live_versions = live_at_start, live_at_end
            self._log(self._impressions, model.version, live_versions, jobs, batch, scores, ids, orders)
        trace_batch((job.trace for job in jobs), [*ends_ns, time.time_ns()], len(jobs))
        return replies

    def _log(
        self,
        impressions: ImpressionLog,
        model_version: int,
        live_versions: tuple[int, int],
        jobs: Sequence[Job],
        batch: BatchRead,
        scores: Any,
        ids: Sequence[str],
        orders: Sequence[tuple[int, Any]],
    ) -> None:
        """Log the rankings of a batch; `orders` has (index of the job, order of its candidates) for each."""
        picked = np.concatenate([batch.edges[i] + order for i, order in orders])
        edges = np.zeros(len(orders) + 1, np.int64)
        np.cumsum([len(order) for _, order in orders], out=edges[1:])
        queries = [jobs[i].query for i, _ in orders]
        inputs, rows = batch.shown(picked)
        impressions.log_batch(
            ImpressionBatch(
                [ids[i] for i, _ in orders],
                [query.now_us for query in queries],
                [query.entity for query in queries],
                [[jobs[i].query.candidates[j] for j in order.tolist()] for i, order in orders],
                scores[picked],
                model_version,
                inputs,
                rows,
                edges,
                [impressions.context_of(query.entity, query.context) for query in queries],
                live_versions,
            )
        )

    def features(self, view: str, key: Sequence[str]) -> Reply:
        """Read one record of `view` as of the clock's present time; `key` holds the parts of the path."""
        if view not in self._views:
            near = nearest(view, self._views)
            raise Refusal(404, "unknown_view", f"no view {view!r} is served here", f"nearest is {near!r}", "view")
        self.require_store()
        entity = _entity(self._views[view], key)
        started_s = time.perf_counter()
        try:
            row = self._ranker.store.read(self._views[view], {n: [v] for n, v in entity.items()}, self._clock.now_us())
        except StoreError:
            self.breaker.failed(time.perf_counter() - started_s)
            raise
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
    """Serialize `body` as JSON: NumPy values and datetimes natively, bytes as hexadecimal text."""
    return orjson.dumps(body, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def _header(request_id: str, model_version: int, read: RequestRead) -> dict[str, Any]:
    return {
        "request_id": request_id,
        "model_version": model_version,
        "features_age_s": None if read.entity_age_us is None else read.entity_age_us / 1e6,
        "status": read.status,
        "views": {
            name: {
                "asked": view.asked,
                "found": view.found,
                "ahead": view.ahead,
                "age_s": None if view.age_us is None else view.age_us / 1e6,
                "resident_age_s": None if view.resident_age_us is None else view.resident_age_us / 1e6,
            }
            for name, view in read.views.items()
        },
    }


def _reply(job: Job, body: dict[str, Any], scores: Any, order: Any, model_version: int) -> Reply:
    """Build the reply of a job from its candidates' `scores` (B,); a ranking shows those at `order` (k,)."""
    shown = None if order is None else order.tolist()
    if job.as_arrow:
        candidates = None if shown is None else [job.ask.candidates[i] for i in shown]
        answer = arrow_answer(body, candidates, scores if order is None else scores[order])
        return Reply(answer, model_version, MEDIA_TYPE)
    if shown is None:
        body["scores"] = scores
    else:
        body["ranked"] = _ranked(job.ask.candidates, shown, scores[order].tolist())
    return Reply(dumps(body), model_version)


def _ranked(candidates: Sequence[Any], order: Sequence[int], scores: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {"candidate": candidates[index], "score": score, "position": position}
        for position, (index, score) in enumerate(zip(order, scores, strict=True))
    ]


def _entity(view: type[FeatureView], parts: Sequence[str]) -> dict[str, int | str]:
    """Parse a key from a path into key column -> value. A key of one column may contain slashes."""
    plan = plan_of(view)
    key = "/".join(parts)
    parts = parts if len(plan.entity) > 1 else [key]
    if len(parts) != len(plan.entity):
        fix = f"write it as {'/'.join(plan.entity)}, with %2F for a slash in a key"
        raise Refusal(422, "invalid_request", f"key {key!r}", fix, "key")
    for part in parts:
        if not part or len(part) > KEY_CHARS_MAX:
            detail = f"key {key[:KEY_CHARS_MAX]!r}: {len(part)} characters; 1 to {KEY_CHARS_MAX} are allowed"
            raise Refusal(422, "invalid_request", detail, "send a key as rank takes it", "key")
        if any("\ud800" <= char <= "\udfff" for char in part):
            detail = f"key {key.encode('ascii', 'backslashreplace').decode()!r} is not UTF-8"
            raise Refusal(422, "invalid_request", detail, "percent-encode the key's UTF-8 bytes", "key")
    try:
        columns = keys_of_texts(plan, [list(parts)])
    except SpineError as exc:
        raise Refusal(422, "invalid_request", f"key {key!r}: {exc}", "send integers for integer keys", "key") from exc
    return {column.name: column[0] for column in columns}
