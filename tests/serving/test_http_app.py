"""Answers of every route, against a real Redis."""

import asyncio
import itertools
import threading

import httpx
import numpy as np
import pytest

from headrace.features import hash_text, plan_of
from headrace.serving import HttpLimits, RankResponse, ScoreResponse
from tests.serving import stage
from tests.serving.stage import ASK, NOW_US, Ranks, Recorded


def test_rank_orders_by_score_and_names_the_version(serve):
    """Reader 7 read a twice and b once; c is as popular as nothing else of 7's; z is unknown."""
    response = serve(Ranks()).post("/v1/rank", {**ASK, "k": 3, "request_id": "r1"})
    assert response.status_code == 200
    body = RankResponse.model_validate(response.json())
    assert [(each.candidate, each.position) for each in body.ranked] == [("a", 0), ("b", 1), ("c", 2)]
    assert body.request_id == "r1"
    assert body.model_version == 3
    assert response.headers["x-model-version"] == "3"
    assert body.status == "partial"
    assert body.features_age_s == 300.0
    expected = {"asked": 4, "found": 3, "ahead": 0, "age_s": 300.0, "resident_age_s": None}
    assert body.views["thing_activity"].model_dump() == expected


def test_scores_come_in_the_requests_order(serve):
    """a: read twice in all, once in the hour; b: once and twice; c: never and once."""
    body = ScoreResponse.model_validate(serve(Ranks()).post("/v1/score", ASK).json())
    assert body.scores == pytest.approx([0.01, 0.12, 0.21, 0.0])
    assert body.request_id


def test_features_are_read_as_of_the_requests_time(serve):
    """Two hours earlier nothing had been read within the hour; lifetime counts hold all events."""
    for then in (NOW_US + 7_200_000_000, "2026-03-01T14:00:00Z", "2026-03-01T16:00:00+02:00"):
        body = serve(Ranks()).post("/v1/score", {**ASK, "event_time": then}).json()
        assert body["scores"] == pytest.approx([0.0, 0.1, 0.2, 0.0])
        assert body["features_age_s"] == 300 + 7_200


def test_an_unknown_entity_is_answered_and_said(serve):
    """No record is an answer, not an error."""
    body = serve(Ranks()).post("/v1/rank", {**ASK, "entity": {"reader": 1234}}).json()
    assert body["status"] == "missing"
    assert body["features_age_s"] is None
    assert len(body["ranked"]) == 4


@pytest.mark.parametrize(
    ("path", "entity", "status"),
    [
        ("reader_activity/7", {"reader": 7}, "fresh"),
        ("thing_activity/a", {"thing": "a"}, "fresh"),
        ("pair_activity/7/a", {"reader": 7, "thing": "a"}, "fresh"),
        ("reader_activity/1", {"reader": 1}, "missing"),
        ("thing_activity/x%2Fy", {"thing": "x/y"}, "missing"),
        ("thing_activity/x/y", {"thing": "x/y"}, "missing"),
        ("pair_activity/7/x%2Fy", {"reader": 7, "thing": "x/y"}, "missing"),
        ("thing_activity/%C3%A9%20%3F", {"thing": "é ?"}, "missing"),
    ],
)
def test_features_of_one_record(serve, path, entity, status):
    """Values, status and age; composite keys stand between slashes."""
    body = serve().get(f"/v1/features/{path}").json()
    assert (body["entity"], body["status"]) == (entity, status)
    assert body["age_s"] == (300.0 if status == "fresh" else None)
    if path == "reader_activity/7":
        assert body["features"] == {"reads_1h": 2.0, "recent": ["a", "b", "a"]}


@pytest.mark.parametrize(
    ("path", "status", "error", "says"),
    [
        ("reader_activty/7", 404, "unknown_view", "reader_activity"),
        ("reader_activity/seven", 422, "invalid_request", "seven"),
        ("reader_activity/007", 422, "invalid_request", "'007' is another form of 7"),
        ("reader_activity/+7", 422, "invalid_request", "'+7' is another form of 7"),
        ("reader_activity/-0", 422, "invalid_request", "'-0' is another form of 0"),
        ("pair_activity/07/a", 422, "invalid_request", "'07' is another form of 7"),
        ("pair_activity/7", 422, "invalid_request", "reader/thing"),
        ("thing_activity/", 422, "invalid_request", "0 characters; 1 to 512 are allowed"),
        ("pair_activity/7/", 422, "invalid_request", "0 characters; 1 to 512 are allowed"),
        ("thing_activity/" + "x" * 513, 422, "invalid_request", "513 characters"),
        ("thing_activity/a%ff", 422, "invalid_request", "is not UTF-8"),
        ("thing_activity/%ED%A0%80", 422, "invalid_request", "is not UTF-8"),
    ],
)
def test_wrong_feature_requests_say_what_to_do(serve, path, status, error, says):
    """The nearest view's name, and how to write the key."""
    response = serve().get(f"/v1/features/{path}")
    assert (response.status_code, response.json()["error"]) == (status, error)
    assert says in response.text


