"""A filled store, and HTTP clients of an application over it."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest

from headrace.features.store import OnlineStore
from headrace.serving import HttpLimits, Ranker, build_http
from tests.serving import stage

PATIENT = HttpLimits(timeout_s=30.0)
"""A model's first request may load kernels for longer than a second on a busy machine."""


@pytest.fixture
def store(redis_url: str) -> Iterator[OnlineStore]:
    """A store with the events of the stage."""
    with OnlineStore.open(redis_url, shards=stage.SHARDS) as opened:
        stage.fill(opened, stage.EVENTS)
        yield opened


@pytest.fixture
def ranker(store: OnlineStore) -> Ranker:
    return stage.warm_ranker(store)


class Client:
    """Synchronous calls into an ASGI application, without a server."""

    def __init__(self, app) -> None:
        self.app = app

    def __call__(self, method: str, path: str, **options) -> httpx.Response:
        async def call() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test") as client:
                return await client.request(method, path, **options)

        return asyncio.run(call())

    def post(self, path: str, body: object, **options) -> httpx.Response:
        return self("POST", path, json=body, **options)

    def get(self, path: str, **options) -> httpx.Response:
        return self("GET", path, **options)


def end(app) -> None:
    """End an application's threads: one that still worked for an answer would log into the lines of a later test."""

    async def live() -> None:
        async with app.router.lifespan_context(app):
            pass

    asyncio.run(live())


@pytest.fixture
def serve(ranker: Ranker):
    """Build an application over the filled store: `serve(model, ...)` gives a Client; models are (version, scorer)."""
    apps = []

    def build(model=None, *, version: int = 3, impressions=None, limits=None, on=ranker) -> Client:
        swap = stage.swap_of(on, stage.Published({} if model is None else {version: model}))
        swap.refresh()
        apps.append(build_http(on, swap, impressions=impressions, clock=stage.CLOCK, limits=limits or PATIENT))
        return Client(apps[-1])

    yield build
    for app in apps:
        end(app)
