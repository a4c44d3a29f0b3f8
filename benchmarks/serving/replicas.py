"""Replicas of the retail project that change their models otherwise than `headrace serve`, each a process of its own.

    python -m benchmarks.serving.replicas eager PORT          under uvicorn; swaps as soon as a version is published
    python -m benchmarks.serving.replicas reconfigure PORT    under Ray Serve; versions go through its `user_config`

Without impressions; the rest of a request's work is that of `headrace serve`.
"""

import os
import signal
import sys
import threading
from typing import Any

import uvicorn
from fastapi import FastAPI

from benchmarks.serving.stage import ROOT
from headrace.features.store import OnlineStore
from headrace.learners import ModelDirectory
from headrace.local import free_port
from headrace.serving import DirectoryReleases, HttpLimits, Ranker, RankingSpec, Swap, build_http

PATIENT = HttpLimits(timeout_s=5.0)
MADE: dict[str, Swap] = {}
"""The swap of this process, by the name "swap"."""


def directory() -> ModelDirectory:
    return ModelDirectory(os.environ["HEADRACE_MODEL_DIR"], os.environ["HEADRACE_REDIS_URL"])


def make(*, follows: bool) -> FastAPI:
    """The application of one replica; `follows`: it takes new versions by itself, at once."""
    sys.path.insert(0, str(ROOT))
    from learners.next_item import NextItem

    ranker = Ranker(
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
        proxy_ports=(free_port(), free_port()),
        replica_port_first=free_port(),
        env={"PYTHONPATH": os.environ["PYTHONPATH"]},
    )
    with RayServe(options) as served:
        models = directory()
        served.deploy(app(models.latest() or 0))
        signal.signal(signal.SIGTERM, lambda *_: stopping.set())
        for version in models.follow(block_ms=200, stop=stopping.is_set):
            served.deploy(app(version))


def main(kind: str, port: str) -> None:
    if kind == "eager":
        app = make(follows=True)
        uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning", access_log=False)
    else:
        reconfigure(int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
