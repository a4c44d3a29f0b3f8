"""`headrace.Client` and `AsyncClient` against applications under uvicorn, and a real broker."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Self

import httpx
import numpy as np
import orjson
import polars as pl
import pytest
import structlog
import uvicorn

from headrace import AsyncClient, Client, Engagements
from headrace import client as client_room
from headrace.client.load import bodies_of, play, schedule_s
from headrace.client.load_connections import Connections
from headrace.errors import (
    ClientError,
    ConfigError,
    DeadlineError,
    DeclarationError,
    InvalidRequestError,
    NotReachedError,
    OverloadedError,
    ResponseError,
    SchemaError,
    SourceError,
    UnauthorizedError,
    UnavailableError,
)
from headrace.features import plan_of
from headrace.features.store import OnlineStore
from headrace.learners import ModelDirectory, OnlineLearner, Snapshot
from headrace.local import EmbeddedBroker, free_port
from headrace.schemas import Event, Field, FileDeadLetters
from headrace.serving import HttpLimits, ImpressionColumns, build_http
from headrace.serving.replica import build_replica
from headrace.settings import Settings
from headrace.streams.intake import Intake
from headrace.streams.kafka_source import KafkaSource
from headrace.streams.kafka_writer import create_topics
from learners.next_item import NextItem
from schemas.retail import Impression
from tests.house import commands
from tests.serving import stage
from tests.serving.stage import SIGN, Ranks, Signature, until

READER, THINGS = {"reader": 7}, ["c", "b", "a", "z"]


class Running:
    """An ASGI application under uvicorn, in a thread of this process."""

    def __init__(self, application, port: int = 0) -> None:
        config = uvicorn.Config(application, port=port, log_level="warning", access_log=False)
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.server.run)

    def __enter__(self) -> Self:
        self._thread.start()
        until(lambda: self.server.started)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self._thread.join()


def test_rank_score_and_features(serve):
    """Both clients give equal answers, over connections that they keep."""
    asks = {"request_id": "r1", "event_time": 1_772_366_400_000_000, "timeout_s": 30}

    async def play(url: str):
        async with AsyncClient(url, timeout_s=30) as client:
            return await asyncio.gather(
                client.rank(READER, THINGS, k=3, **asks),
                client.score(READER, THINGS, **asks),
                client.features("pair_activity", (7, "a")),
            )

    with Running(serve(Ranks()).app) as running, Client(running.url, timeout_s=30) as client:
        answers = client.rank(READER, THINGS, k=3, **asks), client.score(READER, THINGS, **asks)
        pair = client.features("pair_activity", (7, "a"))
        assert client.features("thing_activity", "a").entity == {"thing": "a"}
        for _ in range(8):
            client.score(READER, THINGS)
        assert len(running.server.server_state.connections) == 1
        assert asyncio.run(play(running.url)) == [*answers, pair]
    ranked, scored = answers
    assert [(each.candidate, each.position) for each in ranked.ranked] == [("a", 0), ("b", 1), ("c", 2)]
    assert (ranked.request_id, ranked.model_version, ranked.status) == ("r1", 3, "partial")
    assert ranked.features_age_s == 300.0
    assert (ranked.views["thing_activity"].asked, ranked.views["thing_activity"].found) == (4, 3)
    assert scored.scores == pytest.approx([0.01, 0.12, 0.21, 0.0])
    assert (pair.status, pair.entity, pair.age_s) == ("fresh", {"reader": 7, "thing": "a"}, 300.0)


def test_a_request_that_is_wrong_is_a_typed_error(serve):
    """The error has the service's word, field and request id; nothing is tried twice that cannot help."""
    with Running(serve(Ranks()).app) as running, Client(running.url, timeout_s=30) as client:
        with pytest.raises(
            InvalidRequestError, match=r"^POST /v1/rank: 422 invalid_request: k: .*\(request r9\)"
        ) as bad:
            client.rank(READER, THINGS, k=0, request_id="r9")
        assert (bad.value.status, bad.value.code, bad.value.field) == (422, "invalid_request", "k")
        assert bad.value.request_id == "r9"
        with pytest.raises(InvalidRequestError, match="unknown_view.*reader_activity") as unknown:
            client.features("reader_activty", 7)
        assert unknown.value.status == 404
        with pytest.raises(client_room.ClientError, match="POST /v1/score: cannot be written as JSON"):
            client.score({"reader": object()}, THINGS)
        with pytest.raises(InvalidRequestError, match="candidates"):
            client.score(READER, np.array([[1, 2]]))
    with pytest.raises(ConfigError, match=r"service URL 'http://x:99999': port 99999 is none of 1 to 65535"):
        Client("http://x:99999")
    with pytest.raises(ConfigError, match=r"service URL 'ftp://x': write http://host:port"):
        Client("ftp://x")


