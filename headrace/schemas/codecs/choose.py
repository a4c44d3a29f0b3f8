"""The codec of an event by its name: the one table of wire formats."""

from headrace.errors import DeclarationError
from headrace.schemas.codecs.arrow import ArrowCodec
from headrace.schemas.codecs.avro import AvroCodec, ConfluentAvroCodec
from headrace.schemas.codecs.codec import Codec
from headrace.schemas.codecs.json import JsonCodec
from headrace.schemas.codecs.registry import SchemaRegistry
from headrace.schemas.event import CODECS, Event, spec_of

_NO_ID = 0  # registries count from 1


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
