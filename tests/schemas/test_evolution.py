"""Lock files: every rule, by a pair of declarations."""

import json
from datetime import datetime
from typing import Literal

import pytest
from pydantic import AliasChoices, BaseModel, Field

from headrace.errors import EvolutionError
from headrace.schemas import Change, Event, check_lock, write_lock
from headrace.schemas.evolution import lock_path, stale_locks


def declare(topic="things", key="number", time="event_time", event_id=None, codec="json", time_unit=None, **fields):
    """An event `Thing` with the fields."""
    annotations = {"event_time": datetime, "number": int}
    body = {}
    for name, field in fields.items():
        annotations[name], *default = field if isinstance(field, tuple) else (field,)
        if default:
            body[name] = default[0](name) if callable(default[0]) else default[0]
    kwargs = {"topic": topic, "key": key, "time": time, "id": event_id, "codec": codec, "time_unit": time_unit}
    return type(Event)("Thing", (Event,), {"__annotations__": annotations, "__module__": __name__, **body}, **kwargs)


class Small(BaseModel):
    x: int


class Large(BaseModel):
    x: int
    y: int


class Loose(BaseModel):
    x: float
    y: int | None


class Renamed(BaseModel):
    y: int = Field(validation_alias=AliasChoices("y", "x"))


def was(old, annotation):
    """A field that older events have under the name `old`."""
    return annotation, lambda name: Field(validation_alias=AliasChoices(name, old))


@pytest.mark.parametrize(
    ("old", "new", "wanted"),
    [
        ({"a": int}, {"a": int}, []),
        ({}, {"a": (int, 3)}, [("a", "added", "compatible")]),
        ({}, {"a": int | None}, [("a", "added", "compatible")]),
        ({}, {"a": int}, [("a", "added", "incompatible")]),
        ({"a": int | None}, {}, [("a", "removed", "compatible")]),
        ({"a": int}, {}, [("a", "removed", "incompatible")]),
        ({"a": int}, {"b": int}, [("a", "removed", "incompatible"), ("b", "added", "incompatible")]),
        ({"a": int}, {"b": was("a", int)}, [("a", "renamed", "compatible")]),
        ({"a": int}, {"b": was("a", float)}, [("a", "renamed", "compatible"), ("a", "type", "compatible")]),
        ({"a": int}, {"b": was("a", str)}, [("a", "renamed", "compatible"), ("a", "type", "incompatible")]),
        ({"a": int}, {"b": was("c", int)}, [("a", "removed", "incompatible"), ("b", "added", "incompatible")]),
        ({"a": int, "b": str}, {"b": str, "a": int}, [("fields", "order", "compatible")]),
        ({"a": Small}, {"a": Renamed}, [("a.x", "renamed", "compatible")]),
        ({"a": int}, {"a": float}, [("a", "type", "compatible")]),
        ({"a": float}, {"a": int}, [("a", "type", "incompatible")]),
        ({"a": int}, {"a": str}, [("a", "type", "incompatible")]),
        ({"a": int}, {"a": datetime}, [("a", "type", "incompatible")]),
        ({"a": int}, {"a": list[int]}, [("a", "type", "incompatible")]),
        ({"a": list[int]}, {"a": list[float]}, [("a[]", "type", "compatible")]),
        ({"a": int}, {"a": int | None}, [("a", "null", "compatible"), ("a", "default", "compatible")]),
        ({"a": int | None}, {"a": int}, [("a", "null", "incompatible"), ("a", "default", "compatible")]),
        ({"a": (int, 1)}, {"a": (int, 2)}, [("a", "default", "compatible")]),
        ({"a": Literal["x"]}, {"a": Literal["x", "y"]}, [("a", "allowed", "compatible")]),
        ({"a": Literal["x", "y"]}, {"a": Literal["x"]}, [("a", "allowed", "incompatible")]),
        ({"a": Literal["x"]}, {"a": str}, [("a", "allowed", "compatible")]),
        ({"a": str}, {"a": Literal["x"]}, [("a", "allowed", "incompatible")]),
        ({"a": Literal["x", "y"]}, {"a": Literal["y", "x"]}, []),
        ({"a": Small}, {"a": Large}, [("a.y", "added", "incompatible")]),
        ({"a": list[Small]}, {"a": list[Loose]}, [("a[].x", "type", "compatible"), ("a[].y", "added", "compatible")]),
        ({"key": "number"}, {"key": ("number", "event_time")[:1]}, []),
        ({"codec": "avro"}, {"codec": "json"}, [("codec", "role", "incompatible")]),
        ({"a": str}, {"a": str, "key": "a"}, [("key", "role", "incompatible")]),
        ({"a": str}, {"a": str, "event_id": "a"}, [("id", "role", "incompatible")]),
        ({"a": datetime}, {"a": datetime, "time": "a"}, [("time", "role", "incompatible")]),
        ({"time_unit": "ms"}, {"time_unit": "ms"}, []),
        ({}, {"time_unit": "ms"}, [("time_unit", "role", "incompatible")]),
        ({"time_unit": "ms"}, {}, [("time_unit", "role", "incompatible")]),
        ({}, {"topic": "others", "codec": "arrow"}, [("topic", "topic", "compatible")]),
    ],
)
def test_each_rule(tmp_path, old, new, wanted):
    write_lock(declare(**old), tmp_path)
    found = check_lock(declare(**new), tmp_path)
    assert [(change.field, change.rule, change.verdict) for change in found] == wanted
    if any(verdict == "incompatible" for _, _, verdict in wanted):
        with pytest.raises(EvolutionError, match=r"event Thing against Thing\.avsc: "):
            write_lock(declare(**new), tmp_path)
        write_lock(declare(**new), tmp_path, force=True)
    else:
        write_lock(declare(**new), tmp_path)
    assert check_lock(declare(**new), tmp_path) == []


