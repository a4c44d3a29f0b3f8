"""Distinct, TopK, CountBy, Quantile, VectorMean: as defined while within their bounds, within their errors beyond."""

import math
import random
from datetime import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace import CountBy, Distinct, Event, FeatureView, Quantile, TopK, VectorMean, col
from headrace.errors import DeclarationError, LayoutError
from headrace.features import Slab, entity_ids, plan_of, read_packed
from tests import oracle

BASE_US = 1_700_000_000_000_000
WINDOWS = ("1m", "1h", "lifetime")
SPANS_S = (3, 40, 700, 4_000, 100_000)
SEEDS = st.integers(0, 2**32)
DIM = 3


class Listen(Event, topic="listens", key="who", time="at", id="listen_id"):
    """Somebody listened to something."""

    listen_id: str
    at: datetime
    who: int
    song: int
    artist: str | None
    rating: float | None
    tempo: list[float] | None


class Taste(FeatureView, source=Listen, entity="who"):
    """Every sketch, with room enough to be exact."""

    songs = Distinct("song", windows=WINDOWS)
    artists = Distinct("artist", windows=WINDOWS, where=col("song") > 3)
    top = TopK("song", k=3, windows=WINDOWS)
    favourites = TopK("artist", k=2, windows="1h")
    by_artist = CountBy("artist", keep=24, windows=WINDOWS)
    ratings = CountBy("rating", keep=128, windows="1h")
    rated = Quantile("rating", q=(0, 0.25, 0.5, 1), windows=WINDOWS, error=0.01)
    tempo = VectorMean("tempo", dim=DIM, windows=WINDOWS)


class Crowded(FeatureView, source=Listen, entity="who"):
    """Room for four."""

    songs = Distinct("song", windows=("1m", "1h"), keep=4)
    top = TopK("song", k=2, windows=("1m", "1h"), keep=4)
    rated = Quantile("rating", windows=("1m", "1h"), keep=4)


def listen(number, time_us, rng):
    return {
        "class": "Listen",
        "id": f"l{number}",
        "time": time_us,
        "who": rng.randrange(2),
        "song": int(rng.expovariate(0.2)) - 2,
        "artist": rng.choice([None, "", "abba", "bach", "čechomor", "d" * 40]),
        "rating": rng.choice([None, math.nan, math.inf, 0.0, *(rng.uniform(-9, 9) for _ in range(6))]),
        "tempo": rng.choice(
            [
                None,
                [1.0],
                [1.0, 2.0, None],
                [math.nan, 1.0, 1.0],
                *([[float(rng.randrange(9)) for _ in range(DIM)]] * 4),
            ]
        ),
    }


def history(rng, size):
    spans = [rng.choice(SPANS_S) for _ in range(3)]
    return [listen(i, BASE_US + int(rng.random() * rng.choice(spans)) * 500_000, rng) for i in range(size)]


def frame_of(events):
    schema = {"time": pl.Int64, "who": pl.Int64, "song": pl.Int64, "artist": pl.String, "rating": pl.Float64}
    return pl.DataFrame(events, schema={"id": pl.String, **schema, "tempo": pl.List(pl.Float64)}, strict=False).select(
        pl.col("id").alias("listen_id"),
        pl.col("time").cast(pl.Datetime("us", "UTC")).alias("at"),
        pl.exclude("id", "time"),
    )


def add(slab, events):
    return slab.update(slab.plan.rows(Listen, frame_of(events)))


def batches(rng, events):
    events = rng.sample(events, len(events))
    while events:
        cut = rng.randrange(1, len(events) + 1)
        yield events[:cut]
        events = events[cut:]


def reloaded(slab):
    """The same records, from their bytes."""
    rows = slab.rows()
    fresh = Slab(slab.plan, 1)
    fresh.load(slab.ids(rows), slab.texts(rows), slab.pack(rows))
    return fresh


def filled(view, rng, events, *, reload=0.3):
    slab = Slab(plan_of(view), 1)
    for batch in batches(rng, events):
        add(slab, batch)
        if rng.random() < reload:
            slab = reloaded(slab)
    return slab


def answers(slab, now_us, packed=False):
    """One dict an entity."""
    ids, texts = entity_ids(slab.plan, pl.DataFrame({"who": [0, 1]}))
    at = slab.locate(ids)
    if not packed:
        return slab.read(at, now_us).to_polars().to_dicts()
    blobs = [slab.pack(np.array([row]))[0] if row >= 0 else None for row in at]
    return read_packed(slab.plan, ids, texts, blobs, now_us).to_polars().to_dicts()


