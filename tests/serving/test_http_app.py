"""Every route and every way a request can fail, against a real Redis."""

import asyncio
import hashlib
import socket
import time

import httpx
import numpy as np
import pytest
from structlog.testing import capture_logs

from headrace import Count, FeatureView
from headrace.errors import ConfigError, LayoutError, SnapshotError, StoreUnavailableError
from headrace.features import hash_text, plan_of
from headrace.features.store import OnlineStore
from headrace.local import EmbeddedRedis
from headrace.local.embedded_url import RECONNECT_S_MAX
from headrace.local.stack import LocalStack
from headrace.serving import HttpLimits, RankResponse, ScoreResponse, build_http
from headrace.serving.api_keys import keys_of_file
from headrace.serving.queries import Query
from tests.serving import stage
from tests.serving.conftest import PATIENT, Client
from tests.serving.stage import NOW_US, Ranks, Signature, until

ASK = {"entity": {"reader": 7}, "candidates": ["c", "b", "a", "z"]}


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
    ],
)
def test_wrong_feature_requests_say_what_to_do(serve, path, status, error, says):
    """The nearest view's name, and how to write the key."""
    response = serve().get(f"/v1/features/{path}")
    assert (response.status_code, response.json()["error"]) == (status, error)
    assert says in response.text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"candidates": ["a"]}, "entity"),
        ({"entity": {}, "candidates": ["a"]}, "entity"),
        ({"entity": {"reder": 7}, "candidates": ["a"]}, "entity."),
        ({"entity": {"reader": "7"}, "candidates": ["a"]}, "entity.reader"),
        ({"entity": {"reader": 7}, "candidates": []}, "candidates"),
        ({"entity": {"reader": 7}, "candidates": ["a", 5]}, "candidates[1]"),
        ({"entity": {"reader": 7}, "candidates": ["a", 1.5]}, "candidates[1]"),
        ({"entity": {"reader": 7}, "candidates": ["a"] * 5_001}, "candidates"),
        ({"entity": {"reader": 7}, "candidates": ["a"], "k": 0}, "k"),
        ({"entity": {"reader": 7}, "candidates": ["a"], "kk": 1}, "kk"),
        ({"entity": {"reader": 7}, "candidates": ["a"], "event_time": "soon"}, "event_time"),
        ({"entity": {"reader": 2**70}, "candidates": ["a"]}, "entity.reader"),
    ],
)
def test_an_invalid_body_names_its_field(serve, body, field):
    """422, never 500."""
    response = serve(Ranks()).post("/v1/rank", body)
    assert (response.status_code, response.json()["error"]) == (422, "invalid_request")
    assert response.json()["field"].startswith(field)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"entity": {"reader": 2**70}}, "entity.reader: Input should be less than or equal to 9223372036854775807"),
        ({"entity": {"reader": ""}}, "entity.reader: String should have at least 1 character"),
        ({"entity": {"reader": "x" * 513}}, "entity.reader: String should have at most 512 characters"),
        ({"entity": {"reader": None}}, "entity.reader: is null, not an integer or text"),
        ({"candidates": ["a", 1.5]}, "candidates[1]: is a number with a fraction, not an integer or text"),
        ({"candidates": [["a"]]}, "candidates[0]: is a list, not an integer or text"),
        ({"candidates": [True]}, "candidates[0]: is true or false, not an integer or text"),
        ({"context": {"x": [1]}}, "context.x: is a list, not text or an integer or a number or true or false"),
        ({"event_time": 1323430000.5}, "event_time: write ISO 8601"),
        ({"event_time": True}, "event_time: write ISO 8601"),
        ({"event_time": "1323430000"}, "event_time: write ISO 8601"),
        ({"event_time": "-1"}, "event_time: write ISO 8601"),
        ({"event_time": "20260301"}, "event_time: write ISO 8601"),
        ({"event_time": -1}, "before 1970"),
        ({"event_time": 1323430000}, "looks like seconds"),
        ({"event_time": "1969-12-31T23:59:59Z"}, "before 1970"),
    ],
)
def test_an_error_names_the_fault_and_a_time_has_one_meaning(serve, body, says):
    """Of the branches of a union the one that was meant; numbers are whole µs, texts are ISO 8601."""
    refused = serve(Ranks()).post("/v1/rank", {**ASK, **body})
    assert refused.status_code == 422
    assert says in refused.json()["detail"]


