"""Every aggregation against its definition, over a hundred thousand random reads: not one differs.

The definition is relational: each read is joined with all events of its entity, the window is a filter, and Polars
aggregates what is left. Reads come from a replay, so events and reads alternate.
"""

from datetime import datetime

import numpy as np
import polars as pl
import pytest

from headrace import (
    Count,
    CountBy,
    DecayedCount,
    DecayedSum,
    Distinct,
    Event,
    FeatureView,
    First,
    Last,
    LastN,
    Max,
    Mean,
    Min,
    Quantile,
    Ratio,
    Sequence,
    Std,
    Sum,
    TimeSince,
    TopK,
    Var,
    VectorMean,
    col,
)
from headrace.features import Slab, plan_of, read_packed
from tests.spines import replay_micros

READS = 100_000
EVENTS = 60_000
ENTITIES = 2_000
START_US = 1_700_000_000_000_000
SPAN_US = 3 * 86_400_000_000
WINDOWS = ("1h", "24h")
LENGTH_US = {"1h": 3_600_000_000, "24h": 86_400_000_000}
HOP_US = {"1h": 120_000_000, "24h": 3_600_000_000}
HALF_LIFE_US = 21_600_000_000


class Visit(Event, topic="visits", key="guest", time="at", id="visit_id"):
    """A visit of a guest."""

    visit_id: int
    at: datetime
    guest: int
    room: int
    mood: str | None
    spent: float | None
    place: list[float]


class Guest(FeatureView, source=Visit, entity="guest"):
    """Everything."""

    visits = Count(windows=WINDOWS)
    late = Count(where=col("room") > 5, windows=WINDOWS)
    spent = Sum("spent", windows=WINDOWS)
    mean = Mean("spent", windows=WINDOWS)
    low = Min("spent", windows=WINDOWS)
    high = Max("spent", windows=WINDOWS)
    var = Var("spent", windows=WINDOWS)
    std = Std("spent", windows=WINDOWS, ddof=0)
    first = First("room", windows=WINDOWS)
    last = Last("mood", windows=WINDOWS)
    rooms = Distinct("room", windows=WINDOWS)
    top = TopK("room", k=2, windows=WINDOWS)
    moods = CountBy("mood", windows=WINDOWS)
    typical = Quantile("spent", q=(0.5, 0.9), windows=WINDOWS, error=0.02)
    place = VectorMean("place", dim=2, windows=WINDOWS)
    recent = LastN("room", n=5)
    known = LastN("mood", n=3, distinct=True)
    trail = Sequence("room", "spent", n=4)
    fading = DecayedCount(half_life="6h")
    faded = DecayedSum("spent", half_life="6h")
    since = TimeSince(windows=WINDOWS)
    share = Ratio("late", "visits", prior=(1, 3))
    per_visit = col("spent_24h") / col("visits_24h")


class Path(FeatureView, source=Visit, entity="guest"):
    """Lists as long as the history of most guests."""

    rooms = LastN("room", n=23)
    walk = Sequence("room", "spent", n=12)
    different = LastN("room", n=10, distinct=True)


def history():
    rng = np.random.default_rng(11)
    at_us = START_US + rng.choice(SPAN_US, EVENTS, replace=False)
    spent = np.where(rng.random(EVENTS) < 0.1, np.nan, rng.integers(-40, 400, EVENTS) / 4)
    moods = np.array([None, "glad", "sad", "tired"], dtype=object)
    return pl.DataFrame(
        {
            "visit_id": np.arange(EVENTS),
            "at": pl.Series(at_us).cast(pl.Datetime("us", "UTC")),
            "guest": rng.integers(0, ENTITIES, EVENTS),
            "room": rng.geometric(0.25, EVENTS),
            "mood": pl.Series(moods[rng.integers(0, 4, EVENTS)].tolist(), dtype=pl.String),
            "spent": pl.Series(spent).fill_nan(None),
            "place": pl.Series(rng.integers(0, 9, (EVENTS, 2)).astype(float).tolist(), dtype=pl.List(pl.Float64)),
        }
    )


