"""Every payload is either a good row or a dead letter that says where it came from, why, and holds its bytes."""

from datetime import timedelta

import numpy as np
import orjson
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from headrace.clock import FixedClock
from headrace.errors import SourceError
from headrace.pipelines.intake import Intake
from headrace.pipelines.source import Batch
from headrace.schemas import codec_for, spec_of
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


def test_a_batch_may_name_its_own_codec():
    events = intake_of(shelf=Shelf()).decode(batch_of(codec_for(Passage, "json").encode(passages(3)), codec="json"))
    assert_frame_equal(events.frame, passages(3))


def test_the_future_is_measured_from_the_given_clock():
    """History with an event clock: rows are future only when they are ahead of the history."""
    early = Intake([Passage], dead_letters=(shelf := Shelf()), clock=FixedClock(START_US - 86_400_000_000))
    assert early.decode(batch_of(codec_for(Passage).encode(passages(3)))).frame.is_empty()
    assert {letter.reason for letter in shelf.letters} == {"future"}


def test_a_topic_without_an_event_class_is_named():
    with pytest.raises(SourceError, match="topic 'others': no event class for it; there are passages"):
        intake_of(shelf=Shelf()).decode(batch_of([], topic="others"))
