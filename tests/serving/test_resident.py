"""Resident candidates: equal to the store at their refresh, never null for being absent, and in use without Redis."""

import os
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.features import plan_of
from headrace.features.store import OnlineStore
from headrace.learners import (
    Categorical,
    DeepFM,
    Dense,
    Derived,
    InputSpec,
    Learner,
    Match,
    OnlineLearner,
    Scorer,
    Snapshot,
)
from headrace.local import EmbeddedRedis
from headrace.serving import HttpLimits, Ranker, RankingSpec, build_http
from headrace.serving.queries import Query
from headrace.serving.resident import ResidentCandidates, candidates
from headrace.serving.resident.batch_read import FAN_OUT_MIN, best
from tests.serving import stage
from tests.serving.conftest import Client
from tests.serving.stage import NOW_US, ThingActivity

HOUR_US = 3_600_000_000
THINGS = [f"t{i}" for i in range(300)]


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.us = NOW_US

    def now_us(self) -> int:
        return self.us


def longer_than_popular(columns):
    """Reads the candidate as sent, a feature of its view, and one of the reader's: a field of both."""
    names = np.array([len(name) for name in columns["thing"]])
    return names + columns["thing_activity.reads_1h"] - columns["reader_activity.reads_1h"]


class Popular(Learner):
    """Fields of all three kinds; none of pairs but numbers, so that it is scored in halves."""

    views = (stage.ReaderActivity, ThingActivity)
    inputs = InputSpec(
        Match("seen", candidate="thing", column="reader_activity.recent"),
        Categorical("thing"),
        Dense("popularity", "thing_activity.reads_1h", transform="log1p"),
        Categorical("reader"),
        Dense("age", "thing_activity._age_s"),
        Derived("gap", longer_than_popular, ("thing", "thing_activity.reads_1h", "reader_activity.reads_1h")),
        Dense("reads", "reader_activity.reads_1h"),
    )
    model = DeepFM(dim=4, hidden=(16, 8))


class Alone(Learner):
    """Needs nothing but the things' own view."""

    views = ThingActivity
    inputs = InputSpec(Categorical("thing"), Dense("popularity", "thing_activity.reads_1h"))
    model = DeepFM(dim=2, hidden=(4,))


def spec_of(learner):
    return RankingSpec(learner, entity=("reader",), candidate="thing")


def resident_of(store, learner=stage.NextThing, *, clock=stage.CLOCK, budget_bytes=10_000_000):
    return ResidentCandidates(spec_of(learner), store, clock, budget_bytes=budget_bytes, refresh_s=1.0)


def ask(reader, things, now_us=NOW_US):
    return Query({"reader": reader}, things, now_us, is_now=True)


@pytest.fixture
def full_store(store):
    """The stage's events, and 300 more things of which every other one was read."""
    rng = np.random.default_rng(5)
    rows = [(int(rng.integers(0, 12)), THINGS[2 * int(i)], float(rng.random() * 90)) for i in rng.integers(0, 150, 600)]
    rows.sort(key=lambda row: -row[2])
    stage.fill(store, stage.readings(*rows, skip=5))
    return store


@pytest.mark.parametrize("learner", [stage.NextThing, Popular])
def test_resident_inputs_are_those_of_the_store_at_a_refresh(full_store, learner):
    """Any candidates, known or not, at any hour: inputs and records bit for bit, of lone requests and of batches."""
    clock = Hands()
    resident = resident_of(full_store, learner, clock=clock)
    plain, ranker = Ranker(spec_of(learner), full_store), Ranker(spec_of(learner), full_store, resident=resident)
    request = st.tuples(st.integers(0, 14), st.lists(st.sampled_from([*THINGS, "a", "b", "never"]), min_size=1))

    @settings(max_examples=25, deadline=None)
    @given(st.lists(request, min_size=1, max_size=3), st.integers(-1, 3), st.booleans())
    def check(requests, hours, is_refreshed):
        clock.us = NOW_US + hours * HOUR_US // 2
        queries = [ask(reader, things, clock.us) for reader, things in requests]
        if is_refreshed:
            ranker.read_batch(queries)  # notes what is absent
        resident.refresh()
        batch, expected = ranker.read_batch(queries), plain.read_batch(queries)
        assert batch.inputs.to_bytes() == expected.inputs.to_bytes()
        for got, wanted in zip(batch.requests, expected.requests, strict=True):
            views = {name: view._replace(resident_age_us=None) for name, view in got.views.items()}
            assert (views, got.status, got.entity_age_us) == (wanted.views, wanted.status, wanted.entity_age_us)
        picked = np.array([0, len(batch.inputs) - 1])
        inputs, rows = ranker.read_batch(queries).shown(picked)
        assert inputs.take(rows).to_bytes() == expected.inputs.take(picked).to_bytes()

    check()
    assert resident.catalogue is not None


