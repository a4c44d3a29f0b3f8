"""The demo's own measurements: each must find what is there, and what is wrong."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.item import ItemActivity
from headrace.demo.meters import Rate, Reads, ServedVersion, event_to_served_s, mixed_versions, parity, spread
from headrace.demo.player import plan_asks
from headrace.demo.report import promises
from headrace.features import OnlineStore
from headrace.learners import Inputs, ModelDirectory, OnlineLearner, Scorer, Snapshot
from headrace.pipelines import EventBatch, Materializer
from learners.next_item import NextItem
from pipelines.demo import load
from schemas.retail import Engagement


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 35), st.integers(0, 200)), max_size=6),
)
def test_event_to_served_by_definition(gaps, models):
    """For each event: the first answer, in time, of a model whose offset lies beyond it."""
    times = np.cumsum(gaps) * 1_000_000
    served = [ServedVersion({"t/0": offset}, at * 1_000_000) for offset, at in models]
    expected = []
    for offset, time in enumerate(times.tolist()):
        answers = [model.first_answer_us for model in served if model.offsets["t/0"] > offset]
        if answers:
            expected.append((min(answers) - time) / 1e6)
    got = event_to_served_s({"t/0": (np.arange(len(times)), times)}, served)
    assert sorted(got.tolist()) == sorted(expected)


@pytest.fixture
def stored(redis_url):
    """The first 3,000 lines of the log in a store, and the log with its offsets."""
    frame = load()[:3_000]
    store = OnlineStore.open(redis_url)
    materializer = Materializer(NextItem.views, store)
    materializer.apply(EventBatch(Engagement, "engagements/0", np.arange(3_000), 3_000, frame, None, 0))
    materializer.flush()
    log = frame.with_columns(pl.lit("engagements/0").alias("_partition"), pl.int_range(3_000).alias("_offset"))
    yield store, log
    store.close()


def take(store, log):
    reads = Reads(store, NextItem.views, log, each=16, seed=1)
    newest = int(log["event_time"].dt.epoch("us").max())
    for hours in range(4):
        reads.take(newest + hours * 3_600_000_000 + 1)
    return reads.taken


def test_parity_of_a_true_store(stored):
    """Every value read equals the replay."""
    store, log = stored
    found = parity(take(store, log), log)
    assert found.checked > 500
    assert found.mismatches == 0


def test_parity_finds_an_event_that_was_not_counted(stored):
    """A log with one more event of an item than the store has is told apart."""
    store, log = stored
    reads = take(store, log)
    text = next(read.texts[0].decode() for read in reads if read.view is ItemActivity)
    extra = log.filter(pl.col("item_id") == text, pl.col("action") == "purchase")[:1]
    extra = extra.with_columns(pl.lit("once-more").alias("event_id"))
    found = parity(reads, pl.concat([log, extra]))
    assert found.mismatches > 0
    assert {example["key"] for example in found.examples} == {text}


def test_mixed_versions_are_found(tmp_path):
    """Scores of another model than the one that is named are counted."""
    directory = ModelDirectory(tmp_path)
    scorers = {}
    rng = np.random.default_rng(0)
    spec = NextItem.inputs
    inputs = Inputs(
        rng.integers(0, 9, (5, 2)),
        (rng.integers(0, 9, (5, 100)),),
        rng.normal(size=(5, len(spec.dense_names))).astype(np.float32),
        spec.fingerprint,
    )
    for seed in (1, 2):
        learner = OnlineLearner(NextItem, seed)
        learner.learn(inputs, rng.integers(0, 2, 5))  # a new one gives every item the same score
        version = directory.publish(Snapshot.of(learner))
        scorers[version] = Scorer(directory.load(version, NextItem), NextItem)
    true, other = (scorers[version].score(inputs) for version in (1, 2))
    half = np.concatenate([true[:2], other[2:]])
    frame = pl.DataFrame(
        {
            "model_version": [1, 2, 1, 1],
            "features": [inputs.to_bytes()] * 4,
            "scores": [true.tolist(), other.tolist(), other.tolist(), half.tolist()],
        }
    )
    assert mixed_versions(frame, directory, NextItem) == 2


def test_asks_are_spread_and_offer_what_was_popular():
    """Every k-th eligible row asks; its candidates are distinct, hold the chosen one, and come from the rows before."""
    rng = np.random.default_rng(0)
    rows = 4_000
    items = np.array([f"i{value}" for value in rng.integers(0, 400, rows)], dtype=object)
    eligible = rng.random(rows) < 0.8
    asks = plan_asks(
        np.arange(rows) * 1_000,
        eligible,
        items,
        np.arange(rows).astype(object),
        requests_per_s=10,
        seconds=5,
        candidates_count=30,
        popularity_rows=500,
        first=2_000,
        end_us=rows * 1_000,
        seed=0,
    )
    assert len(asks) == 50
    gaps = np.diff(np.cumsum(eligible)[[ask.row for ask in asks]])
    assert gaps.max() - gaps.min() <= 1
    places = []
    for ask in asks:
        assert eligible[ask.row]
        assert len(set(ask.candidates)) == len(ask.candidates) == 30
        before = set(items[np.flatnonzero(eligible[: ask.row])[-500:]])
        assert set(ask.candidates) - {items[ask.row]} <= before
        places.append(ask.candidates.index(items[ask.row]))
    assert len(set(places)) > 10


def test_promises_can_break():
    """Each figure that is worse than promised is called broken."""
    report = {
        "requests": {"ok": 99, "failed": 1, "mixed_version": 1},
        "parity": {"checked": 10, "mismatches": 1},
        "feature_freshness_ms": {"p99": 1_001.0},
        "event_to_served_model_s": {"p95": 10.1},
        "swaps": 19,
        "prequential": {"live": {"auc": 0.70}, "frozen": {"auc": 0.695}},
        "examples": {"joined": 100},
    }
    assert [promise.kept for promise in promises(report, seconds=90)] == [False] * 7
    assert [promise.kept for promise in promises(report, seconds=15)][-2:] == [None, None]


def test_a_rate_is_over_whole_intervals_between_writes():
    """Reading a count again before it is written again changes no rate; what was written longer ago is forgotten."""
    rate = Rate(span_s=2.0)
    assert rate.per_s == 0.0
    rate.add(100, 1_000_000)
    assert rate.per_s == 0.0  # one write says no rate
    rate.add(160, 1_500_000)
    assert rate.per_s == 120.0
    rate.add(160, 1_500_000)  # read between two writes
    assert rate.per_s == 120.0
    for count, at_us in ((160, 2_000_000), (220, 2_500_000), (220, 3_000_000), (280, 3_500_000)):
        rate.add(count, at_us)
    assert rate.per_s == 60.0  # since 1.5 s: a write without an increase is no standstill
    rate.add(280, 9_000_000)
    assert rate.per_s == 0.0  # nothing since 3.5 s


def test_spread_of_nothing_is_none():
    """No values, no percentiles."""
    assert spread([], 50, 99) == {"p50": None, "p99": None}


def test_golive_is_in_the_last_fifth():
    """The last fifth of the log, which is played, is about three months."""
    frame = load()
    golive = frame["event_time"][int(frame.height * 0.8)]
    assert timedelta(days=80) < frame["event_time"][-1] - golive < timedelta(days=100)
    assert golive > datetime(2011, 9, 1, tzinfo=UTC)
