"""Whole numbers are kept to the last digit by all that gives back values that came, over all of 64 bits."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import (
    Count,
    CountBy,
    Distinct,
    Event,
    FeatureView,
    First,
    Last,
    LastN,
    Max,
    Min,
    Sequence,
    Sum,
    TopK,
    col,
    replay,
)
from headrace.errors import SpineError
from headrace.features import Slab, plan_of, read_packed
from headrace.learners import Dense, InputSpec
from headrace.learners.columns import columns_of

START = datetime(2026, 1, 1, tzinfo=UTC)
EDGES = [-(2**63), 2**63 - 1, -(2**53) - 1, 2**53 + 1, 2**53 + 3, -1, 0, 1, 2**31, 2**32, -(2**32) - 1, 2**62 + 12_345]
NUMBERS = st.lists(st.one_of(st.none(), st.sampled_from(EDGES), st.integers(-(2**63), 2**63 - 1)), max_size=30)


class Draw(Event, topic="draws", key="wheel", time="at", id="draw_id"):
    """A number was drawn."""

    draw_id: int
    at: datetime
    wheel: int
    number: int | None
    is_red: bool | None


class Wheel(FeatureView, source=Draw, entity="wheel"):
    """What came, as it came."""

    draws = Count(windows="lifetime")
    most = Max("number", windows=("1h", "24h", "lifetime"))
    least = Min("number", windows=("1h", "24h", "lifetime"))
    red = Max("is_red", windows="lifetime")
    black = Min("is_red", windows="lifetime")
    first = First("number")
    last = Last("number")
    recent = LastN("number", n=50)
    trail = Sequence("number", n=50)
    top = TopK("number", k=50, windows="lifetime", keep=64)
    by = CountBy("number", windows="lifetime", keep=64)
    different = Distinct("number", windows="lifetime")
    above = col("most_lifetime") - col("least_lifetime").clip(0) > 2**53


def draws(numbers, reds=None):
    """One event an hour."""
    n = len(numbers)
    return pl.DataFrame(
        {
            "draw_id": range(n),
            "at": [START + timedelta(hours=i) for i in range(n)],
            "wheel": [1] * n,
            "number": numbers,
            "is_red": [None] * n if reds is None else reds,
        },
        schema={
            "draw_id": pl.Int64,
            "at": pl.Datetime("us", "UTC"),
            "wheel": pl.Int64,
            "number": pl.Int64,
            "is_red": pl.Boolean,
        },
    )


def values_of(numbers, now):
    """By definition."""
    held = [(START + timedelta(hours=i), number) for i, number in enumerate(numbers) if number is not None]
    present = [number for _, number in held]
    found = {
        "first": present[0] if present else None,
        "last": present[-1] if present else None,
        "recent": present[::-1],
        "trail": present,
        "different_lifetime": len(set(present)),
    }
    for label, hours, hop in (("1h", 1, 2), ("24h", 24, 60), ("lifetime", 10**6, 1)):
        start = now - timedelta(minutes=(now.minute + now.hour * 60) % hop) - timedelta(hours=hours)
        inside = [number for at, number in held if at >= start]
        found |= {f"most_{label}": max(inside, default=None), f"least_{label}": min(inside, default=None)}
    return found


@settings(max_examples=60)
@given(numbers=NUMBERS)
def test_values_that_came_are_given_back_as_they_came(numbers):
    """On replay, from the slab, from packed records, and from records that were loaded again."""
    plan, frame, now = plan_of(Wheel), draws(numbers), START + timedelta(hours=max(len(numbers) - 1, 0), minutes=30)
    spine = pl.DataFrame({"wheel": [1], "event_time": [now]})
    expected = values_of(numbers, now)
    replayed = replay(Wheel, frame, spine).row(0, named=True)
    assert {name: replayed[f"wheel.{name}"] for name in expected} == expected
    counts = {number: numbers.count(number) for number in numbers if number is not None}
    for name in ("top", "by"):
        keys, found = replayed[f"wheel.{name}_lifetime"], replayed[f"wheel.{name}_count_lifetime"]
        assert dict(zip(keys, found, strict=True)) == counts
    slab, again = Slab(plan), Slab(plan)
    slab.update(plan.rows(Draw, frame))
    ids, texts = np.array([1]), [b"1"]
    blobs = slab.pack(slab.locate(ids)) if numbers else [None]
    again.load(ids, texts, blobs)
    now_us = int(now.timestamp()) * 1_000_000
    for answer in (slab.read(slab.locate(ids), now_us), read_packed(plan, ids, texts, blobs, now_us)):
        row = answer.to_polars().row(0, named=True)
        assert {name: row[name] for name in expected} == expected
    assert not numbers or again.pack(again.locate(ids)) == blobs


def test_they_are_ints_and_nothing_is_none():
    dtypes = {feature.name: feature.dtype for feature in plan_of(Wheel).features}
    assert {dtypes[name] for name in ("most_1h", "least_lifetime", "red_lifetime", "first")} == {"int"}
    spine = pl.DataFrame({"wheel": [1, 2], "event_time": [START + timedelta(days=9)] * 2})
    found = replay(Wheel, draws([5, None, -7], [True, None, False]), spine)
    assert found["wheel.most_1h"].to_list() == [None, None]
    assert found["wheel.most_lifetime"].to_list() == [5, None]
    assert found["wheel.least_lifetime"].to_list() == [-7, None]
    assert found["wheel.red_lifetime"].to_list() == [1, None]
    assert found["wheel.black_lifetime"].to_list() == [0, None]
    assert found["wheel.above"].to_list() == [0, None]


def test_numbers_with_a_fraction_stay_floats():
    view = type(
        "Halves",
        (FeatureView,),
        {"most": Max(col("number") / 2, windows="1h"), "total": Sum("number", windows="1h")},
        source=Draw,
        entity="wheel",
    )
    assert [feature.dtype for feature in plan_of(view).features] == ["float", "float"]


def test_a_model_reads_a_missing_extreme_as_missing():
    """As it reads NaN of a float."""
    plan = plan_of(Wheel)
    slab = Slab(plan)
    slab.update(plan.rows(Draw, draws([4])))
    answer = slab.read(np.array([slab.locate(np.array([1]))[0], -1]), int(START.timestamp() + 60) * 1_000_000)
    spec = InputSpec(Dense("most", "wheel.most_lifetime"))
    found = spec.assemble(columns_of({"wheel": answer}), 2).dense[:, 0]
    assert found[0] == 4.0
    assert np.isnan(found[1])


@pytest.mark.parametrize("ids", [[2**53 + 1, None], [-(2**53), 1]])
def test_floats_that_stand_for_several_whole_numbers_are_no_keys(ids):
    """pandas makes floats of integers with nulls: 2**53 + 1 would become the entity beside it."""
    spine = pl.DataFrame({"wheel": pl.Series(ids, dtype=pl.Float64), "event_time": [START] * 2})
    with pytest.raises(SpineError, match="is a float that stands for several whole numbers"):
        replay(Wheel, draws([1]), spine)
    kept = pl.DataFrame({"wheel": [float(2**53 - 1), None], "event_time": [START] * 2})
    assert replay(Wheel, draws([1]), kept).height == 2
