"""The broker as a source: every message once, from where it was asked, whatever happens to the broker."""

import os
import signal
import time
from datetime import UTC, datetime

import numpy as np
import pytest
from confluent_kafka import Producer

from headrace.clock import wall_us
from headrace.errors import OffsetLostError, SourceError, UnknownTopicError
from headrace.local import EmbeddedBroker, free_port
from headrace.streams import kafka_source
from headrace.streams.kafka_source import KafkaSource
from headrace.streams.kafka_writer import create_topics
from headrace.streams.positions import Positions, Reader
from headrace.streams.urls import source_of_url
from tests.logs import capture_logs
from tests.turnstiles import drain, passage_of


def send(bootstrap: str, topic: str, first: int, count: int, partitions: int = 3) -> None:
    """Messages "first".."first + count - 1", dealt out to the partitions."""
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    for number in range(first, first + count):
        producer.produce(topic, str(number).encode(), partition=number % partitions)
    assert producer.flush(60) == 0


def numbers(batches) -> list[int]:
    return sorted(int(payload) for batch in batches for payload in batch.payloads)


def test_every_message_comes_once_with_its_offset_and_append_time(broker, topic):
    create_topics(broker, {topic: 3})
    before_us = wall_us() // 1_000 * 1_000
    send(broker, topic, 0, 1_000)
    source = KafkaSource(broker, [topic], until_end=True, rows_max=100)
    assert source.partitions() == [f"{topic}/0", f"{topic}/1", f"{topic}/2"]
    batches = drain(source)
    source.close()
    assert numbers(batches) == list(range(1_000))
    assert all(len(batch.offsets) <= 100 for batch in batches)
    for number in range(3):
        mine = [batch for batch in batches if batch.partition == f"{topic}/{number}"]
        offsets = np.concatenate([batch.offsets for batch in mine])
        assert offsets.tolist() == list(range(len(offsets)))
        assert mine[-1].next_offset == len(offsets)
        assert [batch.ended for batch in mine] == [False] * (len(mine) - 1) + [True]
        stamps = np.concatenate([batch.appended_us for batch in mine])
        assert before_us <= stamps.min() <= stamps.max() <= wall_us()


def test_offsets_stamps_and_payloads_stay_together_across_topics_and_partitions(broker, topic):
    """6,000 messages of two topics, dealt out one by one; each says where it is and when; every tenth is empty."""
    topics = [topic, f"{topic}-b"]
    create_topics(broker, dict.fromkeys(topics, 3))
    producer = Producer({"bootstrap.servers": broker, "log_level": 0})
    for number in range(6_000):
        name, partition, stamp_ms = topics[number % 2], number // 2 % 3, 1_700_000_000_000 + number
        value = None if number % 10 == 9 else f"{name}/{partition} {number // 6} {stamp_ms}".encode()
        producer.produce(name, value, partition=partition, timestamp=stamp_ms)
    assert producer.flush(60) == 0
    source = KafkaSource(broker, topics, until_end=True, rows_max=1_500)
    batches = drain(source)
    source.close()
    told = [
        (payload, f"{batch.partition} {offset} {stamp_us // 1_000}".encode())
        for batch in batches
        for payload, offset, stamp_us in zip(batch.payloads, batch.offsets, batch.appended_us, strict=True)
    ]
    assert len(told) == 6_000
    assert all(payload in (b"", wanted) for payload, wanted in told)
    assert sum(payload == b"" for payload, _ in told) == 600
    for partition in source.partitions():
        offsets = [offset for batch in batches if batch.partition == partition for offset in batch.offsets.tolist()]
        assert offsets == list(range(1_000))


def test_seek_begins_at_the_offset_and_the_rest_at_its_start(broker, topic):
    create_topics(broker, {topic: 2})
    send(broker, topic, 0, 100, partitions=2)
    source = KafkaSource(broker, [topic], until_end=True)
    source.seek({f"{topic}/1": 40})
    batches = drain(source)
    source.close()
    assert numbers(batches) == sorted([*range(0, 100, 2), *range(81, 100, 2)])


def test_start_names_where_an_unknown_partition_begins(broker, topic):
    create_topics(broker, {topic: 2})
    send(broker, topic, 0, 100, partitions=2)
    source = KafkaSource(broker, [topic], until_end=True, start={f"{topic}/0": 50, f"{topic}/1": 7})
    source.seek({f"{topic}/1": 49})
    assert numbers(drain(source)) == [99]
    source.close()


def test_a_url_says_where_to_begin(broker, topic):
    """At an offset of all partitions or of each, or nowhere else than where the store stands."""
    create_topics(broker, {topic: 2})
    send(broker, topic, 0, 100, partitions=2)
    event = passage_of(topic)

    def read(start, positions=None):
        source = source_of_url(f"kafka://{broker}?start={start}", [event], until_end=True)
        try:
            source.seek(positions or {})
            return numbers(drain(source))
        finally:
            source.close()

    assert read(48) == [96, 97, 98, 99]
    assert read("0:49,1:47") == [95, 97, 98, 99]
    assert read("48", {f"{topic}/1": 50}) == [96, 98]
    assert read("stored", {f"{topic}/0": 49, f"{topic}/1": 49}) == [98, 99]
    with pytest.raises(OffsetLostError, match=f"{topic}/1: start=stored, and the store has no offset"):
        read("stored", {f"{topic}/0": 49})
    with pytest.raises(OffsetLostError, match=rf"{topic}/[01]: offset 51 is lost; the log ends at 50"):
        read(51)