def test_the_deadlines_header_may_have_blanks(serve):
    """As HTTP allows around a value; anything else is named."""
    client = serve(Ranks())
    assert client.post("/v1/rank", ASK, headers={"x-request-timeout-ms": " 30000 "}).status_code == 200
    for value in ("0", "-1", "1e3", "5_0", "60001", ""):
        refused = client.post("/v1/rank", ASK, headers={"x-request-timeout-ms": value})
        assert refused.status_code == 422
        assert "X-Request-Timeout-Ms" in refused.json()["detail"]


def test_wrong_requests_are_counted(serve):
    """404 and 405 of paths and methods that are not served."""
    client = serve(Ranks())

    def counted(status):
        name = f'headrace_requests_total{{route="none",status="{status}"}}'
        return sum(
            float(line.split()[-1]) for line in client.get("/metrics").text.splitlines() if line.startswith(name)
        )

    before = counted(404), counted(405)
    client.get("/nowhere")
    client.get("/v1/rank")
    assert (counted(404), counted(405)) == (before[0] + 1, before[1] + 1)


def test_a_body_that_is_no_json_or_too_large(serve):
    """422 and 413; a chunked body announces no length and is cut off as well."""
    client = serve(Ranks(), limits=HttpLimits(body_bytes_max=1_000))
    assert client("POST", "/v1/rank", content=b"{nope").json()["field"] == "body"
    long = b'{"entity":' + b" " * 2_000

    async def chunks():
        for _ in range(4):
            yield long[:500]

    for content in (long, chunks()):
        response = client("POST", "/v1/rank", content=content)
        assert (response.status_code, response.json()["error"]) == (413, "body_too_large")


def test_unknown_routes_answer_in_the_same_shape(serve):
    """404 and 405 as JSON with error, detail, fix."""
    assert serve().get("/v2/rank").json()["error"] == "no_such_route"
    assert serve().get("/v1/rank").status_code == 405


def test_api_keys_guard_all_but_the_probes(serve):
    """401 without a known key; X-API-Key and Bearer both do."""
    client = serve(Ranks(), limits=HttpLimits(api_keys=("one", "two")))
    for path in ("/v1/model", "/v1/report", "/metrics", "/openapi.json"):
        assert client.get(path).status_code == 401
    refused = client.post("/v1/rank", ASK, headers={"x-api-key": "three"})
    assert (refused.status_code, refused.json()["error"]) == (401, "unauthorized")
    assert client.post("/v1/rank", ASK, headers={"x-api-key": "two"}).status_code == 200
    assert client.post("/v1/rank", ASK, headers={"authorization": "Bearer one"}).status_code == 200
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200


def test_a_key_has_an_id_a_limit_and_scopes(serve):
    """By its hash; beyond the limit 429, outside the scope 403; no key that is empty opens anything."""
    digest = hashlib.sha256(b"secret").hexdigest()
    keys = (f"app:{digest}:2:rank", f"ops:{hashlib.sha256(b'other').hexdigest()}::operate+features")
    client = serve(Ranks(), limits=HttpLimits(api_keys=keys, timeout_s=30.0))
    app, ops = {"x-api-key": "secret"}, {"authorization": "Bearer other"}
    assert client.post("/v1/rank", ASK, headers={"x-api-key": digest}).status_code == 401
    for empty in ({"x-api-key": ""}, {"authorization": "Bearer "}, {}):
        assert client.post("/v1/rank", ASK, headers=empty).status_code == 401
    forbidden = client.get("/v1/model", headers=app)
    assert (forbidden.status_code, forbidden.json()["error"]) == (403, "forbidden")
    assert "operate" in forbidden.json()["detail"]
    assert client.get("/v1/model", headers=ops).status_code == 200
    assert client.get("/v1/features/reader_activity/7", headers=ops).status_code == 200
    assert client.post("/v1/score", ASK, headers=ops).status_code == 403
    burst = [client.post("/v1/score", {}, headers=app) for _ in range(8)]
    limited = [answer for answer in burst if answer.status_code == 429]
    assert len(limited) >= 2
    assert limited[0].headers["retry-after"] == "1"
    assert "app" in limited[0].json()["detail"]
    assert 'headrace_key_requests_total{key="app",outcome="limited"}' in client.get("/metrics", headers=ops).text


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (("",), "API key 1 is empty"),
        (("app:abc",), "API key 1 .not shown. is of another form"),
        ((f"app:{'0' * 64}:5:everything",), "no scope 'everything'; there are rank, features, operate"),
        ((f"app:{'0' * 64}:0",), "lets none through"),
        ((f"app:{'0' * 64}", f"app:{'1' * 64}"), "app: configured twice"),
    ],
)
def test_keys_of_another_form_are_refused_at_the_start(serve, keys, says):
    with pytest.raises(ConfigError, match=says):
        serve(Ranks(), limits=HttpLimits(api_keys=keys))


