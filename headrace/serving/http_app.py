"""The HTTP application of one replica: FastAPI over a `Ranker` and a `Swap`. Runs under uvicorn and under Ray Serve.

Invariant: a handler reads `swap.live` once, in its first line and before its first await, and passes it down.

    POST /v1/rank                    the k best candidates, logged as one impression
    POST /v1/score                   one score a candidate, not logged
    GET  /v1/features/{view}/{key}   one record as of now; a composite key is written a/b
    GET  /v1/model, /v1/report       the live model; counters, latencies and swaps of this replica
    GET  /healthz, /readyz, /metrics

The work of a request (one Redis round trip a view, numba, torch) runs in a small thread pool, so that the event loop
keeps accepting; most of that work releases the GIL.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import structlog
from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from headrace.clock import Clock, WallClock, wall_us
from headrace.errors import HeadraceError
from headrace.serving.answers import Answers, Reply, dumps
from headrace.serving.guard import Guard
from headrace.serving.impressions import ImpressionLog
from headrace.serving.messages import (
    ErrorResponse,
    FeaturesResponse,
    ModelResponse,
    RankRequest,
    RankResponse,
    ScoreRequest,
    ScoreResponse,
)
from headrace.serving.ranker import Ranker
from headrace.serving.refusals import STORE_AWAY, Refusal, no_model, parse, refusal_of, too_large
from headrace.serving.report import Report
from headrace.serving.swap import LiveModel, Swap

log = structlog.get_logger(__name__)
Ask = TypeVar("Ask", bound=BaseModel)
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits and keys of one replica.

    Args:
        api_keys: accepted API keys; empty = open.
        max_in_flight: requests under /v1/ at once; more are answered 429.
        body_bytes_max: longest request body.
        threads: requests computed at once; the others of `max_in_flight` wait.
    """

    api_keys: Collection[str] = ()
    max_in_flight: int = 64
    body_bytes_max: int = 1_048_576
    threads: int = 4


def build_http(
    ranker: Ranker,
    swap: Swap,
    *,
    impressions: ImpressionLog | None,
    clock: Clock | None = None,
    limits: HttpLimits | None = None,
    on_close: Callable[[], None] | None = None,
    title: str = "Headrace",
) -> FastAPI:
    """Build the ASGI application.

    Args:
        impressions: log of the served rankings; None: they are not logged.
        clock: time of requests that have no `event_time`; default: the wall clock.
        on_close: called once when the application shuts down, after the last request.
    """
    limits = limits or HttpLimits()
    pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="headrace-rank")
    report = Report()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        pool.shutdown(wait=True)
        if on_close is not None:
            on_close()

    app = FastAPI(title=title, lifespan=lifespan, responses={422: {"model": ErrorResponse}})
    routes = _Routes(Answers(ranker, impressions, clock or WallClock()), swap, report, pool, limits.body_bytes_max)
    routes.add_model_routes(app)
    routes.add_operator_routes(app)
    app.add_exception_handler(HTTPException, routes.not_routed)
    app.add_middleware(
        Guard,
        report=report,
        api_keys=tuple(limits.api_keys),
        max_in_flight=limits.max_in_flight,
        body_bytes_max=limits.body_bytes_max,
    )
    return app