def test_a_request_in_halves_is_scored_as_by_the_whole_forward(full_store):
    """A trained model with fields of all kinds: 1e-5, the same order; and a model without halves."""
    ranker = Ranker(spec_of(Popular), full_store, resident=resident_of(full_store, Popular))
    plain = Ranker(spec_of(Popular), full_store)
    learner, rng = OnlineLearner(Popular, seed=1), np.random.default_rng(1)
    for _ in range(30):
        query = ask(int(rng.integers(0, 12)), list(rng.choice(THINGS, 32)))
        learner.learn(plain.read_batch([query]).inputs, rng.integers(0, 2, 32))
    scorer = Scorer(Snapshot.of(learner), Popular)
    known = [THINGS[i] for i in range(0, 300, 2)]
    ranker.read_batch([ask(3, known)])
    ranker.resident.refresh()
    ranker.resident.prepare(scorer)
    assert len(known) >= FAN_OUT_MIN
    for reader in (3, 7, 99):
        batch = ranker.read_batch([ask(reader, known)])
        scores, expected = batch.scores(scorer), scorer.score(plain.read_batch([ask(reader, known)]).inputs)
        assert batch._inputs is None  # none were made
        assert scores == pytest.approx(expected, abs=1e-5)
        assert np.ptp(scores) > 1e-3
        assert best(scores, 5).tolist() == np.argsort(-scores, kind="stable")[:5].tolist()
    model = stage.Signature(4)
    assert ranker.read_batch([ask(3, known)]).scores(model) == pytest.approx([4 / stage.SIGN] * len(known))


def test_values_follow_the_store_and_the_clock_with_the_next_refresh(store):
    """New events and passing time show after a refresh, and their age until then; a past moment is read exactly."""
    clock = Hands()
    resident = resident_of(store, clock=clock)
    ranker = Ranker(stage.SPEC, store, resident=resident)
    popularity = stage.NextThing.inputs.dense_names.index("popularity")

    def read(query):
        batch = ranker.read_batch([query])
        return batch.inputs.dense[:, popularity].tolist(), batch.requests[0].views["thing_activity"].resident_age_us

    assert read(ask(7, ["a", "b", "z"])) == ([1, 2, 0], None)
    resident.refresh()
    stage.fill(store, stage.readings(*[(1, "a", 1.0)] * 3, skip=5))
    clock.us += 2_000_000
    assert read(ask(7, ["a", "b", "z"], clock.us)) == ([1, 2, 0], 2_000_000)
    assert read(Query({"reader": 7}, ["a", "b", "z"], NOW_US)) == ([4, 2, 0], None)
    resident.refresh()
    assert read(ask(7, ["a", "b", "z"], clock.us)) == ([4, 2, 0], 0)
    clock.us += HOUR_US  # further than any refresh: the store is asked
    assert read(ask(7, ["a", "b", "z"], clock.us)) == ([0, 0, 0], None)
    resident.refresh()
    assert read(ask(7, ["a", "b", "z"], clock.us)) == ([0, 0, 0], 0)


def test_a_budget_keeps_those_that_were_used_last(full_store):
    """Of 150 things some 30 fit; what is left out is read from the store, and answers are right either way."""
    resident = resident_of(full_store, budget_bytes=20_000)
    ranker, plain = Ranker(stage.SPEC, full_store, resident=resident), Ranker(stage.SPEC, full_store)
    resident.fill()
    resident.refresh()
    count = len(resident.catalogue)
    assert 0 < count < 140
    assert 2 * resident.catalogue.nbytes <= 20_000
    wanted = THINGS[200:210:2]
    for _ in range(2):
        ranker.read_batch([ask(7, wanted)])
        resident.refresh()
    assert (resident.catalogue.map.get(np.array([stage.id_of(thing) for thing in wanted])) >= 0).all()
    query = ask(7, THINGS)
    assert ranker.read_batch([query]).inputs.to_bytes() == plain.read_batch([query]).inputs.to_bytes()


