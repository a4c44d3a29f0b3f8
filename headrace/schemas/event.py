"""Event classes: one declaration from which wire formats, column types and quality rules are derived.

    class Reading(Event, topic="readings", key="sensor", time="event_time", id="reading_id"):
        reading_id: str
        event_time: datetime
        sensor: int
        value: float = Field(ge=0)

A class with a `topic` is checked when it is defined; a class without one is a base for other events.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any, ClassVar

import polars as pl
import pyarrow as pa
import pydantic
import pydantic_core
from pydantic import BaseModel, ConfigDict
from pydantic import Field as Field  # noqa: PLC0414  (re-exported: the one import that a declaration needs)

from headrace.errors import DeclarationError
from headrace.schemas.fields import FieldType, avro_fields, event_fields, plain
from headrace.schemas.time_units import TIME_UNITS, TimeUnit

CODECS = ("avro", "confluent-avro", "json", "arrow")
EARLIEST = datetime(1971, 1, 1, tzinfo=UTC)
"""Default lower bound of event times. Numbers of a coarser unit, misread as microseconds, lie below it."""

_WRAPPERS = re.compile(r'Error building "[\w-]+" validator: |SchemaError: |ValueError: ')
_TOPIC = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,249}")
"""Topic names that brokers accept."""
_DECLARED = ("topic", "key", "time", "id", "codec", "time_unit", "earliest")


class _EventMeta(type(BaseModel)):  # type: ignore[misc]
    """Pydantic's metaclass, which raises errors in a class definition as `DeclarationError`."""

    def __new__(cls, name: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().__new__(cls, name, *args, **kwargs)
        except (pydantic_core.SchemaError, pydantic.PydanticUserError) as exc:
            words = _WRAPPERS.sub("", " ".join(str(exc).split()))
            raise DeclarationError(f"event {name}: {words}") from exc


class Event(BaseModel, metaclass=_EventMeta):
    """Base of every event class.

    Class arguments:
        topic: stream that carries the event.
        key: field, or tuple of fields, by which the stream is partitioned.
        time: field with the time at which the event happened; a datetime.
        id: field with the same value in every delivery of an event, used to drop duplicates. None: two events are the
            same if all fields that a view reads are equal.
        codec: wire format of the topic's payloads. `avro` (default): one Avro datum without a header, written with the
            event's own schema; `confluent-avro`: byte 0, the 4-byte id of a schema in a registry, then the datum;
            `json`: one object; `arrow`: an Arrow IPC stream of many rows. For files the suffix tells the format.
        time_unit: unit of bare numbers in all datetime fields, nested ones included: s, ms, us or ns since 1970, UTC.
            It applies where the wire has no unit: numbers in JSON, and integer or float columns of Arrow messages,
            frames, files and other writers' Avro schemas. Numbers in s and ms may have fractions; digits beyond the
            microsecond are cut off. Without it, numbers in JSON are microseconds, and other numbers are not accepted
            as times.
        earliest: a datetime or date, 1970-01-01 or later. An earlier event becomes a dead letter with the reason
            `implausible_time`. Default 1971-01-01. It bounds the `time` field only.

    Raises:
        DeclarationError: a class argument names a field that does not exist, or a field's type has no column type.
    """

    # `model_dump_json` writes what `JsonCodec` reads, and vice versa. (Nested models do not inherit these settings in
    # pydantic: one with bytes or non-finite floats must set them too.)
    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")

    _declaration: ClassVar[dict[str, Any]] = {}
    _spec: ClassVar["EventSpec | None"] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        declared = {name: kwargs.pop(name) for name in _DECLARED if name in kwargs}
        refuse_unknown(f"event {cls.__name__}", kwargs, _DECLARED)
        cls._declaration = {**cls._declaration, **declared}
        cls._spec = None
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Check the declaration as soon as pydantic knows its fields."""
        super().__pydantic_init_subclass__(**{name: kwargs[name] for name in kwargs if name not in _DECLARED})
        if "topic" in cls._declaration and cls.__pydantic_complete__:
            spec_of(cls)


@dataclass(frozen=True, slots=True, eq=False)
class EventSpec:
    """Everything derived from an event class.

    `polars` maps columns to types in declared order; `avro` is the Avro record; `optional` names the nullable columns;
    `types` are the field trees that codecs and quality rules walk. `time_unit` is None if the class declares none;
    `earliest_us` is in microseconds since 1970. There is one object per event class: compare by identity.
    """

    name: str
    topic: str
    key: tuple[str, ...]
    time: str
    id: str | None
    codec: str
    polars: dict[str, pl.DataType]
    avro: dict[str, Any]
    optional: frozenset[str]
    event: type[Event]
    types: dict[str, FieldType] = field(repr=False)
    time_unit: TimeUnit | None
    earliest_us: int


def spec_of(event: type[Event]) -> EventSpec:
    """Derive the spec of `event` from its declaration; computed once per class.

    Raises:
        DeclarationError: the class lacks a topic, a key or its time field, or a field's type has no column type.
    """
    if event._spec is None:  # noqa: SLF001
        event._spec = _derive(event)  # noqa: SLF001
    return event._spec  # noqa: SLF001


def arrow_schema(spec: EventSpec) -> pa.Schema:
    """The Arrow schema of the event, in declared order, with 64-bit offsets."""
    return pa.schema([pa.field(name, field.arrow(), field.nullable) for name, field in spec.types.items()])


def sample_frame(spec: EventSpec) -> pl.DataFrame:
    """One row of `spec`'s columns, each with some value of its type; constraints are ignored."""
    return pl.DataFrame({name: pl.Series([_sample_value(dtype)], dtype=dtype) for name, dtype in spec.polars.items()})


def _sample_value(dtype: pl.DataType) -> Any:
    if isinstance(dtype, pl.List):
        return [_sample_value(dtype.inner)]  # type: ignore[arg-type]  # an instance, as our schemas hold them
    if isinstance(dtype, pl.Struct):
        return {field.name: _sample_value(field.dtype) for field in dtype.fields}  # type: ignore[arg-type]
    if isinstance(dtype, pl.Datetime):
        return datetime(2000, 1, 1, tzinfo=UTC)
    if isinstance(dtype, pl.Binary):
        return b"x"
    if isinstance(dtype, pl.Boolean):
        return True
    return "x" if isinstance(dtype, pl.String) else 1


def refuse_unknown(what: str, arguments: Iterable[str], known: Sequence[str]) -> None:
    """Reject class arguments that are not in `known`; `what` names the class in the error.

    Raises:
        DeclarationError: an argument is unknown; names the nearest known one.
    """
    wrong = next(iter(arguments), None)
    if wrong is not None:
        near = difflib.get_close_matches(wrong, known, 1)
        hint = f"did you mean {near[0]}=? " if near else ""
        raise DeclarationError(f"{what}: no class argument {wrong}=; {hint}there are {', '.join(known)}")


def _derive(event: type[Event]) -> EventSpec:
    name = event.__name__
    declared = {"time": "event_time", "id": None, "codec": "avro", **event._declaration}  # noqa: SLF001
    for needed, example in (("topic", 'topic="readings"'), ("key", 'key="sensor"')):
        if not declared.get(needed):
            raise DeclarationError(f"event {name}: no {needed}; declare it as `class {name}(Event, {example}, ...)`")
    if declared["codec"] not in CODECS:
        raise DeclarationError(f"event {name}: codec {declared['codec']!r}; use one of {', '.join(CODECS)}")
    if declared.get("time_unit") not in (None, *TIME_UNITS):
        raise DeclarationError(f"event {name}: time_unit {declared['time_unit']!r}; use one of {', '.join(TIME_UNITS)}")
    if not event.__pydantic_complete__:
        try:
            event.model_rebuild()
        except pydantic.errors.PydanticUndefinedAnnotation as exc:
            raise DeclarationError(f"event {name}: a field's type {exc.name!r} is not defined; import it") from exc
    if not isinstance(declared["topic"], str) or not _TOPIC.fullmatch(declared["topic"]):
        raise DeclarationError(
            f"event {name}: topic {declared['topic']!r} is no name that brokers take; write up to 249 of the letters "
            "A to Z, a to z, digits, dots, hyphens and underscores"
        )
    types = event_fields(event, f"event {name}")
    key = _key_of(name, declared["key"])
    _check_roles(name, types, key, declared["time"], declared["id"])
    return EventSpec(
        name=name,
        topic=declared["topic"],
        key=key,
        time=declared["time"],
        id=declared["id"],
        codec=declared["codec"],
        polars={column: field_type.polars() for column, field_type in types.items()},
        avro={"type": "record", "name": name, "fields": avro_fields(types.items())},
        optional=frozenset(column for column, field_type in types.items() if field_type.nullable),
        event=event,
        types=types,
        time_unit=declared.get("time_unit"),
        earliest_us=_earliest_us(name, declared.get("earliest", EARLIEST)),
    )


def _key_of(name: str, key: object) -> tuple[str, ...]:
    """The columns of a declared key."""
    columns = (key,) if isinstance(key, str) else tuple(key) if isinstance(key, tuple | list) else ()
    if not columns or not all(isinstance(column, str) for column in columns) or len(set(columns)) < len(columns):
        raise DeclarationError(f"event {name}: key={key!r}; write a field's name, or a tuple of such, each once")
    return columns


def _earliest_us(name: str, earliest: object) -> int:
    if isinstance(earliest, date) and not isinstance(earliest, datetime):
        earliest = datetime(earliest.year, earliest.month, earliest.day, tzinfo=UTC)
    if not isinstance(earliest, datetime) or int(plain(earliest)) < 0:
        raise DeclarationError(
            f"event {name}: earliest {earliest!r}; give a datetime or date, 1970-01-01 or later, such as "
            "`earliest=datetime(2000, 1, 1)`"
        )
    return int(plain(earliest))


def _check_roles(name: str, types: dict[str, FieldType], key: tuple[str, ...], time: str, event_id: str | None) -> None:
    roles = (
        [("key", column) for column in key] + [("time", time)] + ([("id", event_id)] if event_id is not None else [])
    )
    for role, column in roles:
        if column not in types:
            raise DeclarationError(
                f"event {name}: {role}={column!r} is no field; declare `{column}` or use one of {', '.join(types)}",
            )
    if types[time].kind != "time" or types[time].nullable:
        raise DeclarationError(
            f"event {name}.{time}: the time field must be a datetime, never null; write `{time}: datetime`"
        )
    for role, column in roles:
        if role != "time" and types[column].kind not in ("int", "text"):
            raise DeclarationError(f"event {name}.{column}: a {role} is an int or a str, not {types[column].kind}")
    if event_id and types[event_id].nullable:
        raise DeclarationError(f"event {name}.{event_id}: an id is never null; drop `| None`, or leave `id=` out")