def test_shares_are_disjoint_and_whole(broker, topic):
    create_topics(broker, {topic: 3})
    send(broker, topic, 0, 90)
    whole = KafkaSource(broker, [topic], until_end=True)
    shares = [whole.share(index, 2) for index in range(2)]
    found = [drain(share) for share in shares]
    assert [sorted({batch.partition for batch in batches}) for batches in found] == [
        [f"{topic}/0", f"{topic}/2"],
        [f"{topic}/1"],
    ]
    assert numbers(found[0] + found[1]) == list(range(90))
    for share in shares:
        share.close()


def test_a_partition_says_at_once_where_it_begins(broker, topic):
    """
    partition 1   |---- before ----|<- latest        |---- while away ----|<- latest, asked again
                                    nothing comes, restart                  the events in between would be lost
    """
    create_topics(broker, {topic: 3})
    send(broker, topic, 0, 300)
    first = KafkaSource(broker, [topic], start="latest")
    first.seek({f"{topic}/0": 100})
    begun = {batch.partition: (len(batch.offsets), batch.next_offset) for batch in first.poll()}
    first.close()
    assert begun == {f"{topic}/1": (0, 100), f"{topic}/2": (0, 100)}
    unasked = KafkaSource(broker, [topic])
    unasked.seek({})
    assert all(len(batch.offsets) for batch in unasked.poll())
    unasked.close()
    send(broker, topic, 300, 30)
    again = KafkaSource(broker, [topic], start="latest")
    again.seek({f"{topic}/0": 100} | {name: offset for name, (_, offset) in begun.items()})
    found, deadline_s = [], time.monotonic() + 10
    while len(found) < 30 and time.monotonic() < deadline_s:
        found += numbers(again.poll())
    again.close()
    assert sorted(found) == list(range(300, 330))


def test_until_end_stops_at_the_end_seen_at_the_start(broker, topic):
    create_topics(broker, {topic: 1})
    send(broker, topic, 0, 500, partitions=1)
    source = KafkaSource(broker, [topic], until_end=True, rows_max=10)
    first = drain(source, rows=10)
    send(broker, topic, 500, 500, partitions=1)
    assert numbers(first + drain(source)) == list(range(500))
    source.close()


def test_empty_partitions_end_with_one_empty_batch_each(broker, topic):
    create_topics(broker, {topic: 2})
    source = KafkaSource(broker, [topic], until_end=True)
    assert not source.exhausted
    batches = drain(source)
    source.close()
    assert sorted((batch.partition, len(batch.offsets), batch.next_offset, batch.ended) for batch in batches) == [
        (f"{topic}/0", 0, 0, True),
        (f"{topic}/1", 0, 0, True),
    ]


def test_an_unknown_topic_is_named_with_those_that_exist_and_how_to_create_it(broker, topic):
    create_topics(broker, {topic: 1})
    with pytest.raises(UnknownTopicError) as error:
        KafkaSource(broker, [f"{topic}s"]).partitions()
    text = str(error.value)
    assert f"'{topic}s'" in text
    assert f"it has {topic}" in text
    assert "create_topics(" in text


def test_a_broker_that_does_not_answer_is_one_clear_error():
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(SourceError, match=f"broker {address} does not answer"):
        KafkaSource(address, ["any"], connect_s=0.5).partitions()


def test_an_offset_beyond_the_end_is_lost_loudly(broker, topic):
    create_topics(broker, {topic: 1})
    send(broker, topic, 0, 5, partitions=1)
    source = KafkaSource(broker, [topic])
    source.seek({f"{topic}/0": 6})
    with pytest.raises(OffsetLostError, match=f"{topic}/0: offset 6 is lost; the log ends at 5"):
        drain(source, rows=1)
    source.close()


def test_an_offset_below_the_start_is_lost_loudly(broker, topic):
    create_topics(broker, {topic: 1})
    source = KafkaSource(broker, [topic])
    with pytest.raises(OffsetLostError, match=r"offset -5 is lost; the broker's first is 0"):
        source.seek({f"{topic}/0": -5})
    source.close()


@pytest.fixture
def trimmed():
    """A broker, that of librdkafka, which has deleted the first messages of topic "old": it keeps 5 MB of them."""
    broker = Producer({"test.mock.num.brokers": 1, "log_level": 0})
    [address] = [f"{each.host}:{each.port}" for each in broker.list_topics(timeout=10).brokers.values()]
    producer = Producer({"bootstrap.servers": address, "log_level": 0})
    for _ in range(8):
        for _ in range(10):
            producer.produce("old", bytes(100_000), partition=0)
        assert producer.flush(60) == 0
    yield address
    del broker  # until here: it ends with its client


