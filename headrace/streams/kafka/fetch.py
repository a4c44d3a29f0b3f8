"""Messages that a consumer has fetched, as columns, taken a few hundred at a time.

Python's garbage collector tracks message objects. With 16,384 of them alive, a poll triggers it about twenty times, and
each time it visits them all: 2 us per message. In parts too small to trigger it, a message costs 0.4 us (measured).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter

import numpy as np
from confluent_kafka import Consumer, Message
from numpy.typing import NDArray

TAKEN_MAX = 512
"""Maximum number of messages alive at once: below the 700 objects that trigger a collection."""

_stamp_of = itemgetter(1)


@dataclass(slots=True)
class Fetched:
    """Messages of one partition, in order.

    `offsets` and `stamps_ms` are arrays to concatenate, int64 (n,) in total; a missing timestamp is 0 or less.
    """

    offsets: list[NDArray[np.int64]] = field(default_factory=list)
    stamps_ms: list[NDArray[np.int64]] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)

    def add(self, messages: Sequence[Message]) -> None:
        """Append messages of the partition."""
        count = len(messages)
        self.offsets.append(np.fromiter(map(Message.offset, messages), np.int64, count))
        self.stamps_ms.append(np.fromiter(map(_stamp_of, map(Message.timestamp, messages)), np.int64, count))
        self.payloads += [value or b"" for value in map(Message.value, messages)]


def fetch(consumer: Consumer, rows_max: int) -> tuple[dict[tuple[str, int], Fetched], list[Message]]:
    """Up to `rows_max` fetched messages by (topic, partition), and the error messages; never waits."""
    fetched: dict[tuple[str, int], Fetched] = {}
    errors: list[Message] = []
    left = rows_max
    while left > 0:
        asked = min(left, TAKEN_MAX)
        taken = _take(consumer, asked, fetched, errors)
        left -= taken
        if taken < asked:
            break
    return fetched, errors


def _take(consumer: Consumer, asked: int, fetched: dict[tuple[str, int], Fetched], errors: list[Message]) -> int:
    """Take one part, and return its size; the messages are freed when this returns."""
    messages = consumer.consume(asked, 0.0)
    taken = len(messages)
    failed = [message for message in messages if message.error() is not None]
    if failed:
        errors += failed
        messages = [message for message in messages if message.error() is None]
    if not messages:
        return taken
    topics, numbers = list(map(Message.topic, messages)), list(map(Message.partition, messages))
    # The client returns the messages of one fetch and partition together, so most parts have a single partition.
    if topics.count(topics[0]) == numbers.count(numbers[0]) == len(messages):
        fetched.setdefault((topics[0], numbers[0]), Fetched()).add(messages)
        return taken
    by_partition: dict[tuple[str, int], list[Message]] = {}
    for topic, number, message in zip(topics, numbers, messages, strict=True):
        by_partition.setdefault((topic, number), []).append(message)
    for key, part in by_partition.items():
        fetched.setdefault(key, Fetched()).add(part)
    return taken
