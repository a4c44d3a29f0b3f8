"""Topics of a later life of the broker: every way to begin reading finds its first event, and none is before it."""

from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka import Producer

from headrace.errors import ServiceError
from headrace.local import EmbeddedBroker
from headrace.local.topic_start import LIFE_OFFSETS, begin_at
from headrace.pipelines import KafkaSource, create_topics

FIRST = 3 * LIFE_OFFSETS


@pytest.fixture(scope="module")
def later(tmp_path_factory):
    """A broker in its fourth life, with five messages in partition 0 of two."""
    with EmbeddedBroker(tmp_path_factory.mktemp("broker"), topics={"t": 2}, first_offset=FIRST) as broker:
        placed = send(broker.bootstrap, "t", 5)
        assert placed == [FIRST + index for index in range(5)]
        yield broker


def send(bootstrap: str, topic: str, count: int) -> list[int]:
    """Offsets of messages that are sent to partition 0."""
    placed = []
    producer = Producer({"bootstrap.servers": bootstrap})
    for number in range(count):
        producer.produce(topic, b"%d" % number, partition=0, on_delivery=lambda _, m: placed.append(m.offset()))
    assert producer.flush(60) == 0
    return placed


@pytest.mark.parametrize(
    ("start", "positions", "expected"),
    [
        ("earliest", {}, [0, 1, 2, 3, 4]),
        ("latest", {}, []),
        ({"t/0": FIRST + 3, "t/1": FIRST}, {}, [3, 4]),
        (datetime.now(UTC) - timedelta(days=1), {}, [0, 1, 2, 3, 4]),
        ("stored", {"t/0": 17, "t/1": 5}, [0, 1, 2, 3, 4]),
        ("stored", {"t/0": LIFE_OFFSETS + 3, "t/1": 0}, [0, 1, 2, 3, 4]),
        ("stored", {"t/0": FIRST - 1, "t/1": FIRST}, [0, 1, 2, 3, 4]),
        ("stored", {"t/0": FIRST + 2, "t/1": FIRST}, [2, 3, 4]),
    ],
)
def test_reading_begins_at_the_first_new_message(later, start, positions, expected):
    """From the start, the end, a moment, an offset, or where a reader of any earlier life stood; until the end."""
    source = KafkaSource(later.bootstrap, ["t"], start=start, until_end=True)
    source.seek(positions)
    found = []
    while not source.exhausted:
        for batch in source.poll():
            found += [
                (int(offset) - FIRST, payload) for offset, payload in zip(batch.offsets, batch.payloads, strict=True)
            ]
    source.close()
    assert found == [(index, b"%d" % index) for index in expected]


def test_a_producer_that_was_faster_is_told(later):
    """Its message lies where readers of an earlier life may have been: that must not go unseen."""
    create_topics(later.bootstrap, {"quick": 1})
    send(later.bootstrap, "quick", 2)
    with pytest.raises(ServiceError, match="cannot set the first offset of quick/0: 2 messages were sent to it before"):
        begin_at(later.port, {"quick": 1}, LIFE_OFFSETS)
