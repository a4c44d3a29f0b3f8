"""Bare numbers that stand for times, in every format; the floor of event times; and what a letter says about units."""

import io
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, localcontext

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from headrace.errors import DeclarationError, SchemaError
from headrace.schemas import Event, Quality, codec_for, conform, spec_of
from headrace.schemas.time_units import TIME_UNITS, UNIT_NAMES, UNITS_PER_S

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOON_US = 1_767_268_800_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
POWERS = {"s": 6, "ms": 3, "us": 0, "ns": -3}


class Stay(BaseModel):
    since: datetime
    visits: list[datetime] = []


def declared(unit=None, codec="json", **more):
    """An event with times at several depths, whose bare numbers are in a unit."""

    class Timed(Event, topic=f"timed-{unit}-{codec}", key="door", codec=codec, time_unit=unit, **more):
        event_time: datetime
        door: int
        until: datetime | None = None
        stay: Stay | None = None

    return Timed


EVENTS = {unit: declared(unit) for unit in (None, *TIME_UNITS)}


def as_micros(value):
    """A time column's value as microseconds, for Python's datetimes end in the year 9999."""
    return pl.Series([value]).cast(pl.Int64)[0]


def read_json(unit, number: str):
    """Microseconds of a number in JSON, or the reason why it is none."""
    payload = f'{{"event_time":"2026-01-01T12:00:00Z","door":1,"until":{number}}}'.encode()
    found = codec_for(EVENTS[unit]).decode([payload])
    return found.bad[0] if found.bad else found.frame["until"].cast(pl.Int64)[0]


@settings(max_examples=150)
@given(
    unit=st.sampled_from([None, *TIME_UNITS]),
    number=st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**13), max_value=10**13)
    | st.integers(-(2**62), 2**62).map(Decimal),
    is_scientific=st.booleans(),
)
def test_numbers_in_json_are_rounded_down_to_microseconds(unit, number, is_scientific):
    text = f"{number:e}" if is_scientific else f"{number:f}"
    found = read_json(unit, text)
    with localcontext(prec=500):
        exact = Decimal(text).scaleb(POWERS[unit or "us"])
        wanted = int(exact.to_integral_value("ROUND_FLOOR"))
    is_whole = "." not in text and "e" not in text
    is_beyond = not -(2**63) < wanted < 2**63 or (abs(wanted) > 2**63 - 10**7 and not isinstance(found, int))
    if is_beyond or not (is_whole or unit in ("s", "ms")):
        assert found.reason == "wrong_type"
    elif len(number.as_tuple().digits) <= 18 or is_whole:
        assert found == wanted
    else:  # digits beyond the eighteenth may be cut off
        assert abs(found - wanted) <= max(1, abs(wanted) * 10**-17)


@pytest.mark.parametrize("number", ["1e999999999999999999999", "-1e400", "123456789012345678901234567890"])
def test_a_number_beyond_the_range_of_times_is_told_with_its_unit(number):
    bad = read_json("ms", number)
    assert bad.reason == "wrong_type"
    assert (
        bad.detail == "until: the number is beyond the range of times in milliseconds; declare the unit that it is in"
    )


def test_zero_with_any_exponent_is_zero():
    assert read_json("s", "0e99999999999999999999") == read_json("s", "-0.000e-99999999999999999999") == 0
    assert read_json("s", "1e-99999999999999999999") == 0
    assert read_json("s", "-1e-99999999999999999999") == -1


@pytest.mark.parametrize("unit", TIME_UNITS)
def test_every_time_of_an_event_is_read_in_its_unit(unit):
    number = NOON_US * UNITS_PER_S[unit] // 1_000_000
    nested = {"since": number, "visits": [number, "2026-01-01T12:00:00Z"]}
    row = {"event_time": number, "door": 1, "until": number, "stay": nested}
    (found,) = codec_for(EVENTS[unit]).decode([json.dumps(row).encode()]).frame.to_dicts()
    assert found == {"event_time": NOON, "door": 1, "until": NOON, "stay": {"since": NOON, "visits": [NOON, NOON]}}


def in_micros(number, unit):
    """Microseconds of a number of units; digits beyond the microsecond are cut off."""
    return number * 1_000_000 // UNITS_PER_S[unit]


@settings(max_examples=60)
@given(unit=st.sampled_from(TIME_UNITS), numbers=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5))
def test_integer_columns_are_read_in_the_unit_of_the_event(unit, numbers):
    fitting = [number for number in numbers if -(2**63) < in_micros(number, unit) < 2**63]
    until = pl.Series("until", fitting, pl.Int64)
    frame = pl.DataFrame({"event_time": [NOON] * len(fitting), "door": [1] * len(fitting)}).with_columns(until)
    found = conform(frame, spec_of(EVENTS[unit]))
    assert found["until"].cast(pl.Int64).to_list() == [in_micros(number, unit) for number in fitting]
    for number in set(numbers) - set(fitting):
        with pytest.raises(SchemaError, match=r"Timed\.until: found Int64.*overflow: -?\d+ \(row 0"):
            conform(one_row(number), spec_of(EVENTS[unit]))


def one_row(number):
    return pl.DataFrame({"event_time": [NOON], "door": [1], "until": [number]}, schema_overrides={"door": pl.Int64})


def test_columns_of_numbers_are_no_times_without_a_unit():
    with pytest.raises(SchemaError, match=r'until: found Int64.*declare the unit, such as `time_unit="ms"`'):
        conform(one_row(5), spec_of(EVENTS[None]))


