"""Arrow messages of other writers: any type in columns that nobody declares, any damage, any claim of a size."""

import io
import random
import tracemalloc
from datetime import UTC, date, datetime
from decimal import Decimal

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.schemas import Event, codec_for
from tests.schemas.samples import Everything, frame_of, rows

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOON_US = 1_767_268_800_000_000


class Visit(Event, topic="visits", key="door", codec="arrow"):
    event_time: datetime
    door: int
    until: datetime | None = None
    note: str | None = None
    times: list[datetime] = []  # noqa: RUF012


CODEC = codec_for(Visit)


def message(table, compression=None) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as stream:
        stream.write_table(table)
    return sink.getvalue()


def visit(**columns) -> bytes:
    """A message of one row with more or other columns."""
    base = {"event_time": pa.array([NOON_US], pa.timestamp("us", "UTC")), "door": pa.array([1])}
    return message(pa.table(base | columns))


GOOD = visit()
ODD = {
    "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
    "union": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]),
    "interval": pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
    "duration": pa.array([1], pa.duration("s")),
    "decimal256": pa.array([Decimal(1)], pa.decimal256(70, 3)),
    "list view": pa.array([[1]], pa.list_view(pa.int64())),
    "run ends": pa.RunEndEncodedArray.from_arrays([1], [1]),
    "zone": pa.array([1], pa.timestamp("us", "Mars/Phobos")),
    "far": pa.array([2**62], pa.timestamp("s")),
    "json": pa.array(["{}"], pa.json_()),
    "empty struct": pa.array([{}], pa.struct([])),
    "nulls": pa.nulls(1),
}


@pytest.mark.parametrize("kind", list(ODD))
def test_a_column_that_nobody_declares_is_not_read(kind):
    found = CODEC.decode([GOOD, visit(odd=ODD[kind]), GOOD])
    assert found.bad == []
    assert found.frame["door"].to_list() == [1, 1, 1]


@pytest.mark.parametrize("kind", [kind for kind in ODD if kind not in ("nulls", "json")])
@pytest.mark.parametrize("name", ["note", "door"])
def test_a_declared_column_of_such_a_type_is_one_bad_message(kind, name):
    found = CODEC.decode([GOOD, visit(**{name: ODD[kind]}), GOOD])
    assert found.payload_index.tolist() == [0, 2]
    [bad] = found.bad
    assert bad.index == 1
    assert bad.reason in ("wrong_type", "undecodable")


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        (pa.array([NOON_US], pa.timestamp("us", "+05:30")), NOON),
        (pa.array([NOON_US], pa.timestamp("us", "Mars/Phobos")), NOON),
        (pa.array([NOON_US], pa.timestamp("us")), NOON),
        (pa.array([NOON_US // 10**6], pa.timestamp("s")), NOON),
        (pa.array([NOON_US // 10**3], pa.timestamp("ms", "Asia/Tokyo")), NOON),
        (pa.array([NOON_US * 1_000 + 999], pa.timestamp("ns")), NOON),
        (pa.array([date(2026, 1, 2)]), datetime(2026, 1, 2, tzinfo=UTC)),
        (pa.array([date(2026, 1, 2)], pa.date64()), datetime(2026, 1, 2, tzinfo=UTC)),
    ],
)
def test_times_of_any_unit_and_zone_are_the_same_instant(times, wanted):
    nested = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), times)
    found = CODEC.decode([visit(event_time=times, until=times, times=nested)])
    assert found.bad == []
    row = {"event_time": wanted, "door": 1, "until": wanted, "note": None, "times": [wanted]}
    assert found.frame.to_dicts() == [row]


@pytest.mark.parametrize("unit", ["s", "ms"])
@pytest.mark.parametrize("number", [2**62, -(2**63), NOON_US * 1_000])
def test_a_time_beyond_the_range_is_one_bad_message_that_names_it(unit, number):
    """Nanoseconds in a column of milliseconds: Polars stops with a panic, or wraps around."""
    far = pa.array([number], pa.timestamp(unit))
    nested = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), far)
    found = CODEC.decode([GOOD, visit(event_time=far), visit(until=far), visit(times=nested), GOOD])
    assert found.payload_index.tolist() == [0, 4]
    assert [(bad.index, bad.reason) for bad in found.bad] == [(index, "wrong_type") for index in (1, 2, 3)]
    names = ("event_time: ", "until: ", "times: ")
    assert all(bad.detail.startswith(name) for bad, name in zip(found.bad, names, strict=True))


