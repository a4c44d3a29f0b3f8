"""What an event class may declare, and what it is told when it may not."""

import enum
import io
import re
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

import annotated_types
import fastavro
import polars as pl
import pytest
from pydantic import AfterValidator, BaseModel, PositiveInt, StringConstraints, field_validator

from headrace.errors import DeclarationError
from headrace.schemas import AvroCodec, Event, Field, codec_for, conform, spec_of
from tests.schemas.samples import Everything, Flat


def declare(annotation: Any = int, default: Any = ..., **kwargs: Any) -> type[Event]:
    """An event with one more field, `extra`."""

    class Declared(Event, **({"topic": "declared", "key": "number"} | kwargs)):
        event_time: datetime
        number: int
        extra: annotation = default  # type: ignore[valid-type]

    return Declared


def test_columns_come_in_declared_order_with_their_types():
    spec = spec_of(Flat)
    assert spec.polars == {
        "event_id": pl.Int64(),
        "event_time": pl.Datetime("us", "UTC"),
        "number": pl.Int64(),
        "weight": pl.Float64(),
        "flag": pl.Boolean(),
        "text": pl.String(),
        "maybe_text": pl.String(),
    }
    assert list(spec.polars) == list(Flat.model_fields)
    assert (spec.name, spec.topic, spec.key, spec.time) == ("Flat", "flat", ("number", "text"), "event_time")
    assert (spec.id, spec.codec, spec.optional) == ("event_id", "avro", {"maybe_text"})
    assert spec.event is Flat
    assert spec_of(Flat) is spec


def test_nested_types_map_to_lists_and_structs():
    spec = spec_of(Everything)
    place = pl.Struct({"number": pl.Int64, "label": pl.String, "marks": pl.List(pl.Binary)})
    assert spec.polars["places"] == pl.List(place)
    assert spec.polars["maybe_list"] == pl.List(pl.List(pl.Int64))
    assert spec.polars["times"] == pl.List(pl.Datetime("us", "UTC"))
    assert spec.types["colour"].allowed == ("red", "blue")
    assert spec.types["level"].allowed == (1, -7)


def test_avro_is_valid_and_carries_defaults_and_closed_sets():
    fields = {field["name"]: field for field in spec_of(Everything).avro["fields"]}
    assert fields["colour"]["type"] == {"type": "string", "allowed": ["red", "blue"]}
    assert fields["count"]["default"] == 7
    assert fields["since"]["default"] == 1_577_836_800_000_000
    assert fields["maybe_text"] == {"name": "maybe_text", "type": ["null", "string"], "default": None}
    assert fields["places"]["type"]["items"]["name"] != fields["place"]["type"]["name"]


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (PositiveInt, "int"),
        (Annotated[str, StringConstraints(min_length=1, pattern="^a")], "text"),
        (Literal["a", None], "text"),  # noqa: PYI061
        (enum.Enum("Sizes", {"SMALL": 1, "BIG": 2}), "int"),
        (list[Annotated[float, Field(ge=0)]], "list"),
        (Annotated[int, "only a note"], "int"),
    ],
)
def test_annotated_types_and_enums_are_read(annotation, kind):
    assert spec_of(declare(annotation)).types["extra"].kind == kind


class Loop(BaseModel):
    inner: "list[Loop]"


class Checked(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def even(cls, value: int) -> int:
        return value


class Nothing(BaseModel):
    pass


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (date, r"Declared\.extra: date has no column type; use int, float"),
        (dict[str, int], r"Declared\.extra: dict.* has no column type"),
        (Any, r"Declared\.extra: Any"),
        (list, r"Declared\.extra: list has no column type"),
        (int | str, r"Declared\.extra: .* is a union; a column has one type"),
        (list[dict[str, int]], r"Declared\.extra\[\]: "),
        (Literal["a", 1], r"Declared\.extra: a Literal or Enum holds only str values, or only int"),
        (Literal[True], r"holds only str values, or only int"),
        (Loop, r"Declared\.extra\.inner\[\]: Loop contains itself"),
        (Checked, r"Declared\.extra: validator 'even' is a Python function"),
        (Nothing, r"Declared\.extra: Nothing has no field"),
        (Annotated[int, AfterValidator(abs)], r"Declared\.extra: AfterValidator is a Python function"),
        (Annotated[int, annotated_types.Predicate(bool)], r"Declared\.extra: Predicate is a Python function"),
        (Annotated[str, StringConstraints(to_lower=True)], r"Declared\.extra: strip_whitespace and to_upper/to_lower"),
    ],
)
def test_a_type_without_a_column_is_named_with_class_field_and_fix(annotation, message):
    with pytest.raises(DeclarationError, match=message):
        declare(annotation)


