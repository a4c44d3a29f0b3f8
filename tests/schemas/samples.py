"""An event of every type, rows of it, and a naive reader of its JSON: what the tests of this room share."""

import base64
import enum
import json
import re
from datetime import UTC, datetime
from typing import Literal

import polars as pl
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticUndefined

from headrace.schemas import Event, spec_of
from headrace.schemas.fields import FieldType, plain


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Place(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")

    number: int
    label: str | None
    marks: list[bytes] = Field(default_factory=list)


class Everything(Event, topic="everything", key="number", time="event_time", id="event_id"):
    event_id: str
    event_time: datetime
    number: int
    weight: float
    flag: bool
    blob: bytes
    colour: Colour
    word: Literal["a", "é", ""]
    level: Literal[1, -7]
    maybe_number: int | None
    maybe_weight: float | None = 2.5
    maybe_flag: bool | None
    maybe_text: str | None = None
    maybe_blob: bytes | None
    maybe_time: datetime | None
    count: int = 7
    since: datetime = datetime(2020, 1, 1, tzinfo=UTC)
    note: str = "none"
    tags: list[str] = []  # noqa: RUF012  (pydantic copies it)
    weights: list[float]
    times: list[datetime | None]
    maybe_list: list[list[int] | None] | None
    place: Place
    maybe_place: Place | None
    places: list[Place]


class Flat(Event, topic="flat", key=("number", "text"), id="event_id"):
    event_id: int
    event_time: datetime
    number: int
    weight: float
    flag: bool
    text: str
    maybe_text: str | None


EVENTS = (Everything, Flat)
SPEC = spec_of(Everything)
INTS = st.integers(-(2**63), 2**63 - 1) | st.integers(-300, 300)
LEAVES = {
    "int": INTS,
    "float": st.floats(),
    "bool": st.booleans(),
    "text": st.text(max_size=20),
    "bytes": st.binary(max_size=20),
    "time": st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001
}


def values(found: FieldType):
    """Values of a field, null where it may be."""
    if found.allowed is not None:
        made = st.sampled_from(found.allowed)
    elif found.kind == "list":
        made = st.lists(values(found.item), max_size=3)
    elif found.kind == "struct":
        made = st.fixed_dictionaries({name: values(inner) for name, inner in found.fields})
    else:
        made = LEAVES[found.kind]
    return st.none() | made if found.nullable else made


def rows(event, min_size=0, max_size=4):
    """Lists of rows, as dicts."""
    types = spec_of(event).types
    return st.lists(
        st.fixed_dictionaries({name: values(found) for name, found in types.items()}),
        min_size=min_size,
        max_size=max_size,
    )


def frame_of(event, made) -> pl.DataFrame:
    """The rows as columns."""
    return pl.DataFrame(made, schema=spec_of(event).polars, orient="row")


def in_micros(found):
    """A column type with int64 for times, which hold more than Python datetimes do."""
    if isinstance(found, pl.List):
        return pl.List(in_micros(found.inner))
    if isinstance(found, pl.Struct):
        return pl.Struct({field.name: in_micros(field.dtype) for field in found.fields})
    return pl.Int64() if isinstance(found, pl.Datetime) else found


class BadJsonError(Exception):
    """A payload that the naive reader refuses; the argument is the reason."""


def naive_json(event, payload: bytes) -> pl.DataFrame:
    """One payload as one row, read field by field in plain Python."""
    try:
        found = json.loads(payload.decode(), object_pairs_hook=Pairs, parse_constant=_refuse)
        json.dumps(found, ensure_ascii=False).encode()  # lone surrogates
    except (ValueError, RecursionError) as exc:
        raise BadJsonError("undecodable") from exc
    row = _struct(found, spec_of(event).types.items())
    columns = spec_of(event).polars
    schema = {name: in_micros(column) for name, column in columns.items()}
    return pl.DataFrame([row], schema=schema, orient="row").cast(columns)


class Pairs(list):
    """An object's members, also those that occur twice."""


def _refuse(word):
    raise ValueError(word)


def _struct(found, fields) -> dict:
    if not isinstance(found, Pairs):
        raise BadJsonError("wrong_type")
    names = [name for name, _ in found]
    if any(names.count(name) > 1 for name, _ in fields):
        raise BadJsonError("undecodable")
    known = dict(fields)
    row = {name: _value(value, known[name]) for name, value in found if name in known}
    for name, field in fields:
        if name not in row:
            if field.required:
                raise BadJsonError("missing")
            row[name] = None if field.default is PydanticUndefined else plain(field.default)
    return {name: row[name] for name in known}


def _value(value, field):  # noqa: C901, PLR0911  (one case a type)
    if value is None:
        if field.nullable:
            return None
        raise BadJsonError("missing")
    match field.kind, value:
        case "struct", Pairs():
            return _struct(value, field.fields)
        case "list", list() if not isinstance(value, Pairs):
            return [_value(item, field.item) for item in value]
        case ("bool", bool()) | ("text", str()):
            return value
        case "int", int() if not isinstance(value, bool) and -(2**63) <= value < 2**63:
            return value
        case "float", int() | float() if not isinstance(value, bool):
            return float(str(value))
        case "float", "NaN" | "Infinity" | "-Infinity":
            return float(value)
        case "time", str() | int() if not isinstance(value, bool):
            return _time(value)
        case "bytes", str():
            return _blob(value)
    raise BadJsonError("wrong_type")


def _time(value) -> int:
    if isinstance(value, int):
        return _value(value, FieldType("int"))
    try:
        shape = r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?([Zz]|[+-]\d\d:?\d\d)?"
        if re.fullmatch(shape, value, re.ASCII):
            return plain(datetime.fromisoformat(value.upper()))
    except ValueError as exc:
        raise BadJsonError("wrong_type") from exc
    raise BadJsonError("wrong_type")


def _blob(value) -> bytes:
    if len(value) % 4:  # b64decode passes over padding that is too long
        raise BadJsonError("wrong_type")
    try:
        return base64.b64decode(value.encode().translate(bytes.maketrans(b"-_", b"+/")), validate=True)
    except ValueError as exc:
        raise BadJsonError("wrong_type") from exc