@pytest.mark.parametrize("request_id", ["a\bb", "\0", "a\nb: c", "\x7f", " a b ", "größer", "\U0001d677"])
def test_a_request_id_that_no_header_can_hold_is_answered(serve, request_id):
    """The body has it as it came, the header with a mark in place of what no header can hold."""
    with Running(serve(Ranks()).app) as running:
        body = {"entity": READER, "candidates": THINGS, "request_id": request_id}
        answer = httpx.post(f"{running.url}/v1/rank", json=body, timeout=30)
    assert (answer.status_code, answer.json()["request_id"]) == (200, request_id)
    named = answer.headers["x-request-id"]
    assert named == "".join(each if "!" <= each <= "~" else "?" for each in request_id)


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.rank(READER, "abc"),
        lambda c: c.rank(READER, b"abc"),
        lambda c: c.rank(READER, None),
        lambda c: c.rank([7], THINGS),
        lambda c: c.rank(READER, THINGS, request_id=5),
        lambda c: c.rank(READER, THINGS, timeout_s=float("nan")),
        lambda c: c.rank(READER, THINGS, timeout_s=float("inf")),
        lambda c: c.rank(READER, THINGS, timeout_s="1"),
        lambda c: c.features("reader_activity", 1.5),
        lambda c: c.features("reader_activity", None),
        lambda c: c.features("thing_activity", b"ab"),
        lambda c: c.features("thing_activity", ""),
        lambda c: c.features("thing_activity", []),
        lambda c: c.features("thing_activity", "\ud800"),
    ],
)
def test_arguments_that_cannot_be_sent_are_typed_errors(call):
    """The letters of a text are no candidates, and no argument ends in an error of Python's or httpx's."""
    with Client("http://127.0.0.1:1") as client, pytest.raises(ClientError):
        call(client)
    for key in ("a\nb", "é", " a ", 5):
        with pytest.raises(ConfigError, match="api_key: holds what no header can") as raised:
            Client("http://127.0.0.1:1", api_key=key)
        assert repr(key) not in str(raised.value)


def test_an_answer_that_cannot_be_decompressed_is_named():
    """What stands between may break a body; the error of httpx is not the caller's to know."""

    async def app(scope, receive, send):
        if scope["type"] == "http":
            headers = [(b"content-encoding", b"gzip"), (b"content-length", b"3")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b"abc"})

    refused = pytest.raises(NotReachedError, match="decompressing")
    with Running(app) as running, Client(running.url, timeout_s=1.5) as client, refused:
        client.rank(READER, THINGS)


def test_keys_and_candidates_of_other_libraries_are_sent(serve):
    """Series, scalars and strided or foreign arrays; a key of dots is no step in the path."""
    with Running(serve(Ranks()).app) as running, Client(running.url, timeout_s=20) as client:
        expected = [ranked.candidate for ranked in client.rank(READER, THINGS).ranked]
        for things in (pl.Series(THINGS), np.array(THINGS), np.array([*THINGS, *THINGS])[:4], tuple(THINGS)):
            assert [ranked.candidate for ranked in client.rank(READER, things).ranked] == expected
        for numbers in (np.arange(8)[::2], np.arange(4).astype(">i8"), pl.Series([1, 2])):
            with pytest.raises(InvalidRequestError, match="thing is text"):
                client.rank(READER, numbers)
        assert client.features("reader_activity", np.int64(7)).entity == {"reader": 7}
        assert client.features("pair_activity", (np.int64(7), "a")).entity == {"reader": 7, "thing": "a"}
        for key in (".", "..", "a/b", "a?b"):
            assert client.features("thing_activity", key).entity == {"thing": key}


