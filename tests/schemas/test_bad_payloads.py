"""A bad payload costs itself only, and nothing that is no event comes out as one.

The judges are fastavro and a naive JSON reader; neither shares code with the kernels.
"""

import io
import json
import struct
from datetime import UTC, datetime

import fastavro
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from headrace.schemas import Event, codec_for, spec_of
from headrace.schemas.codecs.avro import AvroCodec, ConfluentAvroCodec
from tests.schemas.samples import EVENTS, SPEC, BadJsonError, Everything, Flat, frame_of, naive_json, rows
from tests.tiers import by_tier


def damages(payload: bytes):
    """Ways to damage one payload: cut, lengthen, change, drop or double a byte."""
    places = st.integers(0, max(len(payload) - 1, 0))
    bytes_ = st.integers(0, 255).map(lambda b: bytes([b])) | st.sampled_from(
        [b'"', b",", b"}", b"[", b"\n", b"0", b" "]
    )
    cut = places.map(lambda i: payload[:i])
    longer = bytes_.map(lambda b: payload + b)
    changed = st.builds(lambda i, b: payload[:i] + b + payload[i + 1 :], places, bytes_)
    dropped = places.map(lambda i: payload[:i] + payload[i + 1 :])
    doubled = st.builds(lambda i, b: payload[:i] + b + payload[i:], places, bytes_)
    return cut | longer | changed | dropped | doubled


@st.composite
def batches(draw, codec):
    """(event, frame, its payloads with some damaged, which those are)."""
    event = draw(st.sampled_from(EVENTS))
    frame = frame_of(event, draw(rows(event, min_size=1)))
    payloads = codec_for(event, codec).encode(frame)
    hit = draw(st.lists(st.integers(0, len(payloads) - 1), min_size=1, max_size=3, unique=True))
    for index in hit:
        payloads[index] = draw(damages(payloads[index]))
    return event, frame, payloads, sorted(hit)


def physical(schema):
    """An Avro schema without logical types: fastavro's Python datetimes end at the year 9999."""
    if isinstance(schema, dict):
        return {name: physical(value) for name, value in schema.items() if name != "logicalType"}
    return [physical(item) for item in schema] if isinstance(schema, list) else schema


def naive_avro(schema, payload: bytes):
    """The row that fastavro reads from the whole payload, or None."""
    source = io.BytesIO(payload)
    try:
        row = fastavro.schemaless_reader(source, schema)
    except (EOFError, IndexError, ValueError, OverflowError, TypeError, MemoryError, struct.error):
        return None
    return row if source.tell() == len(payload) else None


@settings(max_examples=by_tier(fast=25, whole=60))
@given(batch=batches("avro"))
def test_damaged_datums_cost_themselves_only(batch):
    event, frame, payloads, hit = batch
    decoded = codec_for(event, "avro").decode(payloads)
    bad = [one.index for one in decoded.bad]
    assert set(bad) <= set(hit)
    assert sorted([*bad, *decoded.payload_index.tolist()]) == list(range(len(payloads)))
    schema = fastavro.parse_schema(physical(spec_of(event).avro))
    as_numbers = {"time": pl.Int64, "list": pl.List(pl.Int64)}
    times = {
        n: found for n, found in spec_of(event).types.items() if "time" in (found.kind, found.item and found.item.kind)
    }
    numbers = {name: as_numbers[found.kind] for name, found in times.items()}
    for place, index in enumerate(decoded.payload_index.tolist()):
        row = decoded.frame[place : place + 1]
        if index not in hit:
            assert row.equals(frame[index : index + 1])
            continue
        wanted = naive_avro(schema, payloads[index])
        assert wanted is not None, "fastavro refuses what we accept"
        assert same(row.cast(numbers).row(0, named=True), wanted)


