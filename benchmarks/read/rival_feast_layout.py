"""Feast's layout of its Redis online store, written and read as its own code does; Feast itself is rival_feast.

One hash an entity: field murmur3("view:feature"), 4 bytes little-endian, value a protobuf ValueProto; and a field
"_ts:view" with the event's Timestamp. A read is one pipeline of HMGETs, each value is parsed as a message. Source: the
Redis store and the key serialisation, version 3, of the Feast SDK. What is stored is the final value of each feature.

Better than Feast's own reader: values go from the message straight into columns, without Feast's response message,
and the timestamp of an entity is parsed once.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence

import mmh3
import redis
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.timestamp_pb2 import Timestamp

PROJECT = "shop"
_INT64_TYPE = 4
_FIELDS = {"string_val": (2, "STRING"), "int64_val": (4, "INT64"), "double_val": (5, "DOUBLE")}
_LISTS = {"string_list_val": (12, "STRING"), "int64_list_val": (14, "INT64"), "double_list_val": (15, "DOUBLE")}
BATCH = 2_000


def _value_class():
    """feast.types.ValueProto, the fields that are used here."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="feast_layout.proto", package="feast_layout", syntax="proto3")
    value = descriptor_pb2.DescriptorProto(name="Value")
    value.oneof_decl.add(name="val")
    for name, (number, kind) in _FIELDS.items():
        value.field.add(name=name, number=number, type=getattr(kinds, f"TYPE_{kind}"), label=1, oneof_index=0)
    for name, (number, kind) in _LISTS.items():
        holder = file.message_type.add(name=f"{kind.title()}List")
        holder.field.add(name="val", number=1, type=getattr(kinds, f"TYPE_{kind}"), label=3)
        type_name = f".feast_layout.{holder.name}"
        value.field.add(name=name, number=number, type=11, type_name=type_name, label=1, oneof_index=0)
    file.message_type.append(value)
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("feast_layout.Value"))


Value = _value_class()
_ATTRIBUTE = {int: "int64_val", float: "double_val", str: "string_val"}
_LIST_ATTRIBUTE = {"int": "int64_list_val", "float": "double_list_val", "text": "string_list_val"}


def entity_key(name: str, entity: int) -> bytes:
    """Key of an entity with one integer join key."""
    text = name.encode()
    head = struct.pack("<III", 1, 2, len(text)) + text  # one join key, its type is a string
    return head + struct.pack("<IIq", _INT64_TYPE, 8, entity) + PROJECT.encode()


def field_name(view: str, feature: str) -> bytes:
    return struct.pack("<I", mmh3.hash(f"{view}:{feature}", signed=False))


def value_bytes(value, dtype: str) -> bytes:
    """A feature's value as a ValueProto; none is an empty message."""
    message = Value()
    if isinstance(value, list):
        getattr(message, _LIST_ATTRIBUTE[dtype.removeprefix("list[").removesuffix("]")]).val.extend(value)
    elif value is not None:
        setattr(message, _ATTRIBUTE[type(value)], value)
    return message.SerializeToString()


def write(
    client: redis.Redis,
    view: str,
    entity_name: str,
    rows: Iterable[Mapping],
    dtypes: Mapping[str, str],
    seconds: int,
) -> None:
    """Write rows, dicts of the entity and its features; `dtypes` feature -> as in `Feature.dtype`."""
    names = {feature: field_name(view, feature) for feature in dtypes}
    stamp = Timestamp(seconds=seconds).SerializeToString()
    pipeline = client.pipeline(transaction=False)
    for count, row in enumerate(rows, 1):
        held = {names[feature]: value_bytes(row[feature], dtype) for feature, dtype in dtypes.items()}
        pipeline.hset(entity_key(entity_name, row[entity_name]), mapping={**held, f"_ts:{view}": stamp})
        if count % BATCH == 0:
            pipeline.execute()
    pipeline.execute()


def read(
    client: redis.Redis, view: str, entity_name: str, entities: Sequence[int], features: Sequence[str]
) -> dict[str, list]:
    """Values of `entities`: feature -> one value an entity, and `_age` seconds of the event."""
    fields = [*(field_name(view, feature) for feature in features), f"_ts:{view}"]
    with client.pipeline(transaction=False) as pipeline:
        for entity in entities:
            pipeline.hmget(entity_key(entity_name, entity), fields)
        replies = pipeline.execute()
    columns: dict[str, list] = {feature: [] for feature in features}
    targets, stamps = list(columns.values()), []
    for reply in replies:
        stamp = Timestamp()
        stamp.ParseFromString(reply[-1] or b"")
        stamps.append(stamp.seconds)
        for column, raw in zip(targets, reply, strict=False):
            message = Value()
            message.ParseFromString(raw or b"")
            kind = message.WhichOneof("val")
            if kind is None:
                column.append(None)
            else:
                value = getattr(message, kind)
                column.append(list(value.val) if kind in {"int64_list_val", "double_list_val"} else value)
    return {**columns, "_stamp": stamps}