def test_keys_of_a_file(tmp_path):
    """One a line; a file without any must not open the service."""
    path = tmp_path / "keys"
    path.write_text(f"# keys\n\napp:{'0' * 64}\n")
    assert list(keys_of_file(path)) == [f"app:{'0' * 64}"]
    path.write_text("# none\n")
    with pytest.raises(ConfigError, match="holds no key"):
        keys_of_file(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        keys_of_file(tmp_path / "nowhere")


def test_a_changed_file_of_keys_is_read_again(serve, tmp_path):
    """A key is withdrawn and another added without a restart; a file that is faulty or empty changes nothing."""
    file = tmp_path / "keys"
    old, new = ({"x-api-key": key} for key in ("old", "new"))
    write = lambda *keys: file.write_text("".join(f"{k}:{hashlib.sha256(k.encode()).hexdigest()}\n" for k in keys))  # noqa: E731
    write("old")
    client = serve(Ranks(), limits=HttpLimits(timeout_s=30, api_keys_file=file))
    status = lambda headers: client.post("/v1/rank", ASK, headers=headers).status_code  # noqa: E731
    assert (status(old), status(new)) == (200, 401)
    write("old", "new")
    until(lambda: status(new) == 200)
    assert status(old) == 200
    write("new")
    until(lambda: status(old) == 401)
    with capture_logs() as lines:
        for faulty in ("", "id:nonsense"):
            file.write_text(faulty)
            count = len(lines)
            until(lambda count=count: status(new) == 200 and any("not_read" in each["event"] for each in lines[count:]))
    file.unlink()
    assert (status(old), status(new)) == (401, 200)


def test_browsers_are_served_only_from_the_origins_that_are_set(serve):
    """No CORS header without the setting; every answer has the headers that protect a browser."""
    origin = {"origin": "https://shop.example"}
    preflight = {**origin, "access-control-request-method": "POST"}
    closed = serve(Ranks())
    assert "access-control-allow-origin" not in closed.post("/v1/rank", ASK, headers=origin).headers
    assert closed("OPTIONS", "/v1/rank", headers=preflight).status_code == 405
    limits = HttpLimits(timeout_s=30.0, api_keys=("k",), cors_origins=("https://shop.example",))
    opened = serve(Ranks(), limits=limits)
    assert opened("OPTIONS", "/v1/rank", headers=preflight).headers["access-control-allow-origin"] == origin["origin"]
    answer = opened.post("/v1/rank", ASK, headers={**origin, "x-api-key": "k"})
    assert answer.headers["access-control-allow-origin"] == origin["origin"]
    other = opened.post("/v1/rank", ASK, headers={"origin": "https://else.example", "x-api-key": "k"})
    assert "access-control-allow-origin" not in other.headers
    for name, value in (("x-content-type-options", "nosniff"), ("cache-control", "no-store")):
        assert answer.headers[name] == closed.get("/nowhere").headers[name] == value


def test_more_than_max_in_flight_are_told_to_wait(serve):
    """Of 6 at once with 2 allowed, 4 get 429 with Retry-After at once; probes still answer."""
    app = serve(Signature(1, pause_s=0.3), version=1, limits=HttpLimits(max_in_flight=2)).app

    async def burst():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            asks = [asyncio.create_task(client.post("/v1/rank", json=ASK)) for _ in range(6)]
            await asyncio.sleep(0.1)
            probe = await client.get("/healthz")
            return probe, await asyncio.gather(*asks)

    probe, answers = asyncio.run(burst())
    assert probe.status_code == 200
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429, 429]
    assert {answer.headers.get("retry-after") for answer in answers if answer.status_code == 429} == {"1"}


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


