"""Every codec through the same list: round trip, nothing from nothing, refusals, and the reference library."""

import io
from datetime import date, time, timedelta
from decimal import Decimal

import fastavro
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import DeclarationError, SchemaError
from headrace.schemas import arrow_schema, codec_for, rows_as_json, spec_of
from headrace.schemas.codecs.avro import ConfluentAvroCodec
from headrace.schemas.event import CODECS
from tests.schemas.samples import EVENTS, SPEC, Everything, Flat, frame_of, rows

each_codec = pytest.mark.parametrize("codec", CODECS)
each_event = pytest.mark.parametrize("event", EVENTS)


@each_codec
@each_event
@settings(max_examples=15)
@given(data=st.data())
def test_what_is_encoded_is_decoded(event, codec, data):
    frame = frame_of(event, data.draw(rows(event)))
    wire = codec_for(event, codec)
    payloads = wire.encode(frame)
    decoded = wire.decode(payloads)
    assert decoded.frame.schema == spec_of(event).polars
    assert decoded.frame.equals(frame)
    assert decoded.bad == []
    wanted = np.zeros(frame.height) if codec == "arrow" else np.arange(frame.height)
    assert decoded.payload_index.dtype == np.int64
    assert np.array_equal(decoded.payload_index, wanted)


@each_codec
@each_event
def test_nothing_gives_an_empty_frame(event, codec):
    wire = codec_for(event, codec)
    decoded = wire.decode([])
    assert decoded.frame.schema == spec_of(event).polars
    assert decoded.frame.height == len(decoded.payload_index) == 0
    assert wire.encode(decoded.frame) == []


@each_codec
def test_a_null_that_the_event_does_not_declare_is_refused_with_its_place(codec):
    frame = pl.DataFrame({"event_id": 1, "event_time": 0, "number": None, "weight": 0.0, "flag": True, "text": ""})
    frame = frame.with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
    with pytest.raises(SchemaError, match="number"):
        codec_for(Flat, codec).encode(frame)


@each_codec
@settings(max_examples=8)
@given(made=rows(Everything, min_size=1, max_size=3))
def test_slices_and_chunks_encode_as_their_rows(codec, made):
    """Offsets of a sliced or chunked column must not leak into the wire."""
    frame = frame_of(Everything, made)
    chunked = pl.concat([frame, frame, frame], rechunk=False)
    wire = codec_for(Everything, codec)
    assert wire.decode(wire.encode(chunked)).frame.equals(chunked.rechunk())
    cut = chunked.rechunk().slice(1, frame.height + 1)
    assert wire.decode(wire.encode(cut)).frame.equals(cut)


@settings(max_examples=25)
@given(made=rows(Everything))
def test_avro_datums_are_byte_equal_to_fastavro(made):
    schema = fastavro.parse_schema(SPEC.avro)
    wanted = []
    for row in made:
        sink = io.BytesIO()
        fastavro.schemaless_writer(sink, schema, row)
        wanted.append(sink.getvalue())
    frame = frame_of(Everything, made)
    assert codec_for(Everything, "avro").encode(frame) == wanted
    head = b"\0" + (70_000).to_bytes(4, "big")
    assert ConfluentAvroCodec(SPEC, 70_000).encode(frame) == [head + datum for datum in wanted]


@settings(max_examples=25)
@given(made=rows(Everything))
def test_json_payloads_are_what_pydantic_reads_and_writes(made):
    frame = frame_of(Everything, made)
    wire = codec_for(Everything, "json")
    events = [Everything.model_validate_json(payload) for payload in wire.encode(frame)]
    assert frame_of(Everything, [event.model_dump(mode="python") for event in events]).equals(frame)
    written = [event.model_dump_json().encode() for event in events]
    assert wire.decode(written).frame.equals(frame)


def test_avro_arrays_may_come_in_blocks_with_their_size():
    """[1, 2] + [3] in two blocks, the first with a negative count and its size in bytes (Avro 1.12, arrays)."""

    class Blocks(Flat, topic="blocks"):
        numbers: list[int]

    wire = codec_for(Blocks)
    frame = pl.DataFrame([[1], [0], [2], [0.0], [True], ["x"], [None], [[1, 2, 3]]], schema=spec_of(Blocks).polars)
    (plain,) = wire.encode(frame)
    assert plain.endswith(bytes([6, 2, 4, 6, 0]))
    blocks = plain[:-5] + bytes([3, 4, 2, 4, 2, 6, 0])
    assert wire.decode([blocks, plain]).frame.equals(pl.concat([frame, frame]))