def test_an_api_key_is_sent(serve):
    limits = HttpLimits(api_keys=("secret",), timeout_s=30)
    with Running(serve(Ranks(), limits=limits).app) as running:
        with Client(running.url, timeout_s=30) as client, pytest.raises(UnauthorizedError) as refused:
            client.rank(READER, THINGS)
        assert refused.value.code == "unauthorized"
        with Client(running.url, api_key="secret", timeout_s=30) as client:
            assert client.rank(READER, THINGS).model_version == 3


def test_a_deadline_is_the_clients_and_the_services(serve):
    """The call ends at its deadline in both clients, and the service hears how long it has."""
    with Running(serve(Signature(3, pause_s=0.6)).app) as running, Client(running.url) as client:
        began_s = time.monotonic()
        with pytest.raises(DeadlineError, match="POST /v1/rank: no answer within 0.2 s"):
            client.rank(READER, THINGS, timeout_s=0.2)

        async def late() -> None:
            async with AsyncClient(running.url, timeout_s=0.2) as patient:
                await patient.score(READER, THINGS)

        with pytest.raises(DeadlineError, match="POST /v1/score"):
            asyncio.run(late())
        assert time.monotonic() - began_s < 5  # and not the service's 30 s
        with pytest.raises(TimeoutError):
            client.score(READER, THINGS, timeout_s=0)


def test_a_refusal_is_tried_again_when_the_service_says(serve):
    """The second of two requests is refused by a replica that takes one, and comes back after Retry-After."""
    begun, go_on = threading.Event(), threading.Event()

    class Held(Signature):
        def score(self, inputs):
            begun.set()
            assert go_on.wait(20)
            return super().score(inputs)

    go_on.set()
    limits = HttpLimits(max_in_flight=1, timeout_s=30)
    with (
        Running(serve(Held(3, pause_s=0.6), limits=limits).app) as running,
        Client(running.url, timeout_s=30) as client,
        ThreadPoolExecutor(2) as threads,
    ):
        both = list(threads.map(lambda _: client.rank(READER, THINGS), range(2)))
        assert [answer.model_version for answer in both] == [3, 3]
        begun.clear()
        go_on.clear()
        waiting = threads.submit(client.rank, READER, THINGS)
        assert begun.wait(20)
        with pytest.raises(OverloadedError) as refused:
            client.rank(READER, THINGS, timeout_s=0.9)  # less than Retry-After
        go_on.set()
        assert (refused.value.status, refused.value.retry_after_s) == (429, 1.0)
        waiting.result()


