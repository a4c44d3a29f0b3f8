"""Every payload is either a good row or a dead letter that says where it came from, why, and holds its bytes."""

import dataclasses
import io
from datetime import datetime, timedelta

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

from headrace.clock import FixedClock
from headrace.errors import DeclarationError, SchemaError, SourceError
from headrace.pipelines import KafkaSource
from headrace.pipelines.shard import too_late_letters
from headrace.schemas import Event, Field, FileDeadLetters, codec_for, dead_letters, spec_of
from headrace.schemas.dead_letters import DEAD_LETTERS
from headrace.schemas.dead_letters import read as read_letters
from headrace.streams.intake import Intake
from headrace.streams.source import Batch, EventBatch
from tests.logs import capture_logs
from tests.turnstiles import START_US, Passage, Shelf, passage_of, passages

CLOCK = FixedClock(START_US + 3_600_000_000)


def batch_of(payloads, first: int = 100, topic: str = "passages", codec=None) -> Batch:
    n = len(payloads)
    offsets = np.arange(first, first + n)
    appended_us = START_US + np.arange(n)
    return Batch(topic, f"{topic}/0", offsets, first + n, payloads, None, appended_us, START_US + 7, codec)


def intake_of(*events, shelf) -> Intake:
    return Intake(events or (Passage,), dead_letters=shelf, clock=CLOCK)


def bad_row(name: str) -> bytes:
    """One JSON passage with one thing wrong."""
    row = passages(1).to_dicts()[0]
    row["at"] = row["at"].isoformat()
    match name:
        case "missing":
            del row["door"]
        case "wrong_type":
            row["door"] = "front"
        case "out_of_range":
            row["seconds"] = -1.0
        case "not_allowed":
            row["way"] = "up"
        case "future":
            row["at"] = (passages(1)["at"][0] + timedelta(days=3_650)).isoformat()
        case "undecodable":
            return b"\xff\x00 no event"
    return orjson.dumps(row)


BAD = ("missing", "wrong_type", "out_of_range", "not_allowed", "future", "undecodable")


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_payload_costs_that_payload_only(reason):
    event = passage_of("bad", "json")
    good = codec_for(event).encode(passages(9))
    payloads = [*good[:4], bad_row(reason), *good[4:]]
    shelf = Shelf()
    events = intake_of(event, shelf=shelf).decode(batch_of(payloads, topic="bad"))
    assert_frame_equal(events.frame, passages(9))
    assert events.offsets.tolist() == [100, 101, 102, 103, 105, 106, 107, 108, 109]
    assert (events.appended_us - START_US).tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert (events.partition, events.next_offset, events.event) == ("bad/0", 110, event)
    [letter] = shelf.letters
    assert (letter.source, letter.partition, letter.offset) == ("bad", "bad/0", 104)
    assert (letter.reason, letter.payload, letter.arrival_us) == (reason, payloads[4], START_US + 7)
    assert letter.detail


def test_a_batch_of_nothing_but_bad_payloads_still_moves_on():
    shelf = Shelf()
    events = intake_of(shelf=shelf).decode(batch_of([b"no", b"", b"\x00"]))
    assert (events.frame.height, len(events.offsets), events.next_offset) == (0, 0, 103)
    assert [letter.offset for letter in shelf.letters] == [100, 101, 102]


def test_an_empty_batch_is_an_empty_frame():
    events = intake_of(shelf=Shelf()).decode(batch_of([]))
    assert dict(events.frame.schema) == spec_of(Passage).polars


def test_rows_of_one_arrow_payload_share_its_offset_and_only_the_bad_row_is_put_aside():
    event = passage_of("blocks", "arrow")
    frame = passages(6)
    wrong = frame.with_columns(seconds=pl.when(pl.int_range(pl.len()) == 2).then(-5.0).otherwise("seconds"))
    codec = codec_for(event)
    shelf = Shelf()
    payloads = [*codec.encode(wrong), *codec.encode(passages(3, seed=1))]
    events = intake_of(event, shelf=shelf).decode(batch_of(payloads, topic="blocks"))
    assert events.offsets.tolist() == [100] * 5 + [101] * 3
    assert_frame_equal(events.frame, pl.concat([frame[[0, 1, 3, 4, 5]], passages(3, seed=1)]))
    [letter] = shelf.letters
    assert (letter.offset, letter.reason) == (100, "out_of_range")
    assert_frame_equal(codec_for(event, "json").decode([letter.payload]).frame, wrong[2:3])


def test_a_bad_row_of_a_file_is_put_aside_as_json():
    frame = passages(3).with_columns(seconds=pl.Series([1.0, 1e9, 2.0]))
    offsets = np.arange(3)
    batch = Batch("passages", "passages/log.parquet", offsets, 3, None, frame, None, START_US)
    shelf = Shelf()
    events = intake_of(shelf=shelf).decode(batch)
    assert events.offsets.tolist() == [0, 2]
    assert events.appended_us is None
    assert orjson.loads(shelf.letters[0].payload)["seconds"] == 1e9


