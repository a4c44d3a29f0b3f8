"""What a wire format does: many payloads to one frame, and a frame to payloads.

A codec never raises on bytes from outside: a payload that it cannot read becomes a `BadPayload`, and costs nobody else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.schemas.codecs.registry import SchemaRegistry
from headrace.schemas.event import CODECS, Event, spec_of
from headrace.schemas.rejects import Rejects

_NO_ID = 0  # registries count from 1


@dataclass(frozen=True, slots=True)
class BadPayload:
    """A payload that gave no row. `reason` is undecodable, wrong_type or missing; `index` counts payloads from 0."""

    index: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """A batch as columns.

    `frame` has the declared columns in order, (n_rows,); `payload_index` int64 (n_rows,) is each row's payload,
    ascending; `bad` are the payloads that gave no row, ascending.
    """

    frame: pl.DataFrame
    payload_index: NDArray[np.int64]
    bad: Sequence[BadPayload] = ()

    @property
    def rejects(self) -> Rejects[BadPayload]:
        """The bad payloads as columns."""
        return Rejects.of(BadPayload, self.bad)


class Codec(Protocol):
    """One wire format of one event."""

    content_type: str

    def encode(self, frame: pl.DataFrame) -> list[bytes]:
        """Payloads of a frame's rows: one a row, or one for all rows where the format holds many (Arrow)."""
        ...

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Rows of a batch of payloads; never raises on their content."""
        ...


def codec_for(
    event: type[Event], codec: str | None = None, *, registry: SchemaRegistry | None = None, writes: bool = False
) -> Codec:
    """The codec of `event`: the one it declares, or the one named.

    With a `registry`, Confluent-framed Avro is read by the schema that each payload's id names; a codec that `writes`
    registers the event's schema. A plain Avro stream of an older declaration wants `AvroCodec(spec, writer=...)`.

    Raises:
        DeclarationError: there is no codec of that name.
        EvolutionError, ServiceError: the registry refuses the schema, or does not answer.
    """
    from headrace.schemas.codecs.arrow import ArrowCodec
    from headrace.schemas.codecs.avro import AvroCodec, ConfluentAvroCodec
    from headrace.schemas.codecs.json import JsonCodec

    spec = spec_of(event)
    match codec or spec.codec:
        case "avro":
            return AvroCodec(spec)
        case "confluent-avro":
            if registry is None:
                return ConfluentAvroCodec(spec)
            own_id = registry.register(spec) if writes else registry.id_of(spec) or _NO_ID
            return ConfluentAvroCodec(spec, own_id, writers=registry.schema)
        case "json":
            return JsonCodec(spec)
        case "arrow":
            return ArrowCodec(spec)
    raise DeclarationError(f"event {spec.name}: no codec {codec!r}; use one of {', '.join(CODECS)}")
