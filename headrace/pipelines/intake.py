"""From a batch of bytes to good rows: decode, check, and put aside what is bad.

Nothing is lost: a payload or row that fails goes to the dead letters with where it came from, why, and its raw bytes,
before the good rows go on. After a crash a dead letter may be written twice.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray
from prometheus_client import Counter

from headrace.clock import Clock, WallClock
from headrace.errors import SourceError
from headrace.pipelines.line_positions import row_number
from headrace.pipelines.source import Batch, EventBatch
from headrace.schemas import (
    BadPayload,
    BadRow,
    Codec,
    DeadLetter,
    DeadLetters,
    Decoded,
    Event,
    Quality,
    codec_for,
    count_letters,
    sample_frame,
    spec_of,
)
from headrace.schemas.event_files import UNFINISHED
from headrace.schemas.registry import SchemaRegistry

FUTURE_US = 600_000_000
"""How far ahead of the clock an event may be: 10 minutes of clock skew."""

EVENTS = Counter("headrace_events_total", "Good rows taken in", ["topic"])

_writing = threading.Lock()  # workers of one process may share one dead-letter file


class Intake:
    """Decodes the batches of some event classes.

    `clock` is asked for "now" when rows too far in the future are looked for: wall time for live streams, the event
    clock when history is played. `registry` knows the schemas of Confluent-framed Avro. `codecs` read payloads that the
    event's own codec cannot, such as plain Avro of an older declaration: `{Event: AvroCodec(spec, writer=old)}`.
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
        self.events = {spec_of(event).topic: event for event in events}
        self._dead_letters = dead_letters
        self._clock = clock or WallClock()
        self._quality = {topic: Quality(spec_of(event), future_us=future_us) for topic, event in self.events.items()}
        self._registry = registry
        self._codecs: dict[tuple[str, str | None], Codec] = {
            (spec_of(event).topic, None): codec for event, codec in (codecs or {}).items()
        }

    def decode(self, batch: Batch) -> EventBatch:
        """The good rows of `batch`; a batch with none still carries its next offset.

        Raises:
            SourceError: no event class was given for the batch's topic.
        """
        event = self.events.get(batch.topic)
        if event is None:
            raise SourceError(
                f"topic {batch.topic!r}: no event class for it; there are {', '.join(sorted(self.events))}"
            )
        codec = self._codec(event, batch)
        decoded = _decoded(batch, codec)
        checked = self._quality[batch.topic].check(decoded.frame, self._clock.now_us())
        letters = _letters(batch, decoded.bad) + _row_letters(batch, decoded, checked.bad, codec)
        put_aside(letters + _unfinished(batch), self._dead_letters)
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
        """Decode and check one row of each event, so that the first batch does not wait for compiled code."""
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


def put_aside(letters: Sequence[DeadLetter], place: DeadLetters) -> None:
    """Count letters and write them to `place`, which the threads of a process may share."""
    if letters:
        count_letters(letters)
        with _writing:
            place.write(letters)


def too_late_letters(view_name: str, batch: EventBatch, index: NDArray[np.int64]) -> list[DeadLetter]:
    """A letter for each too late row `index` (m,) of the batch, with the event as JSON."""
    payloads = codec_for(batch.event, "json").encode(batch.frame[index])
    detail = f"view {view_name}: older than every window that wanted it, counted from its entity's newest event"
    return [
        DeadLetter(
            source=spec_of(batch.event).topic,
            partition=batch.partition,
            offset=row_number(batch.partition, offset),
            reason="too_late",
            detail=detail,
            payload=payload,
            arrival_us=batch.arrival_us,
        )
        for offset, payload in zip(batch.offsets[index].tolist(), payloads, strict=True)
    ]


def _decoded(batch: Batch, codec: Codec) -> Decoded:
    if batch.payloads is not None:
        return codec.decode(batch.payloads)
    assert batch.frame is not None
    return Decoded(frame=batch.frame, payload_index=np.arange(batch.frame.height, dtype=np.int64), bad=[])


def _letters(batch: Batch, bad: Sequence[BadPayload]) -> list[DeadLetter]:
    return [_letter(batch, found.index, found.reason, found.detail, _payload(batch, found.index)) for found in bad]


def _row_letters(batch: Batch, decoded: Decoded, bad: Sequence[BadRow], codec: Codec) -> list[DeadLetter]:
    if not bad:
        return []
    alone = _alone(decoded.payload_index)
    letters = []
    for found in bad:
        index = int(decoded.payload_index[found.index])
        # Of a payload with many rows only the bad one is put aside, in the same format; a file's row as JSON.
        row = decoded.frame[found.index : found.index + 1]
        if batch.payloads is None:
            raw = row.write_ndjson().strip().encode()
        elif alone[found.index]:
            raw = batch.payloads[index]
        else:
            raw = codec.encode(row)[0]
        letters.append(_letter(batch, index, found.reason, found.detail, raw))
    return letters


def _alone(payload_index: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each row (n_rows,) is the only one of its payload; `payload_index` ascends."""
    edges = np.flatnonzero(np.diff(payload_index, prepend=-1, append=-1))  # first row of each payload, and the end
    return np.repeat(np.diff(edges) == 1, np.diff(edges))


def _unfinished(batch: Batch) -> list[DeadLetter]:
    """A letter for the payload that its writer was not done with; it is read again by the next run."""
    if batch.unfinished is None:
        return []
    number = row_number(batch.partition, batch.next_offset)
    detail = f"line {number + 1} has no end: its writer is not done, or was cut off; once it is whole it counts"
    return [
        DeadLetter(
            source=batch.topic,
            partition=batch.partition,
            offset=number,
            reason=UNFINISHED,
            detail=detail,
            payload=batch.unfinished,
            arrival_us=batch.arrival_us,
        )
    ]


def _letter(batch: Batch, index: int, reason: str, detail: str, payload: bytes) -> DeadLetter:
    return DeadLetter(
        source=batch.topic,
        partition=batch.partition,
        offset=row_number(batch.partition, int(batch.offsets[index])),
        reason=reason,
        detail=detail,
        payload=payload,
        arrival_us=batch.arrival_us,
    )


def _payload(batch: Batch, index: int) -> bytes:
    return b"" if batch.payloads is None else batch.payloads[index]


def newest_us(batch: EventBatch) -> int | None:
    """Newest event time of a batch, in microseconds; None where it has no rows."""
    column = batch.frame.get_column(spec_of(batch.event).time)
    return None if column.is_empty() else int(column.cast(pl.Datetime("us", "UTC")).dt.epoch("us").max())  # type: ignore[arg-type]