def test_a_refused_version_is_named_with_its_reason_until_a_newer_one_is_live(ranker):
    """In the model, the report, the readiness and the metrics; the live model goes on."""
    releases = stage.Published({3: Ranks()})
    swap = stage.swap_of(ranker, releases)
    swap.refresh()
    releases.models[4] = SnapshotError("table thing: 3 of 9 rows are not finite")
    assert not swap.refresh()
    client = Client(build_http(ranker, swap, impressions=None, clock=stage.CLOCK))
    seen = [
        client.get("/v1/model").json()["refused"],
        client.get("/readyz").json()["refused"],
        client.get("/v1/report").json()["swaps"]["last_refused"],
    ]
    for refused in seen:
        assert (refused["model_version"], "not finite" in refused["reason"]) == (4, True)
    assert client.get("/v1/model").json()["model_version"] == 3
    assert "headrace_model_refused_version 4.0" in client.get("/metrics").text
    releases.models[5] = Ranks()
    assert swap.refresh()
    assert client.get("/v1/model").json()["refused"] is None
    assert "refused" not in client.get("/readyz").json()


def test_openapi_describes_the_bodies_that_are_validated_by_hand(serve):
    """The request schema is in the document although FastAPI does not parse the body."""
    routes = serve().get("/openapi.json").json()["paths"]
    schema = routes["/v1/rank"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"entity", "candidates", "k"} <= set(schema["properties"])


def test_a_request_is_named_by_its_body_its_header_or_anew(serve):
    """In the answer, the header and in errors; a header that no log could hold is replaced."""
    client = serve(Ranks())
    named = {"x-request-id": "h-1"}
    both = client.post("/v1/rank", {**ASK, "request_id": "b-1"}, headers=named)
    assert (both.json()["request_id"], both.headers["x-request-id"]) == ("b-1", "b-1")
    of_header = client.post("/v1/score", ASK, headers=named)
    assert (of_header.json()["request_id"], of_header.headers["x-request-id"]) == ("h-1", "h-1")
    made = client.post("/v1/rank", ASK)
    assert len(made.json()["request_id"]) == 32
    assert made.json()["request_id"] == made.headers["x-request-id"]
    for refused in (
        client.post("/v1/rank", {}, headers=named),
        client.get("/v1/features/nope/1", headers=named),
        client.get("/nowhere", headers=named),
        serve(limits=HttpLimits(api_keys=("k",))).get("/v1/model", headers=named),
    ):
        assert refused.status_code >= 400
        assert (refused.json()["request_id"], refused.headers["x-request-id"]) == ("h-1", "h-1")
    for unusable in ("a b", "x" * 129, "é"):
        answer = client.post("/v1/rank", ASK, headers={"x-request-id": unusable.encode()})
        assert len(answer.json()["request_id"]) == 32
    assert client.get("/healthz", headers=named).headers["x-request-id"] == "h-1"


def test_requests_may_ask_for_a_version(ranker):
    """1..5 were live, 3 and 4 are kept: who asks for an older one, or for one to come, gets 409."""
    releases = stage.Published()
    swap = stage.swap_of(ranker, releases)
    for version in range(1, 6):
        releases.models[version] = Signature(version)
        assert swap.refresh()
    client = Client(build_http(ranker, swap, impressions=None, clock=stage.CLOCK, limits=PATIENT))

    def answer(**wanted):
        return client.post("/v1/score", {**ASK, **wanted})

    for wanted, version in (
        ({}, 5),
        ({"exact_version": 3}, 3),
        ({"exact_version": 4, "min_version": 4}, 4),
        ({"exact_version": 5}, 5),
        ({"min_version": 5}, 5),
    ):
        body = answer(**wanted).json()
        assert (body["model_version"], body["scores"]) == (version, pytest.approx([version / stage.SIGN] * 4))
        assert (body["live_at_start"], body["live_at_end"]) == (5, 5)
    for wanted, field, retry_after in (
        ({"exact_version": 2}, "exact_version", None),
        ({"exact_version": 6}, "exact_version", "1"),
        ({"min_version": 6}, "min_version", "1"),
        ({"min_version": 4, "exact_version": 3}, "min_version", None),
    ):
        refused = answer(**wanted)
        assert (refused.status_code, refused.json()["error"], refused.json()["field"]) == (
            409,
            "version_not_live",
            field,
        )
        assert refused.headers.get("retry-after") == retry_after
    assert answer(exact_version=0).status_code == 422


