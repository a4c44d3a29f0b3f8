"""What clients can rely on: faults that name their place, ids, limits, browsers, and the description of all that."""

import gzip

import orjson
import pytest

from headrace.serving import HttpLimits
from tests.serving.stage import ASK, Ranks


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
        ({"entity": {"reader": 7}, "candidates": ["a"], "k": True}, "k"),
        ({"entity": {"reader": 7}, "candidates": ["a"], "k": "1"}, "k"),
        ({"entity": {"reader": 7}, "candidates": ["a"], "min_version": True}, "min_version"),
        ({"entity": {"reader": 7}, "candidates": ["a"], "exact_version": "1"}, "exact_version"),
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


def test_a_misspelt_field_is_named_before_the_one_that_is_missing(serve):
    """With the field that it may stand for."""
    misspelt = {("candidate" if name == "candidates" else name): value for name, value in ASK.items()}
    refused = serve(Ranks()).post("/v1/rank", misspelt).json()
    assert refused["field"] == "candidate"
    assert refused["fix"].endswith("; nearest is 'candidates'")


def test_the_deadlines_header_may_have_blanks(serve):
    """As HTTP allows around a value; anything else is named."""
    client = serve(Ranks())
    assert client.post("/v1/rank", ASK, headers={"x-request-timeout-ms": " 30000 "}).status_code == 200
    for value in ("0", "-1", "1e3", "5_0", "60001", "", "1" * 5_000):
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
    for length, status in (("0" * 5_000 + "5", 422), ("9" * 5_000, 413)):
        assert client("POST", "/v1/rank", content=b"{nope", headers={"content-length": length}).status_code == status

    async def chunks():
        for _ in range(4):
            yield long[:500]

    for content in (long, chunks()):
        response = client("POST", "/v1/rank", content=content)
        assert (response.status_code, response.json()["error"]) == (413, "body_too_large")


def test_unknown_routes_answer_in_the_same_shape(serve):
    """404 and 405 as JSON with error, detail, fix."""
    assert serve().get("/v2/rank").json()["error"] == "no_such_route"
    refused = serve().get("/v1/rank")
    assert (refused.status_code, refused.headers["allow"], refused.json()["fix"]) == (405, "POST", "send POST")
    for path in ("/v1/model/", "/v1/features/reader_activity"):  # no redirect to what the header Host says
        assert serve().get(path).json()["error"] == "no_such_route"


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


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"entity": {"reader": 7}, "entity": {"reader": 8}, "candidates": ["a"]}', "entity"),
        (b'{"entity": {"reader": 7, "reader": 8}, "candidates": ["a"]}', "reader"),
        (b'{"entity": {"reader": 7}, "candidates": ["a"], "candidates": ["b"]}', "candidates"),
        (b'{"entity": {"reader": 7, "\\u0072eader": 8}, "candidates": ["a"]}', "reader"),
        (b'{"entity": {"reader": 7}, "candidates": ["a"], "context": {"page": 1, "page": 2}}', "page"),
        (b'{"entity": {"reader": 7}, "candidates": ["urn:a:b"], "k": 1, "k" : 2}', "k"),
    ],
)
def test_a_name_that_comes_twice_is_refused(serve, body, field):
    """One parser takes the last, another the first: it must not be for us to guess."""
    client = serve(Ranks())
    for path in ("/v1/rank", "/v1/score") if field != "k" else ("/v1/rank",):
        refused = client("POST", path, content=body)
        assert (refused.status_code, refused.json()["field"]) == (422, field)
        assert refused.json()["detail"] == f"{field}: given twice"
    good = {"entity": {"reader": 7}, "candidates": ["urn:a:b", ":", '"a":1'], "event_time": "2026-03-01T12:00:00Z"}
    assert client.post("/v1/rank", {**good, "context": {"page": 1}}).status_code == 200
    huge = b'{"entity": {"reader": 7}, "candidates": ["a:b"], "context": {"x": %s}}' % (b"9" * 5_000)
    assert client("POST", "/v1/rank", content=huge).status_code in {200, 422}


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "GZIP, identity", "\xe9"])
def test_a_compressed_body_is_refused_by_its_name(serve, encoding):
    """422, before anything is parsed; identity is no compression."""
    client = serve(Ranks())
    content = gzip.compress(orjson.dumps(ASK))
    headers = {"content-type": "application/json", "content-encoding": encoding.encode("latin-1")}
    refused = client("POST", "/v1/rank", content=content, headers=headers)
    assert (refused.status_code, refused.json()["field"]) == (422, "body")
    assert f"Content-Encoding is {encoding!r}" in refused.json()["detail"]
    assert refused.json()["fix"] == "send the body without Content-Encoding"
    assert client.post("/v1/rank", ASK, headers={"content-encoding": "identity"}).status_code == 200


def test_probes_answer_head(serve):
    """Load balancers ask so; the document describes GET alone."""
    client = serve(Ranks())
    for path in ("/healthz", "/readyz"):
        assert client("HEAD", path).status_code == client.get(path).status_code
        assert list(client.get("/openapi.json").json()["paths"][path]) == ["get"]
