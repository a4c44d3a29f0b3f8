"""The served log: one event a request, for the joiner that turns impressions and what followed into examples.

Row i of an impression is what stood at position i: its candidate, its score, its shadow score, and row i of the packed
model inputs. So the learner trains on the very numbers that the model saw; no feature is fetched a second time.

Logging never delays an answer: `log` puts the request on a bounded queue, or counts it as dropped when the queue is
full. One background thread scores with the shadow model, encodes and produces.

    request -> queue (queue_max) -> thread: up to batch_max requests -> shadow -> codec -> producer -> broker
"""

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import structlog
from confluent_kafka import KafkaError, Message
from numpy.typing import NDArray
from prometheus_client import Counter

from headrace.errors import DeclarationError
from headrace.learners import Inputs
from headrace.schemas import Event, codec_for, spec_of
from headrace.schemas.codecs.registry import SchemaRegistry
from headrace.serving.swap import Scores
from headrace.streams.kafka_writer import MessageProducer

QUEUE_MAX = 4_096  # requests; at 20 kB each 80 MB
BATCH_MAX = 256  # requests a frame
LINGER_S = 0.1  # how long the first request of a frame waits for others: alone it costs 0.8 ms of CPU, of six 0.3
PRODUCE_TRIES = 100  # of 50 ms each while librdkafka's own queue is full
MESSAGE_TIMEOUT_MS = 60_000  # after which an impression that the broker has not acknowledged is dropped
FLUSH_S = 10.0  # how long `close` waits for the broker's acknowledgements

LOGGED = Counter("headrace_impressions_total", "Impressions handed to the producer.")
SHADOW_FAILED = Counter(
    "headrace_shadow_failed_total", "Impressions logged without the shadow scores they should have."
)
DROPPED = Counter("headrace_impressions_dropped_total", "Impressions lost.", ["reason"])

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ImpressionColumns:
    """Which column of the event holds what. `shadow` may be None when the event has no such column."""

    request_id: str = "request_id"
    candidates: str = "candidates"
    scores: str = "scores"
    model_version: str = "model_version"
    features: str = "features"
    shadow: str | None = "shadow_scores"


@dataclass(frozen=True, slots=True)
class Impression:
    """One answered request, in served order: candidates, scores (k,) and inputs of k rows."""

    request_id: str
    event_time_us: int
    entity: Mapping[str, int | str]
    candidates: Sequence[int | str]
    scores: NDArray[np.float32]
    model_version: int
    inputs: Inputs
    context: Mapping[str, Any] = field(default_factory=dict)


