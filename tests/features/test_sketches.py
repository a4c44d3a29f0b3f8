"""Distinct, TopK, CountBy, Quantile, VectorMean: as defined while within their bounds, within their errors beyond."""

import math
import random
import sys
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
from tests.features.test_law import batches
from tests.tiers import by_tier

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

    songs = Distinct("song", windows=("1m", "1h", "lifetime"), keep=4)
    top = TopK("song", k=2, windows=("1m", "1h", "lifetime"), keep=4)
    by_artist = CountBy("artist", windows=("1m", "1h"), keep=3)
    rated = Quantile("rating", windows=("1m", "1h", "lifetime"), keep=3)


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


@settings(max_examples=by_tier(fast=20, whole=50))
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
@settings(max_examples=by_tier(fast=20, whole=80))
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


def heard(moments_us, who=0, song=0, rating=0.0):
    """Events in one frame; what is not an array is the same for all."""
    count = len(moments_us)
    columns = {"who": who, "song": song, "rating": rating}
    spread = {name: np.broadcast_to(value, count).copy() for name, value in columns.items()}
    return pl.DataFrame(
        {
            "listen_id": pl.Series(np.arange(count)).cast(pl.String),
            "at": pl.Series(moments_us, dtype=pl.Int64).cast(pl.Datetime("us", "UTC")),
            "artist": pl.Series([None] * count, dtype=pl.String),
            "tempo": pl.Series([None] * count, dtype=pl.List(pl.Float64)),
            **spread,
        }
    )


def read(view, frame, now_us):
    """Features by listener, ascending, after all events at once."""
    slab = Slab(plan_of(view))
    slab.update(slab.plan.rows(Listen, frame))
    listeners = np.unique(frame["who"].to_numpy())
    ids, _ = entity_ids(slab.plan, pl.DataFrame({"who": listeners}))
    return slab.read(slab.locate(ids), now_us)


