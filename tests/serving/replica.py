"""What a replica of the Ray test runs: settings from the environment; files beside the models say what it does."""

import asyncio
import os
import time

from fastapi import FastAPI

from headrace.features.store import OnlineStore
from headrace.learners import ModelDirectory
from headrace.serving import DirectoryReleases, Ranker, Swap, build_http
from tests.serving import stage


def factory() -> FastAPI:
    """The application of the stage's learner over HR_TEST_REDIS and HR_TEST_MODELS."""
    redis_url = os.environ["HR_TEST_REDIS"]
    store = OnlineStore.open(redis_url, shards=stage.SHARDS)
    ranker = Ranker(stage.SPEC, store)
    directory = ModelDirectory(os.environ["HR_TEST_MODELS"], redis_url)
    releases = DirectoryReleases(directory, stage.NextThing)
    swap = Swap(releases, probe=ranker.probe, fingerprints=ranker.fingerprints, cadence_s=0.05, cost_ratio=1.0)
    swap.start(wait_s=10)

    def close() -> None:
        (directory.path / "closed").touch()
        swap.close()
        store.close()

    app = build_http(ranker, swap, impressions=None, clock=stage.CLOCK, on_close=close)

    @app.get("/slow/{seconds}")
    async def slow(seconds: float) -> str:
        """Answer after so long."""
        (directory.path / "slow").touch()
        await asyncio.sleep(seconds)
        return "done"

    @app.get("/busy/{seconds}")
    async def busy(seconds: float) -> str:
        """Keep the event loop from everything else for so long."""
        (directory.path / "busy").touch()
        time.sleep(seconds)  # noqa: ASYNC251  # what the test is about
        return "done"

    return app
