"""What is written to the broker is what is read back: frames, dead letters, and refusals as errors."""

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from headrace.errors import SourceError
from headrace.local import free_port
from headrace.pipelines import Intake, KafkaDeadLetters, KafkaSource, TopicWriter, create_topics
from headrace.schemas import DeadLetter, Letters, decode_letter
from headrace.streams import kafka_writer as topics
from tests.turnstiles import START_US, Shelf, drain, passage_of, passages


@pytest.mark.parametrize("codec", ["avro", "json", "arrow"])
def test_a_frame_comes_back_whole_and_a_key_stays_in_one_partition(broker, topic, codec):
    event, log = passage_of(topic, codec), passages(500)
    create_topics(broker, {topic: 3})
    writer = TopicWriter(broker, event)
    messages = sum(writer.write(part) for part in log.iter_slices(100))
    assert writer.write(log[:0]) == 0
    writer.close()
    assert messages == (5 if codec == "arrow" else 500)
    intake = Intake((event,), dead_letters=(shelf := Shelf()))
    source = KafkaSource(broker, [event], until_end=True)
    batches = [intake.decode(batch) for batch in drain(source)]
    source.close()
    assert shelf.letters == []
    assert_frame_equal(pl.concat([batch.frame for batch in batches]).sort("passage_id"), log.sort("passage_id"))
    if codec != "arrow":
        homes = pl.concat([batch.frame.select("door", home=pl.lit(batch.partition)) for batch in batches]).unique()
        assert homes["door"].n_unique() == homes.height
        assert homes["home"].n_unique() == 3


def test_dead_letters_are_on_the_broker_when_write_returns(broker, topic):
    create_topics(broker, {topic: 1})
    written = [DeadLetter("s", f"s/{i}", i, "missing", "door: null", bytes([i, 255]), START_US) for i in range(5)]
    letters = KafkaDeadLetters(broker, topic)
    letters.write(written)
    source = KafkaSource(broker, [topic], until_end=True)
    found = [decode_letter(payload) for batch in drain(source) for payload in batch.payloads]
    source.close()
    letters.close()
    assert found == written


def test_a_letter_that_no_broker_takes_is_shortened_and_says_so(broker, topic):
    """As base64 a payload grows by a third: one that a broker took makes a letter that it does not."""
    create_topics(broker, {topic: 1})
    payload = bytes(range(256)) * 4_000
    offsets, texts = np.array([1, 2]), pl.Series(["short", "long"])
    written = Letters.of("s", "s/0", START_US, offsets, "undecodable", texts, pl.Series([b"x", payload]))
    letters = KafkaDeadLetters(broker, topic)
    letters.write(written)
    letters.write(list(written))
    source = KafkaSource(broker, [topic], until_end=True)
    found = [decode_letter(line) for batch in drain(source) for line in batch.payloads]
    source.close()
    letters.close()
    assert found == [written[0], found[1]] * 2
    assert found[1].detail == "long; here are 600,000 of the payload's 1,024,000 bytes"
    assert found[1].payload == payload[:600_000]


def test_create_topics_leaves_what_is_there(broker, topic):
    create_topics(broker, {topic: 2})
    create_topics(broker, {topic: 5, f"{topic}-new": 1})
    assert len(KafkaSource(broker, [topic]).partitions()) == 2
    assert KafkaSource(broker, [f"{topic}-new"]).partitions() == [f"{topic}-new/0"]
    create_topics(broker, {})


def test_a_broker_that_is_away_is_told_at_the_flush(monkeypatch):
    monkeypatch.setattr(topics, "FLUSH_S_MAX", 0.3)
    address = f"127.0.0.1:{free_port()}"
    writer = TopicWriter(address, passage_of("away"))
    writer.write(passages(3))
    with pytest.raises(SourceError, match=f"broker {address}: 3 messages not acknowledged"):
        writer.flush()


def test_a_refused_message_is_told_at_the_next_call(broker, topic):
    """A message larger than the producer may send is refused at once."""
    event = passage_of(topic)
    create_topics(broker, {topic: 1})
    writer = TopicWriter(broker, event, config={"message.max.bytes": 1_000})
    with pytest.raises(SourceError, match=topic):
        writer.write(passages(1).with_columns(passage_id=pl.lit("x" * 5_000)))
