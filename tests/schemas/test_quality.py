"""Column rules against pydantic, row by row; and the two rules about time."""

from datetime import UTC, datetime
from typing import Annotated, Literal

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, StringConstraints, ValidationError

from headrace.schemas import Event, Field, Quality, spec_of
from tests.schemas.samples import Flat, frame_of

NOW_US = 1_700_000_000_000_000
LATE = datetime(2021, 1, 1, tzinfo=UTC)


class Spot(BaseModel):
    x: Annotated[int, Field(ge=0, lt=10)]
    name: Annotated[str, Field(max_length=2)] | None


class Ruled(Event, topic="ruled", key="number"):
    event_time: datetime
    number: int = Field(ge=-3, le=3)
    maybe: int | None = Field(gt=0, multiple_of=2)
    weight: float = Field(ge=0, lt=10)
    upper: float = Field(le=1)
    whole: float = Field(allow_inf_nan=False)
    free: float
    word: Literal["a", "b"]
    level: Literal[1, 2] | None
    text: str = Field(min_length=1, max_length=3, pattern="^[ab]")
    short: Annotated[str, StringConstraints(max_length=2)]
    blob: bytes = Field(max_length=2)
    tags: list[Annotated[str, Field(min_length=1)]] = Field(max_length=2)
    scores: list[Annotated[float, Field(ge=0)] | None]
    spot: Spot
    maybe_spot: Spot | None
    spots: list[Spot]
    at: datetime = Field(ge=LATE)


SMALL = st.integers(-5, 12)
FLOATS = st.sampled_from([float("nan"), float("inf"), -float("inf"), -0.1, 0.0, -0.0, 0.5, 1.0, 9.99, 10.0, 11.0])
TEXTS = st.text(alphabet="abé😀", max_size=4)
SPOTS = st.fixed_dictionaries({"x": SMALL | st.none(), "name": st.none() | TEXTS})
ROWS = st.fixed_dictionaries(
    {
        "event_time": st.just(datetime(2020, 1, 1, tzinfo=UTC)),
        "number": st.none() | SMALL,
        "maybe": st.none() | SMALL,
        "weight": FLOATS,
        "upper": st.none() | FLOATS,
        "whole": FLOATS,
        "free": FLOATS,
        "word": st.sampled_from(["a", "b", "c", "", None]),
        "level": st.sampled_from([1, 2, 3, None]),
        "text": TEXTS,
        "short": TEXTS,
        "blob": st.binary(max_size=3),
        "tags": st.lists(TEXTS, max_size=3),
        "scores": st.none() | st.lists(st.none() | FLOATS, max_size=3),
        "spot": SPOTS,
        "maybe_spot": st.none() | SPOTS,
        "spots": st.lists(SPOTS, max_size=2),
        "at": st.sampled_from([datetime(2020, 12, 31, 23, 59, 59, 999_999, UTC), LATE]),
    }
)
GOOD = {
    "event_time": datetime(2020, 1, 1, tzinfo=UTC),
    "number": 0,
    "maybe": 2,
    "weight": 1.0,
    "upper": 0.0,
    "whole": 0.0,
    "free": 0.0,
    "word": "a",
    "level": 1,
    "text": "a",
    "short": "",
    "blob": b"",
    "tags": [],
    "scores": [],
    "spot": {"x": 1, "name": None},
    "maybe_spot": None,
    "spots": [],
    "at": LATE,
}


def first_error(row):
    """The field that pydantic complains about first, or None."""
    try:
        Ruled.model_validate(row)
    except ValidationError as exc:
        return exc.errors()[0]["loc"][0]
    return None


@settings(max_examples=60)
@given(made=st.lists(ROWS | st.just(GOOD), max_size=5), name=st.sampled_from(list(GOOD)))
def test_the_verdict_is_pydantics(made, name):
    made = [GOOD | {name: row[name]} for row in made] + made
    frame = frame_of(Ruled, made)
    checked = Quality(spec_of(Ruled)).check(frame, NOW_US)
    wanted = [first_error(row) for row in made]
    assert checked.kept.tolist() == [index for index, field in enumerate(wanted) if field is None]
    assert checked.frame.equals(frame[checked.kept.tolist()])
    told = {bad.index: bad.detail.partition(":")[0] for bad in checked.bad}
    assert told == {index: field for index, field in enumerate(wanted) if field is not None}


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"number": None}, "missing", "number: null, wanted a value"),
        ({"number": 4}, "out_of_range", "number: 4, wanted <= 3"),
        ({"weight": float("nan")}, "out_of_range", 'weight: "NaN", wanted >= 0'),
        ({"word": "z"}, "not_allowed", 'word: "z", wanted one of a, b'),
        ({"text": "za"}, "out_of_range", "text: \"za\", wanted a text that matches '^[ab]'"),
        ({"spots": [GOOD["spot"], {"x": None, "name": ""}]}, "missing", "wanted a value in each item in x"),
        ({"tags": ["x" * 99, ""]}, "out_of_range", "..., wanted a length >= 1 in each item"),
        (
            {"event_time": datetime(1969, 12, 31, tzinfo=UTC)},
            "implausible_time",
            'event_time: "1969-12-31T00:00:00.000000Z", wanted 1971-01-01 or later',
        ),
        ({"event_time": datetime(9999, 1, 1, tzinfo=UTC)}, "future", "wanted at most 600 s ahead of the clock"),
    ],
)
def test_reasons_and_details(change, reason, detail):
    frame = frame_of(Ruled, [GOOD, GOOD | change, GOOD])
    checked = Quality(spec_of(Ruled)).check(frame, NOW_US)
    assert [(bad.index, bad.reason) for bad in checked.bad] == [(1, reason)]
    assert detail in checked.bad[0].detail
    assert checked.kept.tolist() == [0, 2]


def test_the_future_begins_after_the_allowance_and_the_past_ends_at_the_floor():
    spec = spec_of(Flat)
    row = {"event_id": 1, "number": 1, "weight": 0.0, "flag": True, "text": "", "maybe_text": None}
    floor_us = 365 * 86_400_000_000
    times = [NOW_US, NOW_US + 5, NOW_US + 6, 2**62, floor_us, floor_us - 1, 0, -1]
    frame = pl.DataFrame([row | {"event_time": time} for time in times])
    frame = frame.with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC"))).select(list(spec.polars))
    checked = Quality(spec, future_us=5).check(frame, NOW_US)
    assert checked.kept.tolist() == [0, 1, 4]
    reasons = [(2, "future"), (3, "future"), *((index, "implausible_time") for index in (5, 6, 7))]
    assert [(bad.index, bad.reason) for bad in checked.bad] == reasons


def test_a_good_batch_passes_as_it_is():
    frame = frame_of(Ruled, [GOOD, GOOD])
    checked = Quality(spec_of(Ruled)).check(frame, NOW_US)
    assert checked.frame is frame
    empty = Quality(spec_of(Ruled)).check(frame[:0], NOW_US)
    assert empty.frame.height == len(empty.kept) == len(empty.bad) == 0
