"""Choice of a codec by its name."""

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
    """The codec named by `codec`, or else the one that `event` declares.

    With a `registry`, Confluent-framed Avro is read with the schema that each payload's id names, and `writes`
    registers the event's schema. For a plain Avro stream of an older declaration use `AvroCodec(spec, writer=...)`.

    Raises:
        DeclarationError: there is no codec of that name.
        EvolutionError: the registry refuses the schema.
        ServiceError: the registry does not answer.
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
