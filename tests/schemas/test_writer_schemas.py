"""Avro schemas of other writers: every type they may have, in fields that the event has and in those that it has not.

The judge is fastavro, which writes the datums.
"""

import contextlib
import io
import itertools
import tracemalloc
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, localcontext

import fastavro
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from headrace.errors import HeadraceError, SchemaError
from headrace.schemas import AvroCodec, ConfluentAvroCodec, Event, spec_of
from headrace.schemas.codecs.writer_schema import avro_type
from headrace.streams.files.finder import find_files
from headrace.streams.files.reading import read_events

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TIME = {"type": "long", "logicalType": "timestamp-micros"}


class Visit(Event, topic="visits", key="door", codec="confluent-avro"):
    event_time: datetime
    door: int


ROW = {"event_time": NOON, "door": 7}
FIELDS = [{"name": "event_time", "type": TIME}, {"name": "door", "type": "long"}]


def datum(schema, row, schema_id=5):
    """The row as fastavro writes it, behind a Confluent header."""
    sink = io.BytesIO(b"\0" + schema_id.to_bytes(4, "big"))
    sink.seek(0, io.SEEK_END)
    fastavro.schemaless_writer(sink, fastavro.parse_schema(schema), row)
    return sink.getvalue()


def record(fields, **more):
    return {"type": "record", "name": "Visit", "fields": fields, **more}


def decoded(event, schema, payloads):
    return ConfluentAvroCodec(spec_of(event), 1, writers=lambda _: schema).decode(payloads)


PRIMITIVES = {
    "null": st.none(),
    "boolean": st.booleans(),
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False),
    "string": st.text(max_size=9),
    "bytes": st.binary(max_size=9),
}
COMPOUND = ["array", "map", "record", "union", "tree"]


@st.composite
def types(draw, names, depth=0):
    """(An Avro schema, a strategy of its values); `names` collects the named types, whose names are unique."""
    kind = draw(st.sampled_from([*PRIMITIVES, "enum", "fixed", *(COMPOUND if depth < 3 else [])]))
    if kind in PRIMITIVES:
        return kind, PRIMITIVES[kind]
    if kind == "union":
        chosen = draw(
            st.lists(st.sampled_from(["null", "boolean", "long", "string"]), min_size=1, max_size=4, unique=True)
        )
        return chosen, st.one_of([PRIMITIVES[branch] for branch in chosen])
    if kind in ("array", "map"):
        inner, values = draw(types(names, depth + 1))
        if kind == "array":
            return {"type": "array", "items": inner}, st.lists(values, max_size=4)
        return {"type": "map", "values": inner}, st.dictionaries(st.text(max_size=3), values, max_size=4)
    names.append(f"N{len(names)}")
    return draw(named_types(kind, names[-1], names, depth))


@st.composite
def named_types(draw, kind, name, names, depth):
    if kind == "enum":
        return {"type": "enum", "name": name, "symbols": ["A", "B", "C"]}, st.sampled_from("ABC")
    if kind == "fixed":
        size = draw(st.integers(0, 5))
        return {"type": "fixed", "name": name, "size": size}, st.binary(min_size=size, max_size=size)
    if kind == "tree":
        fields = [{"name": "x", "type": "int"}, {"name": "below", "type": {"type": "array", "items": name}}]
        leaf = st.fixed_dictionaries({"x": st.integers(0, 9), "below": st.just([])})
        grow = lambda below: st.fixed_dictionaries({"x": st.just(1), "below": st.lists(below, max_size=3)})  # noqa: E731
        return {"type": "record", "name": name, "fields": fields}, st.recursive(leaf, grow, max_leaves=6)
    found = [draw(types(names, depth + 1)) for _ in range(draw(st.integers(1, 3)))]
    fields = [{"name": f"f{i}", "type": inner} for i, (inner, _) in enumerate(found)]
    return {"type": "record", "name": name, "fields": fields}, st.fixed_dictionaries(
        {f"f{i}": values for i, (_, values) in enumerate(found)}
    )