def test_more_than_max_in_flight_are_told_to_wait(serve):
    """Of 6 at once with 2 allowed, 4 get 429 with Retry-After at once; probes still answer."""
    gate = threading.Event()
    app = serve(Recorded(gate), limits=HttpLimits(max_in_flight=2, timeout_s=30.0)).app

    async def burst():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            asks = [asyncio.create_task(client.post("/v1/rank", json=ASK)) for _ in range(6)]
            for refused in itertools.islice(asyncio.as_completed(asks, timeout=15), 4):
                await refused
            probe = await client.get("/healthz")
            gate.set()
            return probe, await asyncio.gather(*asks)

    probe, answers = asyncio.run(burst())
    assert probe.status_code == 200
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429, 429]
    assert {answer.headers.get("retry-after") for answer in answers if answer.status_code == 429} == {"1"}


def test_a_score_that_is_not_finite_is_an_error(serve):
    """It is no answer, and costs no other request."""

    class Overflows:
        def score(self, inputs):
            return np.full(len(inputs), np.inf if self.is_live else 1.0, np.float32)

        is_live = False

    model = Overflows()
    client = serve(model)
    model.is_live = True
    refused = client.post("/v1/score", ASK)
    assert (refused.status_code, refused.json()["error"]) == (500, "failed")
    assert "4 of 4 scores are not finite" in refused.json()["detail"]


def test_a_damaged_record_is_one_missing_record(serve, store, redis_url):
    """Garbage, a cut record and one of another layout under the keys of a, b and reader 7's pair with c."""
    before = serve(Ranks()).post("/v1/score", ASK).json()
    plans = {plan.name: plan for plan in map(plan_of, stage.NextThing.views)}
    thing, pair = plans["thing_activity"], plans["pair_activity"]
    keys = store._keys(thing, hash_text(["a", "b", "c"]), [b"a", b"b", b"c"])
    pair_keys = store._keys(pair, hash_text(["7\x1fc"]), [b"7\x1fc"])
    redis = store._link.client
    redis.mset({keys[0]: b"\x00garbage\xff" * 3, keys[1]: redis.get(keys[1])[:-2], pair_keys[0]: redis.get(keys[2])})
    body = serve(Ranks()).post("/v1/score", ASK).json()
    assert {name: view["found"] for name, view in before["views"].items()} == {
        "reader_activity": 1,
        "thing_activity": 3,
        "pair_activity": 2,
    }
    assert {name: view["found"] for name, view in body["views"].items()} == {
        "reader_activity": 1,
        "thing_activity": 1,
        "pair_activity": 2,
    }
    assert body["scores"] == pytest.approx([0.01, 0.1, 0.2, 0.0])  # c whole; b and a without their popularity
    client = serve(Ranks())
    assert client.get("/v1/features/thing_activity/a").json()["status"] == "missing"
    assert client.get("/v1/features/thing_activity/c").json()["status"] == "fresh"
    assert 'headrace_records_damaged_total{view="thing_activity"}' in client.get("/metrics").text
    assert 'headrace_records_damaged_total{view="pair_activity"}' in client.get("/metrics").text


def test_a_model_that_raises_costs_one_answer(serve):
    """500 in our shape, counted, and the next request is served."""

    class Moody:
        calls = 0

        def score(self, inputs):
            self.calls += 1
            if self.calls == 2:  # the first is the warm-up
                raise ValueError("moody")
            return Ranks().score(inputs)

    client = serve(Moody())
    assert client.post("/v1/rank", ASK).json()["error"] == "internal"
    assert client.post("/v1/rank", ASK).status_code == 200
    assert client.get("/v1/report").json()["requests"]["failed"] == 1


def test_events_after_the_requests_time_are_said(serve):
    """Reader 7 read a at 5 minutes before now; things a, b and c were read at 5, 10 and 30 minutes before it."""
    then = NOW_US - 600_000_000
    body = serve(Ranks()).post("/v1/rank", {**ASK, "event_time": then}).json()
    assert {name: view["ahead"] for name, view in body["views"].items()} == {
        "reader_activity": 1,
        "thing_activity": 2,
        "pair_activity": 2,
    }
    body = serve(Ranks()).post("/v1/score", ASK).json()
    assert {view["ahead"] for view in body["views"].values()} == {0}


def test_a_record_ahead_of_the_services_clock_is_said(serve, store):
    """An event a minute ahead of the clock, as of a producer whose clock is fast."""
    stage.fill(store, stage.readings((7, "a", -1), skip=5))
    body = serve().get("/v1/features/reader_activity/7").json()
    assert (body["status"], body["age_s"]) == ("ahead", 0.0)
    assert serve().get("/v1/features/reader_activity/8").json()["status"] == "fresh"
