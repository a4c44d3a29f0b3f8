"""A payload of another format is told as such, whichever codec is given it."""

import bz2
import codecs
import gzip
import io
import itertools
import lzma
from datetime import UTC, datetime

import fastavro
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.schemas import ConfluentAvroCodec, Event, codec_for, spec_of

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
CODECS = ("avro", "confluent-avro", "json", "arrow")


def declared(codec):
    class Visit(Event, topic=f"visits-{codec}", key="door", codec=codec):
        event_time: datetime
        door: int
        note: str

    return Visit


EVENTS = {codec: declared(codec) for codec in CODECS}
FRAME = pl.DataFrame({"event_time": [NOON], "door": [7], "note": ["a note of some length"]})
PAYLOADS = {codec: codec_for(event).encode(FRAME)[0] for codec, event in EVENTS.items()}
PAYLOADS["confluent-avro"] = ConfluentAvroCodec(spec_of(EVENTS["confluent-avro"]), 70_000).encode(FRAME)[0]
WORDS = {
    "json": "JSON",
    "confluent-avro": "the Confluent wire format (schema id 70000)",
    "arrow": "an Arrow IPC stream",
}


def written(write) -> bytes:
    sink = io.BytesIO()
    write(sink)
    return sink.getvalue()


def arrow_file(sink):
    with pa.ipc.new_file(sink, FRAME.to_arrow().schema) as file:
        file.write_table(FRAME.to_arrow())


def avro_file(sink):
    fastavro.writer(sink, spec_of(EVENTS["avro"]).avro, FRAME.to_dicts())


FILES = {
    "an Arrow IPC file": written(arrow_file),
    "an Avro container file": written(avro_file),
    "a Parquet file": written(lambda sink: pq.write_table(FRAME.to_arrow(), sink)),
    "gzip": gzip.compress(PAYLOADS["json"]),
    "bzip2": bz2.compress(PAYLOADS["json"]),
    "xz": lzma.compress(PAYLOADS["json"]),
    "Zstandard": pa.compress(PAYLOADS["json"], "zstd", asbytes=True),
    "LZ4": pa.compress(PAYLOADS["json"], "lz4", asbytes=True),
    "Snappy": b"\x82SNAPPY\0\0\0\0\1" + PAYLOADS["json"],
    "UTF-16 text": codecs.BOM_UTF16_LE + PAYLOADS["json"].decode().encode("utf-16-le"),
    "Avro's single-object encoding": b"\xc3\x01" + b"\7" * 8 + PAYLOADS["avro"],
    "an empty payload (a tombstone)": b"",
}


def detail(codec, payload, event=None):
    """The detail of one bad payload between two good ones."""
    wire = codec_for(event or EVENTS[codec], codec)
    (good,) = wire.encode(FRAME)
    found = wire.decode([good, payload, good])
    assert found.payload_index.tolist() == [0, 2]
    [bad] = found.bad
    assert (bad.index, bad.reason) == (1, "undecodable")
    return bad.detail


@pytest.mark.parametrize(("sent", "read"), list(itertools.permutations(CODECS, 2)))
def test_payloads_of_another_codec_are_told(sent, read):
    told = detail(read, PAYLOADS[sent])
    if sent in WORDS:
        assert told.endswith(f"; looks like {WORDS[sent]}; this event is declared codec={read!r}")
    else:  # a plain datum has no mark
        assert "looks like" not in told


@pytest.mark.parametrize("read", CODECS)
@pytest.mark.parametrize("words", list(FILES))
def test_files_and_what_is_compressed_are_told(words, read):
    assert detail(read, FILES[words]).endswith(f"; looks like {words}; this event is declared codec={read!r}")


@pytest.mark.parametrize("payload", [b' \n[{"door": 1}]\n', codecs.BOM_UTF8 + b'{"door": 1}'])
def test_json_may_have_space_or_a_mark_around_it(payload):
    assert "; looks like JSON; " in detail("avro", payload)


@pytest.mark.parametrize("codec", CODECS)
def test_a_damaged_payload_of_the_right_codec_looks_like_nothing_else(codec):
    (good,) = codec_for(EVENTS[codec]).encode(FRAME)
    assert "looks like" not in detail(codec, good[:-9])


def test_a_codec_that_was_chosen_for_the_payload_is_named_as_that():
    assert detail("json", FILES["gzip"], EVENTS["avro"]).endswith("; looks like gzip; it was read as codec='json'")


def test_a_byte_order_mark_in_front_of_json_is_passed_over():
    wire = codec_for(EVENTS["json"])
    (good,) = wire.encode(FRAME)
    assert wire.decode([codecs.BOM_UTF8 + good, codecs.BOM_UTF8 + b" \r" + good + b"\r"]).frame.height == 2
    [twice, inside] = wire.decode([codecs.BOM_UTF8 * 2 + good, good[:1] + codecs.BOM_UTF8 + good[1:]]).bad
    assert twice.reason == inside.reason == "undecodable"