def test_without_redis_what_is_resident_is_served_with_its_age(tmp_path):
    """A learner of the candidates alone goes on at any age; one that reads the entity's view is refused, 503."""
    clock = Hands()
    with EmbeddedRedis(tmp_path) as redis, OnlineStore.open(redis.url, shards=stage.SHARDS, timeout_s=0.5) as store:
        stage.fill(store, stage.EVENTS)
        clients = []
        for learner, model in ((Alone, stage.Signature(1)), (stage.NextThing, stage.Ranks())):
            resident = resident_of(store, learner, clock=clock)
            ranker = Ranker(spec_of(learner), store, resident=resident)
            ranker.warm()
            swap = stage.swap_of(ranker, stage.Published({1: model}, learner.fingerprints()))
            swap.refresh()
            app = build_http(ranker, swap, impressions=None, clock=clock, limits=HttpLimits(timeout_s=5))
            clients.append((Client(app), resident))
        body = {"entity": {"reader": 7}, "candidates": ["a", "b"]}
        (alone, resident), (both, other) = clients
        assert [client.post("/v1/rank", body).status_code for client, _ in clients] == [200, 200]
        os.kill(redis._process.pid, signal.SIGSTOP)
        try:
            stage.until(lambda: resident._is_away)
            clock.us += HOUR_US
            answer = alone.post("/v1/rank", body)
            assert answer.status_code == 200
            assert answer.json()["views"]["thing_activity"]["resident_age_s"] == 3_600
            assert both.post("/v1/rank", body).status_code == 503
            assert alone.post("/v1/rank", {**body, "candidates": ["a", "new"]}).status_code == 503
            assert alone.post("/v1/rank", body).status_code == 200
        finally:
            os.kill(redis._process.pid, signal.SIGCONT)
        stage.until(lambda: not resident._is_away)
        for each in (resident, other):
            each.close()


def test_a_refresh_that_waited_for_redis_does_not_put_off_the_next(tmp_path):
    """Redis hangs for a second of a refresh: the next comes in time, and not after ten times as long."""
    with (
        EmbeddedRedis(tmp_path, aof=False) as redis,
        OnlineStore.open(redis.url, shards=stage.SHARDS, timeout_s=5) as store,
    ):
        stage.fill(store, stage.EVENTS)
        resident = resident_of(store)
        resident.fill()
        resident.refresh()
        usual_s = resident._interval_s
        os.kill(redis.pid, signal.SIGSTOP)
        began_s = time.monotonic()
        threading.Timer(1.0, os.kill, (redis.pid, signal.SIGCONT)).start()
        resident.refresh()
        assert time.monotonic() - began_s > 0.8
        assert resident._interval_s < max(2 * usual_s, 5)
        resident.close()


def test_the_age_is_set_as_a_value_for_the_files_of_replicas(store, monkeypatch):
    """Replicas export a gauge's value: the function alone would leave it at 0, as if all were fresh."""
    monkeypatch.setattr(candidates, "AGE_S", 0.01)
    candidates.AGE.set(0)
    resident = resident_of(store)
    resident._refresh_s = resident._interval_s = 60.0
    resident.fill()
    resident.start()
    stage.until(lambda: candidates.AGE._value.get() > 0.02)
    resident.close()


def test_a_view_that_was_changed_drops_the_catalogue(store):
    """Its new version is not active: requests read the store, which says so, as without a catalogue."""
    resident = resident_of(store)
    resident.fill()
    assert resident.catalogue is not None
    store.views._link.client.hset("hr:views", plan_of(ThingActivity).name, "0" * 16)
    store.views._known.clear()
    resident._interval_s = 0.01
    resident.start()
    stage.until(lambda: resident.catalogue is None)
    resident.close()