def test_a_row_of_an_arrow_payload_that_lacks_a_value_is_put_aside_and_the_flow_goes_on():
    """The row cannot be written by the codec that it came in: a null where the event declares none."""
    event = passage_of("holes", "arrow")
    frame = passages(4)
    sink = io.BytesIO()
    holes = frame.with_columns(door=pl.when(pl.int_range(pl.len()) != 1).then("door")).to_arrow()
    with pa.ipc.new_stream(sink, holes.schema) as stream:
        stream.write_table(holes)
    shelf = Shelf()
    events = intake_of(event, shelf=shelf).decode(batch_of([sink.getvalue()], topic="holes"))
    assert_frame_equal(events.frame, frame[[0, 2, 3]])
    [letter] = shelf.letters
    assert (letter.offset, letter.reason) == (100, "missing")
    row = orjson.loads(letter.payload)
    assert (row["passage_id"], row["door"]) == (frame["passage_id"][1], None)


FAR_US = (2**62, -(2**63), 2**63 - 1)


class Kept(Event, topic="kept", key="door", id="kept_id"):
    """An event with a time beside its own."""

    kept_id: str
    event_time: datetime
    door: int
    until: datetime | None
    weight: float = Field(ge=0)


def kept(n: int, **columns) -> pl.DataFrame:
    times = pl.Series([START_US + i for i in range(n)]).cast(pl.Datetime("us", "UTC"))
    base = {"kept_id": [f"k{i}" for i in range(n)], "event_time": times, "door": [1] * n, "weight": [1.0] * n}
    frame = pl.DataFrame(base | {"until": times} | columns)
    return frame.select(list(spec_of(Kept).polars))


@pytest.mark.parametrize("column", ["event_time", "until"])
def test_a_row_whose_time_python_cannot_hold_is_written_all_the_same(column, tmp_path):
    """In an Avro payload and in a frame of a file; as JSON such a time is the text of its number."""
    times = pl.Series([START_US, *FAR_US]).cast(pl.Datetime("us", "UTC"))
    frame = kept(4, **{column: times})
    payloads = codec_for(Kept).encode(frame)
    framed = Batch("kept", "kept/a.parquet", np.arange(4), 4, None, frame, None, START_US)
    for batch in (batch_of(payloads, topic="kept"), framed):
        letters = FileDeadLetters(tmp_path / f"{batch.payloads is None}")
        events = intake_of(Kept, shelf=letters).decode(batch)
        letters.close()
        assert_frame_equal(events.frame, frame[:1])
        found = read_letters(letters.folder)
        assert found["offset"].to_list() == batch.offsets[1:].tolist()
        assert set(found["reason"]) <= {"future", "implausible_time", "out_of_range"}
        if batch.payloads is None:
            assert [orjson.loads(row)[column] for row in found["payload"]] == [str(far) for far in FAR_US]
        else:
            assert found["payload"].to_list() == payloads[1:]


def test_too_late_letters_can_always_be_written():
    times = pl.Series([START_US, *FAR_US]).cast(pl.Datetime("us", "UTC"))
    frame = kept(4, until=times, weight=[float("nan"), float("inf"), 1.0, -0.0])
    batch = EventBatch(Kept, "kept/0", np.arange(4), 4, frame, None, START_US)
    letters = too_late_letters("doors", batch, np.array([0, 1, 3]))
    assert [(letter.source, letter.offset, letter.reason) for letter in letters] == [
        ("kept", offset, "too_late") for offset in (0, 1, 3)
    ]
    found = [orjson.loads(letter.payload) for letter in letters]
    assert [row["weight"] for row in found] == ["NaN", "Infinity", -0.0]
    assert [row["until"] for row in found[1:]] == [str(FAR_US[0]), str(FAR_US[2])]
    assert codec_for(Kept, "json").decode([letters[0].payload]).frame["until"].to_list() == [times[0]]


def test_rows_of_a_frame_that_do_not_fit_are_put_aside():
    """A source of one's own may hand over frames of other types; a value that does not fit costs its row."""
    frame = kept(3).with_columns(door=pl.Series([1.0, 1.5, 2.0]), weight=pl.Series([1, 2, -3]))
    shelf = Shelf()
    batch = Batch("kept", "kept/a", np.arange(10, 13), 13, None, frame, None, START_US)
    events = intake_of(Kept, shelf=shelf).decode(batch)
    assert events.frame["door"].to_list() == [1]
    assert events.offsets.tolist() == [10]
    told = [(letter.offset, letter.reason, orjson.loads(letter.payload)["door"]) for letter in shelf.letters]
    assert told == [(11, "wrong_type", 1.5), (12, "out_of_range", 2)]
    with pytest.raises(SchemaError, match=r"event Kept\.door: no such column"):
        intake_of(Kept, shelf=shelf).decode(dataclasses.replace(batch, frame=frame.drop("door")))


