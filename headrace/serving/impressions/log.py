"""The served log: one event per request, which the joiner combines with later events into training examples.

Row i of an impression describes position i: the candidate, its score, its shadow score, and row i of the packed model
inputs. So the learner trains on the same numbers that the model saw, and no feature is fetched a second time.

Logging never delays an answer: `log_batch` puts the requests of a scored batch on a queue that is bounded in requests
and bytes, or counts them as dropped. One background thread scores with the shadow model, packs, encodes and produces
in columns, so that some hundred requests share the fixed cost of a frame.

    batch -> queue (queue_max, bytes_max) -> thread: up to batch_max requests -> shadow -> codec -> producer -> broker

An impression that cannot be encoded, or that the broker's client refuses, is dropped without affecting others.
"""

import queue
import threading
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import structlog
from confluent_kafka import KafkaError, Message
from numpy.typing import NDArray
from prometheus_client import Counter

from headrace.errors import DeclarationError, SourceError
from headrace.learners import Inputs
from headrace.schemas import Event, codec_for, spec_of
from headrace.schemas.codecs.registry import SchemaRegistry
from headrace.schemas.paced_log import PacedLog
from headrace.serving.impressions.batch import Impression, ImpressionBatch, ImpressionColumns
from headrace.serving.impressions.context import ContextColumn
from headrace.serving.swap import Scores
from headrace.streams.kafka_writer import PURGED, MessageProducer

QUEUE_MAX = 4_096  # requests
BYTES_MAX = 64_000_000  # estimated size of waiting requests
BATCH_MAX = 256  # requests per frame
LINGER_S = 0.1  # how long the first request of a frame waits for others: a frame of one costs 0.8 ms of CPU
PRODUCE_TRIES = 100  # tries of 50 ms each while librdkafka's own queue is full
MESSAGE_TIMEOUT_MS = 60_000  # after which an impression that the broker has not acknowledged is dropped
REACH_S = 0.2  # timeout of the check that the broker answers, made once messages have timed out
LOOK_S = 5.0  # shortest time between two such checks, during which no impression is encoded
FLUSH_S = 10.0  # how long `close` waits for the broker's acknowledgements

LOGGED = Counter("headrace_impressions_total", "Impressions handed to the producer.")
DELIVERED = Counter("headrace_impressions_delivered_total", "Impressions that the broker has acknowledged.")
SHADOW_FAILED = Counter(
    "headrace_shadow_failed_total", "Impressions logged without the shadow scores they should have."
)
DROPPED = Counter("headrace_impressions_dropped_total", "Impressions lost.", ["reason"])

log = structlog.get_logger(__name__)
_lost = PacedLog("impressions_dropped", "impressions")