def spine():
    rng = np.random.default_rng(12)
    return pl.DataFrame(
        {
            "read": np.arange(READS),
            "guest": rng.integers(0, ENTITIES + 20, READS),
            "event_time": START_US + rng.integers(0, SPAN_US + 86_400_000_000, READS),
        }
    )


@pytest.fixture(scope="module")
def found():
    return replay_micros(Guest, history(), spine())


@pytest.fixture(scope="module")
def pairs():
    """Each read beside each earlier event of its guest, oldest first."""
    events = history().with_columns(pl.col("at").dt.epoch("us").alias("time"))
    joined = spine().join(events, on="guest").filter(pl.col("time") < pl.col("event_time"))
    return joined.sort("read", "time")


def reads_of(pairs, *features):
    """Features of every read, also of those without an event."""
    return (
        spine().select("read").join(pairs.group_by("read", maintain_order=True).agg(*features), on="read", how="left")
    )


def assert_same(found, truth, name, view="guest"):
    ours, theirs = found[f"{view}.{name}"], truth[name]
    if ours.dtype.is_float():
        different = ~(ours.is_null() & theirs.is_null()) & ~(
            (ours - theirs).abs() <= 1e-9 * (1 + theirs.abs())
        ).fill_null(value=False)
    else:
        different = ours.cast(theirs.dtype).ne_missing(theirs)
    assert not different.any(), (name, found.filter(different).head(3), truth.filter(different).head(3))


