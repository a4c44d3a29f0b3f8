"""Rows into a topic: any file and any codec, checked first, counted, at a rate, and what fails is said."""

import os
import threading
import time
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from headrace.errors import SourceError
from headrace.pipelines import Intake, KafkaSource, TopicWriter, create_topics
from headrace.schemas import Event, Field, codec_for, spec_of
from headrace.streams.produce import LineSource, Sent, produce
from headrace.streams.tail import tail
from headrace.streams.urls import source_of_url

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Passing(Event, topic="passings", key="gate", id="name"):
    """Somebody passed a gate."""

    name: str
    event_time: datetime
    gate: int
    weight: float = Field(ge=0)


class Letters(list):
    """Dead letters in a list."""

    def write(self, letters):
        self.extend(letters)

    def close(self):
        """Nothing is open."""


def passings(count: int) -> pl.DataFrame:
    times = [NOON + timedelta(seconds=index) for index in range(count)]
    columns = {"name": [f"p{i}" for i in range(count)], "event_time": times, "gate": [i % 5 for i in range(count)]}
    return pl.DataFrame({**columns, "weight": [i / 2 for i in range(count)]}, schema=spec_of(Passing).polars)


def write(frame: pl.DataFrame, path):
    """A file of the format that its suffix names."""
    match path.suffix:
        case ".parquet":
            frame.write_parquet(path)
        case ".arrow":
            frame.write_ipc(path)
        case ".avro":
            frame.with_columns(pl.col("event_time").dt.replace_time_zone(None)).write_avro(path)
        case ".csv":
            frame.write_csv(path)
        case ".jsonl":
            path.write_bytes(b"\n".join(codec_for(Passing, "json").encode(frame)) + b"\n")
    return path


def send(event, source, bootstrap, **options):
    """Produce a source; returns what was sent, and the dead letters."""
    letters, sent = Letters(), Sent()
    writer = TopicWriter(bootstrap, event)
    produce(source, event, writer, Intake([event], dead_letters=letters), sent, **options)
    return sent, letters


def held(event, bootstrap, count):
    """The first `count` rows that a topic shows, as `tail` does."""
    stop = threading.Event()
    seen = []
    source = KafkaSource(bootstrap, [event])
    for one in tail(source, event, lambda letters: Intake([event], dead_letters=letters), stop):
        seen.append(one)
        if len(seen) == count:
            stop.set()
    return seen


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        *((suffix, "avro") for suffix in (".parquet", ".arrow", ".avro", ".csv", ".jsonl")),
        *((suffix, codec) for suffix in (".parquet", ".jsonl") for codec in ("confluent-avro", "json", "arrow")),
    ],
)
def test_any_file_goes_to_the_topic_in_the_events_codec(tmp_path, broker, topic, suffix, codec):
    """What comes out of the topic is what the file held, and rows of a key are in one partition."""

    class Row(Passing, topic=topic, codec=codec):
        pass

    create_topics(broker, {topic: 3})
    frame = passings(100)
    sent, letters = send(Row, source_of_url(str(write(frame, tmp_path / f"log{suffix}")), [Row]), broker)
    assert (sent.rows, letters) == (100, [])
    seen = held(Row, broker, 100)
    rows = pl.concat([codec_for(Passing, "json").decode([one.row]).frame for one in seen]).sort("event_time")
    assert rows.equals(frame)
    if codec != "arrow":  # a message of many rows has no key
        places = {(codec_for(Passing, "json").decode([one.row]).frame["gate"][0], one.partition) for one in seen}
        assert len(places) == 5


def test_rows_that_break_a_rule_are_not_sent(tmp_path, broker, topic):
    """A line that is no JSON and a row below the limit are put aside with their place; the others go."""

    class Row(Passing, topic=topic):
        pass

    create_topics(broker, {topic: 1})
    path = write(passings(6), tmp_path / "log.jsonl")
    lines = path.read_bytes().splitlines()
    lines[2] = b"{no json"
    lines[4] = lines[4].replace(b'"weight":2.0', b'"weight":-2.0')
    path.write_bytes(b"\n".join(lines) + b"\n")
    sent, letters = send(Row, source_of_url(str(path), [Row]), broker)
    assert sent.rows == 4
    assert sorted((letter.offset, letter.reason) for letter in letters) == [(2, "undecodable"), (4, "out_of_range")]
    assert [one.offset for one in held(Row, broker, 4)] == [0, 1, 2, 3]