def test_a_service_that_is_away_is_waited_for_and_named(serve):
    """A call begun before the service listens is answered; without one, the error says what to check."""
    port = free_port()
    with Client(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(NotReachedError, match=r"tries within 0.3 s; check the URL and that it runs"):
            client.rank(READER, THINGS, timeout_s=0.3)
        with ThreadPoolExecutor(1) as thread:
            early = thread.submit(client.rank, READER, THINGS, timeout_s=30)
            with Running(serve(Ranks()).app, port):
                assert early.result().model_version == 3
    with Running(serve().app) as running, Client(running.url, timeout_s=0.9) as client:
        with pytest.raises(UnavailableError) as refused:
            client.rank(READER, THINGS)
        assert refused.value.code == "no_model"


def test_a_long_request_outlives_swaps_and_a_redeploy(ranker):
    """
    old  |-- long request, version 1 -------------------|  answered
    live  1   2 3 4 5 6  stop: takes no more requests
    new                     |-- version 7, same port ------
    """
    begun, go_on = threading.Event(), threading.Event()

    class Long(Signature):
        def score(self, inputs):
            if old.live is not None:  # the warm-up comes before it is live
                begun.set()
                assert go_on.wait(60)
            return super().score(inputs)

    releases, limits = stage.Published({1: Long(1)}), HttpLimits(timeout_s=60)
    old, new = (stage.swap_of(ranker, of) for of in (releases, stage.Published({7: Signature(7)})))
    old.refresh()
    new.refresh()
    old_app, new_app = (
        build_http(ranker, swap, impressions=None, clock=stage.CLOCK, limits=limits) for swap in (old, new)
    )
    with contextlib.ExitStack() as cleanup:
        running = cleanup.enter_context(Running(old_app))
        client = cleanup.enter_context(Client(running.url, timeout_s=60))
        threads = cleanup.enter_context(ThreadPoolExecutor(1))
        cleanup.callback(go_on.set)
        long = threads.submit(client.rank, READER, [*map(str, range(300))])
        assert begun.wait(60)
        for version in range(2, 7):
            releases.models[version] = Signature(version)
            assert old.refresh()
            assert client.rank(READER, THINGS).model_version == version
        running.server.should_exit = True
        until(lambda: not any(server.is_serving() for server in running.server.servers))
        cleanup.enter_context(Running(new_app, running.port))
        assert client.rank(READER, THINGS).model_version == 7
        assert not long.done()
        go_on.set()
        answer = long.result()
        assert {round(each.score * SIGN) for each in answer.ranked} == {answer.model_version} == {1}


@pytest.mark.parametrize(("status", "error"), [(200, ResponseError), (502, UnavailableError)])
def test_an_answer_of_something_else_is_said(status, error):
    """A proxy's page, or another service at the URL."""

    async def page(scope, _receive, send) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b"<h1>Bad gateway</h1>"})

    with Running(page) as running, Client(running.url, timeout_s=5) as client:
        with pytest.raises(error, match="no answer of Headrace: '<h1>Bad gateway</h1>'") as caught:
            client.rank(READER, THINGS)
        assert caught.value.code == "unreadable"


LOOPS = """
import asyncio, sys
from concurrent.futures import ThreadPoolExecutor
from headrace import AsyncClient
from headrace.errors import ClientError
client = AsyncClient(sys.argv[1], timeout_s=20)
ask = lambda *_: asyncio.run(client.rank({"reader": 7}, ["a", "b"])).model_version
assert [ask() for _ in range(3)] == [3, 3, 3]
with ThreadPoolExecutor(2) as pool:
    assert list(pool.map(ask, range(4))) == [3] * 4
asyncio.run(client.close())
try:
    ask()
except ClientError as exc:
    assert "the client is closed" in str(exc)
"""


