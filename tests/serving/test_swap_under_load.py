"""No request fails and none is answered by two models, however often the model changes."""

import asyncio
import itertools
import time

import httpx

from headrace.serving import build_http
from tests.serving import stage
from tests.serving.stage import SIGN, Published, Signature

ASK = {"entity": {"reader": 7}, "candidates": ["a", "b", "c", "d"]}
SWAPS = 80


def check(response: httpx.Response) -> int:
    """The version of an answer whose header, field and every single score agree."""
    assert response.status_code == 200, response.text
    body = response.json()
    signed = {round(each["score"] * SIGN) for each in body["ranked"]}
    assert signed == {body["model_version"]} == {int(response.headers["x-model-version"])}
    return body["model_version"]


def test_swaps_under_load_fail_nothing_and_mix_nothing(ranker):
    """80 swaps in about 2 s under 8 closed loops; each caller's versions never fall."""
    releases = Published({1: Signature(1, pause_s=0.001)})
    swap = stage.swap_of(ranker, releases).start(wait_s=5)
    app = build_http(ranker, swap, impressions=None, clock=stage.CLOCK)
    done = asyncio.Event()

    async def caller(client: httpx.AsyncClient) -> list[int]:
        versions = []
        while not done.is_set():
            versions.append(check(await client.post("/v1/rank", json=ASK)))
        return versions

    async def publisher() -> None:
        for version in range(2, SWAPS + 2):
            releases.models[version] = Signature(version, pause_s=0.001)
            deadline = time.monotonic() + 5
            while swap.live.version != version and time.monotonic() < deadline:
                await asyncio.sleep(0.005)
        done.set()

    async def play() -> list[list[int]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            *seen, _ = await asyncio.gather(*(caller(client) for _ in range(8)), publisher())
            return seen

    seen = asyncio.run(play())
    swap.close()
    assert swap.swaps == SWAPS + 1
    assert len(set(itertools.chain(*seen))) > SWAPS / 2  # the load did see the swaps
    assert all(versions == sorted(versions) for versions in seen)
