"""Whatever a payload holds, in whichever codec: no error, no other row changed, no memory taken for what it claims."""

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas import ConfluentAvroCodec, codec_for, spec_of
from tests.schemas.golden import frame as golden_frame
from tests.schemas.samples import EVENTS, SPEC, Everything, Flat, frame_of, rows

CODECS = ("avro", "confluent-avro", "json", "arrow")
TOKENS = (
    *(
        b"1e999999999999",
        b"-1e-999999999999",
        b"9" * 500,
        b"0." + b"9" * 500,
        b"1" * 400 + b"e-400",
        b"-0",
        b"-",
        b"1e",
    ),
    *(
        b"[" * 200,
        b'{"a":' * 200,
        b"[" * 200 + b"]" * 200,
        b'"' + b"\\u" * 9,
        b'"\\ud800"',
        b'"\\ud800\\udc00"',
        b"\xff",
    ),
    *(b"\xed\xa0\x80", b"null", b"NaN", b'"NaN"', b"true", b"{}", b"[]", b'""', b"\0", b"\r", b"\xef\xbb\xbf", b"//"),
    *(b"\x80" * 11, b"\xff" * 9 + b"\x01", b"\xfe\xff\xff\xff\x0f", b"\x01", b"\x7f" * 8, b"Obj\x01", b"\x1f\x8b"),
)


def mutated(payload: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """A payload after some changes: bytes changed, removed, doubled, put in; cut; joined with another one."""
    found = bytearray(payload)
    for _ in range(rng.randint(1, 5)):
        start = rng.randrange(len(found) + 1)
        size = rng.choice([1, 1, 2, 8, 30])
        match rng.randrange(7):
            case 0:
                found[start : start + size] = rng.randbytes(size)
            case 1:
                found[start:start] = rng.choice(TOKENS)
            case 2:
                found[start : start + size] = rng.choice(TOKENS)
            case 3:
                del found[start : start + size]
            case 4:
                found[start:start] = found[start : start + size] * rng.randint(1, 40)
            case 5:
                found += rng.choice(others)
            case 6:
                del found[start:]
    return bytes(found)


@pytest.mark.parametrize("codec", CODECS)
@settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_a_mutated_payload_changes_no_other_row(codec, data, seed):
    event = data.draw(st.sampled_from(EVENTS))
    frame = frame_of(event, data.draw(rows(event, min_size=2, max_size=4)))
    wire = codec_for(event, codec)
    rng = random.Random(seed)
    good = wire.encode(frame) * 2
    hit = sorted(rng.sample(range(len(good)), rng.randint(1, len(good))))
    payloads = list(good)
    for index in hit:
        payloads[index] = (
            rng.randbytes(rng.choice([0, 1, 9, 99])) if rng.random() < 0.1 else mutated(good[index], good, rng)
        )
    found = wire.decode(payloads)
    assert found.frame.schema == spec_of(event).polars
    bad = [one.index for one in found.bad]
    index = found.payload_index.tolist()
    assert index == sorted(index)
    assert set(bad) <= set(hit)
    assert all(one.reason in ("undecodable", "wrong_type", "missing") and one.detail for one in found.bad)
    assert not set(bad) & set(index)
    untouched = [place for place in range(len(payloads)) if place not in hit]
    wanted = wire.decode([good[place] for place in untouched]).frame
    assert found.frame.filter([place in untouched for place in index]).equals(wanted)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), made=rows(Everything, min_size=2, max_size=3))
def test_a_mutated_datum_of_another_writer_changes_no_other_row(seed, made):
    """Read by a schema with more fields, in another order, than the event has."""
    fields = [
        field | {"name": f"more_{field['name']}", "type": renamed(field["type"])} for field in SPEC.avro["fields"]
    ]
    schema = SPEC.avro | {"fields": [*fields, *SPEC.avro["fields"][::-1]]}
    frame = frame_of(Everything, made)
    own = codec_for(Everything, "avro").encode(frame)
    turned = codec_for(turned_round(), "avro").encode(frame.select(frame.columns[::-1]))
    good = [b"\0\0\0\0\7" + first + second for first, second in zip(own, turned, strict=True)]
    wire = ConfluentAvroCodec(SPEC, 1, writers={7: schema}.get)
    assert wire.decode(good).frame.equals(frame)
    rng = random.Random(seed)
    found = wire.decode([good[0], b"\0\0\0\0\7" + mutated(good[0][5:], good, rng), good[1]])
    assert found.frame[:1].equals(frame[:1])
    assert found.frame[-1:].equals(frame[1:2])
    assert len(found.bad) + found.frame.height == 3


def renamed(found):
    """A type whose named types have other names."""
    if isinstance(found, list):
        return [renamed(branch) for branch in found]
    if not isinstance(found, dict):
        return found
    more = {"name": f"More_{found['name']}"} if "name" in found else {}
    for part in ("items", "type"):
        if part in found:
            more[part] = renamed(found[part])
    if "fields" in found:
        more["fields"] = [field | {"type": renamed(field["type"])} for field in found["fields"]]
    return found | more


def turned_round():
    """The event with its fields in the opposite order."""
    annotations = {name: Everything.model_fields[name].rebuild_annotation() for name in reversed(SPEC.types)}
    body = {name: Everything.model_fields[name] for name in annotations}
    more = {"__annotations__": annotations, "__module__": __name__}
    return type(Flat.__base__)("Everything", (Flat.__base__,), body | more, topic="turned", key="number", id="event_id")


@pytest.mark.parametrize("codec", CODECS)
def test_a_megabyte_of_anything_takes_little_memory(codec):
    """Zeroes, ones, brackets, quotes and digits: as one payload, a hundred times."""
    event = Everything
    wire = codec_for(event, codec)
    good = wire.encode(golden_frame())
    wire.decode(good)
    fillers = (b"\0", b"\xff", b"\x80", b"[", b'{"', b'"', b"9", b" ", b"\x02", b'{"tags":[', good[0])
    payloads = [(filler * (1_000_000 // len(filler) + 1))[:1_000_000] for filler in fillers]
    tracemalloc.start()
    found = wire.decode([*good, *payloads, *(good[0][:-1] + payload for payload in payloads)])
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.frame[: golden_frame().height].equals(golden_frame())
    assert len(found.bad) + len(set(found.payload_index.tolist())) == len(good) + 2 * len(payloads)
    assert peak_bytes < 40 * sum(map(len, payloads))
