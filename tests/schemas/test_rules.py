"""Every rule on every kind of value, alone, in lists and in structs: the verdict of columns is pydantic's."""

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AllowInfNan, BaseModel, Field, TypeAdapter, ValidationError, create_model

from headrace.errors import DeclarationError
from headrace.schemas import Event, Quality, spec_of

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOW_US = 1_767_268_800_000_000

BIG = st.sampled_from([2**63 - 1, -(2**63), 2**53 + 1, -(2**53) - 1, 2**62])
INTS = st.integers(-12, 12) | BIG
DIVISORS = (0.01, 0.1, 0.05, 0.25, 1.0, 3.0, 7.3, 1e-9, 3e-9, 1e9, 1e300, 5e-324)
FLOATS = (
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 19.99, 0.07, 0.29, 1.1, 4.35, 1e308, 5e-324, 2.0**53])
    | st.floats(-100, 100)
    | st.builds(lambda k, m: k * m, st.integers(-(10**6), 10**6), st.sampled_from(DIVISORS))
    | st.builds(
        lambda k, m, off: k * m + off, st.integers(-1_000, 1_000), st.sampled_from(DIVISORS), st.floats(-2e-9, 2e-9)
    )
    | st.integers(-1_000, 1_000).map(lambda cents: cents / 100)
)
TEXTS = st.text(alphabet="abé😀A1 \n", max_size=5)
BLOBS = st.binary(max_size=4)
TIMES = st.integers(-3, 3).map(lambda us: NOON + timedelta(microseconds=us))
BOUNDS = ("ge", "gt", "le", "lt")
LENGTHS = ("min_length", "max_length")
PATTERNS = ("^a", "b$", "é", r"^\w+$", "(?i)A", "^$", r"\d", "a.b", "[^a]", r"\bab\b")
KINDS = {
    int: (
        INTS,
        INTS | st.sampled_from([2**64, -(2**70), 10**400]),
        st.integers(1, 5) | st.sampled_from([2**62, 2**64]),
    ),
    float: (
        FLOATS,
        st.floats(allow_nan=False) | st.integers(-5, 5) | BIG,
        st.sampled_from(DIVISORS) | st.integers(1, 5),
    ),
    str: (TEXTS, TEXTS, None),
    bytes: (BLOBS, BLOBS, None),
    datetime: (TIMES, TIMES, None),
}


@st.composite
def ruled(draw):
    """(Annotated type, its values)."""
    kind = draw(st.sampled_from(list(KINDS)))
    values, bounds, divisors = KINDS[kind]
    rules = {}
    for name in draw(st.sets(st.sampled_from(BOUNDS), max_size=2)):
        rules[name] = draw(bounds)
    if divisors is not None and draw(st.booleans()):
        rules["multiple_of"] = draw(divisors)
    if kind is float and draw(st.booleans()):
        rules["allow_inf_nan"] = draw(st.booleans())
    if kind in (str, bytes):
        for name in draw(st.sets(st.sampled_from(LENGTHS))):
            rules[name] = draw(st.integers(0, 4))
    if kind is str and draw(st.booleans()):
        rules["pattern"] = draw(st.sampled_from(PATTERNS))
    found = Annotated[kind, Field(**rules)] if rules else kind
    if kind in (int, str) and draw(st.booleans()):
        chosen = draw(
            st.lists(
                st.integers(-3, 3) | st.just(10**400) if kind is int else TEXTS, min_size=1, max_size=4, unique=True
            )
        )
        held = [value for value in chosen if value != 10**400] or [0 if kind is int else ""]
        found, values = Literal[tuple(chosen)], values | st.sampled_from(held)
    if draw(st.booleans()):
        found, values = found | None, st.none() | values
    return found, values


@st.composite
def shaped(draw):
    """A ruled type and its values, alone, in a list, in a struct, or in a list of structs."""
    found, values = draw(ruled())
    match draw(st.sampled_from(["alone", "list", "struct", "structs"])):
        case "list":
            lengths = {name: draw(st.integers(0, 3)) for name in draw(st.sets(st.sampled_from(LENGTHS)))}
            return Annotated[list[found], Field(**lengths)], st.lists(values, max_size=4)
        case "struct":
            return create_model("Inner", x=(found, ...)), st.fixed_dictionaries({"x": values})
        case "structs":
            inner = create_model("Inner", x=(found, ...))
            return list[inner] | None, st.none() | st.lists(st.fixed_dictionaries({"x": values}), max_size=3)
    return found, values


def is_good(adapter, value):
    try:
        adapter.validate_python(value)
    except ValidationError:
        return False
    return True