def test_a_column_that_occurs_twice_is_one_bad_message():
    table = pa.Table.from_arrays([pa.array([NOON]), pa.array([1]), pa.array([2])], names=["event_time", "door", "door"])
    found = CODEC.decode([GOOD, message(table)])
    assert [bad.detail.partition(" (")[0] for bad in found.bad] == ["the column door occurs twice"]


def test_a_message_of_no_declared_column_says_what_it_has():
    found = CODEC.decode([message(pa.table({"event_tim": [1], "b": [2]})), GOOD])
    [bad] = found.bad
    assert bad.reason == "missing"
    assert "there are event_tim, b; did you mean 'event_tim'" in bad.detail
    assert found.frame.height == 1


def test_a_claim_of_many_rows_without_bytes_takes_no_memory():
    """A column of nulls has no buffer: two thousand million of them are a message of some hundred bytes."""
    count = 2**31 - 1
    nulls = pa.Array.from_buffers(pa.null(), count, [None])
    batch = pa.RecordBatch.from_arrays([nulls, nulls], names=["event_time", "door"])
    claim = message(pa.Table.from_batches([batch]))
    assert len(claim) < 1_000
    tracemalloc.start()
    found = CODEC.decode([GOOD, claim, GOOD])
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.payload_index.tolist() == [0, 2]
    assert "2,147,483,647 rows in 0 bytes" in found.bad[0].detail
    assert peak_bytes < 1 << 20


@settings(max_examples=60)
@given(
    made=rows(Everything, min_size=2), seed=st.integers(0, 2**32), compression=st.sampled_from([None, "lz4", "zstd"])
)
def test_damaged_messages_are_one_bad_payload_each_or_other_rows(made, seed, compression):
    """Bytes are changed, cut out, doubled and put together; whatever is decoded has the declared types."""
    codec = codec_for(Everything, "arrow")
    frame = frame_of(Everything, made)
    (good,) = codec.encode(frame)
    table = pa.ipc.open_stream(good).read_all()
    damaged = damage(message(table, compression), random.Random(seed))
    found = codec.decode([good, damaged, good])
    assert found.frame.schema == frame.schema
    index = found.payload_index.tolist()
    assert found.frame[: frame.height].equals(frame)
    assert found.frame[len(index) - frame.height :].equals(frame)
    assert (1 in index) + len(found.bad) <= 1


def damage(payload: bytes, rng: random.Random) -> bytes:
    found = bytearray(payload)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(found) + 1)
        size = rng.choice([1, 4, 8, 64])
        match rng.randrange(5):
            case 0:
                found[start : start + size] = rng.randbytes(size)
            case 1:
                found[start : start + size] = b"\xff" * size
            case 2:
                del found[start : start + size]
            case 3:
                found[start:start] = found[start : start + size]
            case 4:
                del found[start:]
    return bytes(found)


def test_rows_of_dictionaries_views_and_large_types_are_read():
    note = pa.array(["x"])
    kinds = (note.dictionary_encode(), note.cast(pa.string_view()), note.cast(pa.large_string()))
    found = CODEC.decode([visit(note=kind) for kind in kinds])
    assert found.frame["note"].to_list() == ["x"] * 3
    assert isinstance(found.frame, pl.DataFrame)


def test_bytes_after_the_end_of_the_stream_make_a_message_bad():
    """Two messages in one payload would be one message, and the rows of the other lost."""
    good = visit()
    found = CODEC.decode([good, good + good, good + b"xxxx", good])
    assert found.payload_index.tolist() == [0, 3]
    assert [(bad.index, bad.reason) for bad in found.bad] == [(1, "undecodable"), (2, "undecodable")]
    assert all("bytes follow the end of its stream" in bad.detail for bad in found.bad)