def same(ours, theirs):
    """Equal values, where NaN equals itself."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[name], theirs[name]) for name in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs or (ours != ours and theirs != theirs)  # noqa: PLR0124


@settings(max_examples=by_tier(fast=20, whole=40))
@given(made=rows(Everything, min_size=2, max_size=4), data=st.data())
def test_cut_and_lengthened_datums_are_always_bad(made, data):
    """Joined, a cut datum and the next one read on as if nothing were wrong; their bounds tell.

    A datum that is one by chance as well after what was put before it is another row, to any reader.
    """
    frame = frame_of(Everything, made)
    wire = codec_for(Everything, "avro")
    payloads = wire.encode(frame)
    cut = data.draw(st.integers(1, len(payloads[0])))
    shifted = [payloads[0][:-cut], payloads[0][-cut:] + payloads[1], *payloads[2:]]
    decoded = wire.decode(shifted)
    bad = {one.index: one.reason for one in decoded.bad}
    assert bad.pop(0) == "undecodable"
    if naive_avro(fastavro.parse_schema(physical(spec_of(Everything).avro)), shifted[1]) is None:
        assert bad.pop(1) == "undecodable"
        assert decoded.frame.equals(frame[2:])
    assert bad.keys() <= {1}
    assert decoded.frame[-len(payloads[2:]) :].equals(frame[2:]) or not payloads[2:]


@settings(max_examples=20)
@given(junk=st.lists(st.binary(max_size=60), max_size=5))
def test_junk_never_raises(junk):
    frame = frame_of(Flat, [])
    for codec in ("avro", "confluent-avro", "json", "arrow"):
        decoded = codec_for(Flat, codec).decode(junk)
        assert decoded.frame.schema == frame.schema
        assert len(decoded.bad) + len(set(decoded.payload_index.tolist())) == len(junk)


@pytest.mark.parametrize(
    ("tail", "detail"),
    [
        (b"", "ends before"),
        (b"\x02" * 4, "left over"),
        (b"\x80" * 10, "64 bits"),
        (b"\x06", "maybe_text: a union has a branch that its schema does not have"),
        (b"\x02\x04\xff\xff", "not UTF-8"),
        (b"\x02\x03", "negative or beyond"),
        (b"\x02\x08ab", "negative or beyond"),
    ],
)
def test_what_is_wrong_with_a_datum_is_told(tail, detail):
    good = AvroCodec(spec_of(Flat)).encode(flat_frame(maybe_text=None))[0]
    (bad,) = AvroCodec(spec_of(Flat)).decode([good[:-1] + tail]).bad
    assert detail in bad.detail
    assert str(len(good) - 1 + len(tail)) in bad.detail


def test_another_magic_byte_or_schema_id_is_a_bad_payload():
    wire = ConfluentAvroCodec(spec_of(Flat), 7)
    (good,) = wire.encode(flat_frame())
    assert good[:5] == b"\0\0\0\0\7"
    decoded = wire.decode([good, b"\1" + good[1:], b"\0\0\0\0\x08" + good[5:], good[:3], b"", good])
    assert [bad.index for bad in decoded.bad] == [1, 2, 3, 4]
    assert "01 00 00 00 07" in decoded.bad[0].detail
    assert decoded.payload_index.tolist() == [0, 5]


FLAT = {
    "event_id": 1,
    "event_time": "2024-05-06T07:08:09.000010Z",
    "number": -3,
    "weight": 0.5,
    "flag": True,
    "text": 'q"\\/\b\f\n\r\té😀',
    "maybe_text": "x",
}


def flat_frame(**changes):
    """One row of plain values."""
    return frame_of(Flat, [FLAT | {"event_time": datetime(2024, 5, 6, tzinfo=UTC)} | changes])


def verdict(event, payload):
    """What the naive reader says: a row, or a reason."""
    try:
        return naive_json(event, payload)
    except BadJsonError as exc:
        return exc.args[0]


def check(event, payload):
    """Ours and the naive reader agree on one payload, between two good ones."""
    (good,) = codec_for(Flat, "json").encode(flat_frame())
    batch = [good, payload, good] if event is Flat else [payload]
    decoded = codec_for(event, "json").decode(batch)
    wanted = verdict(event, payload)
    if isinstance(wanted, pl.DataFrame):
        assert decoded.bad == []
        assert decoded.frame[len(batch) // 2 : len(batch) // 2 + 1].equals(wanted)
    else:
        assert [(bad.index, bad.reason) for bad in decoded.bad] == [(len(batch) // 2, wanted)]
        assert decoded.frame.height == len(batch) - 1


@settings(max_examples=by_tier(fast=25, whole=60))
@given(batch=batches("json"))
def test_damaged_objects_cost_themselves_only(batch):
    event, frame, payloads, hit = batch
    decoded = codec_for(event, "json").decode(payloads)
    bad = {one.index: one.reason for one in decoded.bad}
    assert set(bad) <= set(hit)
    for place, index in enumerate(decoded.payload_index.tolist()):
        wanted = verdict(event, payloads[index]) if index in hit else frame[index : index + 1]
        assert not isinstance(wanted, str), "the naive reader refuses what we accept"
        assert decoded.frame[place : place + 1].equals(wanted)
    for index, reason in bad.items():
        wanted = verdict(event, payloads[index])
        assert isinstance(wanted, str), f"the naive reader accepts {payloads[index]!r}"
        assert wanted == reason


VALUES = (
    *('""', '"x"', '"\\u00e9\\ud83d\\ude00"', '"\\ud800"', '"\\udc00"', '"\\x"', '"a\tb"', '"a\\/b"', "'a'", '"'),
    *(
        "0",
        "-0",
        "1",
        "01",
        "1.0",
        "1e3",
        "1E+2",
        "-",
        "+1",
        ".5",
        "1.",
        "1e",
        "0.1e-2",
        "1e999",
        "12345678901234567890",
    ),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "0.1", "2.5e-324"),
    *("0.1234567890123456789", "123456789.123456789e-30", "NaN", "Infinity", '"NaN"', '"-Infinity"', '"Infinity"'),
    *(
        "true",
        "false",
        "null",
        "tru",
        "nul",
        "nulll",
        "True",
        "[]",
        "[1]",
        "[1,]",
        "[,]",
        "{}",
        '{"a":1}',
        '{"a":}',
        "{,}",
    ),
    *(
        '{"a":1,}',
        '{"a" 1}',
        "{1:2}",
        '[[[{"a":[null]}]]]',
        "",
        " ",
        "1 2",
        "[1 2]",
        "// c",
        '"AAA="',
        '"AA=="',
        '"A==="',
    ),
    *(
        '"AAAA"',
        '"AA=A"',
        '"A-_+"',
        '"\\/w=="',
        '"2024-02-29T00:00:00Z"',
        '"2023-02-29T00:00:00Z"',
        '"2024-01-01T24:00Z"',
    ),
    *(
        '"2024-01-01 10:20"',
        '"2024-01-01t10:20:30.5z"',
        '"2024-01-01T10:20:30.1234567+05:30"',
        '"2024-01-01T10:20-0130"',
    ),
    *(
        '"2024-01-01"',
        '"2024-13-01T00:00Z"',
        '"0000-01-01T00:00Z"',
        '"2024-01-01T10:20:60Z"',
        '"2024-01-01T10:20:30.Z"',
    ),
    *('"2024-01-01T10:20+25:00"', '"٢٠٢٤-01-01T10:20"', '"1900-03-01T00:00Z"', '"2100-02-28T23:59:59.999999Z"'),
)


@pytest.mark.parametrize("name", ["event_time", "number", "weight", "flag", "text", "maybe_text", "unknown"])
def test_every_kind_of_value_in_every_kind_of_field(name):
    for value in VALUES:
        members = {key: json.dumps(inner) for key, inner in FLAT.items()} | {name: value}
        check(Flat, ("{" + ",".join(f'"{key}":{inner}' for key, inner in members.items()) + "}").encode())


@pytest.mark.parametrize(
    "name", ["blob", "tags", "maybe_list", "place", "maybe_place", "places", "times", "count", "since"]
)
def test_every_kind_of_value_in_nested_and_defaulted_fields(name):
    (good,) = codec_for(Everything, "json").encode(frame_of(Everything, [PLAIN]))
    members = {key: json.dumps(inner) for key, inner in json.loads(good).items()}
    for value in (
        *VALUES,
        '{"number":1}',
        '[{"number":1,"label":null,"x":[{}]},{"label":"a","number":2,"marks":["AA=="]}]',
    ):
        check(Everything, ("{" + ",".join(f'"{k}":{v}' for k, v in (members | {name: value}).items()) + "}").encode())


PLAIN = {
    "event_id": "i",
    "number": 1,
    "weight": 1.5,
    "flag": False,
    "blob": b"x",
    "colour": "red",
    "word": "a",
    "level": 1,
    "count": 1,
    "note": "",
    "tags": [],
    "weights": [1.0],
    "times": [],
    "places": [],
    "place": {"number": 1, "label": None, "marks": []},
    "event_time": 0,
    "since": 5,
}


@pytest.mark.parametrize("name", list(spec_of(Everything).types))
def test_a_field_that_is_left_out_takes_its_default_or_is_missing(name):
    (good,) = codec_for(Everything, "json").encode(frame_of(Everything, [PLAIN]))
    members = json.loads(good)
    del members[name]
    check(Everything, json.dumps(members).encode())


@pytest.mark.parametrize(
    ("payload", "detail"),
    [
        ('{"amount":null}', "amount: null, which the event does not allow; leave the field out for its default, or"),
        ('{"door":null}', "door: null, which the event does not allow; declare `| None`"),
        ('{"tags":["a",null]}', "tags[]: null, which the event does not allow; declare `| None`"),
        ('{"spot":{"x":null}}', "spot.x: null, which the event does not allow; declare `| None`"),
        ('{"spot":{}}', "spot.x: no value, and the event has no default"),
        ('{"door":"x"}', "door: the value is no integer of 64 bits"),
        ('{"event_time":"noon"}', "event_time: the value is no ISO 8601 time or whole microseconds since 1970"),
        ("null", "payload: the value is no object"),
        ("[]", "payload: the value is no object"),
    ],
)
def test_what_is_wrong_with_an_object_is_told_as_it_is(payload, detail):
    class Spot(BaseModel):
        x: int

    class Told(Event, topic="told", key="door", codec="json"):
        event_time: datetime
        door: int
        amount: float = 0.0
        tags: list[str] = []  # noqa: RUF012
        spot: Spot | None = None

    base = {"event_time": "2026-01-01T00:00:00Z", "door": 1}
    given = json.loads(payload)
    whole = json.dumps(base | given) if isinstance(given, dict) else payload
    [bad] = codec_for(Told).decode([json.dumps(base).encode(), whole.encode()]).bad
    assert bad.detail.startswith(detail)
    assert bad.reason == ("missing" if "null," in detail or "no value" in detail else "wrong_type")


def test_names_come_in_any_order_escaped_with_space_around_and_never_twice():
    members = [(key, json.dumps(inner)) for key, inner in FLAT.items()]
    turned = " , ".join(f'"{key}" :\n{inner} ' for key, inner in reversed(members))
    check(Flat, f"\t{{ {turned} }}\r\n".encode())
    check(Flat, json.dumps(FLAT).replace('"number"', '"n\\u0075mber"').encode())
    check(Flat, json.dumps(FLAT).replace('"number"', '"number": 4, "number"').encode())
    check(Flat, json.dumps(FLAT).replace('"number"', '"other": 4, "other"').encode())


def test_one_payload_never_gives_two_rows_or_takes_the_row_of_another():
    """Joined by newlines, these would be as many objects as payloads."""
    text = json.dumps(FLAT).encode()
    half = len(text) // 2
    for batch in ([text + b"\n" + text, b" "], [text[:half], text[half:]], [text + text, b""], [b"[" + text + b"]"]):
        decoded = codec_for(Flat, "json").decode(batch)
        assert decoded.frame.height == 0
        assert [bad.index for bad in decoded.bad] == list(range(len(batch)))


def test_nesting_has_a_limit():
    deep = json.dumps(FLAT)[:-1] + ', "x": ' + "[" * 65 + "]" * 65 + "}"
    (bad,) = codec_for(Flat, "json").decode([deep.encode()]).bad
    assert bad.detail == "nested more than 64 deep"
    assert (
        codec_for(Flat, "json").decode([deep.replace("[" * 65, "[" * 64).replace("]" * 65, "]" * 64).encode()]).bad
        == []
    )


def test_arrow_messages_are_bad_as_a_whole():
    wire = codec_for(Flat, "arrow")
    frame = pl.concat([flat_frame()] * 3)
    (good,) = wire.encode(frame)

    def message(changed):
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, changed.to_arrow().schema) as stream:
            stream.write_table(changed.to_arrow())
        return sink.getvalue()

    lacking, other = message(frame.drop("text")), message(frame.with_columns(number=pl.lit("x")))
    decoded = wire.decode(
        [good, b"", lacking, other, good[: len(good) // 2], message(frame.select(frame.columns[::-1]))]
    )
    assert [(bad.index, bad.reason) for bad in decoded.bad] == [
        (1, "undecodable"),
        (2, "missing"),
        (3, "wrong_type"),
        (4, "undecodable"),
    ]
    assert decoded.payload_index.tolist() == [0, 0, 0, 5, 5, 5]
    assert decoded.frame.equals(pl.concat([frame, frame]))


def test_the_spec_of_everything_holds_every_kind():
    kinds = {found.kind for found in SPEC.types.values()}
    assert kinds == {"int", "float", "bool", "text", "bytes", "time", "list", "struct"}
