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
from headrace.schemas.registry import SchemaRegistry
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


@settings(max_examples=15, deadline=None)
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
