"""Frames from files: what is cast, what is filled in, and what is refused by name."""

from datetime import UTC, date, datetime

import polars as pl
import pytest
from pydantic import BaseModel

from headrace.errors import SchemaError
from headrace.schemas import Event, conform, spec_of


class Spot(BaseModel):
    x: int
    name: str | None


class Filed(Event, topic="filed", key="number"):
    event_time: datetime
    number: int
    weight: float = 1.5
    word: str | None
    spot: Spot | None
    tags: list[int] = []  # noqa: RUF012  (pydantic copies it)
    since: datetime = datetime(2020, 1, 1, tzinfo=UTC)


SPEC = spec_of(Filed)
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)


def fitted(**columns):
    """One row of the columns, made to fit."""
    return conform(pl.DataFrame({"event_time": [NOON], "number": [1]} | columns), SPEC)


def test_a_frame_that_fits_is_not_touched():
    frame = pl.DataFrame(schema=SPEC.polars)
    assert conform(frame, SPEC) is frame


def test_columns_are_ordered_filled_in_and_left_out():
    frame = fitted(other=["x"])
    assert frame.schema == SPEC.polars
    assert frame.row(0) == (NOON, 1, 1.5, None, None, [], datetime(2020, 1, 1, tzinfo=UTC))
    assert conform(pl.DataFrame({"event_time": [], "number": []}), SPEC).schema == SPEC.polars


@pytest.mark.parametrize(
    "times",
    [
        pl.Series([datetime(2024, 1, 1, 12)]),  # noqa: DTZ001
        pl.Series([NOON]).cast(pl.Datetime("ns", "UTC")),
        pl.Series([NOON]).cast(pl.Datetime("ms")),
        pl.Series([NOON]).dt.convert_time_zone("Asia/Tokyo"),
        pl.Series([NOON]).dt.convert_time_zone("America/New_York").dt.cast_time_unit("ms"),
    ],
)
def test_times_of_any_unit_and_zone_are_the_same_instant(times):
    assert fitted(event_time=times)["event_time"].to_list() == [NOON]


def test_dates_are_midnights():
    assert fitted(event_time=[date(2024, 1, 1)])["event_time"].to_list() == [datetime(2024, 1, 1, tzinfo=UTC)]


def test_lossless_casts_are_made():
    frame = fitted(
        number=pl.Series([7], dtype=pl.UInt8),
        weight=pl.Series([3], dtype=pl.Int32),
        word=pl.Series(["a"], dtype=pl.Categorical),
        spot=pl.Series([{"name": None, "x": 4.0, "more": True}]),
        tags=pl.Series([[1, 2]], dtype=pl.Array(pl.Int8, 2)),
    )
    assert frame.row(0)[1:6] == (7, 3.0, "a", {"x": 4, "name": None}, [1, 2])
    decimals = pl.Series(["99.99", "12.30"]).cast(pl.Decimal(4, 2))
    assert fitted(weight=decimals[:1], word=decimals[1:]).row(0)[2:4] == (99.99, "12.30")
    assert fitted(number=[5.0])["number"].to_list() == [5]
    assert fitted(spot=[None])["spot"].to_list() == [None]
    assert fitted(spot=pl.Series([None, {"x": 1}]).slice(0, 1))["spot"].to_list() == [None]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"number": ["1"]}, r"event Filed\.number: found String, wanted Int64; cast it before"),
        ({"number": [1.5]}, r"event Filed\.number: found Float64, wanted Int64; the cast would lose digits"),
        (
            {"number": pl.Series([2**64 - 1], dtype=pl.UInt64)},
            r"event Filed\.number: found UInt64.*overflow: 18446744073709551615 \(row 0",
        ),
        ({"number": [True]}, r"event Filed\.number: found Boolean"),
        ({"weight": [2**53 + 1]}, r"event Filed\.weight: .*lose digits"),
        ({"word": [b"x"]}, r"event Filed\.word: found Binary"),
        ({"tags": [["x"]]}, r"event Filed\.tags\[\]: found String, wanted Int64"),
        ({"tags": [1]}, r"event Filed\.tags: found Int64"),
        ({"spot": [{"x": 1.5}]}, r"event Filed\.spot\.x: .*lose digits"),
        ({"spot": [{"y": 1}]}, r"event Filed\.spot\.x: no such column, wanted Int64; there are y"),
        ({"event_time": [1]}, r"event Filed\.event_time: found Int64.*declare the unit, such as `time_unit"),
        (
            {"event_time": pl.Series([2**62]).cast(pl.Datetime("ms"))},
            r"event Filed\.event_time: .*overflow: \"46116860",
        ),
    ],
)
def test_what_cannot_be_read_without_loss_is_named(columns, message):
    with pytest.raises(SchemaError, match=message):
        fitted(**columns)


def test_an_absent_column_is_named_with_its_nearest():
    with pytest.raises(SchemaError, match=r"Filed\.number: no such column.*did you mean 'numbr'"):
        conform(pl.DataFrame({"event_time": [NOON], "numbr": [1]}), SPEC)


def test_another_declared_column_is_not_taken_for_an_absent_one():
    """`event_time` is near to `event_id`, and renaming it would be wrong."""

    class Sent(Event, topic="sent", key="reader", time="event_time", id="event_id"):
        event_id: str
        event_time: datetime
        reader: int

    with pytest.raises(SchemaError, match=r"Sent\.event_id: no such column.*; there are event_time, reader$"):
        conform(pl.DataFrame({"event_time": [NOON], "reader": [1]}), spec_of(Sent))
