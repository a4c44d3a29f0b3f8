"""Natural batching: what waits is one batch, answers are those of lone requests, and nothing waits for ever."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import threading
import time

import httpx
import numpy as np
import pytest
from prometheus_client import REGISTRY

from headrace.features.store import OnlineStore
from headrace.local import EmbeddedRedis
from headrace.serving import HttpLimits
from headrace.serving.lanes import Job, Lane
from headrace.serving.model_route import LARGE_CANDIDATES
from headrace.serving.queries import Query
from headrace.serving.refusals import Refusal
from headrace.serving.sockets.accepting import Acceptor
from headrace.serving.sockets.connection import GuardedConnection
from tests.serving import stage
from tests.serving.server import Server
from tests.serving.stage import NOW_US, Ranks, Recorded, Signature, until


def asks(count):
    """Requests of several readers, sizes, k and times."""
    things = ["a", "b", "c", "z", "y"]
    return [
        {
            "entity": {"reader": 7 + i % 5},
            "candidates": things[: 1 + i % 5] * (1 + i % 3),
            "event_time": NOW_US - (i % 4) * 1_200_000_000,
            "request_id": f"r{i}",
            **({"k": 1 + i % 2} if i % 2 else {}),
        }
        for i in range(count)
    ]


def without_k(given):
    """The same for /v1/score."""
    return [{name: value for name, value in ask.items() if name != "k"} for ask in given]


def post_all(app, bodies, path="/v1/rank", headers=None):
    """Responses to `bodies`, sent at once."""

    async def call():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await asyncio.gather(*(client.post(path, json=body, headers=headers) for body in bodies))

    return asyncio.run(call())


def open_once_all_wait(gate, count):
    """Open `gate` from a thread, once so many more requests wait than now."""
    waiting = lambda: REGISTRY.get_sample_value("headrace_requests_waiting", {"lane": "rank"}) or 0.0  # noqa: E731
    before = waiting()

    def look():
        until(lambda: waiting() - before >= count)
        gate.set()

    threading.Thread(target=look).start()


@pytest.mark.parametrize("path", ["/v1/rank", "/v1/score"])
def test_concurrent_answers_equal_lone_ones(serve, path):
    """48 requests at once, and one after the other: the same bodies, byte for byte, of fewer batches."""
    gate = threading.Event()
    model = Recorded(gate)
    app = serve(model).app
    given = asks(48) if path == "/v1/rank" else without_k(asks(48))
    open_once_all_wait(gate, 48)
    together = post_all(app, given, path)
    batches = len(model.rows)
    alone = [post_all(app, [ask], path)[0] for ask in given]
    assert [answer.content for answer in together] == [answer.content for answer in alone]
    assert {answer.status_code for answer in together} == {200}
    assert batches <= 1 + 4
    assert len(model.rows) == batches + 48


def test_answers_of_a_deep_model_are_equal_to_those_alone(serve):
    """A matrix product of another size may sum in another order: 1e-6."""
    app = serve(stage.learned_scorer(2)).app
    given = without_k(asks(32))
    together, alone = post_all(app, given, "/v1/score"), [post_all(app, [ask], "/v1/score")[0] for ask in given]
    for one, other in zip(together, alone, strict=True):
        assert one.json()["scores"] == pytest.approx(other.json()["scores"], abs=1e-6)


def test_a_request_that_breaks_the_model_costs_itself_alone(serve):
    """One of 12 in a batch has a candidate on which the model raises: 500 for it, 200 for all others."""
    gate = threading.Event()
    bad = int(stage.id_of("bad"))
    app = serve(Recorded(gate, fails_at=bad)).app
    given = asks(12)
    given[5]["candidates"] = ["a", "bad"]
    open_once_all_wait(gate, 12)
    answers = post_all(app, given)
    assert [answer.status_code for answer in answers] == [500 if i == 5 else 200 for i in range(12)]


def test_invalid_requests_never_enter_a_batch(serve):
    """They are refused beside the others, by their own fault."""
    given = asks(9)
    given[2]["candidates"], given[4]["entity"] = ["a", 5], {"reder": 7}
    given[6]["event_time"] = "soon"
    answers = post_all(serve(Ranks()).app, given)
    assert [answer.status_code for answer in answers] == [422 if i in {2, 4, 6} else 200 for i in range(9)]
    assert [answers[i].json()["field"] for i in (2, 6)] == ["candidates[1]", "event_time"]


def test_large_requests_do_not_hold_up_small_ones(serve):
    """Four large rankings that take long, then a small one: it does not wait for them."""
    begun, gate = threading.Event(), threading.Event()

    class SlowIfLarge:
        def score(self, inputs):
            if len(inputs) > LARGE_CANDIDATES:
                begun.set()
                assert gate.wait(20)
            return np.zeros(len(inputs), np.float32)

    app = serve(SlowIfLarge(), limits=HttpLimits(timeout_s=30)).app
    large = {"entity": {"reader": 7}, "candidates": [f"t{i}" for i in range(LARGE_CANDIDATES + 1)]}

    async def play():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            slow = [asyncio.create_task(client.post("/v1/rank", json=large)) for _ in range(4)]
            assert await asyncio.to_thread(begun.wait, 20)
            assert (await client.post("/v1/rank", json=asks(1)[0])).status_code == 200
            done = sum(task.done() for task in slow)
            gate.set()
            return done, [answer.status_code for answer in await asyncio.gather(*slow)]

    done, statuses = asyncio.run(play())
    assert done == 0
    assert statuses == [200] * 4


# Time


def test_a_request_is_answered_at_its_deadline(serve):
    """The model takes for as long as that, the request allows 100 ms; a malformed header is named."""
    gate = threading.Event()
    app = serve(Recorded(gate)).app
    before_s = time.monotonic()
    [answer] = post_all(app, asks(1), headers={"X-Request-Timeout-Ms": "100"})
    assert time.monotonic() - before_s < 15  # and not the model's 20 s
    gate.set()
    assert (answer.status_code, answer.json()["error"]) == (503, "deadline_exceeded")
    assert answer.headers["retry-after"] == "1"
    for header in ("0", "soon", "1e3", "99999999"):
        [answer] = post_all(app, asks(1), headers={"X-Request-Timeout-Ms": header})
        assert (answer.status_code, "X-Request-Timeout-Ms" in answer.text) == (422, True)


def test_requests_that_would_wait_for_too_long_are_shed(serve):
    """A request costs 0.2 s, and at most one makes a batch: of 20 at once with 0.5 s to wait, some are told at once."""
    app = serve(Signature(1, pause_s=0.2), version=1, limits=HttpLimits(timeout_s=30)).app
    large = {"entity": {"reader": 7}, "candidates": [f"t{i}" for i in range(LARGE_CANDIDATES + 1)]}
    for _ in range(10):  # the lane learns what a request costs
        assert post_all(app, [large])[0].status_code == 200
    answers = post_all(app, [large] * 20, headers={"X-Request-Timeout-Ms": "500"})
    shed = [answer for answer in answers if answer.status_code == 429]
    assert len(shed) >= 10
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in shed)
    assert {answer.status_code for answer in answers} <= {200, 429, 503}


def test_a_deadline_runs_from_the_socket(serve):
    """The event loop stands still while a request waits, unread, for longer than it may: it is refused, not answered.

    loop      |--- /block ------------------------|
    request       sent, 100 ms allowed |- 150 ms -| read -> 429
    """
    app = serve(Ranks()).app
    blocked, sent = threading.Event(), threading.Event()

    async def block() -> None:
        blocked.set()
        assert sent.wait(10)
        time.sleep(0.15)  # noqa: ASYNC251  # the point of it

    app.get("/block")(block)
    with Server(app, http=GuardedConnection) as server:
        data = json.dumps(asks(1)[0]).encode()
        with server.half_sent(data) as patient:
            assert b" 200 " in patient.recv(1_000).partition(b"\r\n")[0]
        with server.half_sent(b"", target="GET /block") as blocking:
            assert blocked.wait(10)
            with server.half_sent(data, headers="X-Request-Timeout-Ms: 100\r\n") as late:
                sent.set()
                assert b" 429 " in late.recv(1_000).partition(b"\r\n")[0]
            assert b" 200 " in blocking.recv(1_000).partition(b"\r\n")[0]


def test_an_answer_that_waits_past_its_deadline_is_none():
    """It is ready in time, but the event loop is busy for longer: 503, as what is served comes within its deadline."""

    async def play():
        loop = asyncio.get_running_loop()

        def work(jobs):
            loop.call_soon_threadsafe(time.sleep, 0.2)
            return ["an answer"] * len(jobs)

        lane = Lane("late", work, waiting_max=8, rows_max=8)
        query = Query({"reader": 7}, ["a"], NOW_US)
        try:
            return await lane.submit(Job("rank", None, query, time.monotonic() + 0.1, None, request_id="r"))
        finally:
            lane.close()

    with pytest.raises(Refusal) as refused:
        asyncio.run(play())
    assert (refused.value.status, refused.value.body.error) == (503, "deadline_exceeded")


def test_lone_requests_do_not_make_a_burst_look_too_long():
    """A lone request costs 50 ms, as a whole batch does: of 64 at once with 1.5 s to wait none is refused."""

    async def play():
        def work(jobs):
            time.sleep(0.05)
            return [len(jobs)] * len(jobs)

        async def connected():
            await asyncio.sleep(30)

        lane = Lane("burst", work, waiting_max=64, rows_max=64)
        query = Query({"reader": 7}, ["a"], NOW_US)

        def job(seconds):
            return Job("rank", None, query, time.monotonic() + seconds, connected, request_id="r")

        try:
            for _ in range(20):
                await lane.submit(job(30))
            return await asyncio.gather(*(lane.submit(job(1.5)) for _ in range(64)), return_exceptions=True)
        finally:
            lane.close()

    refused = [each for each in asyncio.run(play()) if isinstance(each, Refusal)]
    assert [each for each in refused if each.status == 429] == []


def test_all_connections_that_wait_are_accepted_in_one_turn():
    """uvloop alone takes one a turn: with turns of 100 ms, the last of 300 callers would wait for 30 s."""

    async def play():
        accepted = []

        class Accepted(asyncio.Protocol):
            def connection_made(self, transport):
                accepted.append(transport)

        with socket.create_server(("127.0.0.1", 0), backlog=64) as listener, contextlib.ExitStack() as stack:
            for _ in range(40):
                stack.enter_context(socket.create_connection(listener.getsockname()))
            acceptor = Acceptor([listener], Accepted, None)
            for _ in range(6):  # two turns to accept one and open it, and some to spare
                await asyncio.sleep(0)
            acceptor.close()
            for transport in accepted:
                transport.close()
        return len(accepted)

    assert asyncio.run(play()) == 40


def test_a_redis_that_hangs_costs_little_after_the_first(tmp_path, serve):
    """Stopped: the first request waits for its deadline, later ones for nothing; it goes on and so do they."""
    with EmbeddedRedis(tmp_path) as redis, OnlineStore.open(redis.url, shards=stage.SHARDS, timeout_s=1.0) as store:
        stage.fill(store, stage.EVENTS)
        client = serve(Ranks(), on=stage.warm_ranker(store))
        assert client.post("/v1/rank", asks(1)[0]).status_code == 200
        os.kill(redis._process.pid, signal.SIGSTOP)
        try:
            short = {"X-Request-Timeout-Ms": "500"}
            assert client.post("/v1/rank", asks(1)[0], headers=short).status_code == 503
            until(lambda: client.get("/metrics").text.count("headrace_store_circuit_open 1.0"))
            before_s = time.monotonic()
            answers = [client.post("/v1/rank", asks(1)[0]) for _ in range(20)]
            assert time.monotonic() - before_s < 10  # and not the 20 s of twenty that wait for the store
            assert {answer.json()["error"] for answer in answers} == {"store_unavailable"}
            assert {answer.headers["retry-after"] for answer in answers} == {"1"}
            assert client.get("/healthz").status_code == 200
            assert client.get("/readyz").status_code == 503
        finally:
            os.kill(redis._process.pid, signal.SIGCONT)
        until(lambda: client.post("/v1/rank", asks(1)[0]).status_code == 200)


def counted(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_bodies_that_stall_fill_nothing_and_are_ended(serve, monkeypatch):
    """More half-sent bodies than requests are allowed: a whole one is answered, they get 408 after a while."""
    monkeypatch.setattr("headrace.serving.model_route.BODY_S", 0.5)
    app = serve(Ranks(), limits=HttpLimits(max_in_flight=4, timeout_s=30)).app
    with Server(app) as server:
        stalled = [server.half_sent(b'{"ent', length=100) for _ in range(16)]
        answer = httpx.post(f"http://127.0.0.1:{server.port}/v1/rank", json=asks(1)[0], timeout=20)
        assert answer.status_code == 200
        for connection in stalled:
            assert b" 408 " in connection.recv(1_000).partition(b"\r\n")[0]
            connection.close()


def test_the_work_of_clients_that_hung_up_is_dropped_and_no_fault(serve):
    """One ranking is worked on, eight wait whose clients hang up: the model sees none of them, and nothing failed."""
    gate = threading.Event()
    model = Recorded(gate)
    body = {"entity": {"reader": 7}, "candidates": [f"t{i}" for i in range(LARGE_CANDIDATES + 1)]}
    app = serve(model, limits=HttpLimits(timeout_s=30)).app
    with Server(app) as server:
        gone = counted("headrace_requests_total", route="rank", status="499")
        data = json.dumps(body).encode()
        connections = [server.half_sent(data) for _ in range(9)]
        until(lambda: len(model.rows) == 2)
        time.sleep(0.3)  # each is watched by now
        for connection in connections:
            connection.close()
        until(lambda: counted("headrace_requests_total", route="rank", status="499") == gone + 9)
        gate.set()
        answer = httpx.post(f"http://127.0.0.1:{server.port}/v1/rank", json=body, timeout=20)
        assert answer.status_code == 200
        assert len(model.rows) == 3
        with server.half_sent(b'{"ent', length=100):
            pass
        until(lambda: counted("headrace_requests_total", route="rank", status="499") == gone + 10)
        report = httpx.get(f"http://127.0.0.1:{server.port}/v1/report").json()
        assert report["requests"]["failed"] == 0