def test_tail_tells_why_a_message_cannot_be_used(broker, topic):
    """In its place among the others, with its reason."""
    from confluent_kafka import Producer

    class Row(Passing, topic=topic, codec="json"):
        pass

    create_topics(broker, {topic: 1})
    good, late = codec_for(Passing, "json").encode(passings(2))
    producer = Producer({"bootstrap.servers": broker})
    for payload in (good, b"\xff\xfe", late, late.replace(b'"weight":0.5', b'"weight":-1')):
        producer.produce(topic, payload)
    assert producer.flush(60) == 0
    seen = held(Row, broker, 4)
    assert [(one.offset, one.reason) for one in seen] == [(0, ""), (1, "undecodable"), (2, ""), (3, "out_of_range")]
    assert [one.row is None for one in seen] == [False, True, False, True]
    assert "weight" in seen[3].detail


def test_lines_are_sent_as_they_come(broker, topic):
    """
    writer   line 1, half of line 2 | rest of line 2, a blank line | line 3 without an end, closed
    topic    1                        2                              3
    """

    class Row(Passing, topic=topic):
        pass

    create_topics(broker, {topic: 1})
    first, second, third = codec_for(Passing, "json").encode(passings(3))
    reader, writer = os.pipe()
    sent, letters = Sent(), Letters()
    sender = threading.Thread(
        target=lambda: produce(
            LineSource(reader, Row),
            Row,
            TopicWriter(broker, Row),
            Intake([Row], dead_letters=letters),
            sent,
        )
    )
    sender.start()
    for text, count in ((first + b"\n" + second[:10], 1), (second[10:] + b"\n\n", 2)):
        os.write(writer, text)
        assert [one.offset for one in held(Row, broker, count)] == list(range(count))
        assert sent.rows <= count
    os.write(writer, third)
    os.close(writer)
    sender.join(30)
    os.close(reader)
    assert (sent.rows, letters) == (3, [])


def test_a_rate_is_kept(tmp_path, broker, topic):
    """40 rows at 100 a second take as long as that; parts are small, so that they flow."""

    class Row(Passing, topic=topic):
        pass

    create_topics(broker, {topic: 1})
    path = write(passings(40), tmp_path / "log.parquet")
    parts, started_s = [], time.monotonic()
    send(Row, source_of_url(str(path), [Row]), broker, rate=100.0, on_progress=lambda sent: parts.append(sent.rows))
    assert time.monotonic() - started_s >= 0.3
    assert parts == list(range(5, 41, 5))


def test_what_the_broker_refuses_is_an_error_and_what_it_took_is_counted(tmp_path, broker, topic):
    """A row too large for a message: the parts before it have arrived."""

    class Row(Passing, topic=topic):
        pass

    create_topics(broker, {topic: 1})
    frame = passings(20).with_columns(name=pl.when(pl.col("gate") == 4).then(pl.lit("x" * 2_000_000)).otherwise("name"))
    path = write(frame, tmp_path / "log.parquet")
    sent = Sent()
    with pytest.raises(SourceError, match="Message size too large"):
        produce(
            source_of_url(str(path), [Row]),
            Row,
            TopicWriter(broker, Row),
            Intake([Row], dead_letters=Letters()),
            sent,
            rate=40.0,
        )
    assert sent.rows == 4
    assert len(held(Row, broker, 4)) == 4


def test_many_rows_of_arrow_fit_into_messages(tmp_path, broker, topic):
    """A frame of some MB becomes several messages that the broker takes."""

    class Row(Passing, topic=topic, codec="arrow"):
        pass

    create_topics(broker, {topic: 1})
    frame = passings(5_000).with_columns(name=pl.col("name") + "-" * 600)
    sent, _ = send(Row, source_of_url(str(write(frame, tmp_path / "log.parquet")), [Row]), broker)
    assert sent.rows == 5_000
    assert {one.offset for one in held(Row, broker, 5_000)} >= {0, 1, 2, 3, 4, 5}
