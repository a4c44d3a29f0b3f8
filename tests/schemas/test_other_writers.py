"""Payloads of older declarations: read by their writer's schema, alone, mixed, and through a registry."""

import io
import json
from datetime import UTC, datetime

import fastavro
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import EvolutionError, ServiceError
from headrace.schemas import AvroCodec, ConfluentAvroCodec, Event, spec_of
from headrace.schemas.codecs import avro
from headrace.schemas.codecs.registry import SchemaRegistry
from tests.schemas.samples import Everything, frame_of, rows

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


class Reading(Event, topic="readings", key="sensor"):
    event_time: datetime
    sensor: int
    value: float
    note: str | None
    count: int = 7


SPEC = spec_of(Reading)
TIME = {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-micros"}}
# Other order, an int where we have a float, null last, one field more, two fields fewer.
OLD = {
    "type": "record",
    "name": "Reading",
    "fields": [
        {"name": "gone", "type": {"type": "array", "items": {"type": "record", "name": "P", "fields": [TIME]}}},
        {"name": "again", "type": ["null", "P"]},
        {"name": "value", "type": "int"},
        {"name": "sensor", "type": "long"},
        TIME,
        {"name": "note", "type": ["string", "null"], "default": ""},
    ],
}
OLD_ROW = {"gone": [{"event_time": NOON}], "again": None, "value": 3, "sensor": 5, "event_time": NOON, "note": None}
NEW_ROW = {"event_time": NOON, "sensor": 1, "value": 0.5, "note": "n", "count": 2}
UPGRADED = {"event_time": NOON, "sensor": 5, "value": 3.0, "note": None, "count": 7}


def datum(schema, row, head=b""):
    sink = io.BytesIO(head)
    sink.seek(0, io.SEEK_END)
    fastavro.schemaless_writer(sink, fastavro.parse_schema(schema), row)
    return sink.getvalue()


def framed(schema_id, schema, row):
    return datum(schema, row, b"\0" + schema_id.to_bytes(4, "big"))


def test_plain_datums_are_read_by_the_schema_that_wrote_them():
    old = [datum(OLD, OLD_ROW), datum(OLD, OLD_ROW | {"note": "x"})]
    wire = AvroCodec(SPEC, writer=OLD)
    decoded = wire.decode([old[0], old[0][:-1], old[1]])
    assert decoded.frame.equals(frame_of(Reading, [UPGRADED, UPGRADED | {"note": "x"}]))
    assert [bad.index for bad in decoded.bad] == [1]
    assert wire.encode(frame_of(Reading, [NEW_ROW])) == [datum(SPEC.avro, NEW_ROW)]


def test_ids_part_the_writers_and_keep_the_order():
    asked = []

    def writers(schema_id):
        asked.append(schema_id)
        return {1: OLD, 3: {"type": "record", "name": "R", "fields": [TIME]}}.get(schema_id)

    new, old, lacking = (
        framed(2, SPEC.avro, NEW_ROW),
        framed(1, OLD, OLD_ROW),
        framed(3, OLD | {"fields": [TIME]}, OLD_ROW),
    )
    payloads = [old, new, b"", old[:-1], lacking, old, new, new + b"x", framed(9, SPEC.avro, NEW_ROW), b"\1" + new[1:]]
    wire = ConfluentAvroCodec(SPEC, 2, writers=writers)
    for _ in range(2):
        decoded = wire.decode(payloads)
        assert decoded.payload_index.tolist() == [0, 1, 5, 6]
        assert decoded.frame.equals(frame_of(Reading, [UPGRADED, NEW_ROW, UPGRADED, NEW_ROW]))
        reasons = {bad.index: bad.reason for bad in decoded.bad}
        assert reasons == {2: "undecodable", 3: "undecodable", 4: "missing"} | dict.fromkeys((7, 8, 9), "undecodable")
        assert [bad.detail for bad in decoded.bad if bad.index == 4] == [
            "event Reading.sensor: no such column, wanted Int64; there are event_time"
        ]
    assert sorted(asked) == [1, 3, 9]


@settings(max_examples=15)
@given(made=rows(Everything), data=st.data())
def test_our_own_schema_as_writer_changes_nothing(made, data):
    frame = frame_of(Everything, made)
    payloads = AvroCodec(spec_of(Everything)).encode(frame)
    assert AvroCodec(spec_of(Everything), writer=spec_of(Everything).avro).decode(payloads).frame.equals(frame)
    mixed = [data.draw(st.sampled_from([1, 2])).to_bytes(5, "big") + payload for payload in payloads]
    wire = ConfluentAvroCodec(spec_of(Everything), 2, writers=lambda _: spec_of(Everything).avro)
    assert wire.decode(mixed).frame.equals(frame)


def registry(status=200, broken=False):
    """A registry that knows id 1, and the requests that it gets."""
    asked = []

    def answer(request):
        asked.append((request.method, request.url.path))
        if broken:
            raise httpx.ConnectError("no route")
        if request.method == "POST":
            assert json.loads(json.loads(request.content)["schema"])["name"] == "Reading"
            return httpx.Response(status, json={"id": 2} if status == 200 else {"message": "field gone"})
        if request.url.path == "/schemas/ids/1":
            return httpx.Response(200, json={"schema": json.dumps(OLD)})
        return httpx.Response(404, json={"error_code": 40403})

    return SchemaRegistry("http://registry", transport=httpx.MockTransport(answer), patience_s=0), asked


def test_the_registry_gives_ids_and_other_writers_schemas_once():
    known, asked = registry()
    wire = ConfluentAvroCodec(SPEC, known.register(SPEC), writers=known.schema)
    payloads = [framed(1, OLD, OLD_ROW), framed(2, SPEC.avro, NEW_ROW), framed(7, OLD, OLD_ROW)]
    for _ in range(2):
        assert wire.decode(payloads).frame.equals(frame_of(Reading, [UPGRADED, NEW_ROW]))
    assert known.schema(1) == OLD
    assert sorted(asked) == [
        ("GET", "/schemas/ids/1"),
        ("GET", "/schemas/ids/7"),
        ("POST", "/subjects/readings-value/versions"),
    ]
    known.close()


def test_what_a_registry_refuses_or_fails_at_is_told():
    with pytest.raises(EvolutionError, match=r"event Reading: the schema registry refuses it: .*field gone"):
        registry(status=409)[0].register(SPEC)
    with pytest.raises(ServiceError, match="500"):
        registry(status=500)[0].register(SPEC)
    with pytest.raises(ServiceError, match=r"http://registry.*no route"):
        registry(broken=True)[0].schema(1)


def answering(*answers):
    """A registry that gives the answers to `GET /schemas/ids/...` one after another, and the ids that it is asked."""
    asked, left = [], list(answers)

    def answer(request):
        asked.append(int(request.url.path.rpartition("/")[2]))
        found = left.pop(0) if len(left) > 1 else left[0]
        return found if isinstance(found, httpx.Response) else httpx.Response(200, json=found)

    return SchemaRegistry("http://me:secret@registry", transport=httpx.MockTransport(answer), patience_s=0.1), asked


@pytest.mark.parametrize(
    ("answer", "detail"),
    [
        ({"schema": "syntax = ...", "schemaType": "PROTOBUF"}, "the schema is PROTOBUF, and only Avro is read"),
        ({"schema": "{}", "schemaType": "JSON"}, "the schema is JSON, and only Avro is read"),
        ({"schema": "{"}, "answered '{' for a schema"),
        ({"schema": 7}, "answered '7' for a schema"),
        ({"other": 1}, "answered '' for a schema"),
        ([1], "which is no JSON object"),
        (
            httpx.Response(200, text="<html>sign in"),
            "/schemas/ids/7 answered 200 <html>sign in, which is no JSON object",
        ),
        (httpx.Response(200, content=b"\xff"), "which is no JSON object"),
        (httpx.Response(422, text="not an id"), "/schemas/ids/7 answered 422 not an id"),
        (httpx.Response(404, text="unknown"), "the registry has none"),
        ({"schema": json.dumps("string")}, "the writer's schema is string; an event is a record"),
        ({"schema": json.dumps(["null", OLD])}, "an event is a record"),
        ({"schema": json.dumps({"type": "record", "name": "A", "fields": [{"name": "b", "type": "C"}]})}, "'C' is not"),
    ],
)
def test_an_answer_that_is_no_schema_of_a_record_costs_the_payloads_that_name_it(answer, detail):
    known, asked = answering(answer)
    wire = ConfluentAvroCodec(SPEC, 2, writers=known.schema)
    good = framed(2, SPEC.avro, NEW_ROW)
    for _ in range(2):
        decoded = wire.decode([good, framed(7, OLD, OLD_ROW), good, framed(7, OLD, OLD_ROW)])
        assert decoded.payload_index.tolist() == [0, 2]
        assert [(bad.index, bad.reason) for bad in decoded.bad] == [(1, "undecodable"), (3, "undecodable")]
        assert all(bad.detail.startswith("schema id 7: ") and detail in bad.detail for bad in decoded.bad)
        assert "secret" not in decoded.bad[0].detail
    assert asked == [7]


@pytest.mark.parametrize("status", [401, 403, 500, 503, 429])
def test_a_registry_that_refuses_or_fails_stops_the_batch_which_can_be_decoded_again(status):
    known, asked = answering(httpx.Response(status, text="no"), {"schema": json.dumps(OLD)})
    is_passing = status in (500, 503, 429)
    wire = ConfluentAvroCodec(SPEC, 2, writers=known.schema)
    payloads = [framed(7, OLD, OLD_ROW)]
    if not is_passing:
        with pytest.raises(ServiceError, match=rf"http://me:\*\*\*@registry: /schemas/ids/7 answered {status} no"):
            wire.decode(payloads)
    assert wire.decode(payloads).frame.equals(frame_of(Reading, [UPGRADED]))
    assert asked == [7, 7]


def test_a_schema_that_is_registered_later_is_found(monkeypatch):
    monkeypatch.setattr(avro, "MISS_SPAN_S", 0.0)
    known, asked = answering(httpx.Response(404), httpx.Response(200, text="busy"), {"schema": json.dumps(OLD)})
    wire = ConfluentAvroCodec(SPEC, 2, writers=known.schema)
    heights = [wire.decode([framed(7, OLD, OLD_ROW)]).frame.height for _ in range(4)]
    assert heights == [0, 0, 1, 1]
    assert asked == [7, 7, 7]


def test_a_storm_of_damaged_ids_asks_for_a_few_and_for_the_frequent_first():
    asked = []

    def writers(schema_id):
        asked.append(schema_id)
        return OLD if schema_id == 7 else None

    old, new = framed(7, OLD, OLD_ROW), framed(2, SPEC.avro, NEW_ROW)
    noise = [b"\0" + (1_000 + i).to_bytes(4, "big") + old[5:] for i in range(500)]
    wire = ConfluentAvroCodec(SPEC, 2, writers=writers)
    decoded = wire.decode([*noise, old, new, old])
    assert decoded.payload_index.tolist() == [500, 501, 502]
    assert [bad.index for bad in decoded.bad] == list(range(500))
    assert asked[0] == 7
    assert len(asked) == 1 + avro.MISSES_MAX
    assert sum("the registry has none" in bad.detail for bad in decoded.bad) == avro.MISSES_MAX
    assert "schema id 1499: not asked for, after 32 unknown ids in 10 s" in {bad.detail for bad in decoded.bad}


def test_answers_that_hold_no_id_are_told_at_the_start():
    for answer in (
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={}),
        httpx.Response(200, json={"id": "x"}),
    ):
        known = SchemaRegistry("http://registry", transport=httpx.MockTransport(lambda _, found=answer: found))
        for ask in (known.register, known.id_of):
            with pytest.raises(ServiceError, match=r"holds no id; check HEADRACE_REGISTRY_URL"):
                ask(SPEC)