@settings(max_examples=80)
@given(data=st.data())
def test_fields_that_the_event_does_not_have_are_passed_over_whatever_they_are(data):
    names = []
    others = [data.draw(types(names)) for _ in range(data.draw(st.integers(1, 4)))]
    extra = [{"name": f"extra{i}", "type": schema} for i, (schema, _) in enumerate(others)]
    place = data.draw(st.integers(0, len(extra)))
    schema = record([*extra[:place], *FIELDS, *extra[place:]])
    rows = [
        ROW | {"door": i} | {f"extra{j}": data.draw(values) for j, (_, values) in enumerate(others)} for i in range(3)
    ]
    payloads = [datum(schema, row) for row in rows]
    found = decoded(Visit, schema, payloads)
    assert found.bad == []
    assert found.frame.to_dicts() == [ROW | {"door": i} for i in range(3)]
    cut = data.draw(st.integers(1, len(payloads[1]) - 5))
    damaged = decoded(Visit, schema, [payloads[0], payloads[1][:-cut], payloads[2]])
    assert damaged.frame["door"].to_list() == [0, 2]
    assert [bad.index for bad in damaged.bad] == [1]


WORDS = {"type": "array", "items": "string"}


class Kinds(Event, topic="kinds", key="door", codec="confluent-avro"):
    event_time: datetime
    door: int
    note: str | None = None
    blob: bytes | None = None
    weight: float | None = None
    day: datetime | None = None
    tags: list[str] | None = None


MOMENT = datetime(2026, 1, 1, 12, 0, 0, 123_456, UTC)
MILLIS = MOMENT.replace(microsecond=123_000)


def named(kind, **more):
    return {"type": kind, "name": f"T{kind}", **more}


def logical(kind, name, **more):
    return {"type": kind, "logicalType": name, **more}


READABLE = [
    ("note", named("enum", symbols=["A", "B"]), "B", "B"),
    ("note", ["null", named("enum", symbols=["A", "B"])], None, None),
    ("note", ["null", "string", "long"], "x", "x"),
    ("note", ["string", named("enum", symbols=["x"]), "null"], None, None),
    ("note", {"type": "string", "logicalType": "uuid"}, "12345678-1234-1234-1234-123456789012", ...),
    ("note", {"type": "string", "avro.java.string": "String"}, "x", "x"),
    ("note", "null", None, None),
    ("note", logical("bytes", "decimal", precision=6, scale=2), Decimal("-12.30"), "-12.30"),
    ("blob", named("fixed", size=3), b"\xff\0x", b"\xff\0x"),
    ("blob", ["null", named("fixed", size=3)], b"abc", b"abc"),
    ("blob", logical("bytes", "decimal", precision=6, scale=2), Decimal("1.50"), b"\0\x96"),
    ("weight", "float", 0.5, 0.5),
    ("weight", ["null", "float"], None, None),
    ("weight", "int", 3, 3.0),
    ("weight", ["long", "double", "string"], 2**53, 2.0**53),
    ("weight", ["double", "float", "null", "int"], 0.25, 0.25),
    ("weight", logical("bytes", "decimal", precision=30, scale=2), Decimal("19.99"), 19.99),
    ("weight", {**named("fixed", size=16), "logicalType": "decimal", "precision": 30}, Decimal(-5), -5.0),
    ("door", ["int", "long"], 2**40, 2**40),
    ("door", logical("int", "time-millis"), 7, 7),
    ("door", logical("long", "no-such-type"), 7, 7),
    ("door", "double", 3.0, 3),
    ("day", logical("int", "date"), date(2026, 1, 2), datetime(2026, 1, 2, tzinfo=UTC)),
    ("day", ["null", logical("long", "timestamp-millis")], MOMENT, MILLIS),
    ("day", [logical("long", "timestamp-micros"), "string", "null"], MOMENT, MOMENT),
    ("event_time", logical("long", "timestamp-millis"), MOMENT, MILLIS),
    ("event_time", logical("long", "timestamp-nanos"), 1_767_268_800_123_456_999, MOMENT),
    ("event_time", logical("long", "local-timestamp-millis"), MOMENT.replace(tzinfo=None), MILLIS),
    ("event_time", logical("long", "local-timestamp-micros"), MOMENT.replace(tzinfo=None), MOMENT),
    ("event_time", logical("long", "local-timestamp-nanos"), 1_767_268_800_123_456_000, MOMENT),
    ("tags", {"type": "array", "items": ["null", named("enum", symbols=["A"]), "string"]}, ["A", None, "x"], ...),
    ("tags", ["null", {"type": "array", "items": "string"}, "string"], ["a", "b"], ["a", "b"]),
]