class _Routes:
    """The route handlers and their shared state."""

    def __init__(
        self, answers: Answers, swap: Swap, report: Report, pool: ThreadPoolExecutor, body_bytes_max: int
    ) -> None:
        self._answers = answers
        self._swap = swap
        self._report = report
        self._pool = pool
        self._body_bytes_max = body_bytes_max

    def add_model_routes(self, app: FastAPI) -> None:
        """Add rank, score and features."""

        async def rank(request: Request) -> Response:
            live = self._swap.live
            return await self._model_route(live, "rank", request, RankRequest, self._answers.rank)

        async def score(request: Request) -> Response:
            live = self._swap.live
            return await self._model_route(live, "score", request, ScoreRequest, self._answers.score)

        async def features(view: str, key: str) -> Response:
            return await self._timed("features", self._in_thread(self._answers.features, view, key))

        for path, handler, ask, answer in (
            ("/v1/rank", rank, RankRequest, RankResponse),
            ("/v1/score", score, ScoreRequest, ScoreResponse),
        ):
            app.post(path, response_model=None, responses={200: {"model": answer}}, openapi_extra=_takes(ask))(handler)
        app.get("/v1/features/{view}/{key:path}", response_model=None, responses={200: {"model": FeaturesResponse}})(
            features
        )

    def add_operator_routes(self, app: FastAPI) -> None:
        """Add model, report, probes and metrics."""

        async def model() -> Response:
            live = self._swap.live
            return await self._timed("model", self._model(live))

        async def report() -> Response:
            body = self._report.as_dict(self._swap)
            body["impressions"] = self._answers.impression_counts()
            return _json(body)

        async def healthz() -> Response:
            return _json({"status": "ok"})

        async def readyz() -> Response:
            live = self._swap.live
            return await self._ready(live)

        async def metrics() -> Response:
            return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

        app.get("/v1/model", response_model=None, responses={200: {"model": ModelResponse}})(model)
        app.get("/v1/report", response_model=None)(report)
        app.get("/healthz", response_model=None)(healthz)
        app.get("/readyz", response_model=None)(readyz)
        app.get("/metrics", response_model=None)(metrics)

    async def not_routed(self, _request: Request, exc: Exception) -> Response:
        """Answer an unknown path or method."""
        status = exc.status_code if isinstance(exc, HTTPException) else 500
        detail = str(exc.detail) if isinstance(exc, HTTPException) else "unexpected"
        return _refused(Refusal(status, "no_such_route", detail, "see /docs for the routes"))

    async def _model_route(
        self,
        live: LiveModel | None,
        route: str,
        request: Request,
        model: type[Ask],
        answer: Callable[[LiveModel, Ask], Reply],
    ) -> Response:
        async def work() -> Reply:
            if live is None:
                raise no_model()
            ask = parse(model, await self._body(request))
            return await self._in_thread(answer, live, ask)

        return await self._timed(route, work(), live)

    async def _timed(self, route: str, work: Awaitable[Reply], live: LiveModel | None = None) -> Response:
        """Await `work`, and turn its result or exception into one response and one count."""
        started = time.perf_counter()
        try:
            reply = await work
        except Exception as exc:  # noqa: BLE001  # the outermost handler: every request is answered and counted
            response = _refused(refusal_of(exc, route))
        else:
            headers = None if reply.model_version is None else {"x-model-version": str(reply.model_version)}
            response = Response(reply.body, media_type="application/json", headers=headers)
        version = live.version if live is not None and response.status_code == 200 else None
        self._report.answered(route, response.status_code, time.perf_counter() - started, model_version=version)
        return response

    async def _in_thread(self, work: Callable[P, Reply], *args: P.args, **_kwargs: P.kwargs) -> Reply:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *args)

    async def _body(self, request: Request) -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self._body_bytes_max:  # a chunked body announces no length to the guard
                raise too_large(self._body_bytes_max)
            parts.append(part)
        return b"".join(parts)

    async def _model(self, live: LiveModel | None) -> Reply:
        if live is None:
            raise no_model()
        body = {
            "model_version": live.version,
            "swapped_us": live.swapped_us,
            "age_s": (wall_us() - live.swapped_us) / 1e6,
            "kept": self._swap.kept,
            "manifest": dict(live.manifest),
        }
        return Reply(dumps(body), live.version)

    async def _ready(self, live: LiveModel | None) -> Response:
        problems = [] if live is not None else ["no model is live"]
        try:
            await asyncio.get_running_loop().run_in_executor(self._pool, self._answers.ping)
        except HeadraceError as exc:
            log.warning("store_not_ready", reason=str(exc))
            problems.append(STORE_AWAY)
        ready = not problems
        version = live.version if live is not None else None
        return _json({"ready": ready, "model_version": version, "problems": problems}, 200 if ready else 503)


def _json(body: dict[str, object], status: int = 200) -> Response:
    return Response(dumps(body), status_code=status, media_type="application/json")


def _refused(refusal: Refusal) -> Response:
    return Response(refusal.to_bytes(), refusal.status, refusal.headers(), media_type="application/json")


def _takes(model: type[BaseModel]) -> dict[str, object]:
    """OpenAPI description of the body, for routes that parse the bytes themselves."""
    schema = model.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
