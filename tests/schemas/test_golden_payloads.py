"""Bytes that were once written are read for ever, and written again the same."""

from headrace.schemas import codec_for
from headrace.schemas.codecs.avro import ConfluentAvroCodec
from tests.schemas import golden
from tests.schemas.samples import SPEC, Everything


def test_json_lines_are_read_and_written():
    lines = golden.JSON.read_bytes().splitlines()
    decoded = codec_for(Everything, "json").decode(lines)
    assert decoded.bad == []
    assert decoded.frame.equals(golden.frame())
    assert codec_for(Everything, "json").encode(golden.frame()) == lines


def test_avro_datums_are_read_and_written_with_and_without_a_header():
    datums = [bytes.fromhex(line) for line in golden.AVRO.read_text().splitlines()]
    decoded = codec_for(Everything, "avro").decode(datums)
    assert decoded.bad == []
    assert decoded.frame.equals(golden.frame())
    assert codec_for(Everything, "avro").encode(golden.frame()) == datums
    framed = [b"\0\0\0\0\2" + datum for datum in datums]
    assert ConfluentAvroCodec(SPEC, 2).encode(golden.frame()) == framed
    assert ConfluentAvroCodec(SPEC, 2).decode(framed).frame.equals(golden.frame())


def test_arrow_messages_are_read():
    """Not compared byte by byte: Arrow's own metadata may change between its releases."""
    decoded = codec_for(Everything, "arrow").decode([golden.ARROW.read_bytes()])
    assert decoded.bad == []
    assert decoded.frame.equals(golden.frame())