@pytest.mark.parametrize(("field", "kind", "written", "read"), READABLE)
def test_what_a_field_can_be_read_from(field, kind, written, read):
    row = {"event_time": NOON, "door": 1}
    schema = schema_with(field, kind)
    found = decoded(Kinds, schema, [datum(schema, row | {field: written})])
    assert found.bad == []
    wanted = dict.fromkeys(spec_of(Kinds).polars) | row | {field: written if read is ... else read}
    assert found.frame.to_dicts() == [wanted]
    assert found.frame.schema == spec_of(Kinds).polars


@pytest.mark.parametrize(
    ("field", "kind", "written", "detail"),
    [
        (
            "note",
            {"type": "map", "values": "int"},
            {"a": 1},
            "Kinds.note: the writer has map, and the event declares text",
        ),
        ("note", "int", 1, "Kinds.note: found Int64, wanted String"),
        ("note", ["null", "int", "long"], 1, "Kinds.note: the writer has the union [null, int, long]"),
        ("note", ["null", "string", "long"], 1, "note: the union holds a type that the field cannot"),
        ("door", "string", "1", "Kinds.door: found String, wanted Int64"),
        ("door", "double", 3.5, "Kinds.door: found Float64, wanted Int64; the cast would lose digits or overflow: 3.5"),
        ("weight", record([{"name": "x", "type": "int"}], name="W"), {"x": 1}, "Kinds.weight: the writer has record W"),
        ("blob", "string", "x", "Kinds.blob: found String, wanted Binary"),
        ("day", "long", 3, "Kinds.day: found Int64, wanted Datetime"),
        ("day", logical("long", "timestamp-millis"), 2**62, "day: a time is beyond the range of microseconds"),
        ("event_time", logical("int", "date"), 2**31 - 1, "event_time: a time is beyond the range of microseconds"),
        ("tags", {"type": "array", "items": WORDS}, [["a"]], "Kinds.tags[]: the writer has array"),
    ],
)
def test_what_a_field_cannot_be_read_from_is_one_bad_payload_that_names_it(field, kind, written, detail):
    row = {"event_time": NOON, "door": 1}
    schema = schema_with(field, kind)
    bare = physical(schema)  # fastavro refuses to write some numbers as the times that they stand for
    mine = ConfluentAvroCodec(spec_of(Kinds), 1, writers={5: schema}.get)
    (good,) = mine.encode(pl.DataFrame([dict.fromkeys(spec_of(Kinds).polars) | row], schema=spec_of(Kinds).polars))
    found = mine.decode([good, datum(bare, physical_row(row) | {field: written}), good])
    assert found.payload_index.tolist() == [0, 2]
    [bad] = found.bad
    assert bad.index == 1
    assert detail in bad.detail


@pytest.mark.parametrize(("field", "kind", "written", "read"), READABLE)
def test_what_a_file_reads_a_topic_reads(field, kind, written, read, tmp_path):
    """One schema, one row: as a container file, and as a datum of the topic."""
    schema, row = schema_with(field, kind), {"event_time": NOON, "door": 1, field: written}
    path = tmp_path / "kinds.avro"
    with path.open("wb") as sink:
        fastavro.writer(sink, fastavro.parse_schema(schema), [row])
    try:
        [file] = find_files(str(path), "kinds").files
        of_file = read_events(file, Kinds)
    except HeadraceError:
        return
    assert decoded(Kinds, schema, [datum(schema, row)]).frame.equals(of_file)