class Touchy:
    """A codec of a user's own that fails at some payloads, in the ways that libraries fail."""

    def __init__(self) -> None:
        self._inner = codec_for(Passage)

    def encode(self, frame):
        return self._inner.encode(frame)

    def decode(self, payloads):
        if b"raise" in payloads:
            raise RuntimeError("no such thing")
        if b"panic" in payloads:
            pl.Series([2**62]).cast(pl.Datetime("ms")).dt.cast_time_unit("us")
        return self._inner.decode(payloads)


@pytest.mark.parametrize("odd", [b"raise", b"panic"])
def test_a_codec_that_fails_costs_the_payload_that_it_fails_at(odd):
    good = codec_for(Passage).encode(passages(9))
    payloads = [*good[:4], odd, *good[4:7], b"bad", *good[7:], odd]
    shelf = Shelf()
    intake = Intake([Passage], dead_letters=shelf, clock=CLOCK, codecs={Passage: Touchy()})
    events = intake.decode(batch_of(payloads))
    assert_frame_equal(events.frame, passages(9))
    assert events.offsets.tolist() == [100, 101, 102, 103, 105, 106, 107, 109, 110]
    assert [(letter.offset, letter.payload) for letter in shelf.letters] == [(104, odd), (108, b"bad"), (111, odd)]
    assert {letter.reason for letter in shelf.letters} == {"undecodable"}
    words = {b"raise": "RuntimeError: no such thing", b"panic": "PanicException: "}[odd]
    assert shelf.letters[0].detail.startswith(words)


@pytest.mark.parametrize("number", [START_US // 1_000, START_US // 1_000_000, START_US * 1_000])
def test_numbers_in_another_unit_are_told_with_it(number):
    event = passage_of("units", "json")
    payload = b'{"passage_id":"a","at":%d,"door":1,"way":"in","seconds":1}' % number
    shelf = Shelf()
    assert intake_of(event, shelf=shelf).decode(batch_of([payload], topic="units")).frame.is_empty()
    [letter] = shelf.letters
    assert letter.reason == ("implausible_time" if number < START_US else "future")
    assert f"; {number} looks like " in letter.detail


@pytest.mark.parametrize("kind", ["payloads", "rows"])
def test_of_a_storm_every_bad_one_is_written_and_counted_and_one_line_is_logged(kind, tmp_path, monkeypatch):
    """Half of the stream is bad, in several ways; the letters are as those of a batch of one would be."""
    monkeypatch.setattr(dead_letters._log, "_pace_s", 3_600)
    event = passage_of(f"storm-{kind}", "json")
    topic = spec_of(event).topic
    payloads = codec_for(event).encode(passages(400))
    reasons = (
        ["undecodable", "wrong_type", "missing"] if kind == "payloads" else ["out_of_range", "not_allowed", "future"]
    )
    for index in range(0, 400, 2):
        payloads[index] = bad_row(reasons[index // 2 % 3])
    letters = FileDeadLetters(tmp_path)
    with capture_logs() as lines:
        intake = intake_of(event, shelf=letters)
        for start in range(0, 400, 50):
            intake.decode(batch_of(payloads[start : start + 50], first=start, topic=topic))
    letters.close()
    found = read_letters(tmp_path)
    assert sorted(found["offset"]) == list(range(0, 400, 2))
    assert len(lines) == 3
    for reason in reasons:
        counted = DEAD_LETTERS.labels(event=topic, reason=reason)._value.get()
        assert counted == found.filter(reason=reason).height > 60
    alone = Shelf()
    for offset in range(0, 400, 2):
        intake_of(event, shelf=alone).decode(batch_of([payloads[offset]], first=offset, topic=topic))
    assert list(found.sort("offset").iter_rows()) == [dataclasses.astuple(letter) for letter in alone.letters]


def test_a_batch_may_name_its_own_codec():
    events = intake_of(shelf=Shelf()).decode(batch_of(codec_for(Passage, "json").encode(passages(3)), codec="json"))
    assert_frame_equal(events.frame, passages(3))


def test_the_future_is_measured_from_the_given_clock():
    """History with an event clock: rows are future only when they are ahead of the history."""
    early = Intake([Passage], dead_letters=(shelf := Shelf()), clock=FixedClock(START_US - 86_400_000_000))
    assert early.decode(batch_of(codec_for(Passage).encode(passages(3)))).frame.is_empty()
    assert {letter.reason for letter in shelf.letters} == {"future"}


def test_two_events_of_one_topic_are_refused():
    """Its messages would be read as the last one's, and those of the other be dead letters."""
    other = passage_of("passages")
    words = r"topic 'passages': .*Passage and .*Passage are both declared on it, .*; give each event a topic of its own"
    with pytest.raises(DeclarationError, match=words):
        intake_of(Passage, other, shelf=Shelf())
    assert intake_of(Passage, Passage, shelf=Shelf()).events == {"passages": Passage}
    assert KafkaSource("127.0.0.1:1", [Passage, other]).topics == ("passages",)


def test_a_topic_without_an_event_class_is_named():
    with pytest.raises(SourceError, match="topic 'others': no event class for it; there are passages"):
        intake_of(shelf=Shelf()).decode(batch_of([], topic="others"))
