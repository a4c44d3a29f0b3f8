"""Probes, reports and metrics, without a model and while Redis is away."""

import socket
import time

import pytest
from redis import Redis

from headrace.errors import StoreUnavailableError
from headrace.features.store import OnlineStore
from headrace.local import EmbeddedRedis
from headrace.local.embedded_url import RECONNECT_S_MAX
from headrace.local.stack import LocalStack
from headrace.serving import build_http
from headrace.serving.queries import Query
from tests.serving import stage
from tests.serving.conftest import PATIENT, Client
from tests.serving.stage import ASK, NOW_US, Ranks, until


def test_without_a_model_it_is_alive_but_not_ready(serve):
    """503 no_model; healthz is fine."""
    client = serve()
    assert client.get("/healthz").status_code == 200
    published = {"newest": None, "looked_us": client.get("/readyz").json()["published"]["looked_us"]}
    assert client.get("/readyz").json() == {
        "ready": False,
        "model_version": None,
        "problems": ["no model is live"],
        "published": {**published, "live_is_unpublished": False},
    }
    for response in (client.post("/v1/rank", ASK), client.get("/v1/model")):
        assert (response.status_code, response.json()["error"]) == (503, "no_model")
        assert response.headers["retry-after"] == "1"


def test_what_breaks_a_probe_is_an_answer_of_the_contract(ranker):
    """500 with an id, counted, and the connection goes on: a number that JSON does not hold stands for any fault."""
    swap = stage.swap_of(ranker, stage.Published({3: Ranks()}))
    swap.refresh()
    swap.newest = 10**20
    client = Client(build_http(ranker, swap, impressions=None, clock=stage.CLOCK, limits=PATIENT))
    for path in ("/readyz", "/v1/model", "/v1/report"):
        response = client.get(path, headers={"x-request-id": "r1"})
        assert response.status_code == 500
        assert (response.json()["error"], response.json()["request_id"]) == ("internal", "r1")
        assert response.headers["x-request-id"] == "r1"
    swap.newest = 3
    assert client.get("/v1/report").json()["requests"]["failed"] == 3


def test_model_report_and_metrics(serve):
    """What one replica tells of itself."""
    client = serve(Ranks())
    for _ in range(3):
        client.post("/v1/rank", ASK)
    client.post("/v1/rank", {})
    model = client.get("/v1/model").json()
    assert (model["model_version"], model["kept"], model["manifest"]) == (3, [], {"version": 3})
    report = client.get("/v1/report").json()
    assert report["requests"]["by_version"] == {"3": 3}
    assert report["requests"]["refused"] == 1
    assert report["requests"]["failed"] == 0
    assert report["latency_ms"]["count"] == len(report["samples"]["latency_ms"]) == 3
    assert [swap["model_version"] for swap in report["swaps"]["recent"]] == [3]
    metrics = client.get("/metrics").text
    assert 'headrace_requests_total{route="rank",status="200"}' in metrics
    assert "headrace_swaps_total" in metrics
    assert (model["published"]["newest"], model["published"]["live_is_unpublished"]) == (3, False)
    assert "headrace_model_newest_version 3.0" in metrics
    assert "headrace_model_unpublished 0.0" in metrics


def test_a_redis_whose_password_was_changed(tmp_path, serve):
    """503 and Retry-After on each route, as while it is away; answers again once the password is right."""
    with EmbeddedRedis(tmp_path) as redis, OnlineStore.open(redis.url, shards=stage.SHARDS) as store:
        stage.fill(store, stage.EVENTS)
        client = serve(Ranks(), on=stage.warm_ranker(store))
        assert client.post("/v1/rank", ASK).status_code == 200
        with Redis.from_url(redis.url) as operator:
            operator.config_set("requirepass", "another")
        with Redis.from_url(redis.url, password="another") as operator:
            operator.client_kill_filter(_type="normal", skipme=True)
            for response in (client.post("/v1/rank", ASK), client.get("/v1/features/reader_activity/7")):
                assert (response.status_code, response.json()["error"]) == (503, "store_unavailable")
                assert response.headers["retry-after"] == "1"
            assert client.get("/readyz").json()["problems"] == ["the online store does not answer"]
            operator.config_set("requirepass", "")
        assert client.post("/v1/rank", ASK).status_code == 200


def test_redis_away_and_back(tmp_path, serve):
    """503 with one clear error while Redis is away; answers again without a restart of ours."""
    with EmbeddedRedis(tmp_path) as redis, OnlineStore.open(redis.url, shards=stage.SHARDS) as store:
        stage.fill(store, stage.EVENTS)
        client = serve(Ranks(), on=stage.warm_ranker(store))
        assert client.post("/v1/rank", ASK).status_code == 200
        redis.stop()
        response = client.post("/v1/rank", ASK)
        assert (response.status_code, response.json()["error"]) == (503, "store_unavailable")
        assert response.headers["retry-after"] == "1"
        ready = client.get("/readyz")
        assert ready.status_code == 503
        assert ready.json()["problems"] == ["the online store does not answer"]
        for body in (response.text, ready.text):  # callers are not told where Redis is
            assert "127.0.0.1" not in body
            assert str(redis.port) not in body
        assert client.get("/healthz").status_code == 200
        redis.start()
        assert client.post("/v1/rank", ASK).json()["status"] == "partial"
        assert client.get("/readyz").status_code == 200


def test_a_redis_that_moves_is_found_again(tmp_path, serve):
    """
    Redis of a project on port A | stopped: 503, not ready | back on port B, with its data: ready, the same answers
    """
    with LocalStack(tmp_path, {}) as stack:
        port = stack.redis.port
        store = OnlineStore.open(stack.state.store_url, shards=stage.SHARDS)
        stage.fill(store, stage.EVENTS)
        ranker = stage.warm_ranker(store)
        client = serve(Ranks(), on=ranker)
        before = client.post("/v1/rank", ASK).json()["ranked"]
    with store, socket.socket() as taken:
        query, began_s = Query({"reader": 7}, ["a"], NOW_US), time.monotonic()
        with pytest.raises(StoreUnavailableError):
            ranker.read_batch([query], began_s + 0.1)
        assert time.monotonic() - began_s < RECONNECT_S_MAX  # a new connection waits no longer than the deadline
        assert client.post("/v1/rank", ASK).status_code == 503
        assert client.get("/readyz").status_code == 503
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        with LocalStack(tmp_path, {}) as stack:
            assert stack.redis.port != port
            until(lambda: client.get("/readyz").status_code == 200)
            assert client.post("/v1/rank", ASK).json()["ranked"] == before
