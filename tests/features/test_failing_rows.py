"""Rows that an expression has no value for are left out, exactly those, however many; the others keep their values."""

import random
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars import col

from headrace.features.expressions.failing_rows import VALUE_ERRORS, select_rows

START = datetime(2026, 3, 28, 22, tzinfo=UTC)
TEXTS = ["1", "2", "x", "", "2026-01-05", "07", "aGk=", "ab", "+5", "300", "a,b", None]

STRICT = [
    col("s").cast(pl.Int64),
    col("s").cast(pl.Int8),
    col("s").cast(pl.Enum(["1", "x"])).cast(pl.String),
    col("i").cast(pl.UInt8),
    col("f").cast(pl.Int32),
    col("s").str.to_datetime("%Y-%m-%d").dt.year(),
    col("s").str.to_date("%Y-%m-%d").dt.year(),
    col("s").str.to_integer(),
    col("s").str.to_integer(base=16),
    col("s").str.decode("hex").bin.size(),
    col("s").str.decode("base64").bin.size(),
    col("s").replace_strict({"1": 1, "x": None, "2": 3}),
    col("s").replace_strict({"1": 1, "x": 2}) + col("s").cast(pl.Int64),
    col("i").replace_strict({1: "a", 2: "b"}),
    col("l").list.get(1),
    col("l").list.get(-2),
    col("l").list.get(col("i")),
    col("l").list.first(),
    col("l").cast(pl.List(pl.Int64)).list.sum(),
    col("t").dt.replace_time_zone("Europe/Berlin").dt.epoch("us"),
    col("l").list.get(0).cast(pl.Int64) * 2,
    pl.when(col("s").str.contains(r"^\d+$")).then(col("s").cast(pl.Int64)).otherwise(-1),
    pl.when(col("i") > 1).then(col("s").cast(pl.Int64)).when(col("i") > 0).then(col("l").list.get(0).cast(pl.Int64)),
    pl.when(col("s").cast(pl.Int64) > 1).then(1).otherwise(col("l").list.get(3).str.len_chars()),
    (col("i") > 0) & (col("s").cast(pl.Int64) > 1),
    pl.coalesce(col("i"), col("s").cast(pl.Int64)),
    pl.datetime(2026, col("i"), 1),
    col("t").dt.truncate(col("s")),
    col("t").dt.replace(day=col("i")),
    pl.lit("ab").str.contains(col("s") + "("),
    col("l").list.gather([0, 1]).list.len(),
    (col("l").cast(pl.List(pl.Int64), strict=False) + col("m").cast(pl.List(pl.Int64), strict=False)).list.len(),
    col("s").str.to_time("%H"),
    col("s").cast(pl.Int64, strict=False),
    col("n").struct.field("a").cast(pl.Int64),
    pl.lit(3),
]


def frame_of(rng, size):
    def some(values):
        return [rng.choice(values) for _ in range(size)]

    lists = [None, [], ["1"], ["1", "x"], [None, "3"], ["2", "2", "2"]]
    return pl.DataFrame(
        {
            "s": some(TEXTS),
            "i": some([None, 0, 1, 2, 13, -1, 300]),
            "f": some([None, 0.5, float("nan"), float("inf"), 1e12]),
            "l": some(lists),
            "m": some(lists),
            "t": [(START + timedelta(minutes=30 * rng.randrange(20))).replace(tzinfo=None) for _ in range(size)],
            "n": some([None, {"a": "1"}, {"a": "y"}]),
        },
        schema={
            "s": pl.String,
            "i": pl.Int64,
            "f": pl.Float64,
            "l": pl.List(pl.String),
            "m": pl.List(pl.String),
            "t": pl.Datetime("us"),
            "n": pl.Struct({"a": pl.String}),
        },
    )


def alone(frame, expressions):
    """By the definition: position of the first expression that raises on each row, or the row's values."""
    found = []
    for row in range(frame.height):
        for position, expression in enumerate(expressions):
            try:
                frame[row : row + 1].select(expression)
            except VALUE_ERRORS:
                found.append(position)
                break
        else:
            found.append(repr(frame[row : row + 1].select(expressions).row(0)))
    return found


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32))
def test_a_row_fails_if_and_only_if_the_expression_raises_on_it_alone(seed):
    """Whatever else is in the frame; the others have the values that they have alone."""
    rng = random.Random(seed)
    frame = frame_of(rng, rng.randrange(1, 40))
    expressions = [expression.alias(f"v{i}") for i, expression in enumerate(rng.sample(STRICT, rng.randrange(1, 4)))]
    expected = alone(frame, expressions)
    values, failures = select_rows(frame, expressions)
    failed = [row for row, found in enumerate(expected) if isinstance(found, int)]
    assert (failures.index.tolist() if failures else []) == failed
    found = [repr(row) for row in values.rows()]
    kept = [found for found in expected if isinstance(found, str)]
    assert (found if len(found) == len(kept) or not kept else found * len(kept)) == kept


def test_the_cause_and_an_example_are_told():
    frame = pl.DataFrame({"s": ["1", "x", "y"], "l": [["a"], ["a"], []]})
    _, failures = select_rows(frame, [col("l").list.get(0).alias("a"), col("s").cast(pl.Int64).alias("b")])
    assert failures.index.tolist() == [1, 2]
    assert failures.causes.tolist() == [1, 0]
    assert "conversion from `str` to `i64` failed" in failures.messages[1]
    assert "out of bounds" in failures.messages[0]


@pytest.mark.parametrize(
    "expression",
    [
        col("s").cast(pl.Int64),
        col("s").replace_strict({str(i): i for i in range(100_000)}),
        pl.datetime(2026, col("i"), 1),
    ],
)
def test_half_of_the_rows_may_fail(expression):
    """A hundred thousand rows in some passes: the time of each is not tried row by row."""
    rng = np.random.default_rng(1)
    good = rng.random(100_000) < 0.5
    numbers = np.arange(100_000)
    frame = pl.DataFrame(
        {"s": np.where(good, numbers.astype(str), np.char.add("x", numbers.astype(str))), "i": np.where(good, 3, 13)}
    )
    values, failures = select_rows(frame, [expression.alias("v")])
    assert failures.index.tolist() == np.flatnonzero(~good).tolist()
    assert values.height == int(good.sum())
