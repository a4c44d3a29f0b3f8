"""No request fails and none is answered by two models, however often the model changes."""

import asyncio
import itertools

import httpx

from headrace.serving import Swapped, build_http
from tests.serving import stage
from tests.serving.conftest import PATIENT, end
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
    releases, apps = Published({1: Signature(1, pause_s=0.001)}), []

    async def caller(client: httpx.AsyncClient, answered: asyncio.Queue[int], done: asyncio.Event) -> list[int]:
        versions = []
        while not done.is_set():
            versions.append(check(await client.post("/v1/rank", json=ASK)))
            answered.put_nowait(versions[-1])
        return versions

    async def publisher(swapped: asyncio.Queue[int], answered: asyncio.Queue[int], done: asyncio.Event) -> None:
        for version in range(2, SWAPS + 2):
            releases.models[version] = Signature(version, pause_s=0.001)
            while await asyncio.wait_for(swapped.get(), timeout=10) != version:
                pass
            async with asyncio.timeout(20):
                while await answered.get() < version:  # until the load has seen this one
                    pass
            await asyncio.sleep(0.005)
        done.set()

    async def play() -> list[list[int]]:
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        swapped, answered = asyncio.Queue(), asyncio.Queue()

        def hook(entry: Swapped) -> None:
            loop.call_soon_threadsafe(swapped.put_nowait, entry.version)

        swap = stage.swap_of(ranker, releases, on_swap=hook).start(wait_s=5)
        app = build_http(ranker, swap, impressions=None, clock=stage.CLOCK, limits=PATIENT)
        apps.append(app)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            check(await client.post("/v1/rank", json=ASK))  # a process's first request may compile for seconds
            *seen, _ = await asyncio.gather(
                *(caller(client, answered, done) for _ in range(8)), publisher(swapped, answered, done)
            )
        swap.close()
        assert swap.swaps == SWAPS + 1
        return seen

    seen = asyncio.run(play())
    end(apps.pop())
    assert len(set(itertools.chain(*seen))) > SWAPS / 2  # the load did see the swaps
    assert all(versions == sorted(versions) for versions in seen)