def schema_with(field, kind):
    """The schema of a writer whose `field` is of a kind."""
    types = {"event_time": TIME, "door": "long"} | {field: kind}
    return record([{"name": name, "type": found} for name, found in types.items()])


def physical(schema):
    """A schema without logical types."""
    if isinstance(schema, dict):
        return {name: physical(value) for name, value in schema.items() if name != "logicalType"}
    return [physical(item) for item in schema] if isinstance(schema, list) else schema


def physical_row(row):
    return row | {"event_time": int(row["event_time"].timestamp() * 1e6)}


class Numbers(Event, topic="numbers", key="door", codec="confluent-avro"):
    event_time: datetime
    door: int
    whole: int | None = None
    real: float | None = None
    text: str | None = None


@settings(max_examples=40)
@given(
    numbers=st.lists(st.integers(-(2**127), 2**127 - 1) | st.integers(-(10**18), 10**18), min_size=1, max_size=8),
    scale=st.integers(0, 38),
    name=st.sampled_from(["whole", "real", "text"]),
)
def test_decimals_are_read_where_their_digits_survive(numbers, scale, name):
    """As ints where they are whole, as floats where they have 15 digits at most, as text always."""
    kind = ["null", logical("bytes", "decimal", precision=38, scale=scale)]
    schema = record([*FIELDS, {"name": name, "type": kind}])
    bare = record([*FIELDS, {"name": name, "type": ["null", "bytes"]}])
    as_bytes = [number.to_bytes(16, "big", signed=True) for number in numbers]
    found = decoded(Numbers, schema, [datum(bare, ROW | {name: digits}) for digits in as_bytes])
    read = dict(zip(found.payload_index.tolist(), found.frame[name].to_list(), strict=True))
    with localcontext(prec=60):
        for index, number in enumerate(numbers):
            exact = Decimal(number).scaleb(-scale)
            if index in read:
                assert Decimal(read[index]) == exact if name != "real" else read[index] == float(exact)
            else:
                is_long = len(str(abs(number)).rstrip("0")) > 15 or abs(number) > 10**36
                assert name != "text"
                assert is_long or (name == "whole" and exact != int(exact))
    assert len(read) + len(found.bad) == len(numbers)


def test_a_value_that_does_not_fit_costs_its_own_payload_only():
    schema = record([{"name": "event_time", "type": TIME}, {"name": "door", "type": "double"}])
    payloads = [datum(schema, ROW | {"door": door}) for door in (1.0, 1.5, 2.0, float("nan"), 1e300)]
    found = decoded(Visit, schema, payloads)
    assert found.frame["door"].to_list() == [1, 2]
    assert found.payload_index.tolist() == [0, 2]
    assert [(bad.index, bad.reason) for bad in found.bad] == [(index, "wrong_type") for index in (1, 3, 4)]


@pytest.mark.parametrize(
    ("schema", "detail"),
    [
        ("string", "the writer's schema is string; an event is a record"),
        (["null", record(FIELDS)], "the writer's schema is [null, record Visit]; an event is a record"),
        ({"type": "array", "items": "int"}, "the writer's schema is array; an event is a record"),
        ({"type": "record"}, "is no Avro schema: KeyError('name')"),
        (record([{"name": "a"}]), "is no Avro schema: KeyError('type')"),
        (record([{"name": "a", "type": "Nobody"}]), "the type 'Nobody' is not defined in the schema"),
        (record([{"name": "a", "type": None}]), "is no Avro schema"),
        (record([{"name": "a", "type": "int"}] * 2), "two fields of one name"),
        (record([{"name": "a", "type": []}]), "a union has types"),
        (record([{"name": "a", "type": [["int"]]}]), "none of them is a union"),
        (record([{"name": "a", "type": {"type": "fixed", "name": "F", "size": -1}}]), "fixed F: a size of -1"),
        (7, "is no Avro schema"),
        (None, "the registry has none"),
    ],
)
def test_a_schema_of_no_record_makes_bad_payloads_and_no_error(schema, detail):
    mine = ConfluentAvroCodec(spec_of(Visit), 1, writers={5: schema}.get)
    (good,) = mine.encode(pl.DataFrame([ROW]))
    found = mine.decode([good, b"\0\0\0\0\5abc", good])
    assert found.payload_index.tolist() == [0, 2]
    [bad] = found.bad
    assert (bad.index, bad.reason) == (1, "undecodable")
    assert "schema id 5" in bad.detail
    assert detail in bad.detail
    if schema is not None:
        with pytest.raises(SchemaError):
            AvroCodec(spec_of(Visit), writer=schema)


