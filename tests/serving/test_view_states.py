"""What a replica says while Redis has no version of its views, or another number of shards; lines of a fault."""

import time

import httpx
import pytest
import redis
from structlog.testing import capture_logs

from headrace.features import plan_of
from headrace.features.store import OnlineStore
from headrace.local import EmbeddedRedis
from headrace.serving import build_http
from headrace.serving.refusals import STORE_FAULT
from tests.serving import stage
from tests.serving.conftest import PATIENT
from tests.serving.server import Server
from tests.serving.stage import ASK, Ranks, until

NAMES = [plan_of(view).name for view in stage.NextThing.views]


@pytest.fixture
def running(ranker):
    """A client of an application whose threads run, over the filled store."""
    swap = stage.swap_of(ranker, stage.Published({3: Ranks()}))
    swap.refresh()
    app = build_http(ranker, swap, impressions=None, clock=stage.CLOCK, limits=PATIENT)
    with Server(app) as server, httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def state_of(client, name):
    """The state that the metrics tell."""
    lines = [line for line in client.get("/metrics").text.splitlines() if f'view="{name}"' in line and "_state" in line]
    return [line.partition('state="')[2].partition('"')[0] for line in lines if line.endswith(" 1.0")]


def test_a_redis_that_is_emptied_is_said_until_its_views_are_written_again(running, store, redis_url):
    """
    filled: ready | FLUSHALL: ready and degraded, missing records, a line a view | filled again: as before
    """
    running.post("/v1/rank", json=ASK)
    assert "degraded" not in running.get("/readyz").json()
    with capture_logs() as logs, redis.Redis.from_url(redis_url) as operator:
        operator.flushall()
        until(lambda: running.get("/v1/report").json()["views"] == dict.fromkeys(NAMES, "absent"))
        ready = running.get("/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        assert [words.split(":")[0] for words in ready.json()["degraded"]] == [f"view {name}" for name in NAMES]
        assert all(state_of(running, name) == ["absent"] for name in NAMES)
        answer = running.post("/v1/rank", json=ASK).json()
        assert (answer["status"], {view["found"] for view in answer["views"].values()}) == ("missing", {0})
        stage.fill(store, stage.EVENTS)
        until(lambda: "degraded" not in running.get("/readyz").json())
    assert running.post("/v1/rank", json=ASK).json()["status"] == "partial"
    assert all(state_of(running, name) == ["active"] for name in NAMES)
    changes = [(line["view"], line["before"], line["state"]) for line in logs if line["event"] == "view_state_changed"]
    assert sorted(changes) == sorted(
        (name, *states) for name in NAMES for states in (("active", "absent"), ("absent", "active"))
    )


def test_a_redis_with_another_number_of_shards_is_not_read(running, redis_url):
    """Emptied, and filled by a flow of 8 shards, whose records are under other keys: 503, and not ready."""
    with redis.Redis.from_url(redis_url) as operator:
        operator.flushall()
    with OnlineStore.open(redis_url, shards=8) as other:
        other.register(plan_of(stage.ReaderActivity))
        until(lambda: running.post("/v1/rank", json=ASK).status_code == 503)
        ready = running.get("/readyz")
        assert ready.status_code == 503
        assert "shards" in ready.json()["problems"][0]
        assert running.get("/v1/features/reader_activity/7").status_code == 503
    with redis.Redis.from_url(redis_url) as operator:
        operator.flushall()
    until(lambda: running.post("/v1/rank", json=ASK).status_code == 200)


def test_a_redis_that_is_away_is_said_once_and_when_it_is_back(tmp_path, monkeypatch):
    """Requests, probes and threads meet it for seconds: a line each of what they did, then one that it answers."""
    monkeypatch.setattr(STORE_FAULT, "is_on", False)
    monkeypatch.setattr(STORE_FAULT, "_quiet_s", 0.5)
    with EmbeddedRedis(tmp_path) as server, OnlineStore.open(server.url, shards=stage.SHARDS) as store:
        stage.fill(store, stage.EVENTS)
        ranker = stage.warm_ranker(store)
        swap = stage.swap_of(ranker, stage.Published({3: Ranks()}))
        swap.refresh()
        app = build_http(ranker, swap, impressions=None, clock=stage.CLOCK, limits=PATIENT)
        with capture_logs() as logs, Server(app) as served, httpx.Client(base_url=served.url) as client:
            assert client.post("/v1/rank", json=ASK).status_code == 200
            server.stop()
            until_s = time.monotonic() + 3.0
            while time.monotonic() < until_s:
                assert client.post("/v1/rank", json=ASK).status_code == 503
                assert client.get("/readyz").status_code == 503
            server.start()
            until(lambda: client.get("/readyz").status_code == 200)
            until(lambda: logs[-1]["event"] == "store_answers_again")
    away = [line for line in logs if line["event"] == "store_unavailable"]
    assert len({line["reason"] for line in away}) == len(away) <= 4
    assert [line["event"] for line in logs].count("store_answers_again") == 1
    assert sum(line["times"] for line in logs if "times" in line) > 50
