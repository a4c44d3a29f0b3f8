"""Topics of a Kafka-protocol broker, read by explicit offsets: no consumer group, no commits, one consumer per worker.

While the broker is unavailable nothing is lost: the client reconnects and continues at the same offset.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Self, TypeAlias

from headrace.extras import require

require("confluent_kafka")

import numpy as np
import structlog
import tenacity
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import TopicMetadata
from prometheus_client import Counter, Gauge

from headrace.clock import wall_us
from headrace.errors import OffsetLostError, SourceError, UnknownTopicError
from headrace.schemas import Event, spec_of
from headrace.streams.kafka.client import (
    FATAL,
    connected,
    describe,
    lost_offset,
    partly_lost,
    unknown_topic,
)
from headrace.streams.kafka.fetch import Fetched, fetch
from headrace.streams.kafka.start_times import offset_at
from headrace.streams.positions import partly_read, refuse_topic_of_files
from headrace.streams.source import Batch, Source

log = structlog.get_logger(__name__)

Start: TypeAlias = Literal["earliest", "latest", "stored"] | datetime | int | Mapping[str, int]

ROWS_MAX = 16_384
"""Messages per poll: more reduce freshness, fewer cause more calls downstream."""
CONNECT_S_MAX = 30.0
"""Seconds to wait at the start for a broker that does not answer."""

ASK_S = 2.0
"""Timeout of one request for the topics, in seconds; errors of the client are reported between two of them."""
ENDS_S = 0.25
"""Interval of checks, in seconds, that the end of the log is not below the position read."""
BEYOND_S = 1.0
"""Seconds for which the end of a log may be below the position read: a new leader may not know the end at once."""
GAP_MIN = 1 << 30
"""Gap between two offsets that indicates a new log: after a restart, the embedded broker starts topics this far ahead.
Compacted logs and transactions leave gaps too, but none of a billion.
"""
PARTITIONS_S = 30.0
"""Interval of checks for partitions added to a topic, in seconds."""

LAG_ROWS = Gauge(
    "headrace_source_lag_rows", "Offsets between what was read of a partition and its end", ["topic", "partition"]
)
BROKER_ERRORS = Counter("headrace_broker_errors_total", "Errors that the broker's client reported", ["code"])

LOST = frozenset({KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET})  # noqa: SLF001
UNKNOWN = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})  # noqa: SLF001


@dataclass(slots=True)
class _Cursor:
    """Read position of one partition. `end` is its high watermark at the first fetch."""

    topic: str
    number: int
    position: int
    end: int | None = None
    ended: bool = False

    @property
    def name(self) -> str:
        return f"{self.topic}/{self.number}"


class KafkaSource(Source):
    """Batches of the partitions of some topics.

    `topics` are names or event classes. With `until_end` the source is exhausted at the high watermarks seen at its
    start. `start` is the start of a partition that `seek` does not name: "earliest", "latest" (events appended from now
    on), an append time (a naive datetime is UTC), an offset, or a mapping from partition names to offsets, in which
    case other partitions start at the earliest offset. With "stored" such a partition is an error, so that a store that
    has lost its offsets is not silently filled again. None means "earliest", but is an error if a reader was filled
    from files of the topic. `config` is passed to librdkafka (TLS, SASL).

    Raises:
        ConfigError: from the first call on, if librdkafka rejects `config` or `bootstrap`.
    """

    has_live_offsets = True

    def __init__(
        self,
        bootstrap: str,
        topics: Sequence[str | type[Event]],
        *,
        until_end: bool = False,
        rows_max: int = ROWS_MAX,
        start: Start | None = None,
        config: Mapping[str, Any] | None = None,
        connect_s: float = CONNECT_S_MAX,
    ) -> None:
        self.bootstrap = bootstrap
        names = (topic if isinstance(topic, str) else spec_of(topic).topic for topic in topics)
        self.topics = tuple(dict.fromkeys(names))
        self._until_end = until_end
        self._rows_max = rows_max
        self.start = start
        self._config = dict(config or {})
        self._connect_s = connect_s
        self._owner = (0, 1)
        self._consumer: Consumer | None = None
        self._names: list[str] | None = None
        self._is_placed = False
        self._listed_s = 0.0
        self._cursors: dict[tuple[str, int], _Cursor] = {}
        self._unfetched: set[tuple[str, int]] = set()
        self._begun: set[tuple[str, int]] = set()
        self._looked_s = 0.0
        self._beyond_s: dict[tuple[str, int], float] = {}
        self._away = threading.Event()
        self._failure: KafkaError | None = None

    def share(self, index: int, count: int) -> Self:
        """A fresh source of the partitions whose number modulo `count` is `index`."""
        fresh = type(self)(
            self.bootstrap,
            self.topics,
            until_end=self._until_end,
            rows_max=self._rows_max,
            start=self.start,
            config=self._config,
            connect_s=self._connect_s,
        )
        fresh._owner = (index, count)  # noqa: SLF001
        return fresh

    def describe(self) -> str:
        """Topics and brokers."""
        return f"topic{'s' if len(self.topics) > 1 else ''} {', '.join(self.topics)} at {self.bootstrap}"

    def unasked_topics(self) -> Sequence[str]:
        """The topics, unless `start` was given."""
        return self.topics if self.start is None else ()

    @property
    def exhausted(self) -> bool:
        """Whether `until_end` is set and every partition has reached its end."""
        return self._until_end and self._is_placed and all(c.ended for c in self._cursors.values())

    def partitions(self) -> list[str]:
        """Every partition of the topics, "<topic>/<number>".

        Raises:
            UnknownTopicError: the broker lacks a topic.
            SourceError: the broker does not answer.
        """
        if self._names is None:
            self._names = self._ask_partitions()
        return list(self._names)

    def seek(self, positions: Mapping[str, int]) -> None:
        """Start at `positions`; called once, before the first poll.

        Raises:
            OffsetLostError: an offset is below what the broker keeps, or parts of a reader have lost theirs and the
                broker no longer has all. One beyond the end shows at the first fetch.
            ConfigError: no start was given, and a reader of the positions was filled from files of a topic.
        """
        if self.start is None:
            refuse_topic_of_files(self.topics, positions)  # before contacting the broker
            refuse_topic_of_files(self.topics, positions, self.partitions())
        self._is_placed = True
        self._listed_s = time.monotonic()
        placed = [self._place(*key, positions) for key in self._owned(self.partitions())]
        self.start = "earliest"  # a partition added later contains only new events
        self._connect().assign(placed)

    def poll(self) -> list[Batch]:
        """Messages that have been fetched, one batch per partition; never waits.

        Raises:
            OffsetLostError: the broker no longer has, or never had, the offset to read.
            UnknownTopicError: a topic was deleted.
            SourceError: the broker permanently rejects the client (authentication, authorisation).
        """
        if not self._is_placed:
            self.seek({})
        fetched, errors = fetch(self._connect(), self._rows_max)
        if self._failure is not None:
            raise SourceError(f"broker {self.bootstrap}: {describe(self._failure)}")
        if not self._until_end and time.monotonic() - self._listed_s > PARTITIONS_S and not self._away.is_set():
            self._take_new_partitions()
        running = [cursor for cursor in self._cursors.values() if not cursor.ended]
        self._check_ends()
        for message in errors:
            self._on_message_error(message.error(), message)
        if fetched and self._away.is_set():
            self._away.clear()
            log.info("broker_back", bootstrap=self.bootstrap)
        arrival_us = wall_us()
        # A partition that begins or ends without a message gives one empty batch with its offset: a reader must keep
        # the start of an idle partition, or "latest" would be a later time after a restart, and events be skipped.
        begun, self._begun = self._begun, set()
        return [
            self._batch(cursor, messages, arrival_us)
            for cursor in running
            if (messages := fetched.get((cursor.topic, cursor.number)))
            or cursor.ended
            or (cursor.topic, cursor.number) in begun
        ]

    def close(self) -> None:
        """Close the consumer."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def _owned(self, names: Sequence[str]) -> list[tuple[str, int]]:
        """The partitions of this share, by number, so that added partitions do not move existing ones."""
        index, count = self._owner
        keys = [(topic, int(number)) for topic, _, number in (name.rpartition("/") for name in names)]
        return [(topic, number) for topic, number in keys if number % count == index]

    def _place(self, topic: str, number: int, positions: Mapping[str, int]) -> TopicPartition:
        name, (low, high) = f"{topic}/{number}", self._watermarks(topic, number)
        position = positions.get(name)
        if position is None:
            if self.start is None and low > 0 and (reader := partly_read(name, positions)):
                raise OffsetLostError(partly_lost(name, reader, low))
            position = self._start_of(topic, number, low, high)
            if not self._until_end and (self.start is not None or position > 0):  # 0 is where one begins unasked
                self._begun.add((topic, number))
        if position < low:
            raise OffsetLostError(lost_offset(name, position, low=low))
        self._cursors[topic, number] = _Cursor(topic, number, position)
        self._unfetched.add((topic, number))
        return TopicPartition(topic, number, position)

    def _start_of(self, topic: str, number: int, low: int, high: int) -> int:
        if self.start is None or self.start == "earliest":
            return low
        if self.start == "stored":
            raise OffsetLostError(
                f"{topic}/{number}: start=stored, and the store has no offset of it; begin once with start=earliest, "
                "or another start, or restore the store"
            )
        if isinstance(self.start, int):
            return self.start
        if isinstance(self.start, Mapping):
            return self.start.get(f"{topic}/{number}", low)
        if isinstance(self.start, datetime):
            moment = self.start if self.start.tzinfo else self.start.replace(tzinfo=UTC)
            moment_us = int(moment.timestamp() * 1e6)
        else:
            moment_us = wall_us()
        return offset_at(self.bootstrap, self._settings(), topic, number, (low, high), moment_us)

    def _take_new_partitions(self) -> None:
        """Read partitions added to a topic since the last check, from their start; waits briefly, and rarely."""
        self._listed_s = time.monotonic()
        try:
            names = self._list_partitions(self._connect().list_topics(timeout=0.1).topics)
        except KafkaException as exc:
            log.debug("partitions_not_listed", bootstrap=self.bootstrap, detail=str(exc))
            return
        new = [key for key in self._owned(names) if key not in self._cursors]
        self._names = names
        if new:
            self._connect().incremental_assign([self._place(*key, {}) for key in new])
            log.info("partitions_added", partitions=[f"{topic}/{number}" for topic, number in new])

    def _batch(self, cursor: _Cursor, fetched: Fetched | None, arrival_us: int) -> Batch:
        none = np.empty(0, np.int64)
        offsets = np.concatenate(fetched.offsets) if fetched else none
        stamps_ms = np.concatenate(fetched.stamps_ms) if fetched else none
        payloads = fetched.payloads if fetched else []
        if self._until_end and cursor.end is not None:
            kept = int(np.searchsorted(offsets, cursor.end))
            offsets, stamps_ms, payloads = offsets[:kept], stamps_ms[:kept], payloads[:kept]
        if len(offsets):
            if offsets[0] - cursor.position >= GAP_MIN and cursor.position:
                self._report_gap(cursor, int(offsets[0]))
            cursor.position = int(offsets[-1]) + 1
        if self._until_end and cursor.end is not None:
            cursor.ended |= cursor.position >= cursor.end
        return Batch(
            topic=cursor.topic,
            partition=cursor.name,
            offsets=offsets,
            next_offset=cursor.position,
            payloads=payloads,
            appended_us=np.where(stamps_ms > 0, stamps_ms * 1_000, arrival_us),
            arrival_us=arrival_us,
            ended=cursor.ended,
        )

    def _report_gap(self, cursor: _Cursor, first: int) -> None:
        BROKER_ERRORS.labels("gap").inc()
        log.warning(
            "broker_began_anew",
            partition=cursor.name,
            read_up_to=cursor.position,
            goes_on_at=first,
            detail=f"the log before is gone: if it held events from offset {cursor.position} on, they are lost",
        )

    def _check_ends(self) -> None:
        """Compare positions with the ends of the logs: at the first fetch of each partition, then every `ENDS_S`."""
        # Ends are taken from fetches, not from ListOffsets: the embedded broker answers ListOffsets with the start of
        # its last batch. It does not answer a fetch beyond the end at all.
        # An outage reported by the client does not tell when to check: messages fetched before it are still delivered.
        now_s = time.monotonic()
        is_due = now_s - self._looked_s > ENDS_S
        self._looked_s = now_s if is_due else self._looked_s
        for key in list(self._cursors if is_due else self._unfetched):
            cursor = self._cursors[key]
            _, high = self._connect().get_watermark_offsets(TopicPartition(*key), cached=True)
            if high < 0:
                continue
            LAG_ROWS.labels(cursor.topic, cursor.number).set(max(high - cursor.position, 0))
            if cursor.position <= high:
                self._beyond_s.pop(key, None)
            elif key in self._unfetched or now_s - self._beyond_s.setdefault(key, now_s) > BEYOND_S:
                raise OffsetLostError(lost_offset(cursor.name, cursor.position, high=high))
            if key in self._unfetched:
                self._unfetched.discard(key)
                cursor.end = high
                cursor.ended = self._until_end and cursor.position >= high

    def _on_message_error(self, error: KafkaError, message: Message) -> None:
        code = error.code()
        cursor = self._cursors.get((message.topic(), message.partition()))
        if code == KafkaError._PARTITION_EOF:  # noqa: SLF001
            if cursor is not None and cursor.end is not None and message.offset() >= cursor.end:
                cursor.ended = True  # offsets below the end may be transaction markers, which are never delivered
        elif code in LOST:
            name = cursor.name if cursor else f"{message.topic()}/{message.partition()}"
            raise OffsetLostError(lost_offset(name, cursor.position if cursor else message.offset()))
        elif code in UNKNOWN:
            raise UnknownTopicError(f"topic {message.topic()!r} was deleted while it was read: {error.str()}")
        elif code in FATAL:
            raise SourceError(f"broker {self.bootstrap}, topic {message.topic()!r}: {describe(error)}")
        else:
            self._on_error(error)

    def _on_error(self, error: KafkaError) -> None:
        """Called by librdkafka from within `consume` and `list_topics`, on the polling thread."""
        BROKER_ERRORS.labels(error.name()).inc()
        if error.fatal() or error.code() in FATAL:
            self._failure = error
        elif error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            log.debug("broker_error", bootstrap=self.bootstrap, code=error.name(), detail=error.str())
        elif not self._away.is_set():
            self._away.set()
            log.warning("broker_away", bootstrap=self.bootstrap, detail=error.str())

    def _connect(self) -> Consumer:
        if self._consumer is None:
            consumer = connected(Consumer, self.bootstrap, {**self._settings(), "error_cb": self._on_error})
            consumer.poll(0)  # an OAuth token is only requested inside a poll
            self._consumer = consumer
        return self._consumer

    def _settings(self) -> dict[str, Any]:
        return {
            "group.id": "headrace",  # required by librdkafka, never joined
            "log_level": 0,  # errors are reported through error_cb, once
            "reconnect.backoff.max.ms": 1_000,
            "fetch.wait.max.ms": 20,  # bounds what an idle fetch adds to freshness
            "fetch.queue.backoff.ms": 10,  # the default of 1 s starves a reader that empties its queue sooner
            **self._config,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": self._until_end,
            "allow.auto.create.topics": False,
        }

    def _ask_partitions(self) -> list[str]:
        consumer = self._connect()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._is_passing),
            stop=tenacity.stop_after_delay(self._connect_s),
            wait=tenacity.wait_exponential(0.1, max=2),
            reraise=True,
        )
        try:
            return self._list_partitions(retrying(consumer.list_topics, timeout=min(ASK_S, self._connect_s)).topics)
        except KafkaException as exc:
            raise SourceError(
                f"broker {self.bootstrap} does not answer: {describe(self._failure or exc.args[0])}"
            ) from exc

    def _is_passing(self, exc: BaseException) -> bool:
        """Whether a retry may succeed; polls first, since only a poll reports the client's errors."""
        self._connect().poll(0)
        return isinstance(exc, KafkaException) and exc.args[0].code() not in FATAL and self._failure is None

    def _list_partitions(self, known: Mapping[str, TopicMetadata]) -> list[str]:
        names = []
        for topic in self.topics:
            if topic not in known or known[topic].error is not None:
                raise UnknownTopicError(
                    unknown_topic(topic, self.bootstrap, sorted(t for t in known if known[t].error is None))
                )
            names += [f"{topic}/{number}" for number in sorted(known[topic].partitions)]
        return names

    def _watermarks(self, topic: str, number: int) -> tuple[int, int]:
        try:
            low, high = self._connect().get_watermark_offsets(TopicPartition(topic, number), timeout=self._connect_s)
        except KafkaException as exc:
            raise SourceError(f"broker {self.bootstrap}, {topic}/{number}: {exc.args[0].str()}") from exc
        return int(low), int(high)
