"""Writing to a broker: frames of events, dead letters, and new topics."""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl
import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from headrace.errors import SourceError
from headrace.schemas import DeadLetter, Event, codec_for, encode_letter, spec_of
from headrace.schemas.codecs.registry import SchemaRegistry
from headrace.schemas.dead_letters import encoded, partitions_of
from headrace.streams.kafka.clients import connected
from headrace.streams.kafka.errors import FATAL, told

log = structlog.get_logger(__name__)

FLUSH_S_MAX = 30.0
"""Seconds that a flush waits for the broker's acknowledgements."""
FLUSH_PART_S = 0.25
"""Seconds between two looks, within a flush, at whether the broker refuses us for good."""
LETTER_BYTES_MAX = 900_000
"""Bytes of a dead letter's message: below the million that librdkafka and brokers allow by default."""
_PAYLOAD_BYTES_MAX = 600_000  # 800,000 as base64
_DETAIL_CHARS_MAX = 10_000


class TopicWriter:
    """Writes frames of one event to its topic.

    Rows of one key go to one partition, in their order. A codec that holds many rows in a payload (Arrow) makes one
    message of a frame. `write` hands over, `flush` waits: what flush returned for is on the broker.
    """

    def __init__(
        self,
        bootstrap: str,
        event: type[Event],
        codec: str | None = None,
        *,
        topic: str | None = None,
        config: Mapping[str, Any] | None = None,
        registry: SchemaRegistry | None = None,
    ) -> None:
        spec = spec_of(event)
        self.topic = topic or spec.topic
        self._spec = spec
        self._codec = codec_for(event, codec, registry=registry, writes=True)
        self._producer = _Producer(bootstrap, config)

    def write(self, frame: pl.DataFrame) -> int:
        """Hand the rows to the producer; returns how many messages they became.

        Raises:
            SourceError: the broker refused an earlier message.
        """
        if frame.is_empty():
            return 0
        payloads = self._codec.encode(frame.select(*self._spec.polars))
        keys: list[str | None] = [None] * len(payloads)
        if len(payloads) == frame.height:
            keys = (
                frame.select(pl.concat_str([pl.col(k).cast(pl.String) for k in self._spec.key], separator="\x1f"))
                .to_series()
                .to_list()
            )
        for key, payload in zip(keys, payloads, strict=True):
            self._producer.send(self.topic, payload, key)
        return len(payloads)

    def flush(self) -> None:
        """Wait until the broker has everything.

        Raises:
            SourceError: it refused a message, or did not answer in time.
        """
        self._producer.flush()

    def close(self) -> None:
        """Flush."""
        self.flush()


class KafkaDeadLetters:
    """Dead letters as JSON messages of a topic. `write` returns when the broker has them.

    A letter of more than `LETTER_BYTES_MAX` bytes would be refused by most brokers, so the end of its payload is cut
    off, which its detail says; letters in files are whole.
    """

    def __init__(self, bootstrap: str, topic: str = "dead-letters", *, config: Mapping[str, Any] | None = None) -> None:
        self.topic = topic
        self._producer = _Producer(bootstrap, config)

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Send the letters and wait for them.

        Raises:
            SourceError: the broker refused one, or did not answer in time.
        """
        for index, (line, partition) in enumerate(zip(encoded(letters), partitions_of(letters), strict=True)):
            short = line if len(line) <= LETTER_BYTES_MAX else _shortened(letters[index])
            self._producer.send(self.topic, short, partition)
        self._producer.flush()

    def close(self) -> None:
        """Flush."""
        self._producer.flush()


def _shortened(letter: DeadLetter) -> bytes:
    kept = letter.payload[:_PAYLOAD_BYTES_MAX]
    detail = (
        f"{letter.detail[:_DETAIL_CHARS_MAX]}; here are {len(kept):,} of the payload's {len(letter.payload):,} bytes"
    )
    return encode_letter(replace(letter, detail=detail, payload=kept))


def create_topics(
    bootstrap: str, topics: Mapping[str, int], *, replicas: int = 1, config: Mapping[str, Any] | None = None
) -> None:
    """Create the topics (name -> partition count) that are not there yet. `config` is passed to librdkafka.

    Raises:
        SourceError: the broker refused one, or does not answer.
        ConfigError: `config` or `bootstrap` are not as librdkafka takes them.
    """
    failures: list[KafkaError] = []

    def on_error(error: KafkaError) -> None:
        failures.extend([error] if error.code() in FATAL else [])

    admin = connected(AdminClient, bootstrap, {"log_level": 0, "error_cb": on_error, **(config or {})})
    wanted = [NewTopic(name, partitions, replicas) for name, partitions in topics.items()]
    for name, done in (admin.create_topics(wanted, operation_timeout=FLUSH_S_MAX) if wanted else {}).items():
        deadline_s = time.monotonic() + FLUSH_S_MAX
        while not done.done() and not failures and time.monotonic() < deadline_s:
            admin.poll(0.02)
        error = failures[0] if failures else done.exception(0) if done.done() else "no answer"
        if isinstance(error, KafkaException):
            error = error.args[0]
        if isinstance(error, KafkaError) and error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
            continue
        if error is not None:
            shown = told(error) if isinstance(error, KafkaError) else error
            raise SourceError(f"broker {bootstrap}: cannot create topic {name!r}: {shown}")


class _Producer:
    """An idempotent producer that keeps the first refusal and raises it at the next call."""

    def __init__(self, bootstrap: str, config: Mapping[str, Any] | None) -> None:
        self._bootstrap = bootstrap
        self._refused: str | None = None
        self._lock = threading.Lock()
        self._producer = connected(
            Producer,
            bootstrap,
            {
                "linger.ms": 5,
                "log_level": 0,
                "partitioner": "murmur2_random",  # as Java clients do, so that all writers agree
                "error_cb": self._on_error,
                **(config or {}),
                "enable.idempotence": True,
            },
        )

    def send(self, topic: str, payload: bytes, key: str | None) -> None:
        self._raise_refusal()
        while True:
            try:
                self._producer.produce(topic, payload, key, on_delivery=self._on_delivery)
            except BufferError:  # the producer's queue is full: give it time to send
                self._producer.poll(0.1)
            except KafkaException as exc:
                raise SourceError(f"broker {self._bootstrap}, topic {topic!r}: {exc.args[0].str()}") from exc
            else:
                return

    def flush(self) -> None:
        deadline_s = time.monotonic() + FLUSH_S_MAX
        while left := self._producer.flush(FLUSH_PART_S):
            self._raise_refusal()
            if time.monotonic() > deadline_s:
                break
        self._raise_refusal()
        if left:
            raise SourceError(f"broker {self._bootstrap}: {left} messages not acknowledged after {FLUSH_S_MAX} s")

    def _on_error(self, error: KafkaError) -> None:
        log.debug("broker_error", code=error.name(), detail=error.str())
        if error.code() in FATAL:
            with self._lock:
                self._refused = self._refused or f"broker {self._bootstrap}: {told(error)}"

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None and self._refused is None:
            with self._lock:
                self._refused = (
                    f"broker {self._bootstrap} refused a message for topic {message.topic()!r}: {error.str()}"
                )

    def _raise_refusal(self) -> None:
        with self._lock:
            refused, self._refused = self._refused, None
        if refused:
            raise SourceError(refused)