class ImpressionLog:
    """Impressions to the topic of `event`.

    Args:
        event: the declared impression event; its other columns are the entity's keys and values of the context.
        bootstrap: broker addresses.
        shadow: a frozen model that scores the same inputs, in the background and for the log only; None = no shadow.
        config: further librdkafka settings.
        registry: where the event's schema is registered, if it is Confluent-framed Avro.

    Raises:
        DeclarationError: the event lacks a column of `columns`.
        ConfigError: `config` or `bootstrap` are not as librdkafka takes them.
    """

    def __init__(
        self,
        event: type[Event],
        bootstrap: str,
        *,
        columns: ImpressionColumns | None = None,
        shadow: Scores | None = None,
        queue_max: int = QUEUE_MAX,
        batch_max: int = BATCH_MAX,
        config: Mapping[str, Any] | None = None,
        registry: SchemaRegistry | None = None,
    ) -> None:
        self.logged = 0
        self.dropped = 0
        self._spec = spec_of(event)
        self._columns = columns or ImpressionColumns()
        self._codec = codec_for(event, registry=registry, writes=True)
        self._shadow = shadow
        self._queue: queue.Queue[Impression] = queue.Queue(maxsize=queue_max)
        self._batch_max = batch_max
        self._closed = threading.Event()  # nothing more is taken
        self._ended = threading.Event()  # the thread stops
        self._counting = threading.Lock()
        self._check_columns()
        self._producer = MessageProducer(
            bootstrap, config, **{"compression.type": "lz4", "message.timeout.ms": MESSAGE_TIMEOUT_MS}
        )
        self._thread = threading.Thread(target=self._drain, name="headrace-impressions", daemon=True)
        self._thread.start()

    def log(self, impression: Impression) -> bool:
        """Queue `impression`: False when it was dropped because the queue is full or closed. Never blocks."""
        if self._closed.is_set():
            return self._drop(1, "closed")
        try:
            self._queue.put_nowait(impression)
        except queue.Full:
            return self._drop(1, "queue_full")
        return True

    def flush(self, timeout_s: float = FLUSH_S) -> int:
        """Wait until all that was logged is acknowledged: the number of impressions still unsent after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while self._queue.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.002)
        unsent = self._queue.unfinished_tasks
        return unsent + self._producer.wait(max(deadline - time.monotonic(), 0.0))

    def close(self) -> None:
        """Send what is queued, then stop. What the broker does not take within FLUSH_S is counted as dropped."""
        if self._closed.is_set():
            return
        self._closed.set()
        self.flush()
        self._ended.set()
        self._thread.join(timeout=FLUSH_S)
        unsent = self._queue.unfinished_tasks + len(self._producer)
        if unsent:
            self._drop(unsent, "unsent_at_close")

    def _check_columns(self) -> None:
        wanted = [name for name in self._columns_named() if name is not None]
        missing = [name for name in wanted if name not in self._spec.polars]
        if missing:
            raise DeclarationError(
                f"event {self._spec.name}: no column {missing[0]!r} for the served log; it has "
                f"{', '.join(self._spec.polars)}; add it or name another in ImpressionColumns"
            )

    def _columns_named(self) -> list[str | None]:
        names = self._columns
        return [names.request_id, names.candidates, names.scores, names.model_version, names.features, names.shadow]

    def _drop(self, count: int, reason: str) -> bool:
        with self._counting:
            self.dropped += count
        DROPPED.labels(reason=reason).inc(count)
        return False

    def _drain(self) -> None:
        while not self._ended.is_set():
            batch = self._take()
            try:
                self._produce(batch)
            except Exception:
                # An impression that cannot be encoded must not end the log of all others.
                log.exception("impressions_not_encoded", impressions=len(batch))
                self._drop(len(batch), "encode")
            finally:
                for _ in batch:
                    self._queue.task_done()
            self._producer.poll()

    def _take(self) -> list[Impression]:
        """The next impressions, waiting for the first; none at the end."""
        batch: list[Impression] = []
        deadline = 0.0
        while len(batch) < self._batch_max:
            try:
                wait_s = max(deadline - time.monotonic(), 0.0) if batch else 0.2
                impression = self._queue.get(timeout=wait_s)
            except queue.Empty:
                if batch or self._ended.is_set():
                    break
                self._producer.poll()  # serves delivery reports while nothing is asked of us
                continue
            if not batch:
                deadline = time.monotonic() + LINGER_S
            batch.append(impression)
        return batch

    def _produce(self, batch: list[Impression]) -> None:
        if not batch:
            return
        payloads = self._codec.encode(self.frame(batch))
        keyed = len(payloads) == len(batch)  # the Arrow codec makes one message of the whole frame
        for i, payload in enumerate(payloads):
            key = "\x1f".join(str(batch[i].entity.get(name, "")) for name in self._spec.key) if keyed else None
            self._send(payload, key, 1 if keyed else len(batch))
        self.logged += len(batch)
        LOGGED.inc(len(batch))

    def _send(self, payload: bytes, key: str | None, count: int) -> None:
        def delivered(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                log.error("impressions_not_delivered", impressions=count, reason=str(error))
                self._drop(count, "broker")

        for _ in range(PRODUCE_TRIES):
            if self._producer.try_send(self._spec.topic, payload, key, delivered):
                return
            if self._ended.is_set():
                break
            self._producer.poll(0.05)  # the producer is full: wait here, in the background, not in a request
        self._drop(count, "producer_full")

    def frame(self, batch: Sequence[Impression]) -> pl.DataFrame:
        """`batch` as rows of the event, columns in the declaration's order."""
        names = self._columns
        rows: dict[str, list[Any]] = {
            names.request_id: [each.request_id for each in batch],
            self._spec.time: [each.event_time_us for each in batch],
            names.candidates: [list(each.candidates) for each in batch],
            names.scores: [each.scores.tolist() for each in batch],
            names.model_version: [each.model_version for each in batch],
            names.features: [each.inputs.to_bytes() for each in batch],
        }
        if names.shadow is not None:
            rows[names.shadow] = self._shadow_scores(batch)
        for name in self._spec.polars:
            if name not in rows:
                rows[name] = [each.entity.get(name, each.context.get(name)) for each in batch]
        series = [
            pl.Series(name, rows[name], pl.Int64 if name == self._spec.time else dtype).cast(dtype)
            for name, dtype in self._spec.polars.items()
        ]
        return pl.DataFrame(series)

    def _shadow_scores(self, batch: Sequence[Impression]) -> list[list[float]]:
        if self._shadow is None:
            return [[] for _ in batch]
        try:
            scores = self._shadow.score(Inputs.concat([each.inputs for each in batch]))
        except Exception:
            # A shadow is for comparison only: the impression is worth more than its shadow scores.
            log.exception("shadow_failed", impressions=len(batch))
            SHADOW_FAILED.inc(len(batch))
            return [[] for _ in batch]
        ends = np.cumsum([len(each.inputs) for each in batch])
        return [part.tolist() for part in np.split(scores, ends[:-1])]