class ImpressionLog:
    """Writes impressions to the topic of `event`.

    Args:
        event: the declared impression event; its other columns are the entity's keys and values of the context.
        bootstrap: broker addresses.
        shadow: a frozen model that scores the same inputs, in the background and for the log only; None = no shadow.
        config: further librdkafka settings.
        registry: the schema registry, if the event is Confluent-framed Avro.

    Raises:
        DeclarationError: the event lacks a column of `columns`.
        ConfigError: librdkafka rejects `config` or `bootstrap`.
    """

    def __init__(
        self,
        event: type[Event],
        bootstrap: str,
        *,
        columns: ImpressionColumns | None = None,
        shadow: Scores | None = None,
        queue_max: int = QUEUE_MAX,
        bytes_max: int = BYTES_MAX,
        batch_max: int = BATCH_MAX,
        config: Mapping[str, Any] | None = None,
        registry: SchemaRegistry | None = None,
    ) -> None:
        self.logged = 0
        self.delivered = 0
        self.dropped = 0
        self.dropped_by_reason: Tally[str] = Tally()
        self._spec = spec_of(event)
        self._columns = columns or ImpressionColumns()
        self._codec = codec_for(event, registry=registry, writes=True)
        self._shadow = shadow
        self._queue: queue.SimpleQueue[tuple[ImpressionBatch, int]] = queue.SimpleQueue()  # with its bytes
        self._acknowledged: deque[int] = deque()  # impressions of acknowledged messages not counted yet
        self._queue_max, self._bytes_max, self._batch_max = queue_max, bytes_max, batch_max
        self._waiting = 0  # requests queued or being sent; guarded by _counting, as are the counts
        self._waiting_bytes = 0
        self._is_stuck = False  # messages time out; used by the thread only, as are the next two
        self._look_s = 0.0  # time.monotonic of the next check of the broker
        self._unsent: list[tuple[bytes, bytes | None, int]] = []  # of a replaced client: payload, key, impressions
        self._closed = threading.Event()  # no more impressions are accepted
        self._ended = threading.Event()  # the thread stops
        self._counting = threading.Lock()
        self._check_columns()
        taken = {*self._columns_named(), self._spec.time}
        self._context = {name: ContextColumn(name, self._spec) for name in self._spec.polars if name not in taken}
        self._producer = MessageProducer(
            bootstrap, config, **{"compression.type": "lz4", "message.timeout.ms": MESSAGE_TIMEOUT_MS}
        )
        self.thread = threading.Thread(target=self._drain, name="headrace-impressions", daemon=True)
        self.thread.start()

    def log(self, impression: Impression) -> bool:
        """Queue one impression; see `log_batch`."""
        return self.log_batch(ImpressionBatch.of(impression))

    def log_batch(self, batch: ImpressionBatch) -> bool:
        """Queue the requests of a batch; False if the queue is full or closed and they were dropped.

        Never blocks.
        """
        if self._closed.is_set():
            return self._drop(len(batch), "closed", "the replica stops")
        size_bytes = batch.size_bytes
        with self._counting:
            is_full = self._waiting + len(batch) > self._queue_max or self._waiting_bytes + size_bytes > self._bytes_max
            if not is_full:
                self._waiting += len(batch)
                self._waiting_bytes += size_bytes
        if is_full:
            return self._drop(len(batch), "queue_full", f"{self._waiting} requests wait, {self._waiting_bytes} bytes")
        self._queue.put((batch, size_bytes))
        return True

    def context_of(self, entity: Mapping[str, int | str], context: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the event's columns that come from the context, as the event declares them.

        Raises:
            Refusal: 422, a value is missing or of another type.
        """
        return {name: column.value(context) for name, column in self._context.items() if name not in entity}

    @property
    def context_schemas(self) -> dict[str, tuple[dict[str, Any], bool]]:
        """Column that a request's context or keys fill -> (JSON schema, whether it is required)."""
        return {name: column.schema for name, column in self._context.items()}

    def flush(self, timeout_s: float = FLUSH_S) -> int:
        """Wait until all impressions are acknowledged; return the number that are not after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while self._waiting and time.monotonic() < deadline:
            time.sleep(0.002)
        unacknowledged = self._producer.wait(max(deadline - time.monotonic(), 0.0))
        self._count_delivered()
        return self._waiting + unacknowledged

    def close(self) -> None:
        """Send queued impressions, then stop. Those not acknowledged within FLUSH_S are counted as dropped."""
        if self._closed.is_set():
            return
        self._closed.set()
        self.flush()
        self._ended.set()
        self.thread.join(timeout=FLUSH_S)
        unsent = self._waiting + len(self._producer)
        if unsent:
            self._drop(unsent, "unsent_at_close", f"not acknowledged within {FLUSH_S:g} s")
        _lost.flush()

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
        always = [names.request_id, names.candidates, names.scores, names.model_version, names.features]
        return [*always, names.shadow, names.live_at_start, names.live_at_end]

    def _drop(self, count: int, reason: str, detail: str) -> bool:
        with self._counting:
            self.dropped += count
            self.dropped_by_reason[reason] += count
        DROPPED.labels(reason=reason).inc(count)
        _lost.add(count, detail, reason=reason)
        return False

    def _drain(self) -> None:
        while not self._ended.is_set():
            batches, size_bytes = self._take()
            try:
                self._produce(batches)
            except Exception:
                log.exception("impressions_failed", impressions=sum(map(len, batches)))  # the thread must not end
            finally:
                with self._counting:
                    self._waiting -= sum(map(len, batches))
                    self._waiting_bytes -= size_bytes
            self._producer.poll()
            self._count_delivered()
            if self._is_stuck and time.monotonic() > self._look_s:
                self._go_on()

    def _take(self) -> tuple[list[ImpressionBatch], int]:
        """Take the next batches, of about `batch_max` requests, and their bytes; none if none came within 0.2 s.

        The first batch waits `LINGER_S` for others.
        """
        try:
            first, size_bytes = self._queue.get(timeout=0.2)
        except queue.Empty:
            return [], 0
        if self._waiting < self._batch_max:
            self._closed.wait(LINGER_S)  # one sleep: a wake-up per request would take the GIL from the scoring thread
        batches, count = [first], len(first)
        while count < self._batch_max:
            try:
                batch, more_bytes = self._queue.get_nowait()
            except queue.Empty:
                break
            batches.append(batch)
            count, size_bytes = count + len(batch), size_bytes + more_bytes
        return batches, size_bytes

    def _produce(self, batches: Sequence[ImpressionBatch]) -> None:
        """Encode and send; if that fails, do so for each request alone, so that only bad ones are dropped."""
        count = sum(map(len, batches))
        if not count:
            return
        try:
            payloads = self._codec.encode(self.frame(batches))
        except Exception as exc:  # noqa: BLE001  # values may make Polars or a codec raise anything: all others go on
            if count > 1:
                for batch in batches:
                    for one in batch.split():
                        self._produce([one])
                return
            self._drop(1, "encode", f"request {batches[0].request_ids[0]}: {type(exc).__name__}: {exc}")
            return
        keyed = len(payloads) == count  # the Arrow codec makes one message of the whole frame
        entities = [entity for batch in batches for entity in batch.entities]
        sent = 0
        for i, payload in enumerate(payloads):
            key = "\x1f".join([str(entities[i].get(name, "")) for name in self._spec.key]) if keyed else None
            some = 1 if keyed else count
            if self._send(payload, key, some):
                sent += some
        self.logged += sent
        LOGGED.inc(sent)

    def _send(self, payload: bytes, key: str | bytes | None, count: int) -> bool:
        """Hand a message of `count` impressions to the producer; False if they were dropped."""
        deliver = self._delivered if count == 1 else partial(self._delivered, count=count)
        try:
            for _ in range(PRODUCE_TRIES):
                if self._producer.try_send(self._spec.topic, payload, key, deliver):
                    return True
                if self._ended.is_set():
                    break
                self._producer.poll(0.05)  # the producer is full: wait here, in the background, not in a request
        except SourceError as exc:
            return self._drop(count, "refused", f"a message of {len(payload)} bytes: {exc}")
        return self._drop(count, "producer_full", f"{len(self._producer)} messages are not acknowledged")

    def _go_on(self) -> None:
        """If the broker answers but acknowledges nothing, replace the client and send its messages again."""
        self._is_stuck, self._look_s = False, time.monotonic() + LOOK_S
        if not self._producer.renew_if_reached(REACH_S):
            return
        unsent, self._unsent = self._unsent, []
        log.warning("impressions_sent_again", messages=len(unsent), reason="the broker acknowledged none for long")
        for payload, key, count in unsent:
            self._send(payload, key, count)

    def _delivered(self, error: KafkaError | None, message: Message, count: int = 1) -> None:
        if error is not None and error.code() in PURGED:
            self._unsent.append((message.value(), message.key(), count))
            return
        if error is not None:
            self._is_stuck = self._is_stuck or error.code() == KafkaError._MSG_TIMED_OUT  # noqa: SLF001
            self._drop(count, "broker", error.str())
            return
        self._acknowledged.append(count)

    def _count_delivered(self) -> None:
        """Count acknowledged impressions, all at once: a counter costs as much as a message in librdkafka."""
        with self._counting:
            count = sum(self._acknowledged.popleft() for _ in range(len(self._acknowledged)))
            self.delivered += count
        if count:
            DELIVERED.inc(count)

    def frame(self, batches: Sequence[ImpressionBatch]) -> pl.DataFrame:
        """Build a frame with one row per request, and columns in the order of the event's declaration."""
        names = self._columns
        candidates = [shown for batch in batches for shown in batch.candidates]
        lengths = np.concatenate([np.diff(batch.edges) for batch in batches])
        flat_scores = np.concatenate([batch.scores for batch in batches])
        columns: dict[str, Any] = {
            names.request_id: [text for batch in batches for text in batch.request_ids],
            self._spec.time: pl.Series([time_us for batch in batches for time_us in batch.times_us], dtype=pl.Int64),
            names.candidates: _lists(pl.Series([key for shown in candidates for key in shown]), lengths),
            names.scores: _lists(pl.Series(flat_scores), lengths),
            names.model_version: np.repeat([b.model_version for b in batches], [len(b) for b in batches]),
            names.features: [data for b in batches for data in b.inputs.pack_each(b.picked, b.edges)],
        }
        for place, name in enumerate((names.live_at_start, names.live_at_end)):
            if name is not None:
                columns[name] = np.repeat([b.live[place] for b in batches], [len(b) for b in batches])
        if names.shadow is not None:
            columns[names.shadow] = self._shadow_scores(batches, lengths)
        for name in self._spec.polars:
            if name not in columns:
                columns[name] = [
                    entity[name] if name in entity else context.get(name)
                    for batch in batches
                    for entity, context in zip(batch.entities, batch.contexts, strict=True)
                ]
        return pl.DataFrame([_typed(name, columns[name], dtype) for name, dtype in self._spec.polars.items()])

    def _shadow_scores(self, batches: Sequence[ImpressionBatch], lengths: NDArray[np.int64]) -> pl.Series:
        empty = _lists(pl.Series([], dtype=pl.Float32), np.zeros_like(lengths))
        if self._shadow is None:
            return empty
        try:
            scores = self._shadow.score(Inputs.concat([batch.inputs.take(batch.picked) for batch in batches]))
        except Exception:
            # The shadow is for comparison only, so the impression is logged without its scores.
            log.exception("shadow_failed", impressions=len(lengths))
            SHADOW_FAILED.inc(len(lengths))
            return empty
        return _lists(pl.Series(scores), lengths)


def _lists(values: pl.Series, lengths: NDArray[np.int64]) -> pl.Series:
    """Cut `values` into a series of lists of `lengths` (n,)."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    flat = values.to_arrow(compat_level=pl.CompatLevel.oldest())
    return pl.Series(pa.LargeListArray.from_arrays(pa.array(offsets), flat))


def _typed(name: str, values: Any, dtype: pl.DataType) -> pl.Series:
    series = values.alias(name) if isinstance(values, pl.Series) else pl.Series(name, values)
    return series if series.dtype == dtype else series.cast(dtype)
