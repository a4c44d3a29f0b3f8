"""Writes the event that labels a ranking to its topic, as the project's own producers do.

The service has no route for this: its callers could then write into the log that models are trained on. A client that
reports engagements is given the broker instead, and the broker's own access rules apply.
"""

import difflib
import os
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from headrace.errors import ClientError, DeclarationError, SchemaError

SHOWN_CHARS_MAX = 100  # of a value, in an error

if TYPE_CHECKING:  # load the broker's client and the codecs, which a client without engagements does not need
    import polars as pl

    from headrace.schemas import Event
    from headrace.streams.kafka_writer import TopicWriter


@dataclass(frozen=True, slots=True)
class Engagements:
    """The event that `Client.engaged` writes, and its broker.

    Args:
        event: event class; training reads labels from its topic.
        candidate: column that names the candidate.
        brokers: Kafka bootstrap servers, host:port, comma separated.
        request_id: column that names the ranking.
        kafka: further librdkafka options (SASL, TLS).
        registry_url: Confluent schema registry; empty: none.
        timeout_s: seconds within which the broker must acknowledge an event. Apart from the deadline of the client's
            calls, since the first event connects to the broker.
    """

    event: "type[Event]"
    candidate: str
    brokers: str
    request_id: str = "request_id"
    kafka: Mapping[str, Any] = field(default_factory=dict, repr=False)
    registry_url: str = field(default="", repr=False)
    timeout_s: float = 10.0


class EngagementWriter:
    """Writes events of `Engagements`, one at a time. Connects at the first event; thread-safe.

    Raises:
        DeclarationError: the event lacks the column of the candidate or of the request id.
    """

    def __init__(self, engagements: Engagements) -> None:
        self._to = engagements
        self._begin()
        columns = engagements.event.model_fields
        for role in ("candidate", "request_id"):
            column = getattr(engagements, role)
            if column not in columns:
                raise DeclarationError(
                    f"engagements {role}={column!r}: event {engagements.event.__name__} has {', '.join(columns)}"
                )

    def _begin(self) -> None:
        """Set the state of a process, which has no connection yet."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._is_closed = False
        self._writer: TopicWriter | None = None

    def close(self) -> None:
        """Take no more events. Each one before was acknowledged, or its caller has the error."""
        self._is_closed = True
        self._writer = None

    def write(self, request_id: str, candidate: int | str, fields: Mapping[str, Any]) -> "Event":
        """Write one event and return it once the broker has acknowledged it.

        Raises:
            SchemaError: the values do not fit the event.
            SourceError: the broker refused it, or did not acknowledge it within `Engagements.timeout_s` seconds.
            ClientError: the writer was closed.
        """
        if self._is_closed:
            raise ClientError("engaged: the client is closed; make another", request_id=request_id)
        from headrace.schemas import spec_of

        event, spec = self._to.event, spec_of(self._to.event)
        self._refuse_unknown(fields)
        filled: dict[str, Any] = {spec.time: datetime.now(UTC)}
        if spec.id is not None and spec.types[spec.id].kind == "text":
            filled[spec.id] = uuid.uuid4().hex
        labels = {self._to.request_id: request_id, self._to.candidate: candidate}
        try:
            row = event(**{**filled, **fields, **labels})
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            if first["type"] == "missing":
                raise SchemaError(f"event {event.__name__}.{where} is required: give {where}=...") from exc
            raise SchemaError(f"event {event.__name__}.{where}: {first['msg']}, not {first['input']!r}") from exc
        self._opened().deliver(self._frame(row, spec.polars), self._to.timeout_s)
        return row

    def _frame(self, row: "Event", dtypes: Mapping[str, Any]) -> "pl.DataFrame":
        """One row, of the columns that the event declares."""
        import polars as pl

        values = row.model_dump()
        columns = []
        for name, dtype in dtypes.items():
            try:
                columns.append(pl.Series(name, [values[name]], dtype))
            except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as exc:
                shown = ascii(values[name])[:SHOWN_CHARS_MAX]
                raise SchemaError(f"event {self._to.event.__name__}.{name}: {shown} does not fit {dtype}") from exc
        return pl.DataFrame(columns)

    def _refuse_unknown(self, fields: Mapping[str, Any]) -> None:
        known = list(self._to.event.model_fields)
        for name in fields:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
                raise SchemaError(f"event {self._to.event.__name__} has no field {name!r}; did you mean {nearest!r}?")

    def _opened(self) -> "TopicWriter":
        from headrace.schemas.codecs.registry import SchemaRegistry
        from headrace.streams.kafka_writer import TopicWriter

        if os.getpid() != self._pid:  # forked: the threads of the broker's client, and of its locks, are the parent's
            self._begin()
        with self._lock:
            if self._writer is None:
                registry = SchemaRegistry(self._to.registry_url) if self._to.registry_url else None
                self._writer = TopicWriter(self._to.brokers, self._to.event, config=self._to.kafka, registry=registry)
            return self._writer