@pytest.mark.parametrize(
    ("default", "message"),
    [
        (Field(alias="other"), "aliases are for old names only"),
        (Field(default_factory=int), "give a constant default or `list`"),
        (None, r"annotate the field as `\.\.\. \| None`"),
    ],
)
def test_a_default_that_no_column_can_have_is_refused(default, message):
    with pytest.raises(DeclarationError, match=message):
        declare(int, default)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"key": "user"}, r"key='user' is no field; declare `user` or use one of event_time, number, extra"),
        ({"key": ("number", "user")}, r"key='user' is no field"),
        ({"time": "at"}, r"time='at' is no field"),
        ({"time": "number"}, r"Declared\.number: the time field must be a datetime, never null"),
        ({"id": "uid"}, r"id='uid' is no field"),
        ({"id": "event_time"}, r"Declared\.event_time: a id is an int or a str, not time"),
        ({"codec": "xml"}, r"codec 'xml'; use one of avro, confluent-avro, json, arrow"),
        ({"key": ()}, r"no key; declare it as"),
        ({"key": 5}, r"key=5; write a field's name, or a tuple of such"),
        ({"key": ("number", "number")}, r"key=\('number', 'number'\); write .* each once"),
        ({"id": ""}, r"id='' is no field"),
        ({"topic": 5}, r"topic 5 is no name that brokers take"),
        ({"topic": "page/views"}, r"topic 'page/views' is no name that brokers take; write up to 249 of the letters"),
        ({"topic": ".."}, r"topic '\.\.' is no name"),
        ({"topic": "a" * 250}, r"is no name that brokers take"),
        ({"topic": "views\n"}, r"is no name that brokers take"),
        ({"topic": ""}, r"no topic; declare it as `class Declared\(Event, topic=\"readings\", \.\.\.\)`"),
    ],
)
def test_a_role_that_no_field_can_play_is_refused(kwargs, message):
    with pytest.raises(DeclarationError, match=message):
        declare(**kwargs)


def test_an_optional_time_or_id_is_refused():
    with pytest.raises(DeclarationError, match="never null; write `extra: datetime`"):
        declare(datetime | None, time="extra")
    with pytest.raises(DeclarationError, match="an id is never null"):
        declare(str | None, id="extra")


def test_a_class_without_topic_is_a_base_that_events_share():
    class Base(Event):
        event_time: datetime
        number: int

    class One(Base, topic="one", key="number"):
        pass

    class Two(One, topic="two"):
        more: str

    with pytest.raises(DeclarationError, match="event Base: no topic"):
        spec_of(Base)
    assert (spec_of(One).topic, spec_of(Two).topic, spec_of(Two).key) == ("one", "two", ("number",))
    assert list(spec_of(One).polars) == ["event_time", "number"]


def test_names_that_python_meets_later_are_resolved_when_asked_for():
    class Early(Event, topic="early", key="number"):
        event_time: datetime
        number: int
        place: "Late"

    class Late(BaseModel):
        label: str

    Early.model_rebuild(_types_namespace={"Late": Late})
    assert spec_of(Early).polars["place"] == pl.Struct({"label": pl.String})


def test_structs_of_one_event_have_names_of_their_own_in_avro():
    """Two models of one name, and paths that make one name: `a.b` with `c`, and `a` with `b_c`."""

    def place(**fields):
        return type("Place", (BaseModel,), {"__annotations__": fields, "__module__": __name__})

    inner, other, third = place(x=int), place(y=str), place(z=float)
    outer = place(c=inner, items=list[third])

    class Visit(Event, topic="visits", key="door"):
        event_time: datetime
        door: int
        a_b: outer
        a_b_c: other
        a_b_c_2: list[inner]
        a_b_items: third | None

    spec = spec_of(Visit)
    found = str(spec.avro)
    names = re.findall(r"'type': 'record', 'name': '(\w+)'", found)
    assert len(names) == len(set(names)) == 7
    assert names[:2] == ["Visit", "Visit_a_b"]
    fastavro.parse_schema(spec.avro)
    row = {
        "event_time": datetime(2026, 1, 1, tzinfo=UTC),
        "door": 1,
        "a_b": {"c": {"x": 5}, "items": [{"z": 0.5}]},
        "a_b_c": {"y": "y"},
        "a_b_c_2": [{"x": 6}],
        "a_b_items": {"z": 1.5},
    }
    payload = io.BytesIO()
    fastavro.schemaless_writer(payload, fastavro.parse_schema(spec.avro), row)
    for codec in (AvroCodec(spec), AvroCodec(spec, writer=spec.avro)):
        assert codec.decode([payload.getvalue()]).frame.to_dicts() == [row]


@pytest.mark.parametrize("default", [b"\xff", b"", b"\x00\xe9", b"text"])
def test_a_default_of_bytes_is_the_same_bytes_in_every_format(default):
    """Avro writes it as latin-1 in its schema; columns and rows hold the bytes."""

    class Old(Event, topic="tagged", key="door"):
        event_time: datetime
        door: int

    class Inner(BaseModel):
        mark: bytes = default

    class Tagged(Event, topic="tagged", key="door"):
        event_time: datetime
        door: int
        tag: bytes = default
        tags: list[bytes] = [default]  # noqa: RUF012
        inner: Inner = Inner()
        since: datetime = datetime(2020, 1, 1, tzinfo=UTC)

    frame = pl.DataFrame({"event_time": [datetime(2026, 1, 1, tzinfo=UTC)], "door": [1]})
    old, new = spec_of(Old), spec_of(Tagged)
    [tag] = [field for field in new.avro["fields"] if field["name"] == "tag"]
    assert tag["default"].encode("latin-1") == default
    wanted = {"tag": default, "tags": [default], "inner": {"mark": default}, "since": datetime(2020, 1, 1, tzinfo=UTC)}
    read = {
        "frame": conform(frame, new),
        "arrow": codec_for(Tagged, "arrow").decode(codec_for(Old, "arrow").encode(frame)).frame,
        "json": codec_for(Tagged, "json").decode(codec_for(Old, "json").encode(frame)).frame,
        "avro": AvroCodec(new, writer=old.avro).decode(AvroCodec(old).encode(frame)).frame,
    }
    for found in read.values():
        assert found.select(list(wanted)).to_dicts() == [wanted]
        assert found.schema == new.polars
    many = pl.concat([frame] * 3)
    assert conform(many, new)["tag"].to_list() == [default] * 3
    assert conform(many[:0], new).schema == new.polars