def check(row, events, now_us):
    """Every feature of one entity is as the oracle defines it."""
    for span in WINDOWS:
        held = oracle.before(events, now_us) if span == "lifetime" else oracle.window(events, span, now_us)
        assert row[f"songs_{span}"] == oracle.distinct(held, "song")
        assert row[f"artists_{span}"] == oracle.distinct([e for e in held if e["song"] > 3], "artist")
        songs = oracle.frequencies(held, "song")
        ranked = sorted(songs, key=lambda song: (-songs[song], song))[:3]
        assert row[f"top_{span}"] == ranked
        assert row[f"top_count_{span}"] == [songs[song] for song in ranked]
        named = dict(zip(row[f"by_artist_{span}"], row[f"by_artist_count_{span}"], strict=True))
        assert named == oracle.frequencies(held, "artist")
        assert row[f"by_artist_count_{span}"] == sorted(named.values(), reverse=True)
        for q, name in ((0, "p0"), (0.25, "p25"), (0.5, "p50"), (1, "p100")):
            expected, found = oracle.quantile(held, "rating", q), row[f"rated_{name}_{span}"]
            assert (found is None) == (expected is None)
            assert found is None or abs(found - expected) <= 0.01001 * abs(expected)
        assert row[f"tempo_{span}"] == pytest.approx(oracle.vector_mean(held, "tempo", DIM))
    hour = oracle.window(events, "1h", now_us)
    rated = [e for e in hour if e["rating"] is not None and not math.isnan(e["rating"])]
    found = dict(zip(row["ratings_1h"], row["ratings_count_1h"], strict=True))
    assert {k: v for k, v in found.items() if k is not None} == oracle.frequencies(rated, "rating")


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS)
def test_within_their_bounds_they_read_as_defined_in_any_order_and_batching(seed):
    rng = random.Random(seed)
    events = history(rng, rng.randrange(80))
    slab = filled(Taste, rng, events)
    newest_us = max((event["time"] for event in events), default=BASE_US)
    now_us = newest_us + 1 + int(rng.random() * rng.choice(SPANS_S) * 1e6)
    for packed in (False, True):
        for who, row in enumerate(answers(slab, now_us, packed)):
            check(row, [event for event in events if event["who"] == who], now_us)


@pytest.mark.parametrize("view", [Taste, Crowded])
@settings(max_examples=80, deadline=None)
@given(seed=SEEDS)
def test_bytes_follow_from_the_set_of_events_also_where_room_is_short(view, seed):
    rng = random.Random(seed)
    events = history(rng, rng.randrange(1, 120))
    one, two = filled(view, rng, events), filled(view, rng, events, reload=0.5)
    ids = one.ids(one.rows())
    if view is Crowded:  # no float sums in it
        assert one.pack(one.locate(ids)) == two.pack(two.locate(ids))
    else:
        now_us = max(event["time"] for event in events) + 1
        assert answers(one, now_us) == answers(two, now_us)


def test_beyond_their_bounds_the_errors_are_as_stated():
    """5,000 songs in a minute: Distinct within four standard errors, quantiles of the kept end within 2 %."""
    rng = random.Random(1)
    events = [{**listen(i, BASE_US + i * 4_000, rng), "who": 0, "song": rng.randrange(5_000)} for i in range(10_000)]
    events = [{**event, "rating": rng.uniform(1, 5)} for event in events]
    now_us = events[-1]["time"] + 1

    class Full(FeatureView, source=Listen, entity="who", name="full"):
        songs = Distinct("song", windows=("10m", "lifetime"), keep=256)
        rated = Quantile("rating", q=(0.9, 0.99), windows="10m", keep=64)

    slab = Slab(plan_of(Full), 1)
    add(slab, events)
    row = answers(slab, now_us)[0]
    truth = oracle.distinct(events, "song")
    assert abs(row["songs_lifetime"] - truth) < 4 * truth / math.sqrt(254)
    assert abs(row["songs_10m"] - truth) < 4 * truth / math.sqrt(254)
    for q, name in ((0.9, "rated_p90_10m"), (0.99, "rated_p99_10m")):
        assert row[name] == pytest.approx(oracle.quantile(events, "rating", q), rel=0.0201)


def test_damaged_bytes_are_refused_not_read():
    rng = random.Random(2)
    slab = Slab(plan_of(Taste), 1)
    add(slab, history(rng, 60))
    rows = slab.rows()
    ids, texts, blobs = slab.ids(rows), slab.texts(rows), slab.pack(rows)
    refused = 0
    for _ in range(300):
        broken = bytearray(blobs[0])
        broken[rng.randrange(32, len(broken))] = rng.randrange(256)
        try:
            Slab(slab.plan).load(ids[:1], texts[:1], [bytes(broken[: rng.randrange(33, len(broken) + 1)])])
        except LayoutError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Distinct("song", windows="1h", keep=2), "keep=2; write 3 to"),
        (lambda: Distinct("song", windows="400d", hop="1h", keep=4096), "hops of '400d' .* at most keep=174"),
        (lambda: TopK("song", k=0, windows="1h"), "k=0; write 1 to"),
        (lambda: Quantile("rating", q=2, windows="1h"), "q=2; write quantiles"),
        (lambda: Quantile("artist", windows="1h"), "Quantile needs a number"),
        (lambda: Quantile("rating", error=0, windows="1h"), "error=0; write a relative error"),
        (lambda: VectorMean("song", dim=2, windows="1h"), "VectorMean needs a list of numbers"),
        (lambda: VectorMean("tempo", dim=0, windows="1h"), "dim=0; write 1 to"),
        (lambda: Distinct("tempo", windows="1h"), "cannot keep"),
        (lambda: CountBy("song"), "no windows"),
    ],
)
def test_wrong_declarations_are_told(make, words):
    with pytest.raises(DeclarationError, match=words) as caught:
        type("Wrong", (FeatureView,), {"wrong": make()}, source=Listen, entity="who")
    assert "view wrong · feature wrong" in str(caught.value)
