"""Writing to a broker: frames of events, dead letters, single messages, and new topics."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from headrace.extras import require

require("confluent_kafka")

import polars as pl
import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from headrace.errors import SourceError
from headrace.schemas import DeadLetter, Event, Letters, codec_for, encode_letter, spec_of
from headrace.schemas.codecs.registry import SchemaRegistry
from headrace.schemas.dead_letters import encoded
from headrace.streams.kafka.client import FATAL, connected, describe, takes_connections

log = structlog.get_logger(__name__)

OnDelivery = Callable[[KafkaError | None, Message], object]
"""Called with (None, message), or with the error because of which the message did not reach the broker."""

FLUSH_S_MAX = 30.0
"""Seconds that a flush waits for the broker's acknowledgements."""
FLUSH_PART_S = 0.25
"""Seconds between two checks, within a flush, for a permanent error of the broker."""
PURGED = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})  # noqa: SLF001
"""Codes of messages that were purged from a client's queues; they may or may not have reached the broker."""
PURGE_S = 2.0
"""Seconds in which a purged client reports all its messages: they are in memory, about 100,000 at most."""
DELIVERY_PART_S = 0.02
"""Seconds per poll for an acknowledgement, since another thread's poll may receive it."""
LETTER_BYTES_MAX = 900_000
"""Maximum bytes of a dead letter's message: below the million that librdkafka and brokers allow by default."""
_PAYLOAD_BYTES_MAX = 600_000  # 800,000 as base64
_DETAIL_CHARS_MAX = 10_000


class TopicWriter:
    """A writer of one event's frames to its topic.

    Rows of one key go to one partition, in order. A codec with many rows per payload (Arrow) encodes a frame as one
    message. `write` does not wait for the broker; once `flush` has returned, the broker has every message.
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
        self._producer = MessageProducer(bootstrap, config)

    def write(self, frame: pl.DataFrame) -> int:
        """Pass the rows to the producer; returns the number of messages.

        Raises:
            SourceError: the broker refused an earlier message.
        """
        messages = self._messages(frame)
        for key, payload in messages:
            self._producer.send(self.topic, payload, key)
        return len(messages)

    def deliver(self, frame: pl.DataFrame, timeout_s: float) -> None:
        """Write the rows, and return once the broker has acknowledged all. Safe to call from several threads.

        Raises:
            SourceError: the broker refused a message, or did not acknowledge all within `timeout_s` seconds.
        """
        self._producer.deliver(self.topic, self._messages(frame), timeout_s)

    def _messages(self, frame: pl.DataFrame) -> list[tuple[str | None, bytes]]:
        """Encode the rows as messages of (key, payload)."""
        if frame.is_empty():
            return []
        payloads = self._codec.encode(frame.select(*self._spec.polars))
        keys: list[str | None] = [None] * len(payloads)
        if len(payloads) == frame.height:
            keys = (
                frame.select(pl.concat_str([pl.col(k).cast(pl.String) for k in self._spec.key], separator="\x1f"))
                .to_series()
                .to_list()
            )
        return list(zip(keys, payloads, strict=True))

    def flush(self) -> None:
        """Wait until the broker has everything.

        Raises:
            SourceError: the broker refused a message, or did not answer in time.
        """
        self._producer.flush()

    def close(self) -> None:
        """Wait until the broker has everything; see `flush`."""
        self.flush()


class KafkaDeadLetters:
    """A sink that writes dead letters as JSON messages to a topic. `write` returns when the broker has them.

    Most brokers would refuse a dead letter of more than `LETTER_BYTES_MAX` bytes, so the end of its payload is cut off,
    and its detail says so. Dead letters in files are not cut.
    """

    def __init__(self, bootstrap: str, topic: str = "dead-letters", *, config: Mapping[str, Any] | None = None) -> None:
        self.topic = topic
        self._producer = MessageProducer(bootstrap, config)

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Send the letters and wait until the broker has acknowledged them.

        Raises:
            SourceError: the broker refused a letter, or did not answer in time.
        """
        partitions = Letters.all_of(letters).frame["partition"]
        for index, (line, partition) in enumerate(zip(encoded(letters), partitions, strict=True)):
            short = line if len(line) <= LETTER_BYTES_MAX else _shortened(letters[index])
            self._producer.send(self.topic, short, partition)
        self._producer.flush()

    def close(self) -> None:
        """Wait until the broker has everything; see `flush`."""
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
    """Create the topics (name -> partition count) that do not exist yet. `config` is passed to librdkafka.

    Raises:
        SourceError: the broker refused a topic, or does not answer.
        ConfigError: librdkafka rejects `config` or `bootstrap`.
    """
    failures: list[KafkaError] = []

    def on_error(error: KafkaError) -> None:
        failures.extend([error] if error.code() in FATAL else [])

    admin = connected(AdminClient, bootstrap, {"log_level": 0, "error_cb": on_error, **(config or {})})
    missing = [NewTopic(name, partitions, replicas) for name, partitions in topics.items()]
    for name, done in (admin.create_topics(missing, operation_timeout=FLUSH_S_MAX) if missing else {}).items():
        deadline_s = time.monotonic() + FLUSH_S_MAX
        while not done.done() and not failures and time.monotonic() < deadline_s:
            admin.poll(0.02)
        error = failures[0] if failures else done.exception(0) if done.done() else "no answer"
        if isinstance(error, KafkaException):
            error = error.args[0]
        if isinstance(error, KafkaError) and error.code() == KafkaError.TOPIC_ALREADY_EXISTS:
            continue
        if error is not None:
            shown = describe(error) if isinstance(error, KafkaError) else error
            raise SourceError(f"broker {bootstrap}: cannot create topic {name!r}: {shown}")


