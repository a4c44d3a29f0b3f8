"""The HTTP application of one replica: FastAPI over a `Ranker` and a `Swap`. Runs under uvicorn and under Ray Serve.

    POST /v1/rank                    the k best candidates, logged as one impression
    POST /v1/score                   one score a candidate, not logged
    GET  /v1/features/{view}/{key}   one record as of now; a composite key is written a/b
    GET  /v1/model, /v1/report       the live model; counters, latencies and swaps of this replica
    GET  /healthz, /readyz, /metrics

The threads of two lanes (lanes/) compute rank and score in batches; the event loop parses, validates and sends. Single
records are read by a small thread pool, and probes have their own thread, so that requests cannot delay them.
"""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.types import Scope

from headrace.clock import Clock, WallClock, wall_us
from headrace.errors import HeadraceError
from headrace.serving.answers import Answers, Reply, dumps
from headrace.serving.api_keys import ApiKeys
from headrace.serving.contract.docs_page import docs_page
from headrace.serving.contract.openapi import Contract
from headrace.serving.guard import Guard
from headrace.serving.impressions import ImpressionLog
from headrace.serving.lanes import OneCpu
from headrace.serving.messages import (
    ErrorResponse,
    FeaturesResponse,
    ModelResponse,
    RankRequest,
    RankResponse,
    ScoreRequest,
    ScoreResponse,
)
from headrace.serving.model_route import Lanes, ModelRoute
from headrace.serving.ranker import Ranker
from headrace.serving.refusals import (
    STORE_AWAY,
    STORE_FAULT,
    Refusal,
    log_store_fault,
    no_model,
    refusal_of,
    store_away,
)
from headrace.serving.report import Report, metrics_page, published_entry, refused_entry
from headrace.serving.store.view_states import ViewState
from headrace.serving.swap import LiveModel, Swap

READ_THREADS = 2
"""Single records that are read at the same time; others wait, within their deadline."""
PING_S = 1.0
"""How long a probe waits for the store."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Limits and keys of one replica.

    Args:
        api_keys: accepted API keys, plain or in the form of `api_keys.py`; without any, the service is open.
        api_keys_file: file of more keys, one a line, read again when it changes; or None.
        cors_origins: origins whose pages may call the service from a browser; none: CORS is off.
        max_in_flight: rank and score requests that may wait or be in progress at once, counted separately for small and
            large ones. Further requests are answered 429, as are those that could not start before their deadline.
        body_bytes_max: longest request body.
        timeout_s: deadline of a request that has no header `X-Request-Timeout-Ms`, from the arrival of its body at
            this machine, or in this process if the server is not Headrace's own.
        one_cpu: whether the threads that share the interpreter run on one CPU; see lanes/one_cpu.py.
    """

    api_keys: Collection[str] = ()
    api_keys_file: Path | None = None
    cors_origins: Collection[str] = ()
    max_in_flight: int = 1_024
    body_bytes_max: int = 1_048_576
    timeout_s: float = 1.0
    one_cpu: bool = True


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
        impressions: log of the served rankings, or None.
        clock: time of requests that have no `event_time`; default: the wall clock.
        on_close: called once when the application shuts down, after the last request.

    Raises:
        ConfigError: an API key is invalid, or the file of keys cannot be read.
    """
    limits = limits or HttpLimits()
    keys = ApiKeys(limits.api_keys, limits.api_keys_file)
    report, answers = Report(), Answers(ranker, swap, impressions, clock or WallClock())
    one_cpu = OneCpu()
    lanes = Lanes(answers, limits.max_in_flight, one_cpu)
    reads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="headrace-read")
    probes = ThreadPoolExecutor(1, thread_name_prefix="headrace-probe")

    def warm() -> None:
        answers.warm()
        if limits.one_cpu:
            one_cpu.start()  # only now: pools of libraries inherit the CPU of the thread that makes them

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        one_cpu.add(threading.current_thread())
        if impressions is not None:
            one_cpu.add(impressions.thread)
        threading.Thread(target=warm, name="headrace-warm", daemon=True).start()
        answers.view_states.start()
        yield
        lanes.close()
        reads.shutdown(wait=True)
        probes.shutdown(wait=False)
        answers.close()
        one_cpu.close()
        if on_close is not None:
            on_close()

    app = FastAPI(
        title=title,
        lifespan=lifespan,
        responses={422: {"model": ErrorResponse}},
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect is not in the contract, and would repeat the header Host
        telemetry={"tracing": False, "metrics": False, "logs": False},  # tracing.py and report.py do this
    )
    model_routes = {}
    for name, model, answer in (("rank", RankRequest, RankResponse), ("score", ScoreRequest, ScoreResponse)):
        route = ModelRoute(
            name,
            model,
            answers=answers,
            lanes=lanes,
            swap=swap,
            report=report,
            body_bytes_max=limits.body_bytes_max,
            timeout_s=limits.timeout_s,
        )
        model_routes[f"/v1/{name}"] = route
        _add_model_route(app, route, model, answer)
    app.state.is_draining = False  # set by the server when it is asked to stop
    routes = _Routes(answers, swap, report, reads, probes, app.state)
    routes.add_to(app, limits.timeout_s)
    app.add_exception_handler(HTTPException, routes.not_routed)
    logged = impressions.context_schemas if impressions is not None else {}
    _describe(app, Contract(ranker.spec, logged, asks_for_keys=bool(keys)))
    app.add_middleware(
        Guard,
        report=report,
        api_keys=keys,
        body_bytes_max=limits.body_bytes_max,
        direct=model_routes,
    )
    if limits.cors_origins:  # added last, so that it answers a browser's preflight, which has no key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(limits.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type", "x-api-key", "x-request-id", "x-request-timeout-ms"],
            expose_headers=["retry-after", "x-model-version", "x-request-id"],
        )
    return app


def _add_model_route(app: FastAPI, route: ModelRoute[Any], model: type[BaseModel], answer: type[BaseModel]) -> None:
    """Add a route that FastAPI documents and routes to, but that handles requests itself."""

    async def described() -> None:
        """For OpenAPI only: `route` handles the requests."""

    path = f"/v1/{route.name}"
    app.add_api_route(
        path,
        described,
        methods=["POST"],
        name=route.name,
        response_model=None,
        responses={200: {"model": answer}},
        openapi_extra=_takes(model),
    )
    api_route = app.router.routes.pop()
    assert isinstance(api_route, APIRoute)
    api_route.app = route
    app.router.routes.insert(0, api_route)  # routes are tried in order, each by a regular expression


def _describe(app: FastAPI, contract: Contract) -> None:
    """Make /openapi.json describe this service with its own keys, and add /docs."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            routes = [route for route in app.routes if getattr(route, "path", "") != "/docs"]
            made = get_openapi(title=app.title, version=version("headrace"), routes=routes)
            app.openapi_schema = contract.fill(made)
        return app.openapi_schema

    async def docs() -> Response:
        return Response(docs_page(document()), media_type="text/html")

    app.openapi = document  # type: ignore[method-assign]  # as FastAPI's documentation extends it
    app.get("/docs", response_model=None, include_in_schema=False)(docs)