def test_an_async_client_may_be_used_by_one_event_loop_after_another(serve):
    """As of a script that calls asyncio.run twice: connections of a loop that ended are not used, nor told of."""
    with Running(serve(Ranks()).app) as running:
        done = subprocess.run([sys.executable, "-c", LOOPS, running.url], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


FORKS = """
import os, sys
from headrace import Client
client = Client(sys.argv[1], timeout_s=20)
ask = lambda who: client.rank({"reader": 7}, ["a", "b"], request_id=who)
ask("parent")
pid = os.fork()
who = "parent" if pid else "child"
for _ in range(3):
    assert ask(who).request_id == who
client.close()
if pid:
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_client_that_was_made_before_a_fork_has_connections_of_each_process(serve):
    """As of a server that loads its application, then forks: one connection for both would mix up their answers."""
    ports = {"parent": set(), "child": set()}

    async def noting(scope, receive, send) -> None:
        if scope["type"] == "http":
            ports[dict(scope["headers"])[b"x-request-id"].decode()].add(scope["client"][1])
        await app(scope, receive, send)

    app = serve(Ranks()).app
    with Running(noting) as running:
        done = subprocess.run([sys.executable, "-c", FORKS, running.url], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert (len(ports["parent"]), len(ports["child"])) == (1, 1)
    assert ports["parent"] != ports["child"]


def test_engaged_keeps_its_own_deadline_and_ends_with_the_client():
    """No broker: an error after `timeout_s` of Engagements | the client closed: an error of it, at once."""

    class Chosen(Event, topic="chosen", key="reader", time="event_time"):
        event_time: datetime
        reader: int
        thing: str
        request_id: str

    to = Engagements(Chosen, candidate="thing", brokers=f"127.0.0.1:{free_port()}", timeout_s=0.3)

    async def play():
        client = AsyncClient("http://127.0.0.1:1", engagements=to)
        await client.close()
        with pytest.raises(ClientError, match="the client is closed"):
            await client.engaged("r", "a", reader=7)

    client = Client("http://127.0.0.1:1", engagements=to)
    began_s = time.monotonic()
    with pytest.raises(SourceError, match="not acknowledged within 0.3 s"):
        client.engaged("r", "a", reader=7)
    assert time.monotonic() - began_s < 5
    client.close()
    with pytest.raises(ClientError, match="the client is closed"):
        client.engaged("r", "a", reader=7)
    asyncio.run(play())


def test_an_engagement_is_in_the_topic_once_it_is_written(broker, topic, tmp_path):
    """Id and time are filled in, the rest is checked, and what the broker refuses is an error."""

    class Chosen(Event, topic=topic, key="reader", time="event_time", id="event_id"):
        event_id: str
        event_time: datetime
        reader: int
        thing: str
        seconds: int = Field(default=0, ge=0)
        request_id: str | None = None

    create_topics(broker, {topic: 1})
    to = Engagements(Chosen, candidate="thing", brokers=broker)

    async def play():
        async with AsyncClient("http://127.0.0.1:1", engagements=to) as client:
            return await asyncio.gather(*(client.engaged(f"r{i}", "b", reader=8) for i in range(4)))

    with Client("http://127.0.0.1:1", engagements=to) as client:
        written = [client.engaged("r", "a", reader=7, seconds=3), *asyncio.run(play())]
        with pytest.raises(SchemaError, match=r"event Chosen.seconds: .*greater than or equal to 0, not -1"):
            client.engaged("r", "a", reader=7, seconds=-1)
        with pytest.raises(SchemaError, match=r"^event Chosen.reader is required: give reader=\.\.\.$"):
            client.engaged("r", "a", seconds=1)
        with pytest.raises(SchemaError, match=r"event Chosen.reader: 1180591620717411303424 does not fit Int64"):
            client.engaged("r", "a", reader=2**70)
        with pytest.raises(SchemaError, match=r"event Chosen.thing: '.ud800' does not fit String"):
            client.engaged("r", "\ud800", reader=7)
        with pytest.raises(SchemaError, match="event Chosen has no field 'second'; did you mean 'seconds'"):
            client.engaged("r", "a", reader=7, second=1)
    source = KafkaSource(broker, [Chosen], until_end=True)
    intake = Intake([Chosen], dead_letters=FileDeadLetters(tmp_path))
    rows = []
    with contextlib.closing(source):
        while not source.exhausted:
            rows += [row for batch in source.poll() for row in intake.decode(batch).frame.to_dicts()]
    assert [Chosen(**row) for row in rows[:1]] == written[:1]
    assert sorted(row["request_id"] for row in rows) == ["r", "r0", "r1", "r2", "r3"]
    assert len({row["event_id"] for row in rows}) == 5
    with pytest.raises(DeclarationError, match="engagements candidate='item': event Chosen has event_id"):
        Client("http://127.0.0.1:1", engagements=Engagements(Chosen, candidate="item", brokers=broker))
    with Client("http://127.0.0.1:1") as client, pytest.raises(ConfigError, match="engagements=Engagements"):
        client.engaged("r", "a")

    with Client("http://127.0.0.1:1", engagements=to) as client, pytest.raises(SourceError, match="too large"):
        client.engaged("r", "x" * 2_000_000, reader=7)


@pytest.fixture
def plain_logs():
    """structlog as in an application that has not configured it."""
    before = structlog.get_config() if structlog.is_configured() else None
    structlog.reset_defaults()
    yield
    if before is not None:
        structlog.configure(**before)


def test_engagements_to_a_broker_that_is_away(capfd, plain_logs):
    """One error with the address, the reason and what to check; nothing is printed beside it."""

    class Chosen(Event, topic="chosen", key="reader", time="event_time"):
        event_time: datetime
        reader: int
        thing: str
        request_id: str

    to = Engagements(Chosen, candidate="thing", brokers="127.0.0.1:1", timeout_s=1.0)
    refused = pytest.raises(
        SourceError, match=r"broker 127.0.0.1:1, .*within 1 s \(.*\); check the address and that the"
    )
    with Client("http://127.0.0.1:1", engagements=to) as client, refused:
        client.engaged("r", "a", reader=7)
    assert capfd.readouterr() == ("", "")


def test_the_path_of_the_url_is_in_the_error(serve):
    """A URL that ends in /v1 is the usual slip."""
    refused = pytest.raises(InvalidRequestError, match="^POST /v1/v1/rank: 404 no_such_route")
    with Running(serve(Ranks()).app) as running, Client(f"{running.url}/v1", timeout_s=30) as client, refused:
        client.rank(READER, THINGS)


def test_engagements_reach_a_broker_that_came_back_without_its_log(tmp_path):
    """It takes no message of a sequence whose beginning it does not know: a failed call costs the next one nothing."""

    class Chosen(Event, topic="chosen", key="reader", time="event_time"):
        event_time: datetime
        reader: int
        thing: str
        request_id: str

    with EmbeddedBroker(tmp_path / "broker", topics={"chosen": 1}) as server:
        to = Engagements(Chosen, candidate="thing", brokers=server.bootstrap)
        with Client("http://127.0.0.1:1", engagements=to, timeout_s=2) as client:
            client.engaged("before", "a", reader=7)
            os.kill(server.pid, signal.SIGKILL)
            server.stop()
            server.start()
            failed, written, deadline_s = 0, 0, time.monotonic() + 60
            while not written and time.monotonic() < deadline_s:
                try:
                    client.engaged("after", "a", reader=7)
                    written += 1
                except SourceError:
                    failed += 1
            assert written, f"{failed} calls failed"
            client.engaged("after", "b", reader=7)


def test_the_examples_of_the_page_run(repo, redis_url, broker, tmp_path):
    """Against the project's own replica, with a model that has learned nothing and no events."""
    page = (repo / "docs" / "serving.md").read_text()
    blocks = [part.split("```")[0] for part in page.split("```python\n")[1:]]
    assert len(blocks) == 2
    with OnlineStore.open(redis_url) as store:
        for view in NextItem.views:
            store.activate(plan_of(view))
    models = tmp_path / "models"
    ModelDirectory(models, redis_url).publish(Snapshot.of(OnlineLearner(NextItem, seed=0)))
    settings = Settings(redis_url=redis_url, brokers=broker, model_dir=models, request_timeout_s=60)
    columns = ImpressionColumns(candidates="item_ids", shadow="frozen_scores")
    replica = build_replica(
        NextItem, Impression, entity=("customer_id",), candidate="item_id", columns=columns, settings=settings
    )
    by_client: dict = {}
    by_arrow: dict = {}
    with Running(replica) as running:
        there = {"http://127.0.0.1:8000": running.url, "127.0.0.1:9092": broker, "timeout_s=0.5": "timeout_s=60"}
        for block, names, shown in zip(blocks, (by_client, by_arrow), (3, 1), strict=True):
            assert sum(each in block for each in there) == shown
            for each, put_in in there.items():
                block = block.replace(each, put_in)  # noqa: PLW2901
            exec(block, names)
    answer = by_client["answer"]
    assert [each.position for each in answer.ranked] == [0, 1]
    assert (answer.model_version, answer.status) == (1, "missing")
    assert by_arrow["ranked"].column_names == ["candidate", "score", "position"]
    assert by_arrow["ranked"].num_rows == 2
    assert by_arrow["response"]["model_version"] == 1


def test_a_closed_client_says_so(serve):
    """An error of ours, at once, with the id of the call."""
    with Running(serve(Ranks()).app) as running:
        client = Client(running.url, timeout_s=30)
        assert client.rank(READER, THINGS).ranked
        client.close()
        with pytest.raises(ClientError, match="POST /v1/rank: the client is closed; make another"):
            client.rank(READER, THINGS)
        with pytest.raises(ClientError, match="the client is closed") as raised:
            client.features("reader_activity", 7)
        assert raised.value.request_id

        async def after_its_block() -> None:
            async with AsyncClient(running.url, timeout_s=30) as other:
                await other.rank(READER, THINGS)
            with pytest.raises(ClientError, match="the client is closed"):
                await other.score(READER, THINGS)

        asyncio.run(after_its_block())


@pytest.mark.slow
def test_load_is_offered_on_a_schedule_that_waits_for_no_answer(serve, repo, tmp_path):
    """A service that takes 0.1 s a batch is sent all requests in time, and each waits for it."""
    body = orjson.dumps({"entity": READER, "candidates": THINGS, "k": 2, "request_id": "taken once"})
    (tmp_path / "asks.jsonl").write_bytes(body + b"\n\n" + body)
    names = {name: str(tmp_path / name) for name in ("asks.jsonl", "load.csv", "load.png", "one.svg")}
    with Running(serve(Signature(3, pause_s=0.1)).app) as running:
        words = ["load", running.url, "--bodies", names["asks.jsonl"], "--seconds", "1", "--json", "--timeout-s"]
        files = ["--csv", names["load.csv"], "--plot", names["load.png"]]
        done = commands.headrace(*words, "20", "--rate", "20", "--rate", "60", *files, cwd=repo)
        late = commands.headrace(*words, "0.05", "--rate", "20", cwd=repo)
        one = commands.headrace(*words, "20", "--rate", "5", "--plot", names["one.svg"], cwd=repo)
    assert (done.code, one.code, late.code) == (0, 0, 1), done.err + late.err
    rows = orjson.loads(done.out)
    sent = [len(schedule_s(rate, 1.0, 0)) for rate in (20, 60)]
    assert [(row["sent"], row["ok"], row["failed"]) for row in rows] == [(count, count, "") for count in sent]
    assert all(row["max_ms"] >= row["p50_ms"] >= 100 for row in rows)
    table = pl.read_csv(names["load.csv"])
    assert table["rate_per_s"].value_counts(sort=True).rows() == [(60.0, sent[1]), (20.0, sent[0])]
    assert table["outcome"].unique().to_list() == ["ok"]
    assert table["model_version"].unique().to_list() == [3]
    assert (tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "one.svg").read_bytes().startswith(b"<?xml")
    assert "within 0.05 s" in late.err


def test_load_counts_what_failed_by_its_word(serve):
    """Refusals of a replica that takes one request, what comes too late, and a service that went away."""
    body = {"entity": READER, "candidates": THINGS}

    async def offer(running: Running, *, timeout_s: float, is_away: bool = False) -> dict:
        async with AsyncClient(running.url, timeout_s=30) as client, Connections(running.url, {}, 8) as connections:
            if is_away:
                away = Connections(f"http://127.0.0.1:{free_port()}", {}, 8)
                return (await play(client, away, [body], rate_per_s=30, seconds=1, timeout_s=timeout_s)).summary()
            return (await play(client, connections, [body], rate_per_s=30, seconds=1, timeout_s=timeout_s)).summary()

    limits = HttpLimits(max_in_flight=1, timeout_s=30)
    with Running(serve(Signature(3, pause_s=0.2), limits=limits).app) as running:
        refused = asyncio.run(offer(running, timeout_s=30))
        late = asyncio.run(offer(running, timeout_s=0.1))
        away = asyncio.run(offer(running, timeout_s=30, is_away=True))
    assert re.fullmatch(r"too_many_requests \d+", refused["failed"])
    assert refused["ok"] + int(refused["failed"].split()[1]) == refused["sent"]
    assert late["ok"] == 0
    assert "deadline" in late["failed"]
    assert away["failed"] == f"not_reached {away['sent']}"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "asks, line 2: no JSON"),
        ('{"entity": 1}', "asks, line 2: no request; write an object with entity and candidates"),
        ('{"entity": {}, "candidates": [1], "timeout_s": 1}', "asks, line 2: 'timeout_s' is no field of a request"),
        ('{"entity": {}, "candidates": [1], "self": 1}', "asks, line 2: 'self' is no field of a request"),
        (None, "asks holds no request"),
    ],
)
def test_a_file_of_requests_is_checked(line, says):
    lines = [] if line is None else [b'{"entity": {}, "candidates": [1]}', line.encode()]
    with pytest.raises(ConfigError, match=f"^{says}"):
        bodies_of(lines, "asks")
