"""Offset for a time: the first message of a partition that was appended at or after it.

Brokers have a request for this, but not all answer it correctly. Append times grow with offsets, so a bisection over
single messages finds the offset with about twenty fetches, on any broker.
"""

from collections.abc import Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from headrace.errors import SourceError
from headrace.streams.kafka.client import connected

FETCH_S_MAX = 10.0
"""Timeout of the fetch of one message, in seconds."""


def offset_at(
    bootstrap: str, config: Mapping[str, Any], topic: str, number: int, ends: tuple[int, int], moment_us: int
) -> int:
    """First offset of `topic`/`number` whose append time is at least `moment_us`; the end if there is none yet.

    `config` is for the consumer, `ends` (low, high) are watermarks; messages past `high` are read one by one.

    Raises:
        SourceError: the broker does not answer.
    """
    options = {**config, "enable.partition.eof": True, "fetch.message.max.bytes": 65_536}
    consumer = connected(Consumer, bootstrap, options)
    try:
        low, high = ends
        while low < high:
            middle = (low + high) // 2
            message = _message_at(consumer, topic, number, middle)
            if message is None or message.timestamp()[1] * 1_000 >= moment_us:
                high = middle
            else:
                low = message.offset() + 1
        message = _message_at(consumer, topic, number, low)
        while message is not None and message.timestamp()[1] * 1_000 < moment_us:
            low = message.offset() + 1
            message = _next(consumer, topic, number, low)
        return low
    finally:
        consumer.close()


def _message_at(consumer: Consumer, topic: str, number: int, offset: int) -> Message | None:
    """The first message at or after `offset`, None at the end of the partition."""
    consumer.assign([TopicPartition(topic, number, offset)])
    return _next(consumer, topic, number, offset)


def _next(consumer: Consumer, topic: str, number: int, offset: int) -> Message | None:
    """The next message, at or after `offset`; None at the end of the partition."""
    message = consumer.poll(FETCH_S_MAX)
    if message is None:
        raise SourceError(f"{topic}/{number}: no answer for offset {offset} within {FETCH_S_MAX:.0f} s")
    error = message.error()
    if error is None:
        return message
    if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
        return None
    raise SourceError(f"{topic}/{number}: offset {offset}: {error.str()}")