def test_floats_are_seconds_or_milliseconds_to_the_nearest_microsecond():
    frame = one_row(5).with_columns(until=pl.lit(1_767_268_800.000_001))
    assert conform(frame, spec_of(EVENTS["s"]))["until"][0] == NOON + timedelta(microseconds=1)
    assert conform(frame, spec_of(EVENTS["ms"]))["until"].cast(pl.Int64)[0] == 1_767_268_800_000
    for odd in (float("nan"), float("inf"), 1e300):
        with pytest.raises(SchemaError, match="overflow"):
            conform(frame.with_columns(until=pl.lit(odd)), spec_of(EVENTS["s"]))
    with pytest.raises(SchemaError, match="found Float64"):
        conform(frame, spec_of(EVENTS["ns"]))


def test_nested_columns_are_read_in_the_unit_too():
    stay = pl.Series([{"since": NOON_US // 1_000, "visits": [1, None]}])
    found = conform(one_row(0).with_columns(stay=stay), spec_of(EVENTS["ms"]))
    wanted = {"since": NOON, "visits": [EPOCH + timedelta(milliseconds=1), None]}
    assert found["stay"].to_list() == [wanted]


def test_arrow_messages_with_integers_are_read_in_the_unit():
    columns = {"event_time": pa.array([NOON_US // 1_000]), "door": pa.array([1])}
    sink, table = io.BytesIO(), pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    assert codec_for(declared("ms", "arrow")).decode([sink.getvalue()]).frame["event_time"].to_list() == [NOON]
    [bad] = codec_for(declared(None, "arrow")).decode([sink.getvalue()]).bad
    assert 'such as `time_unit="ms"`' in bad.detail


def checked(event, micros):
    columns = {
        "event_time": pl.Series([micros]).cast(pl.Datetime("us", "UTC")),
        "door": [1],
        "until": [None],
        "stay": [None],
    }
    return Quality(spec_of(event)).check(pl.DataFrame(columns, schema=spec_of(event).polars), NOON_US)


@pytest.mark.parametrize("unit", [None, *TIME_UNITS])
@pytest.mark.parametrize("sent", TIME_UNITS)
def test_a_time_read_in_another_unit_is_refused_and_the_unit_is_named(unit, sent):
    number = NOON_US * UNITS_PER_S[sent] // 1_000_000
    micros = in_micros(number, unit or "us")
    if not -(2**63) <= micros < 2**63:
        return  # what a codec refuses
    found = checked(EVENTS[unit], micros)
    if sent == (unit or "us"):
        assert not found.bad
        return
    [bad] = found.bad
    assert bad.reason == ("implausible_time" if micros < NOON_US else "future")
    shown = number if unit != "ns" else micros * 1_000
    assert bad.detail.endswith(f'; {shown} looks like {UNIT_NAMES[sent]}; declare time_unit="{sent}"')


@pytest.mark.parametrize(
    ("moment", "reason"),
    [
        (datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC), "future"),
        (datetime(2262, 1, 1, tzinfo=UTC), "future"),
        (datetime(1970, 1, 1, 0, 0, 17, tzinfo=UTC), "implausible_time"),
        (datetime(1, 1, 1, tzinfo=UTC), "implausible_time"),
    ],
)
def test_no_unit_is_named_where_none_explains_the_time(moment, reason):
    [bad] = checked(EVENTS[None], as_micros(moment)).bad
    assert bad.reason == reason
    assert "looks like" not in bad.detail


@pytest.mark.parametrize(
    ("earliest", "floor"),
    [
        (datetime(2000, 1, 1), datetime(2000, 1, 1, tzinfo=UTC)),  # noqa: DTZ001
        (date(2000, 1, 1), datetime(2000, 1, 1, tzinfo=UTC)),
        (datetime(1970, 1, 1, tzinfo=UTC), EPOCH),
        (datetime(2000, 1, 1, 9, 30, tzinfo=UTC), datetime(2000, 1, 1, 9, 30, tzinfo=UTC)),
    ],
)
def test_the_floor_of_an_event_is_declared(earliest, floor):
    event = declared(earliest=earliest)
    assert not checked(event, as_micros(floor)).bad
    [bad] = checked(event, as_micros(floor) - 1).bad
    assert bad.reason == "implausible_time"
    assert f"wanted {floor.isoformat()[:10]}" in bad.detail


@pytest.mark.parametrize("earliest", [datetime(1969, 12, 31, tzinfo=UTC), "2000-01-01", 5, None])
def test_a_floor_that_is_none_is_refused(earliest):
    with pytest.raises(DeclarationError, match=r"event Timed: earliest .*1970-01-01 or later"):
        declared(earliest=earliest)


def test_a_unit_that_is_none_is_refused():
    with pytest.raises(DeclarationError, match="event Timed: time_unit 'minutes'; use one of s, ms, us, ns"):
        declared("minutes")


def test_other_times_of_an_event_have_no_floor_but_lie_in_the_years_of_python():
    event = EVENTS[None]
    base = {"event_time": NOON_US, "door": 1, "stay": None}
    untils = [
        0,
        -62_135_596_800_000_000,
        253_402_300_799_999_999,
        -62_135_596_800_000_001,
        253_402_300_800_000_000,
        2**63 - 1,
    ]
    frame = pl.DataFrame([base | {"until": until} for until in untils])
    times = pl.col("event_time", "until").cast(pl.Datetime("us", "UTC"))
    found = Quality(spec_of(event)).check(conform(frame.with_columns(times), spec_of(event)), NOON_US)
    assert found.kept.tolist() == [0, 1, 2]
    assert [(bad.index, bad.reason) for bad in found.bad] == [(index, "out_of_range") for index in (3, 4, 5)]
    assert found.bad[2].detail == f'until: "{2**63 - 1}", wanted a time of the years 1 to 9999'
    assert np.array_equal(found.bad.indexes, [3, 4, 5])