@pytest.mark.parametrize(
    ("new", "is_told"),
    [
        ({"a": int, "b": (int, 3)}, True),
        ({"b": was("a", int)}, True),
        ({"a": float}, True),
        ({"a": int | None}, True),
        ({"a": int}, False),
        ({"a": (int, 7)}, False),
        ({"topic": "others", "a": float}, False),
    ],
)
def test_plain_avro_tells_nothing_so_no_change_of_its_layout_is_compatible(tmp_path, new, is_told):
    write_lock(declare(codec="avro", a=int), tmp_path)
    found = [change for change in check_lock(declare(codec="avro", **new), tmp_path) if change.rule == "layout"]
    assert [change.verdict for change in found] == ["incompatible"] * is_told


def test_a_refusal_names_field_rule_and_way_out(tmp_path):
    write_lock(declare(a=int), tmp_path)
    with pytest.raises(EvolutionError, match=r"a \(type\): was long, is string; .*another name"):
        write_lock(declare(a=str), tmp_path)
    assert check_lock(declare(a=str), tmp_path) == [
        Change(
            "a", "type", "incompatible", "was long, is string; only long to double is read. Add a field of another name"
        )
    ]


def test_a_lock_file_is_an_avro_schema_that_other_readers_take(tmp_path):
    import fastavro

    path = write_lock(declare(a=Literal["x"], b=(int, 1), c=list[Small]), tmp_path)
    assert path == lock_path(declare(), tmp_path) == tmp_path / "Thing.avsc"
    assert fastavro.parse_schema(json.loads(path.read_text()))["name"] == "Thing"


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("[]", "no Avro record"), ("{}", "no Avro record")]
)
def test_a_broken_lock_file_is_told(tmp_path, text, message):
    lock_path(declare(), tmp_path).write_text(text)
    with pytest.raises(EvolutionError, match=message):
        check_lock(declare(), tmp_path)


def test_no_lock_file_is_told(tmp_path):
    with pytest.raises(EvolutionError, match=r"no lock file Thing\.avsc; write it with `headrace schemas lock`"):
        check_lock(declare(), tmp_path)


def test_locks_of_events_that_are_gone_are_told(tmp_path):
    write_lock(declare(a=int), tmp_path)
    (tmp_path / "Former.avsc").write_text("{}")
    assert stale_locks([declare(a=int)], tmp_path) == [tmp_path / "Former.avsc"]
    assert stale_locks([], tmp_path) == [tmp_path / "Former.avsc", tmp_path / "Thing.avsc"]