def test_long_lists_make_the_slots_grow():
    class Long(Flat, topic="long"):
        numbers: list[int]
        lists: list[list[str]]

    numbers = [list(range(n)) for n in (0, 5_000, 3, 1)]
    lists = [[[str(i)] * (i % 3) for i in range(len(n))] for n in numbers]
    flat = [[1, 2, 3, 4], [0] * 4, [2] * 4, [0.5] * 4, [True] * 4, ["x"] * 4, [None] * 4]
    frame = pl.DataFrame([*flat, numbers, lists], schema=spec_of(Long).polars)
    for codec in CODECS:
        wire = codec_for(Long, codec)
        payloads = wire.encode(frame)
        assert wire.decode(payloads).frame.equals(frame)
        if codec != "arrow":
            decoded = wire.decode([payloads[0][:-1], *payloads])
            assert decoded.frame.equals(frame)
            assert [bad.index for bad in decoded.bad] == [0]


def test_rows_of_any_frame_can_be_written_as_json():
    frame = pl.DataFrame(
        {
            "far": pl.Series([2**62]).cast(pl.Datetime("us", "UTC")),
            "near": pl.Series([3], dtype=pl.Int64).cast(pl.Datetime("ms")),
            "blob": [b"\xff"],
            "weight": [float("nan")],
            "inside": [{"times": [None, 5]}],
        },
        schema_overrides={"inside": pl.Struct({"times": pl.List(pl.Datetime("us"))})},
    )
    wanted = (
        b'{"far":"4611686018427387904","near":"1970-01-01T00:00:00.003000Z","blob":"/w==","weight":"NaN",'
        b'"inside":{"times":[null,"1970-01-01T00:00:00.000005Z"]}}'
    )
    assert rows_as_json(frame) == [wanted]


def test_values_of_any_type_can_be_written_as_json():
    one = {
        "decimal": pl.Series([Decimal("1.50")]),
        "duration": pl.Series([timedelta(days=1)]),
        "clock": pl.Series([time(1, 2)]),
        "instant": pl.Series([time(1, 2, 3, 4)]),
        "day": pl.Series([date(2020, 1, 1)]),
        "category": pl.Series(["a"], dtype=pl.Categorical),
        "array": pl.Series([[1.0, float("inf")]], dtype=pl.Array(pl.Float64, 2)),
        "big": pl.Series([2**64 - 1], dtype=pl.UInt64),
        "nothing": pl.Series([None]),
        "map": pl.Series(pl.from_arrow(pa.table({"m": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))}))["m"]),
        'a "name"': pl.Series(["\n"]),
    }
    wanted = (
        b'{"decimal":"1.50","duration":"P1D","clock":"01:02:00","instant":"01:02:03.000004","day":"2020-01-01","category":"a",'
        b'"array":[1.0,"Infinity"],"big":18446744073709551615,"nothing":null,"map":"(Map(String, Int64))",'
        b'"a \\"name\\"":"\\n"}'
    )
    assert rows_as_json(pl.DataFrame(one)) == [wanted]
    assert rows_as_json(pl.DataFrame(one)[:0]) == []


def test_json_refuses_times_that_have_no_iso_form():
    row = {"event_id": 1, "event_time": 2**62, "number": 1, "weight": 0.0, "flag": True, "text": "", "maybe_text": None}
    frame = pl.DataFrame([row]).with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))
    with pytest.raises(SchemaError, match=r"event_time.*1 to 9999"):
        codec_for(Flat, "json").encode(frame)


def test_names_of_codecs_and_schema_ids_are_checked():
    with pytest.raises(DeclarationError, match="confluent-avro, json, arrow"):
        codec_for(Flat, "protobuf")
    with pytest.raises(DeclarationError, match="32-bit"):
        ConfluentAvroCodec(spec_of(Flat), -1)


def test_the_arrow_schema_is_that_of_the_messages():
    frame = frame_of(Flat, [])
    assert arrow_schema(spec_of(Flat)).names == frame.columns
    assert [field.nullable for field in arrow_schema(spec_of(Flat))] == [False] * 6 + [True]