class _Routes:
    """The handlers of all routes except rank and score, and their shared state."""

    def __init__(
        self,
        answers: Answers,
        swap: Swap,
        report: Report,
        reads: ThreadPoolExecutor,
        probes: ThreadPoolExecutor,
        state: State,
    ) -> None:
        self._state = state
        self._answers = answers
        self._swap = swap
        self._report = report
        self._reads = reads
        self._probes = probes
        self._looking: asyncio.Future[dict[str, ViewState]] | None = None

    def add_to(self, app: FastAPI, timeout_s: float) -> None:
        """Add features, model, report, probes and metrics."""

        async def features(request: Request, view: str, key: str) -> Response:
            parts = _parts_of_path(request.scope, view, key)
            return await self._timed("features", self._features(view, parts, timeout_s))

        async def model() -> Response:
            return await self._timed("model", self._model(self._swap.live))

        async def report() -> Response:
            body = self._report.as_dict(self._swap)
            body["impressions"] = self._answers.impression_counts()
            body["views"] = self._answers.view_states.last
            return _json(body)

        async def healthz() -> Response:
            return _json({"status": "ok"})

        async def readyz() -> Response:
            return await self._ready(self._swap.live)

        async def metrics() -> Response:
            return Response(await asyncio.to_thread(metrics_page), media_type=CONTENT_TYPE_LATEST)

        app.get("/v1/features/{view}/{key:path}", response_model=None, responses={200: {"model": FeaturesResponse}})(
            features
        )
        app.get("/v1/model", response_model=None, responses={200: {"model": ModelResponse}})(model)
        app.get("/v1/report", response_model=None)(report)
        app.get("/healthz", response_model=None)(healthz)
        app.get("/readyz", response_model=None)(readyz)
        app.get("/metrics", response_model=None)(metrics)

    async def not_routed(self, _request: Request, exc: Exception) -> Response:
        """Answer an unknown path or method."""
        status = exc.status_code if isinstance(exc, HTTPException) else 500
        detail = str(exc.detail) if isinstance(exc, HTTPException) else "unexpected"
        self._report.answered("none", status, 0.0)
        headers = dict(getattr(exc, "headers", None) or {})
        methods = headers.get("Allow", "").split(", ")  # the guard answers HEAD by GET
        allow = ", ".join(sorted({*methods, "HEAD"} if "GET" in methods else methods))
        fix = f"send {allow}" if allow else "see /docs for the routes"
        response = _refused(Refusal(status, "no_such_route", detail, fix))
        response.headers.update(headers | ({"Allow": allow} if allow else {}))
        return response

    async def _timed(self, route: str, work: Awaitable[Reply]) -> Response:
        """Await `work`, turn its result or exception into a response, and count it."""
        started = time.perf_counter()
        try:
            reply = await work
        except Exception as exc:  # noqa: BLE001  # the outermost handler: every request is answered and counted
            response = _refused(refusal_of(exc, route))
        else:
            headers = None if reply.model_version is None else {"x-model-version": str(reply.model_version)}
            response = Response(reply.body, media_type="application/json", headers=headers)
        self._report.answered(route, response.status_code, time.perf_counter() - started)
        return response

    async def _features(self, view: str, key: Sequence[str], timeout_s: float) -> Reply:
        work = asyncio.get_running_loop().run_in_executor(self._reads, self._answers.features, view, key)
        try:
            return await asyncio.wait_for(work, timeout_s)
        except TimeoutError as exc:
            raise store_away() from exc

    async def _model(self, live: LiveModel | None) -> Reply:
        if live is None:
            raise no_model()
        body = {
            "model_version": live.version,
            "replica": os.getpid(),
            "swapped_us": live.swapped_us,
            "age_s": (wall_us() - live.swapped_us) / 1e6,
            "kept": self._swap.kept,
            "refused": refused_entry(self._swap),
            "published": published_entry(self._swap),
            "manifest": dict(live.manifest),
        }
        return Reply(dumps(body), live.version)

    async def _ready(self, live: LiveModel | None) -> Response:
        problems = [] if live is not None else ["no model is live"]
        if self._state.is_draining:
            problems.append("the replica is about to stop")
        if not self._answers.is_warm:
            problems.append("kernels are being compiled")
        views = None if self._answers.breaker.is_open else await self._view_states()
        problems += [STORE_AWAY] if views is None else self._answers.view_states.problems
        ready = not problems
        live_version = live.version if live is not None else None
        body: dict[str, object] = {"ready": ready, "model_version": live_version, "problems": problems}
        body["published"] = published_entry(self._swap)
        if degraded := [] if views is None else self._answers.view_states.degraded:
            body["degraded"] = degraded
        if replaced := [name for name, state in (views or {}).items() if state == "replaced"]:
            body["replaced_views"] = replaced
        if refused := refused_entry(self._swap):
            body["refused"] = refused
        return _json(body, 200 if ready else 503)

    async def _view_states(self) -> dict[str, ViewState] | None:
        """Return each view's state, None if the store does not answer within PING_S; concurrent probes share a look."""
        loop = asyncio.get_running_loop()
        if self._looking is None or self._looking.done() or self._looking.get_loop() is not loop:
            self._looking = loop.run_in_executor(self._probes, self._look)
        try:
            return await asyncio.wait_for(asyncio.shield(self._looking), PING_S)
        except TimeoutError:
            STORE_FAULT.failed("store_unavailable", f"no answer to a ping within {PING_S} s")
        except HeadraceError as exc:
            log_store_fault(exc)
        return None

    def _look(self) -> dict[str, ViewState]:
        self._answers.ping()
        return self._answers.view_states.look()


def _parts_of_path(scope: Scope, view: str, key: str) -> list[str]:
    """Split a key as the client wrote it: `%2F` in the path does not separate parts, and bytes are UTF-8.

    If the server gives no raw path, or the path lacks the view's name, `key` itself is split.
    """
    raw = scope.get("raw_path", b"").partition(b"/v1/features/")[2].partition(b"?")[0]
    raw_view, slash, raw_key = raw.partition(b"/")
    if not slash or unquote(raw_view) != view:
        return key.split("/")
    return [unquote(part, errors="surrogateescape") for part in raw_key.decode("latin-1").split("/")]


def _json(body: dict[str, object], status: int = 200) -> Response:
    return Response(dumps(body), status_code=status, media_type="application/json")


def _refused(refusal: Refusal) -> Response:
    return Response(refusal.to_bytes(), refusal.status, refusal.headers(), media_type="application/json")


def _takes(model: type[BaseModel]) -> dict[str, object]:
    """Describe the body for OpenAPI, for routes that parse the bytes themselves."""
    schema = model.model_json_schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}
