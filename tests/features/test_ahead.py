"""Reads at or before an entity's newest event say so, and leave out what they can.

events   --a-----b------c--->
reads      ahead    ahead  ahead (c is at the moment itself)   fresh
"""

import random
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from headrace import Count, CountBy, Event, FeatureView, First, Last, LastN, Mean, OnlineStore, Sequence, Sum, replay
from headrace.clock import wall_us
from headrace.features import Slab, plan_of, read_packed
from headrace.history.verify import verify
from headrace.pipelines.shard import ShardSet
from headrace.streams.source import EventBatch

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOON_US = int(NOON.timestamp()) * 1_000_000
HOP_US = 120_000_000


class Beat(Event, topic="beats", key="heart", time="at", id="beat_id"):
    """A heart beat."""

    beat_id: int
    at: datetime
    heart: int
    rate: int


class Heart(FeatureView, source=Beat, entity="heart"):
    """Of every kind of state."""

    beats = Count(windows=("1h", "lifetime"))
    rates = Sum("rate", windows="1h")
    mean = Mean("rate", windows="1h")
    kinds = CountBy("rate", windows="1h")
    first = First("rate")
    early = First("rate", windows="1h")
    last = Last("rate")
    recent = LastN("rate", n=40)
    trail = Sequence("rate", "at", n=40)


def beats(moments_us, hearts=None, rates=None):
    n = len(moments_us)
    return pl.DataFrame(
        {
            "beat_id": range(n),
            "at": pl.Series(moments_us, dtype=pl.Int64).cast(pl.Datetime("us", "UTC")),
            "heart": hearts or [1] * n,
            "rate": rates or [60 + i for i in range(n)],
        },
        schema_overrides={"beat_id": pl.Int64, "heart": pl.Int64, "rate": pl.Int64},
    )


def moment(time_us):
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=time_us)


def metric():
    return REGISTRY.get_sample_value("headrace_reads_ahead_total", {"view": "heart"}) or 0


def fill(store, frame):
    shards = ShardSet(plan_of(Heart), store, range(store.shards))
    shards.apply(EventBatch(Beat, "beats/0", np.arange(frame.height), frame.height, frame, None, 0))
    shards.flush()


@pytest.fixture
def store(redis_url):
    with OnlineStore.open(redis_url, shards=4) as opened:
        yield opened


def test_the_status_tells_an_event_at_or_after_the_moment(store):
    """Per row; the moment itself counts as after, for an event at t is no part of a read at t."""
    fill(store, beats([NOON_US, NOON_US + 90_000_000, NOON_US], [1, 1, 2]))
    for seconds, expected in [(-1, "ahead"), (0, "ahead"), (70, "ahead"), (90, "ahead"), (90.000001, "fresh")]:
        before = metric()
        found = store.read(Heart, [1, 2, 3], NOON + timedelta(seconds=seconds))
        assert found["_status"].to_list() == [expected, "ahead" if seconds <= 0 else "fresh", "missing"]
        assert metric() - before == found["_status"].to_list().count("ahead")
        assert found["_age_s"][0] == pytest.approx(max(seconds - 90, 0))


def test_an_answer_has_it_as_an_array(store):
    """From the store, from packed records and from a slab."""
    frame, plan = beats([NOON_US, NOON_US + 5], [1, 2]), plan_of(Heart)
    fill(store, frame)
    ids, texts = np.array([1, 2, 3]), [b"1", b"2", b"3"]
    slab = Slab(plan)
    slab.update(plan.rows(Beat, frame))
    blobs = store.records(plan, ids, texts)
    for answer in (
        store.answer(plan, ids, texts, NOON_US + 5),
        read_packed(plan, ids, texts, blobs, NOON_US + 5),
        slab.read(slab.locate(ids), NOON_US + 5),
    ):
        assert answer.ahead.tolist() == [False, True, False]
        assert answer.found.tolist() == [True, True, False]


@settings(max_examples=80)
@given(seed=st.integers(0, 2**32))
def test_what_is_not_ahead_is_what_a_replay_gives_and_so_is_what_has_times(seed):
    """Lists that are not full and First leave later events out; windows too, read at the beginning of their hop."""
    rng = random.Random(seed)
    span_us = rng.choice([5, 1_000_000, 300_000_000, 20_000_000_000])
    frame = beats([NOON_US + rng.randrange(span_us) for _ in range(rng.randrange(1, 30))])
    times_us = frame["at"].dt.epoch("us").to_list()
    newest_us = max(times_us)
    hop_start_us = newest_us // HOP_US * HOP_US
    moment_us = rng.choice([newest_us, newest_us + 1, hop_start_us, NOON_US + rng.randrange(span_us), min(times_us)])
    plan, slab = plan_of(Heart), Slab(plan_of(Heart))
    slab.update(plan.rows(Beat, frame))
    rows = slab.locate(np.array([1]))
    answers = [slab.read(rows, moment_us), read_packed(plan, np.array([1]), [b"1"], slab.pack(rows), moment_us)]
    spine = pl.DataFrame({"heart": [1], "event_time": [moment(moment_us)]})
    truth = replay(Heart, frame, spine).row(0, named=True)
    exact = ["first", "early_1h", "recent", "trail_rate", "trail_at"]
    if moment_us == hop_start_us:
        exact += ["beats_1h", "rates_1h", "mean_1h", "kinds_1h", "kinds_count_1h"]
    for answer in answers:
        assert answer.ahead.tolist() == [newest_us >= moment_us]
        row = answer.to_polars().row(0, named=True)
        names = exact if newest_us >= moment_us else list(row)
        if newest_us >= moment_us and newest_us // HOP_US > moment_us // HOP_US:
            names = [name for name in names if name != "early_1h"]  # the window's oldest hop may be gone
        assert {name: row[name] for name in names} == {name: truth[f"heart.{name}"] for name in names}


def test_a_producer_whose_clock_runs_ahead_is_seen_on_every_read(store):
    """Its events are taken in at once; until the reader's clock has passed them, each read says so."""
    now_us = wall_us()
    fill(store, beats([now_us - 5_000_000, now_us + 60_000_000], [1, 1]))
    assert store.read(Heart, [1])["_status"].to_list() == ["ahead"]
    later = datetime.fromtimestamp(now_us / 1e6 + 61, UTC)
    found = store.read(Heart, [1], later)
    assert found["_status"].to_list() == ["fresh"]
    assert found["beats_lifetime"].to_list() == [2]


def test_verify_and_replay_are_not_confused(store):
    """Verify compares both sides with the same later events; a replay's rows are never ahead."""
    frame = beats([NOON_US + i * 7_000_000 for i in range(20)], [i % 2 + 1 for i in range(20)])
    fill(store, frame)
    log = frame.with_columns(pl.lit("beats/0").alias("_partition"), pl.int_range(pl.len()).alias("_offset"))
    assert verify(Heart, log, store, now_us=NOON_US + 50_000_000).ok
    before = metric()
    spine = pl.DataFrame({"heart": [1, 2], "event_time": [moment(NOON_US + 50_000_000)] * 2})
    replay(Heart, frame, spine, chunk_rows=3)
    assert metric() == before