@pytest.mark.parametrize("worker", [0, 1])
def test_parts_of_a_reader_that_lost_an_offset_do_not_begin_at_what_is_left(trimmed, worker):
    """A node of a Redis Cluster came back empty: its shards would lack what the broker has deleted, unseen."""
    lost = [
        Reader("view use", frozenset({"old"}), {"old/0": 70}, unseen=frozenset({"old/0"} if worker == 0 else {})),
        *([Reader("view use", frozenset({"old"}), {})] if worker else []),
    ]
    with pytest.raises(OffsetLostError, match=r"old/0: view use knows .* in some of its shards, and not"):
        KafkaSource(trimmed, ["old"]).seek(Positions({}, lost))
    for start, readers in (("earliest", lost), (None, [Reader("view use", frozenset({"old"}), {})])):
        source = KafkaSource(trimmed, ["old"], start=start)
        source.seek(Positions({}, readers))
        source.close()


def test_nothing_is_lost_while_the_broker_is_frozen(tmp_path):
    """produce 0..99 | frozen 1.5 s, still polled | produce 100..199: all of them once, one log line away, one back."""
    with EmbeddedBroker(tmp_path, topics={"frozen": 3}) as server:
        quick = {"socket.timeout.ms": 500, "reconnect.backoff.ms": 50, "reconnect.backoff.max.ms": 100}
        source = KafkaSource(server.bootstrap, ["frozen"], config=quick)
        send(server.bootstrap, "frozen", 0, 100)
        batches = drain(source, rows=100)
        with capture_logs() as logs:
            os.kill(server.pid, signal.SIGSTOP)
            frozen_until, took_s = time.monotonic() + 1.5, []
            while time.monotonic() < frozen_until:
                started = time.monotonic()
                assert source.poll() == []
                took_s.append(time.monotonic() - started)
                time.sleep(0.01)
            assert sorted(took_s)[-3] < 0.2  # a busy machine may hold up two; polls that wait take 0.5 s, all of them
            os.kill(server.pid, signal.SIGCONT)
            send(server.bootstrap, "frozen", 100, 100)
            batches += drain(source, rows=100)
        source.close()
    assert numbers(batches) == list(range(200))
    assert [line["event"] for line in logs if line["log_level"] != "debug"] in ([], ["broker_away", "broker_back"])


def test_a_broker_that_came_back_without_its_log_is_noticed(tmp_path):
    server = EmbeddedBroker(tmp_path, topics={"gone": 1}).start()
    try:
        source = KafkaSource(server.bootstrap, ["gone"], config={"reconnect.backoff.max.ms": 100})
        send(server.bootstrap, "gone", 0, 10, partitions=1)
        drain(source, rows=10)
        server.kill()
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            assert source.poll() == []
            time.sleep(0.01)
        server.start()
        with pytest.raises(OffsetLostError, match="the log ends at 0: the topic was created anew"):
            drain(source, rows=1)
        source.close()
    finally:
        server.stop()


def test_a_topic_that_grows_is_read_whole(broker, topic, monkeypatch):
    """The source starts when the broker tells of one partition; then it tells of three."""
    create_topics(broker, {topic: 3})
    send(broker, topic, 0, 300)
    monkeypatch.setattr(kafka_source, "PARTITIONS_S", 0.05)
    source = KafkaSource(broker, [topic])
    listed = source._list_partitions
    monkeypatch.setattr(source, "_list_partitions", lambda known: listed(known)[:1])
    first = drain(source, rows=100)
    assert {batch.partition for batch in first} == {f"{topic}/0"}
    monkeypatch.setattr(source, "_list_partitions", listed)
    assert numbers(first + drain(source, rows=200)) == list(range(300))
    assert len(source.partitions()) == 3
    source.close()


def test_a_moment_or_latest_begins_at_the_first_message_appended_since(broker, topic):
    """Each partition begins at its own first message of that time; what comes later than all of them is the end."""
    create_topics(broker, {topic: 2})
    for first in range(0, 300, 20):  # several batches: brokers index those
        send(broker, topic, first, 20, partitions=2)
    time.sleep(0.05)
    moment = datetime.now(UTC)
    time.sleep(0.05)
    send(broker, topic, 300, 60, partitions=2)
    source = KafkaSource(broker, [topic], until_end=True, start=moment)
    assert numbers(drain(source)) == list(range(300, 360))
    source.close()
    latest = KafkaSource(broker, [topic], start="latest")
    latest.seek({})
    send(broker, topic, 360, 10, partitions=2)
    found = []
    while len(found) < 10:
        found += numbers(latest.poll())
    latest.close()
    assert sorted(found) == list(range(360, 370))
    known = KafkaSource(broker, [topic], until_end=True, start=datetime.now(UTC))
    known.seek({f"{topic}/0": 0})  # what was stored wins
    assert numbers(drain(known)) == list(range(0, 370, 2))
    known.close()