def test_a_swap_amid_the_work_is_said(ranker):
    """2 becomes live while 1 scores: 1 answers, and the answer names both."""
    releases = stage.Published({1: Signature(1)})
    swap = stage.swap_of(ranker, releases)

    class Swapping(Signature):
        def score(self, inputs):
            if swap.live is not None and swap.live.version == 1:  # not in the warm-up
                releases.models[2] = Signature(2)
                assert swap.refresh()
            return super().score(inputs)

    releases.models[1] = Swapping(1)
    assert swap.refresh()
    client = Client(build_http(ranker, swap, impressions=None, clock=stage.CLOCK, limits=PATIENT))
    body = client.post("/v1/score", ASK).json()
    assert (body["model_version"], body["live_at_start"], body["live_at_end"]) == (1, 1, 2)


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


def test_a_replaced_version_of_a_view_is_served_until_it_is_dropped(redis_url, serve):
    """
    v1 active | v2 activated: v1's records are served, and said to be replaced | v1 dropped: refused, and not ready
    """
    plan = plan_of(stage.ThingActivity)

    class Later(FeatureView, source=stage.Reading, entity="thing", name=plan.name):
        reads = Count(windows=("2h",))

    with OnlineStore.open(redis_url, shards=stage.SHARDS, reads_replaced=True) as store:
        stage.fill(store, stage.EVENTS)
        ranker = stage.warm_ranker(store)
        client = serve(Ranks(), on=ranker)
        before = client.post("/v1/score", ASK).json()
        store.views._set_owner(plan_of(Later))  # as a class that was changed in place
        store.activate(plan_of(Later))
        after = client.post("/v1/score", ASK).json()
        assert (after["scores"], after["views"]) == (before["scores"], before["views"])
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["replaced_views"]) == (200, [plan.name])
        assert f'headrace_view_state{{state="replaced",view="{plan.name}"}} 1.0' in client.get("/metrics").text
        with OnlineStore.open(redis_url, shards=stage.SHARDS) as strict, pytest.raises(LayoutError, match=plan.name):
            strict.read(stage.ThingActivity, ["a"])
        store.drop(plan.name, plan.version)
        until(lambda: client.post("/v1/score", ASK).status_code == 503)
        refused, ready = client.post("/v1/score", ASK), client.get("/readyz")
        assert (refused.json()["error"], ready.status_code) == ("layout_differs", 503)
        assert plan.name in ready.json()["problems"][0]
        assert "127.0.0.1" not in refused.text + ready.text


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


def test_openapi_describes_this_very_service(serve):
    """Keys with their types, the context, every status, the keys' scheme; its examples are answered with 200."""
    client = serve(Ranks())
    document = client.get("/openapi.json").json()
    rank = document["paths"]["/v1/rank"]["post"]
    content = rank["requestBody"]["content"]["application/json"]
    fields = content["schema"]["properties"]
    assert fields["entity"]["properties"]["reader"]["type"] == "integer"
    assert (fields["entity"]["required"], fields["entity"]["additionalProperties"]) == (["reader"], False)
    assert fields["candidates"]["items"]["type"] == "string"
    assert set(rank["responses"]) == {"200", "408", "409", "413", "422", "429", "500", "503"}
    assert {each["name"] for each in rank["parameters"]} == {"X-Request-Id", "X-Request-Timeout-Ms"}
    for route in ("rank", "score"):
        assert client.post(f"/v1/{route}", content["example"]).status_code == 200
    features = document["paths"]["/v1/features/{view}/{key}"]["get"]
    example = {each["name"]: each["example"] for each in features["parameters"]}
    assert client.get("/v1/features/{view}/{key}".format(**example)).status_code == 200
    assert "404" in features["responses"]
    assert "securitySchemes" not in document["components"]

    keyed = serve(Ranks(), limits=HttpLimits(api_keys=("k",)))
    document = keyed.get("/openapi.json", headers={"x-api-key": "k"}).json()
    assert set(document["components"]["securitySchemes"]) == {"key", "bearer"}
    assert "401" in document["paths"]["/v1/rank"]["post"]["responses"]
    assert document["paths"]["/readyz"]["get"]["security"] == []


def test_the_documentation_needs_no_other_host(serve):
    """No script, no asset; the example and every route are on the page."""
    client = serve(Ranks())
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not {"<script", "http://", "https://", "src="} & set(page.text.split())
    assert "cdn" not in page.text
    for text in ("POST /v1/rank", "GET /v1/features/{view}/{key}", "reader", "curl -X POST"):
        assert text in page.text


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