class MessageProducer:
    """An idempotent producer, which maps keys to partitions as Java clients do.

    It keeps the first permanent error, of the broker or of a message, and raises it at the next call, except for
    messages whose delivery is reported to their sender. `config` may override `defaults`, options of librdkafka.
    """

    def __init__(self, bootstrap: str, config: Mapping[str, Any] | None, **defaults: Any) -> None:
        self._bootstrap = bootstrap
        self._refusal: str | None = None
        self._fault = ""  # what the client reported last during a delivery
        self._is_late = False  # the client's sequence may belong to a log that the broker has lost
        self._lock = threading.Lock()
        self._options = {
            "linger.ms": 5,
            "log_level": 0,
            "partitioner": "murmur2_random",
            "error_cb": self._on_error,
            **defaults,
            **(config or {}),
            "enable.idempotence": True,
        }
        self._producer = connected(Producer, bootstrap, self._options)

    def __len__(self) -> int:
        """Number of messages that are not acknowledged yet."""
        return len(self._producer)

    def send(self, topic: str, payload: bytes, key: str | None) -> None:
        """Queue a message; waits while the producer's queue is full.

        Raises:
            SourceError: the broker refused an earlier message, or this one cannot be sent.
        """
        self._raise_refusal()
        while not self.try_send(topic, payload, key, self._on_delivery):
            self._producer.poll(0.1)

    def try_send(self, topic: str, payload: bytes, key: str | bytes | None, on_delivery: OnDelivery) -> bool:
        """Queue a message, and call `on_delivery` from a later `poll` or `flush`; returns False if the queue is full.

        Raises:
            SourceError: the message cannot be sent.
        """
        try:
            self._producer.produce(topic, payload, key, on_delivery=on_delivery)
        except BufferError:
            return False
        except KafkaException as exc:
            self._is_late = self._is_late or exc.args[0].code() == KafkaError._FATAL  # noqa: SLF001
            raise SourceError(f"broker {self._bootstrap}, topic {topic!r}: {exc.args[0].str()}") from exc
        return True

    def deliver(self, topic: str, messages: Sequence[tuple[str | None, bytes]], timeout_s: float) -> None:
        """Send messages of (key, payload), and return once the broker has acknowledged each of them.

        After a call that was not acknowledged in time, the next call uses a new client if the broker is reachable: see
        `renew_if_reached`.

        Raises:
            SourceError: the broker refused a message, or did not acknowledge all within `timeout_s` seconds.
        """
        deadline_s = time.monotonic() + timeout_s
        self._fault = ""
        with self._lock:
            is_late, self._is_late = self._is_late, False
        if is_late and not self.renew_if_reached(timeout_s):
            self._is_late = True
        errors: list[KafkaError | None] = []  # one per acknowledged or refused message, from any polling thread
        for key, payload in messages:
            while not self.try_send(topic, payload, key, lambda error, _message: errors.append(error)):
                self._raise_late(topic, deadline_s, timeout_s)
                self.poll(DELIVERY_PART_S)
        while len(errors) < len(messages):
            self._raise_late(topic, deadline_s, timeout_s)
            self.poll(DELIVERY_PART_S)
        refused = next((error for error in errors if error is not None), None)
        if refused is not None:
            raise SourceError(f"broker {self._bootstrap} refused a message for topic {topic!r}: {refused.str()}")

    def _raise_late(self, topic: str, deadline_s: float, timeout_s: float) -> None:
        self._raise_refusal()
        if time.monotonic() > deadline_s:
            self._is_late = True
            fault = f" ({self._fault})" * bool(self._fault)
            raise SourceError(
                f"broker {self._bootstrap}, topic {topic!r}: not acknowledged within {timeout_s:g} s{fault}; check the "
                "address and that the broker runs"
            )

    def poll(self, wait_s: float = 0.0) -> None:
        """Report deliveries to `on_delivery`; waits up to `wait_s` for one."""
        self._producer.poll(wait_s)

    def renew_if_reached(self, wait_s: float) -> bool:
        """Switch to a new client if a broker accepts connections within `wait_s`; returns whether it did.

        For messages that stay unacknowledged for long: a broker that lost its log, or the state of this client, may
        never accept another message in the client's sequence. Messages in flight are reported to their `on_delivery`
        with an error in `PURGED`.
        """
        if not takes_connections(self._bootstrap, wait_s):
            return False  # the broker is unavailable: the client reconnects by itself
        before, self._producer = self._producer, connected(Producer, self._bootstrap, self._options)
        before.purge()
        before.flush(PURGE_S)
        return True

    def wait(self, timeout_s: float) -> int:
        """Wait for all acknowledgements, up to `timeout_s`; returns the number of messages without one."""
        return int(self._producer.flush(timeout_s))

    def flush(self) -> None:
        """Wait until the broker has every message.

        Raises:
            SourceError: the broker refused a message, or did not answer in time.
        """
        deadline_s = time.monotonic() + FLUSH_S_MAX
        while left := self.wait(FLUSH_PART_S):
            self._raise_refusal()
            if time.monotonic() > deadline_s:
                break
        self._raise_refusal()
        if left:
            raise SourceError(f"broker {self._bootstrap}: {left} messages not acknowledged after {FLUSH_S_MAX} s")

    def _on_error(self, error: KafkaError) -> None:
        self._fault = error.str()
        if structlog.is_configured():  # an application's own log would be flooded, as structlog shows all by default
            log.debug("broker_error", code=error.name(), detail=error.str())
        if error.code() in FATAL:
            self._note(f"broker {self._bootstrap}: {describe(error)}")

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._note(f"broker {self._bootstrap} refused a message for topic {message.topic()!r}: {error.str()}")

    def _note(self, refusal: str) -> None:
        with self._lock:
            self._refusal = self._refusal or refusal

    def _raise_refusal(self) -> None:
        with self._lock:
            refusal, self._refusal = self._refusal, None
        if refusal:
            raise SourceError(refusal)