class Home(BaseModel):
    street: str


class Two(Event, topic="two", key="door", codec="confluent-avro"):
    event_time: datetime
    door: int
    home: Home
    work: Home
    code: str
    other: str


def test_named_types_are_known_by_their_full_names():
    """Two of one short name in two namespaces, references with and without dots, inherited and explicit namespaces."""
    address = named("record", fields=[{"name": "street", "type": "string"}]) | {"name": "Address"}
    foreign = {
        "type": "record",
        "name": "Address",
        "namespace": "org.other",
        "fields": [
            {"name": "zip", "type": {"type": "enum", "name": "Code", "symbols": ["Z"]}},  # org.other.Code
            {"name": "street", "type": "string"},
            {"name": "again", "type": ["null", "Address"]},  # itself
        ],
    }
    fields = [
        *FIELDS,
        {"name": "code", "type": {"type": "enum", "name": "Code", "symbols": ["A", "B"]}},  # com.shop.Code
        {"name": "home", "type": address},
        {"name": "work", "type": foreign},
        {"name": "more", "type": {"type": "array", "items": "org.other.Address"}},
        {"name": "third", "type": "Address"},  # com.shop's
        {"name": "other", "type": "org.other.Code"},
    ]
    schema = record(fields, namespace="com.shop")
    work = {"zip": "Z", "street": "w", "again": {"zip": "Z", "street": "v", "again": None}}
    row = ROW | {
        "code": "B",
        "home": {"street": "h"},
        "work": work,
        "more": [work],
        "third": {"street": "t"},
        "other": "Z",
    }
    found = decoded(Two, schema, [datum(schema, row)])
    assert found.bad == []
    wanted = ROW | {"home": {"street": "h"}, "work": {"street": "w"}, "code": "B", "other": "Z"}
    assert found.frame.to_dicts() == [wanted]


def test_a_recursive_record_is_read_where_it_is_declared_and_passed_over_below():
    """A field that holds its own type is none that an event can declare, so it ends there; depth costs one payload."""
    schema = record([*FIELDS, {"name": "next", "type": ["null", "Visit"]}])
    row = datum(record(FIELDS), ROW)
    assert datum(schema, ROW | {"next": ROW | {"next": None}}) == row + b"\2" + row[5:] + b"\0"
    payloads = [row + (b"\2" + row[5:]) * depth + b"\0" for depth in (1, 500, 600)]
    found = decoded(Visit, schema, [*payloads, payloads[0]])
    assert found.payload_index.tolist() == [0, 1, 3]
    assert [bad.detail for bad in found.bad] == [
        f"(undeclared fields 2): values are nested more than 512 deep ({len(payloads[2])} bytes)"
    ]