@pytest.mark.parametrize("span", WINDOWS)
def test_windows_read_as_defined(found, pairs, span):
    hop_us = HOP_US[span]
    held = pairs.filter(pl.col("time") >= pl.col("event_time") // hop_us * hop_us - LENGTH_US[span])
    number = pl.col("spent").drop_nulls()
    truth = reads_of(
        held,
        pl.len().alias(f"visits_{span}"),
        (pl.col("room") > 5).sum().alias(f"late_{span}"),
        number.sum().alias(f"spent_{span}"),
        number.mean().alias(f"mean_{span}"),
        number.min().alias(f"low_{span}"),
        number.max().alias(f"high_{span}"),
        number.var().alias(f"var_{span}"),
        number.std(ddof=0).alias(f"std_{span}"),
        pl.col("room").first().alias(f"first_{span}"),
        pl.col("mood").drop_nulls().last().alias(f"last_{span}"),
        pl.col("room").n_unique().alias(f"rooms_{span}"),
        ((pl.col("event_time").first() - pl.col("time").max()) / 1e6).alias(f"since_{span}"),
        number.sort()
        .gather((0.5 * (number.len() - 1)).floor().cast(pl.Int64).clip(0), null_on_oob=True)
        .first()
        .alias("p50"),
        number.sort()
        .gather((0.9 * (number.len() - 1)).floor().cast(pl.Int64).clip(0), null_on_oob=True)
        .first()
        .alias("p90"),
        *[pl.col("place").list.get(i).mean().alias(f"place{i}") for i in (0, 1)],
    )
    zeros = [f"{name}_{span}" for name in ("visits", "late", "spent", "rooms")]
    truth = truth.with_columns(pl.col(zeros).fill_null(0)).with_columns(
        ((pl.col(f"late_{span}") + 1) / (pl.col(f"visits_{span}") + 4)).alias(f"share_{span}")
    )
    for name in truth.columns:
        if name.endswith(f"_{span}"):
            assert_same(found, truth, name)
    for q in ("p50", "p90"):
        ours, theirs = found[f"guest.typical_{q}_{span}"], truth[q]
        assert ours.is_null().equals(theirs.is_null())
        assert ((ours - theirs).abs() <= 0.02001 * theirs.abs()).all()
    place = found[f"guest.place_{span}"]
    for i in (0, 1):
        ours = place.list.get(i, null_on_oob=True)
        assert ours.is_null().equals(truth[f"place{i}"].is_null())
        assert ((ours - truth[f"place{i}"]).abs() <= 1e-9).all()
    if span == "24h":
        truth = truth.with_columns(per_visit=pl.col("spent_24h") / pl.col("visits_24h")).with_columns(
            pl.col("per_visit").fill_nan(None)
        )
        assert_same(found, truth, "per_visit")


@pytest.mark.parametrize("span", WINDOWS)
def test_frequencies_read_as_defined(found, pairs, span):
    hop_us = HOP_US[span]
    held = pairs.filter(pl.col("time") >= pl.col("event_time") // hop_us * hop_us - LENGTH_US[span])
    rooms = held.group_by("read", "room").len().sort("read", pl.col("len"), "room", descending=[False, True, False])
    ranked = rooms.group_by("read", maintain_order=True).agg(pl.col("room").head(2), pl.col("len").head(2))
    ranked = spine().select("read").join(ranked, on="read", how="left", maintain_order="left")
    assert found[f"guest.top_{span}"].to_list() == [x or [] for x in ranked["room"].to_list()]
    assert found[f"guest.top_count_{span}"].to_list() == [x or [] for x in ranked["len"].to_list()]
    moods = held.drop_nulls("mood").group_by("read", "mood").len().select("read", "mood", pl.col("len").cast(pl.Int64))
    ours = (
        pl.DataFrame(
            {"read": found["read"], "mood": found[f"guest.moods_{span}"], "len": found[f"guest.moods_count_{span}"]}
        )
        .explode("mood", "len")
        .drop_nulls("mood")
    )
    assert ours.sort("read", "mood").equals(moods.sort("read", "mood"))


def test_lists_and_what_fades_read_as_defined(found, pairs):
    age = (pl.col("event_time") - pl.col("time")) / HALF_LIFE_US
    newest = pl.col("mood").drop_nulls().reverse().unique(maintain_order=True).head(3)
    truth = reads_of(
        pairs,
        pl.col("room").reverse().head(5).alias("recent"),
        newest.alias("known"),
        pl.col("room").tail(4).alias("trail_room"),
        pl.col("spent").tail(4).alias("trail_spent"),
        (2.0 ** (-age)).sum().alias("fading"),
        (pl.col("spent") * 2.0 ** (-age)).sum().alias("faded"),
    ).with_columns(pl.col("fading", "faded").fill_null(0.0))
    for name in ("recent", "known", "trail_room", "trail_spent"):
        assert found[f"guest.{name}"].to_list() == [x or [] for x in truth[name].to_list()], name
    assert_same(found, truth, "fading")
    assert_same(found, truth, "faded")


def test_long_lists_read_as_defined_also_where_events_come_twice(pairs):
    events = history()
    found = replay_micros(Path, pl.concat([events, events.sample(EVENTS // 5, seed=3)]), spine())
    truth = reads_of(
        pairs,
        pl.col("room").reverse().head(23).alias("rooms"),
        pl.col("room").tail(12).alias("walk_room"),
        pl.col("spent").tail(12).alias("walk_spent"),
        pl.col("room").reverse().unique(maintain_order=True).head(10).alias("different"),
    )
    for name in ("rooms", "walk_room", "walk_spent", "different"):
        assert found[f"path.{name}"].to_list() == [x or [] for x in truth[name].to_list()], name


def test_packed_records_read_like_the_slab():
    """Every aggregation, straight from the bytes and from a slab that loaded them."""
    plan = plan_of(Guest)
    slab, again = Slab(plan), Slab(plan)
    slab.update(plan.rows(Visit, history()))
    rows = slab.rows()
    ids, texts, blobs = slab.ids(rows), slab.texts(rows), slab.pack(rows)
    again.load(ids, texts, blobs)
    for after_us in (1, 1_800_000_000, 43_200_000_000, 10 * SPAN_US):
        now_us = START_US + SPAN_US + after_us
        expected = slab.read(rows, now_us).to_polars()
        assert read_packed(plan, ids, texts, blobs, now_us).to_polars().equals(expected)
        assert again.read(again.locate(ids), now_us).to_polars().equals(expected)
    assert again.pack(again.locate(ids)) == blobs
