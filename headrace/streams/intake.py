"""Decoding and checking of batches; payloads and rows that cannot be used become dead letters.

Nothing is lost: a bad payload or row is written to the dead letters, with its origin, the reason and its raw bytes,
before the good rows are passed on. After a crash a dead letter may be written twice.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from prometheus_client import Counter

from headrace.clock import Clock, WallClock
from headrace.errors import DeclarationError, HeadraceError, SchemaError, SourceError
from headrace.schemas import (
    BadPayload,
    BadRow,
    Codec,
    DeadLetter,
    DeadLetters,
    Decoded,
    Event,
    EventSpec,
    Letters,
    Quality,
    Rejects,
    codec_for,
    conform_rows,
    count_letters,
    sample_frame,
    spec_of,
)
from headrace.schemas.codecs.registry import SchemaRegistry
from headrace.schemas.quality import FUTURE_US
from headrace.schemas.row_json import json_rows
from headrace.streams.files.lines import row_numbers
from headrace.streams.files.reading import UNFINISHED
from headrace.streams.source import Batch, EventBatch

EVENTS = Counter("headrace_events_total", "Good rows taken in", ["topic"])

_writing = threading.Lock()  # workers of one process may share one dead-letter file


class Intake:
    """A decoder for the batches of some event classes.

    `clock` tells which rows are too far in the future: wall time for live streams, the event clock when history is
    played. `registry` has the schemas of Confluent-framed Avro. `codecs` replace the event's own codec, for instance to
    read plain Avro of an older declaration: `{Event: AvroCodec(spec, writer=old)}`.

    Raises:
        DeclarationError: two of the events are of one topic.
    """

    def __init__(
        self,
        events: Iterable[type[Event]],
        *,
        dead_letters: DeadLetters,
        clock: Clock | None = None,
        future_us: int = FUTURE_US,
        registry: SchemaRegistry | None = None,
        codecs: Mapping[type[Event], Codec] | None = None,
    ) -> None:
        self.events = _by_topic(events)
        self._dead_letters = dead_letters
        self._clock = clock or WallClock()
        self._quality = {topic: Quality(spec_of(event), future_us=future_us) for topic, event in self.events.items()}
        self._registry = registry
        self._codecs: dict[tuple[str, str | None], Codec] = {
            (spec_of(event).topic, None): codec for event, codec in (codecs or {}).items()
        }

    def decode(self, batch: Batch) -> EventBatch:
        """Decode and check `batch`, and return its good rows; without any, the result still has the next offset.

        Raises:
            SourceError: there is no event class for the batch's topic.
            SchemaError: a column of a frame is missing or has another type.
            ServiceError: the schema registry does not answer.
        """
        event = self.events.get(batch.topic)
        if event is None:
            raise SourceError(
                f"topic {batch.topic!r}: no event class for it; there are {', '.join(sorted(self.events))}"
            )
        decoded = _decoded(batch, self._codec(event, batch), spec_of(event))
        checked = self._quality[batch.topic].check(decoded.frame, self._clock.now_us())
        if letters := [*_letters(batch, decoded, checked.bad), *_unfinished(batch)]:
            put_aside(Letters.joined(letters), self._dead_letters)
        EVENTS.labels(batch.topic).inc(checked.frame.height)
        kept = decoded.payload_index[checked.kept]
        return EventBatch(
            event=event,
            partition=batch.partition,
            offsets=batch.offsets[kept],
            next_offset=batch.next_offset,
            frame=checked.frame,
            appended_us=None if batch.appended_us is None else batch.appended_us[kept],
            arrival_us=batch.arrival_us,
            ended=batch.ended,
            origin=None if batch.origin is None else batch.origin.take(kept),
        )

    def warm_up(self) -> None:
        """Decode and check one row of each event, so that the first batch does not wait for compilation."""
        for topic, event in self.events.items():
            codec = codec_for(event)
            decoded = codec.decode(codec.encode(sample_frame(spec_of(event))))
            self._quality[topic].check(decoded.frame, self._clock.now_us())

    def _codec(self, event: type[Event], batch: Batch) -> Codec:
        if batch.codec is not None and not isinstance(batch.codec, str):
            return batch.codec
        key = (batch.topic, batch.codec)
        if key not in self._codecs:
            self._codecs[key] = codec_for(event, batch.codec, registry=self._registry)
        return self._codecs[key]


def _by_topic(events: Iterable[type[Event]]) -> dict[str, type[Event]]:
    """The events by their topics.

    Raises:
        DeclarationError: two are of one topic.
    """
    by_topic: dict[str, type[Event]] = {}
    for event in events:
        topic = spec_of(event).topic
        if (other := by_topic.setdefault(topic, event)) is not event:
            names = " and ".join(f"{each.__module__}:{each.__qualname__}" for each in (other, event))
            raise DeclarationError(
                f"topic {topic!r}: {names} are both declared on it, and its messages do not say which they are; give "
                "each event a topic of its own, or declare one event that has the fields of both, optional"
            )
    return by_topic


def put_aside(letters: Sequence[DeadLetter], sink: DeadLetters) -> None:
    """Count dead letters and write them to `sink`, which several threads may share."""
    if letters:
        count_letters(letters)
        with _writing:
            sink.write(letters)


def letters_of_rows(batch: EventBatch, index: NDArray[np.int64], reason: str, details: pl.Series | str) -> Letters:
    """Dead letters for good rows of a batch, at `index` (m,), that a reader cannot use, with each event as JSON."""
    payloads = json_rows(batch.frame[index]).cast(pl.Binary)
    columns = (row_numbers(batch.partition, batch.offsets[index]), reason, details, payloads)
    return Letters.of(spec_of(batch.event).topic, batch.partition, batch.arrival_us, *columns)


def _decoded(batch: Batch, codec: Codec, spec: EventSpec) -> Decoded:
    if batch.payloads is not None:
        return _decode_surely(codec, batch.payloads, spec)
    assert batch.frame is not None
    frame, bad = conform_rows(batch.frame, spec)
    rows = np.delete(np.arange(batch.frame.height, dtype=np.int64), bad.indexes)
    return Decoded(frame, rows, Rejects(BadPayload, bad.indexes, bad.reasons, bad.details))


def _decode_surely(codec: Codec, payloads: Sequence[bytes], spec: EventSpec) -> Decoded:
    """Decode payloads with a codec that may raise on one of them, by bisection until the bad payload is alone.

    Our own codecs do not raise; custom codecs, and the libraries that they use, may.
    """
    try:
        return codec.decode(payloads)
    except SchemaError as exc:
        error = str(exc)
    except HeadraceError:
        raise
    except (Exception, pl.exceptions.PanicException) as exc:  # noqa: BLE001  (whatever a library raises on bytes)
        error = f"{type(exc).__name__}: {exc}"
    if len(payloads) <= 1:
        none = np.empty(0, np.int64)
        bad = [BadPayload(index, "undecodable", error) for index in range(len(payloads))]
        return Decoded(pl.DataFrame(schema=spec.polars), none, bad)
    half = len(payloads) // 2
    first, second = (_decode_surely(codec, part, spec) for part in (payloads[:half], payloads[half:]))
    later = second.rejects.at(second.rejects.indexes + half)
    return Decoded(
        pl.concat([first.frame, second.frame]),
        np.concatenate([first.payload_index, second.payload_index + half]),
        Rejects.merged(BadPayload, [first.rejects, later]),
    )


def _letters(batch: Batch, decoded: Decoded, bad_rows: Rejects[BadRow]) -> list[Letters]:
    """Dead letters for payloads without a row, and for rows that break a rule."""
    letters = []
    if len(lost := decoded.rejects):
        letters.append(_letters_of(batch, lost.indexes, lost, _payloads_at(batch, lost.indexes)))
    if len(bad_rows):
        index = decoded.payload_index[bad_rows.indexes]
        letters.append(_letters_of(batch, index, bad_rows, _row_payloads(batch, decoded, bad_rows.indexes)))
    return letters


def _letters_of(batch: Batch, index: NDArray[np.int64], bad: Rejects[Any], payloads: pl.Series) -> Letters:
    columns = (row_numbers(batch.partition, batch.offsets[index]), bad.reasons, bad.details, payloads)
    return Letters.of(batch.topic, batch.partition, batch.arrival_us, *columns)


def _payloads_at(batch: Batch, index: NDArray[np.int64]) -> pl.Series:
    """The payloads, or rows of a file as JSON, at `index`: (n,) bytes."""
    if batch.payloads is not None:
        return pl.Series([batch.payloads[each] for each in index.tolist()], dtype=pl.Binary)
    assert batch.frame is not None
    return json_rows(batch.frame[index]).cast(pl.Binary)


def _row_payloads(batch: Batch, decoded: Decoded, rows: NDArray[np.int64]) -> pl.Series:
    """Payloads of dead letters for rows: the original payload, or the row as JSON if its payload has several rows."""
    alone = _alone(decoded.payload_index)[rows]
    if batch.payloads is not None and alone.all():
        return _payloads_at(batch, decoded.payload_index[rows])
    texts = json_rows(decoded.frame[rows]).cast(pl.Binary)
    if batch.payloads is None or not alone.any():
        return texts
    row_payloads = texts.to_list()
    for row in np.flatnonzero(alone).tolist():
        row_payloads[row] = batch.payloads[decoded.payload_index[rows[row]]]
    return pl.Series(row_payloads, dtype=pl.Binary)


def _alone(payload_index: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each row (n_rows,) is the only one of its payload; `payload_index` ascends."""
    edges = np.flatnonzero(np.diff(payload_index, prepend=-1, append=-1))  # first row of each payload, and the end
    return np.repeat(np.diff(edges) == 1, np.diff(edges))


def _unfinished(batch: Batch) -> list[Letters]:
    """Dead letter for a payload that its writer has not completed; the next run reads it again."""
    if batch.unfinished is None:
        return []
    [number] = row_numbers(batch.partition, np.array([batch.next_offset]))
    detail = f"line {number + 1} has no end: its writer is not done, or was cut off; once it is whole it counts"
    payloads = pl.Series([batch.unfinished], dtype=pl.Binary)
    columns = (np.array([number]), UNFINISHED, detail, payloads)
    return [Letters.of(batch.topic, batch.partition, batch.arrival_us, *columns)]


def newest_us(batch: EventBatch) -> int | None:
    """Newest event time of a batch, in microseconds; None if it has no rows."""
    column = batch.frame.get_column(spec_of(batch.event).time)
    return None if column.is_empty() else int(column.cast(pl.Datetime("us", "UTC")).dt.epoch("us").max())  # type: ignore[arg-type]