@settings(max_examples=150)
@given(data=st.data())
def test_every_rule_has_pydantics_verdict(data):
    found, values = data.draw(shaped())
    rows = data.draw(st.lists(values | st.none(), min_size=1, max_size=8))
    event = type(Event)(
        "Ruled",
        (Event,),
        {"__annotations__": {"event_time": datetime, "key": int, "value": found}, "__module__": __name__},
        topic="ruled",
        key="key",
    )
    columns = {"event_time": [NOON] * len(rows), "key": range(len(rows)), "value": rows}
    frame = pl.DataFrame(columns, schema=spec_of(event).polars)
    checked = Quality(spec_of(event)).check(frame, NOW_US)
    adapter = TypeAdapter(found)
    wanted = [index for index, value in enumerate(rows) if is_good(adapter, value)]
    assert checked.kept.tolist() == wanted
    assert sorted([*wanted, *(bad.index for bad in checked.bad)]) == list(range(len(rows)))
    assert all(bad.detail.startswith("value: ") for bad in checked.bad)


class Nested(BaseModel):
    x: Annotated[list[float], AllowInfNan(allow_inf_nan=False)] | None = None


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (Annotated[bool, Field(ge=True)], "Ruled.value: ge is a rule for int, float, text, bytes, time, not for bool"),
        (Annotated[list[int], Field(ge=[1])], "Ruled.value: ge is a rule for .*, not for list"),
        (Annotated[bytes, Field(pattern="a")], "Ruled.value: pattern is a rule for text, not for bytes"),
        (Nested, "Ruled.value.x: finite is a rule for float, not for list"),
        (Annotated[float, Field(ge=math.nan)], "Ruled.value: ge=NaN refuses every value"),
        (Annotated[datetime, Field(ge="2020")], "Ruled.value: the rule '>= 2020' cannot be checked"),
    ],
)
def test_a_rule_that_no_column_can_be_checked_by_is_refused_before_the_flow_begins(annotation, message):
    with pytest.raises(DeclarationError, match=message):
        Quality(
            spec_of(
                type(Event)(
                    "Ruled",
                    (Event,),
                    {
                        "__annotations__": {"event_time": datetime, "key": int, "value": annotation},
                        "__module__": __name__,
                    },
                    topic="ruled",
                    key="key",
                )
            )
        )


def test_a_pattern_of_another_engine_is_refused_at_the_declaration():
    with pytest.raises(DeclarationError, match=r"Looked.word: pattern '\(\?=a\)' is none of the Rust regex engine"):

        class Looked(Event, topic="looked", key="key", regex_engine="python-re"):
            event_time: datetime
            key: int
            word: str = Field(pattern="(?=a)")


def test_a_default_of_another_type_is_refused_at_the_declaration():
    with pytest.raises(DeclarationError, match=r"Wrong.count: the default 'x' is no int"):

        class Wrong(Event, topic="wrong", key="key"):
            event_time: datetime
            key: int
            count: int = "x"


def test_whole_numbers_are_compared_with_bounds_that_are_floats_exactly():
    """2**53 + 1 is above 2**53, and as a float it is not."""

    class Bounded(Event, topic="bounded", key="key"):
        event_time: datetime
        key: int
        above: int = Field(gt=float(2**53), default=2**53 + 1)
        below: int = Field(lt=float(-(2**53)), default=-(2**53) - 1)

    times = [datetime(2026, 1, 1, tzinfo=UTC)] * 2
    columns = {"above": [2**53, 2**53 + 1], "below": [-(2**53), -(2**53) - 1]}
    frame = pl.DataFrame({"event_time": times, "key": [1, 2], **columns}, schema=spec_of(Bounded).polars)
    checked = Quality(spec_of(Bounded)).check(frame, now_us=int(times[0].timestamp() * 1e6))
    assert [bad.index for bad in checked.bad] == [0]


@pytest.mark.parametrize(
    ("kind", "rule", "message"),
    [
        (str, {"pattern": "["}, 'event Wrong: Field "value": regex parse error'),
        (int, {"ge": "a"}, "event Wrong: Field \"value\": 'ge' must be coercible to an integer"),
        (int, {"multiple_of": 0}, "'multiple_of' must be a finite number greater than 0"),
        (float, {"multiple_of": float("inf")}, "'multiple_of' must be a finite number greater than 0"),
    ],
)
def test_a_rule_that_pydantic_refuses_is_an_error_of_the_declaration(kind, rule, message):
    with pytest.raises(DeclarationError, match=re.escape(message)):

        class Wrong(Event, topic="wrong", key="key"):
            event_time: datetime
            key: int
            value: kind = Field(**rule)


def test_an_unknown_class_argument_is_refused_with_the_nearest():
    with pytest.raises(
        DeclarationError,
        match="event Wrong: no class argument topics=; did you mean topic=. there are topic, key, time",
    ):

        class Wrong(Event, topics="wrong", key="key"):
            event_time: datetime
            key: int


def test_a_type_that_is_not_defined_is_refused_where_the_event_is_used():
    class Wrong(Event, topic="wrong", key="key"):
        event_time: datetime
        key: int
        value: "Undefined"  # noqa: F821

    with pytest.raises(DeclarationError, match="event Wrong: a field's type 'Undefined' is not defined"):
        spec_of(Wrong)
