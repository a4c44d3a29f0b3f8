"""Replicas of the retail project that differ from `headrace serve` in one thing, each a process of its own.

    python -m benchmarks.serving.replicas eager PORT          under uvicorn; swaps as soon as a version is published
    python -m benchmarks.serving.replicas reconfigure PORT    under Ray Serve; versions go through its `user_config`
    python -m benchmarks.serving.replicas default PORT        under Ray Serve by its defaults
    python -m benchmarks.serving.replicas chain PORT          the same, the model in a deployment behind the HTTP one

Without impressions; the rest of a request's work is that of `headrace serve`.
"""

import importlib
import os
import signal
import sys
import threading
from typing import Any

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from benchmarks.serving.stage import ROOT
from headrace.clock import wall_us
from headrace.features.store import OnlineStore
from headrace.learners import ModelDirectory
from headrace.local import free_port
from headrace.serving import DirectoryReleases, HttpLimits, Ranker, RankingSpec, Swap, build_http
from headrace.serving.queries import Query

PATIENT = HttpLimits(timeout_s=5.0)
MADE: dict[str, Any] = {}
"""The ranker and the swap of this process, by these names."""


def directory() -> ModelDirectory:
    return ModelDirectory(os.environ["HEADRACE_MODEL_DIR"], os.environ["HEADRACE_REDIS_URL"])


def make(*, follows: bool) -> FastAPI:
    """The application of one replica; `follows`: it takes new versions by itself, at once."""
    sys.path.insert(0, str(ROOT))
    from learners.next_item import NextItem

    ranker = MADE["ranker"] = Ranker(
        RankingSpec(NextItem, ("customer_id",), "item_id"), OnlineStore.open(os.environ["HEADRACE_REDIS_URL"])
    )
    releases = DirectoryReleases(directory(), NextItem)
    swap = MADE["swap"] = Swap(
        releases, probe=ranker.probe, fingerprints=ranker.fingerprints, cadence_s=0.0, cost_ratio=0.0
    )
    if follows:
        swap.start(wait_s=10.0)
    return build_http(ranker, swap, impressions=None, limits=PATIENT, on_close=swap.close)


def make_waiting() -> FastAPI:
    """The application of a replica that takes a version when it is told to."""
    return make(follows=False)


class Reconfigured:
    """A deployment whose model is part of its configuration, as Serve's documentation has it."""

    def reconfigure(self, _config: dict[str, Any]) -> None:
        """Called by Serve with each new `user_config`."""
        MADE["swap"].refresh()


def reconfigure(port: int) -> None:
    """Serve, and push each version that is published."""
    from ray import serve

    from headrace.serving.on_ray import QUIET, THREAD_VARIABLES, RayOptions, RayServe

    def app(version: int) -> Any:
        return serve.deployment(
            serve.ingress(make_waiting)(Reconfigured),
            name="reconfigured",
            max_ongoing_requests=4_096,
            user_config={"version": version},
            ray_actor_options={"runtime_env": {"env_vars": dict.fromkeys(THREAD_VARIABLES, "1")}},
            logging_config=QUIET,
        ).bind()

    stopping = threading.Event()
    options = RayOptions(
        port=port,
        replica_port_first=free_port(),
        env={"PYTHONPATH": os.environ["PYTHONPATH"]},
    )
    with RayServe(options) as served:
        models = directory()
        served.deploy(app(newest := models.latest() or 0))
        signal.signal(signal.SIGTERM, lambda *_: stopping.set())
        for version in models.follow(block_ms=200, stop=stopping.is_set):
            if version > newest:  # the first of them is the one at the start
                served.deploy(app(version))


def make_following() -> FastAPI:
    """The application of a replica that follows the published versions."""
    return make(follows=True)


def make_front() -> FastAPI:
    """The HTTP end of a chain: it hands each body on, and the answer back."""
    from ray import serve

    app = FastAPI()

    async def rank(request: Request) -> Response:
        handle = serve.get_deployment_handle("back", "headrace")
        return Response(await handle.rank.remote(await request.body()), media_type="application/json")

    async def ready() -> dict[str, str]:
        return {}

    app.post("/v1/rank", response_model=None)(rank)
    app.get("/readyz")(ready)
    return app


class Front:
    """The first deployment of the chain; the second is bound to it, so that Serve starts it too."""

    def __init__(self, _back: Any) -> None:
        pass


class Back:
    """The second deployment of the chain: one ranking a call, as a first version of a service has it."""

    def __init__(self) -> None:
        make(follows=True)
        MADE["ranker"].warm()

    def rank(self, body: bytes) -> bytes:
        """The answer to a body."""
        ask, live = orjson.loads(body), MADE["swap"].live
        scores = MADE["ranker"].read_batch([Query(ask["entity"], ask["candidates"], wall_us())]).scores(live.scorer)
        ranked = [
            {"candidate": ask["candidates"][index], "score": float(scores[index]), "position": position}
            for position, index in enumerate((-scores).argsort().tolist())
        ]
        return orjson.dumps({"model_version": live.version, "ranked": ranked})


def by_default(port: int, *, is_chain: bool) -> None:
    """Serve under Ray Serve, without a switch of it."""
    import ray
    from ray import serve

    stopping = threading.Event()
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    if is_chain:
        back = serve.deployment(Back, name="back").bind()
        app = serve.deployment(serve.ingress(make_front)(Front), name="front").bind(back)
    else:
        app = serve.deployment(serve.ingress(make_following)(), name="whole").bind()
    serve.run(app, name="headrace", route_prefix="/")
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    stopping.wait()
    serve.shutdown()
    ray.shutdown()


def main(kind: str, port: str) -> None:
    if kind == "eager":
        uvicorn.run(make_following(), host="127.0.0.1", port=int(port), log_level="warning", access_log=False)
    elif kind == "reconfigure":
        reconfigure(int(port))
    else:
        by_default(int(port), is_chain=kind == "chain")


if __name__ == "__main__":
    # Imported by its name: Ray copies what is of `__main__`, and each copy would have a MADE of its own.
    importlib.import_module("benchmarks.serving.replicas").main(*sys.argv[1:])