HOUR_US = 3_600_000_000
LENGTH_US = {"10m": HOUR_US // 6, "24h": 24 * HOUR_US, "7d": 168 * HOUR_US}
MIDNIGHT_US = BASE_US // LENGTH_US["24h"] * LENGTH_US["24h"]
EVERY_PERCENT = tuple(percent / 100 for percent in range(1, 100))


class Kinds(FeatureView, source=Listen, entity="who"):
    """As declared in ordinary use."""

    songs = Distinct("song", windows=("10m", "24h", "7d"))


class Often(FeatureView, source=Listen, entity="who"):
    """As declared in ordinary use."""

    top = TopK("song", k=5, windows=("24h", "7d"))
    by_song = CountBy("song", windows=("24h", "7d"))


class Rated(FeatureView, source=Listen, entity="who"):
    """As declared in ordinary use, but for the number of quantiles."""

    rated = Quantile("rating", q=EVERY_PERCENT, windows=("24h", "7d"))


@pytest.mark.parametrize("span", ["24h", "7d"])
def test_no_hop_of_a_window_is_forgotten(span):
    """Eight songs and a hundred others an hour, each hour others: all of them count, also in the oldest hour."""
    hours = LENGTH_US[span] // HOUR_US
    rng = np.random.default_rng(3)
    played = np.repeat(np.arange(hours), 24)
    moments = MIDNIGHT_US + played * HOUR_US + rng.integers(0, HOUR_US, len(played))
    few = read(Often, heard(moments, song=np.tile(np.arange(24) % 8, hours)), MIDNIGHT_US + LENGTH_US[span])
    counts = few.columns[f"by_song_count_{span}"]
    assert counts.values[0, : counts.lengths[0]].tolist() == [3 * hours] * 8
    songs = np.arange(hours * 20)
    moments = MIDNIGHT_US + songs // 20 * HOUR_US + rng.integers(0, HOUR_US, len(songs))
    many = read(Kinds, heard(moments, song=songs), MIDNIGHT_US + LENGTH_US[span])
    assert many.columns[f"songs_{span}"].tolist() == [hours * 20]


def test_quantiles_of_the_largest_floats_are_floats():
    """In a bucket that reaches beyond them, of a hop that is crowded as well."""
    most = sys.float_info.max
    ratings = most * np.array([1e-300, 0.5, 0.6, 0.7, 0.8, 1.0, 1.0, -1.0])
    frame = heard(np.full(len(ratings), MIDNIGHT_US), rating=ratings)
    answer = read(Rated, frame, MIDNIGHT_US + 1)
    assert (answer.columns["rated_p1_24h"][0], answer.columns["rated_p99_24h"][0]) == pytest.approx(
        (-most, most), rel=0.02
    )
    assert np.isfinite(read(Crowded, frame, MIDNIGHT_US + 1).columns["rated_p50_1h"]).all()


def test_reads_in_the_past_leave_later_tiles_out():
    """Of 48 hours with songs of their own, a read in hour 30 sees those up to it that the newest window still has."""
    hours = np.repeat(np.arange(48), 10)
    frame, now_us = heard(MIDNIGHT_US + hours * HOUR_US, song=np.arange(480), rating=hours + 1.0), 30 * HOUR_US + 1
    now_us += MIDNIGHT_US
    assert read(Kinds, frame, now_us).columns["songs_24h"].tolist() == [10 * (31 - (47 - 24))]
    assert set(read(Often, frame, now_us).columns["top_24h"].values[0].tolist()) == set(range(230, 235))
    assert read(Rated, frame, now_us).columns["rated_p99_24h"][0] == pytest.approx(31, rel=0.02)


def test_a_quiet_entity_takes_little_memory():
    """One event of each of 10,000 entities takes some 80 bytes a window, where a full one takes 77,000."""
    slab = Slab(plan_of(Often))
    slab.update(slab.plan.rows(Listen, heard(MIDNIGHT_US + np.arange(10_000), who=np.arange(10_000))))
    assert slab.nbytes < 10_000 * 600


class Small(FeatureView, source=Listen, entity="who"):
    """Hops that are fuller than `keep`, some of them."""

    songs = Distinct("song", windows=("24h", "7d"), keep=40)
    top = TopK("song", k=5, windows=("24h", "7d", "lifetime"), keep=37)
    rated = Quantile("rating", windows=("24h", "7d"), keep=12)


def test_large_batches_leave_the_same_bytes_in_any_order():
    """130,000 events over ten days: at once on several threads, oldest or newest first, and shuffled with reloads."""
    rng, count = np.random.default_rng(9), 130_000
    moments = MIDNIGHT_US + rng.integers(0, 240 * HOUR_US, count)
    frame = heard(moments, rng.zipf(1.5, count) % 300, rng.zipf(1.2, count) % 9_973, rng.normal(0, 50, count))
    packed = []
    for order, size in ((frame, count), (frame.sort("at"), 20_000), (frame.sort("at", descending=True), 50_000)):
        slab = Slab(plan_of(Small), 1)
        for batch in order.iter_slices(size):
            slab.update(slab.plan.rows(Listen, batch))
        packed.append(slab.pack(slab.locate(np.arange(1, 300))))
    slab = Slab(plan_of(Small), 1)
    for batch in frame.sample(fraction=1, shuffle=True, seed=4).iter_slices(30_011):
        slab.update(slab.plan.rows(Listen, batch))
        slab = reloaded(slab)
    packed.append(slab.pack(slab.locate(np.arange(1, 300))))
    assert packed[1:] == packed[:1] * 3


@pytest.mark.parametrize("span", ["10m", "24h", "7d"])
@pytest.mark.parametrize("rate", [5, 60, 200, 2_000])
def test_distinct_errs_as_stated(span, rate):
    """Songs of some entities, hops with 1 to 8 times as many as others; half of them come again and again."""
    many, most = by_tier(fast=(10, 4), whole=(40, 10))
    entities, rng = 40 if rate < 500 else most if span == "7d" else many, np.random.default_rng(rate)
    count = int(rate * LENGTH_US[span] / HOUR_US * (30 if span == "10m" else 1))
    who = np.repeat(np.arange(entities), count)
    moments = MIDNIGHT_US + (rng.beta(0.6, 2, len(who)) * LENGTH_US[span]).astype(np.int64)
    song = np.where(rng.random(len(who)) < 0.5, rng.integers(0, 3_000, len(who)), rng.integers(0, 2**60, len(who)))
    song = song * 64 + who
    truth = np.bincount(np.unique(song) % 64)
    found = read(Kinds, heard(moments, who, song), MIDNIGHT_US + LENGTH_US[span]).columns[f"songs_{span}"]
    if rate == 5 and span != "7d":
        assert found.tolist() == truth.tolist()
    errors, stated = found / truth - 1, 1 / math.sqrt(126)
    assert np.sqrt((errors**2).mean()) < 1.2 * stated
    assert abs(errors.mean()) < 4 * stated / math.sqrt(entities)


KINDS = {
    "normal": lambda rng, count: rng.normal(0, 1, count),
    "shifted": lambda rng, count: rng.normal(-10, 3, count),
    "lognormal": lambda rng, count: np.exp(rng.normal(0, 1, count)),
    "uniform": lambda rng, count: rng.uniform(0, 100, count),
    "pareto": lambda rng, count: rng.pareto(0.8, count) + 1,
    "cauchy": lambda rng, count: rng.standard_cauchy(count),
}


@pytest.mark.parametrize(
    ("span", "rate", "coarsest"),
    [("24h", 5, 0), ("24h", 40, 0), ("24h", 5_000, 2), ("7d", 5, 0), ("7d", 100, 1), ("7d", 1_000, 2)],
)
def test_every_percentile_errs_as_stated(span, rate, coarsest):
    """The error is that of the level that the fullest hop needs, counted here by its buckets."""
    rng, count = np.random.default_rng(rate), rate * LENGTH_US[span] // HOUR_US
    numbers = [draw(rng, count) for draw in KINDS.values()]
    moments = MIDNIGHT_US + rng.integers(0, LENGTH_US[span], count)
    who = np.repeat(np.arange(len(KINDS)), count)
    answer = read(
        Rated, heard(np.tile(moments, len(KINDS)), who, rating=np.concatenate(numbers)), MIDNIGHT_US + LENGTH_US[span]
    )
    hop = moments // (LENGTH_US[span] // (24 if span == "24h" else 28))
    levels = []
    for entity, held in enumerate(numbers):
        level = oracle.coarsest(hop, held, error=0.02, keep=256)
        levels.append(level)
        stated = math.tanh(2**level * math.atanh(0.02))
        truth = np.sort(held)[np.floor(np.array(EVERY_PERCENT) * (count - 1)).astype(int)]
        found = np.array([answer.columns[f"rated_p{percent}_{span}"][entity] for percent in range(1, 100)])
        assert (abs(found - truth) <= stated * 1.0001 * abs(truth)).all(), list(KINDS)[entity]
    assert max(levels) == coarsest


@pytest.mark.parametrize(("span", "count"), [("24h", 20_000), ("24h", 200_000), ("7d", 20_000)])
@pytest.mark.parametrize("power", [1.05, 1.2, 1.5])
def test_frequent_values_are_found_among_very_many(span, count, power):
    """50,000 songs by Zipf's law: the five most frequent, each at least one in a hundred, and about how often."""
    entities, rng = 6, np.random.default_rng(count)
    weights = np.arange(1, 50_001) ** -power
    song = rng.choice(50_000, (entities, count), p=weights / weights.sum()) * 7919 % 50_021
    moments = MIDNIGHT_US + rng.integers(0, LENGTH_US[span], entities * count)
    frame = heard(moments, np.repeat(np.arange(entities), count), song.reshape(-1))
    answer = read(Often, frame, MIDNIGHT_US + LENGTH_US[span])
    found, counts = (answer.columns[name].values for name in (f"top_{span}", f"top_count_{span}"))
    hits = 0
    for entity in range(entities):
        truth = np.bincount(song[entity], minlength=50_021)
        hits += len(set(found[entity].tolist()) & set(np.argsort(-truth)[:5].tolist()))
        assert found[entity, 0] == truth.argmax()
        assert (abs(counts[entity] - truth[found[entity]]) <= count / 128).all()
    assert hits >= 0.9 * 5 * entities


def test_a_value_in_every_fifth_event_is_found_and_counted():
    """100 other songs in each of 24 hours, 50 times the same one in each of the first 12."""
    others = np.arange(2_400)
    song = np.concatenate([others + 1_000, np.full(600, 7)])
    hour = np.concatenate([others // 100, np.arange(600) // 50])
    answer = read(Often, heard(MIDNIGHT_US + hour * HOUR_US + np.arange(3_000), song=song), MIDNIGHT_US + 24 * HOUR_US)
    assert (answer.columns["top_24h"].values[0, 0], answer.columns["top_count_24h"].values[0, 0]) == (7, 600)
    assert answer.columns["by_song_24h"].values[0, 0] == 7
    assert abs(answer.columns["by_song_count_24h"].values[0, 0] - 600) <= 3_000 / 32


@pytest.mark.parametrize("view", [Taste, Crowded])
def test_damaged_bytes_are_refused_or_read_as_others(view):
    """Every accepted record may be read, added to and packed again."""
    rng = random.Random(2)
    slab = Slab(plan_of(view), 1)
    events = history(rng, 60)
    add(slab, events)
    rows = slab.rows()
    ids, texts, blobs = slab.ids(rows), slab.texts(rows), slab.pack(rows)
    now_us = max(event["time"] for event in events) + 1
    refused = 0
    for _ in range(400):
        broken = bytearray(blobs[0])
        broken[rng.randrange(32, len(broken))] = rng.randrange(256)
        end = rng.choice([len(broken), rng.randrange(33, len(broken) + 1)])
        again = Slab(slab.plan)
        try:
            again.load(ids[:1], texts[:1], [bytes(broken[:end])])
        except LayoutError:
            refused += 1
            continue
        again.read(again.rows(), now_us)
        add(again, history(rng, 40))
        again.pack(again.rows())
    assert 100 < refused < 400


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
