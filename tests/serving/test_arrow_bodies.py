"""Arrow bodies: the same answers as JSON, and streams that are wrong in any way are one 422."""

import json

import numpy as np
import pyarrow as pa
import pytest

from headrace.serving.bodies.arrow import MEDIA_TYPE
from headrace.serving.messages import CANDIDATES_MAX
from tests.serving import stage
from tests.serving.stage import NOW_US

FIELDS = {"entity": {"reader": 7}, "event_time": NOW_US, "request_id": "r"}
BOTH = {"content-type": MEDIA_TYPE, "accept": f"{MEDIA_TYPE}, application/json"}


def stream(candidates, fields=FIELDS, name="candidates", **options):
    metadata = None if fields is None else {b"request": json.dumps(fields).encode()}
    table = pa.table({name: candidates}).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def test_an_arrow_answer_has_what_the_json_answer_has(serve):
    """Rank with and without k, and score; asked in Arrow or JSON; a large and a small request."""
    client = serve(stage.learned_scorer(3))
    things = ["a", "b", "z", *(f"t{i}" for i in range(400))]
    for path, fields, names in (
        ("/v1/rank", {**FIELDS, "k": 2}, things[:3]),
        ("/v1/rank", FIELDS, things),
        ("/v1/score", FIELDS, things),
    ):
        expected = client.post(path, {**fields, "candidates": names}).json()
        asked = {"content": stream(names, fields), "headers": BOTH}
        also = {"json": {**fields, "candidates": names}, "headers": {"accept": MEDIA_TYPE}}
        for options in (asked, also):
            answer = client("POST", path, **options)
            assert (answer.status_code, answer.headers["content-type"]) == (200, MEDIA_TYPE)
            assert answer.headers["x-model-version"] == "3"
            table = pa.ipc.open_stream(answer.content).read_all()
            header = json.loads(table.schema.metadata[b"response"])
            ranked = expected.get("ranked")
            assert header == {name: value for name, value in expected.items() if name not in {"ranked", "scores"}}
            if ranked is None:
                assert table.column_names == ["score"]
                assert table["score"].to_pylist() == pytest.approx(expected["scores"], abs=1e-6)
            else:
                assert table["candidate"].to_pylist() == [one["candidate"] for one in ranked]
                assert table["score"].to_pylist() == pytest.approx([one["score"] for one in ranked], abs=1e-6)
                assert table["position"].to_pylist() == [one["position"] for one in ranked]
        in_json = client("POST", path, content=stream(names, fields), headers={"content-type": MEDIA_TYPE}).json()
        assert in_json == expected


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        (b"", "body", "no Arrow stream"),
        (b"{}", "body", "no Arrow stream"),
        (stream(["a"])[:-40], "body", "no Arrow stream"),
        (stream(["a"]) + b"more", "body", "4 bytes after the end"),
        (stream(["a"]) + stream(["b"]), "body", "bytes after the end"),
        (stream(["a"], compression="zstd"), "body", "compressed"),
        (stream(["a"] * 9, compression="lz4"), "body", "compressed"),
        (stream(pa.array(["a", "b"]).dictionary_encode()), "body", "dictionary"),
        (stream(["a"], name="things"), "candidates", "columns"),
        (stream([1.5]), "candidates", "double"),
        (stream(["a", None]), "candidates", "null"),
        (stream(["a", ""]), "candidates", "characters"),
        (stream(pa.array([], pa.string())), "candidates", "0 candidates"),
        (stream(["a"] * (CANDIDATES_MAX + 1)), "candidates", "allowed"),
        (stream(np.array([2**63], np.uint64)), "candidates", "candidates"),
        (stream([7]), "candidates[0]", "7"),
        (stream(["a"], {**FIELDS, "candidates": ["b"]}), "body", "request"),
        (stream(["a"], {**FIELDS, "kk": 3}), "kk", "kk"),
        (stream(["a"], None), "entity", "entity"),
    ],
)
def test_a_wrong_stream_is_refused_by_name(serve, body, field, says):
    """422 in JSON, with the field and what was found."""
    answer = serve(stage.Ranks())("POST", "/v1/rank", content=body, headers=BOTH)
    assert (answer.status_code, answer.json()["field"]) == (422, field)
    assert says in answer.text


def test_damaged_streams_never_reach_the_model(serve):
    """Single bytes of a valid stream changed: 200, or a 4xx that says why; the process goes on."""
    client, rng, whole = serve(stage.Ranks()), np.random.default_rng(1), stream([f"t{i}" for i in range(40)])
    for _ in range(300):
        body = bytearray(whole)
        body[int(rng.integers(len(body)))] = int(rng.integers(256))
        assert client("POST", "/v1/rank", content=bytes(body), headers=BOTH).status_code in {200, 422}