@pytest.mark.parametrize("count", [2**62, 2**40, 2**20, -(2**63)])
def test_huge_counts_and_lengths_cost_one_payload_and_no_memory(count):
    """Of lists, maps, texts and fixed, read and passed over; of items that take no bytes there may be many."""

    class Lists(Event, topic="lists", key="door", codec="confluent-avro"):
        event_time: datetime
        door: int
        tags: list[str] = []  # noqa: RUF012

    def varint(number):
        rest, out = (number << 1) ^ (number >> 63), b""
        rest &= 2**64 - 1
        while rest >= 0x80:
            out, rest = out + bytes([rest & 0x7F | 0x80]), rest >> 7
        return out + bytes([rest])

    head = datum(record(FIELDS), ROW)
    kinds = [
        {"type": "array", "items": "string"},
        {"type": "map", "values": "null"},
        "string",
        {"type": "array", "items": {"type": "array", "items": "null"}},
    ]
    tracemalloc.start()
    for kind, name in itertools.product(kinds, ("tags", "extra")):
        schema = record([*FIELDS, {"name": name, "type": kind}])
        found = decoded(Lists, schema, [head + varint(count) + b"\0" * 9, head + varint(count)])
        assert found.payload_index.tolist() == []
    many = record([*FIELDS, {"name": "extra", "type": {"type": "array", "items": "null"}}])
    if count > 0:
        assert decoded(Lists, many, [head + varint(count) + b"\0"]).frame.height == 1
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 22


KEYS = ["type", "name", "fields", "items", "values", "symbols", "size", "logicalType", "namespace"]
DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["record", "enum", "int"]),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(KEYS), below, max_size=5),
    max_leaves=10,
)


@settings(max_examples=60)
@given(schema=DOCUMENTS)
def test_any_json_document_is_a_schema_or_one_error(schema):
    with contextlib.suppress(SchemaError):
        avro_type(schema)
    found = decoded(Visit, schema, [b"\0\0\0\0\5abc"])
    assert [bad.index for bad in found.bad] == [0]


@pytest.mark.parametrize("depth", [300, 900, 5_000])
def test_a_schema_that_is_nested_deep_is_read_or_one_error(depth):
    deep = "int"
    for _ in range(depth):
        deep = {"type": "array", "items": deep}
    schema = record([*FIELDS, {"name": "deep", "type": deep}])
    found = decoded(Visit, schema, [datum(record(FIELDS), ROW) + b"\0"])
    assert found.frame.height + len(found.bad) == 1
    assert all("is nested too deep" in bad.detail for bad in found.bad)


def test_times_without_a_unit_are_read_by_the_unit_of_the_event():
    class Millis(Event, topic="millis", key="door", codec="confluent-avro", time_unit="ms"):
        event_time: datetime
        door: int
        until: datetime | None = None

    kinds = {"event_time": "long", "door": "long", "until": ["null", "double"]}
    schema = record([{"name": name, "type": kind} for name, kind in kinds.items()])
    number = int(NOON.timestamp() * 1_000)
    found = decoded(Millis, schema, [datum(schema, {"event_time": number, "door": 1, "until": number + 0.5})])
    assert found.bad == []
    assert found.frame.to_dicts() == [{"event_time": NOON, "door": 1, "until": NOON + timedelta(microseconds=500)}]
    (payload,) = AvroCodec(spec_of(Millis)).encode(found.frame)
    assert AvroCodec(spec_of(Millis)).decode([payload]).frame.equals(found.frame), "our own schema tells its unit"


@pytest.mark.parametrize(("base", "logical"), [("long", "time-micros"), ("int", "time-millis")])
def test_a_time_of_day_is_no_moment_whatever_the_unit(base, logical):
    class Clocked(Event, topic="clocked", key="door", codec="confluent-avro", time_unit="s"):
        event_time: datetime
        door: int

    time_of_day = {"type": base, "logicalType": logical}
    kinds = {"event_time": time_of_day, "door": "long"}
    schema = record([{"name": name, "type": kind} for name, kind in kinds.items()])
    plain = record([{"name": "event_time", "type": base}, {"name": "door", "type": "long"}])
    found = decoded(Clocked, schema, [datum(plain, {"event_time": 43_200_000, "door": 1})])
    assert [bad.reason for bad in found.bad] == ["wrong_type"]
    assert f"the writer has {base} ({logical})" in found.bad[0].detail
