"""Ranker: one read a view, resident records, the probe, and what a declaration may not say."""

import numpy as np
import pytest
import redis

from headrace.errors import DeclarationError
from headrace.features.store import versions
from headrace.features.store.wire import PART_KEYS
from headrace.learners import Categorical, DeepFM, Dense, Derived, InputSpec, Learner, Scorer, Snapshot
from headrace.serving import Ranker, RankingSpec
from headrace.serving.answers import Answers
from headrace.serving.queries import Query
from headrace.serving.refusals import Refusal
from headrace.serving.resident.batch_read import best
from tests.serving import stage
from tests.serving.stage import NOW_US, NextThing

CANDIDATES = ["a", "b", "z"]


def test_inputs_hold_what_the_events_say(ranker):
    """Counted by hand from the stage's five events."""
    inputs = ranker.read({"reader": 7}, CANDIDATES, NOW_US, {}).inputs
    dense = dict(zip(NextThing.inputs.dense_names, inputs.dense.T.tolist(), strict=True))
    assert dense == {"reads": [2, 2, 2], "popularity": [1, 2, 0], "again": [2, 1, 0], "seen": [1, 1, 0]}
    assert (inputs.bags[0] == inputs.bags[0][0]).all()


def test_a_request_asks_redis_once_a_view(ranker, redis_url, monkeypatch):
    """Three views: one MGET for the reader, one for every PART_KEYS candidates of the others, and nothing else."""
    monkeypatch.setattr(versions, "ACTIVE_S_MAX", 3_600.0)  # what it knows of the views' versions gets old in a second
    ranker.read({"reader": 7}, CANDIDATES, NOW_US, {})
    with redis.Redis.from_url(redis_url) as client:
        client.config_resetstat()
        ranker.read({"reader": 7}, [f"t{i}" for i in range(500)], NOW_US, {})
        commands = client.info("commandstats").items()
    asked = {name: stats["calls"] for name, stats in commands if not name.startswith("cmdstat_config")}
    assert asked == {"cmdstat_mget": 1 + 2 * -(-500 // PART_KEYS)}


QUERIES = [
    Query({"reader": 7}, ["a", "b", "z"], NOW_US),
    Query({"reader": 1234}, ["c"], NOW_US),
    Query({"reader": 8}, ["z", "a", "b", "c", "a"], NOW_US - 600_000_000),
    Query({"reader": 7}, ["b"], NOW_US + 7_200_000_000),
]


def test_a_batch_reads_what_each_request_reads_alone(ranker):
    """Inputs bit for bit, and what is said of the records: readers, counts of things and moments are mixed."""
    batch = ranker.read_batch(QUERIES)
    assert batch.edges.tolist() == [0, 3, 4, 9, 10]
    model = Scorer(Snapshot.of(stage.learned(1)), NextThing)
    scores = model.score(batch.inputs)
    for i, query in enumerate(QUERIES):
        alone, rows = ranker.read_batch([query]), slice(batch.edges[i], batch.edges[i + 1])
        assert batch.inputs.take(rows).to_bytes() == alone.inputs.to_bytes()
        assert batch.requests[i] == alone.requests[0]
        assert scores[rows] == pytest.approx(model.score(alone.inputs), abs=1e-6)
    assert [read.status for read in batch.requests] == ["partial", "missing", "partial", "ok"]


def test_all_views_of_a_batch_come_in_one_round_trip(ranker, redis_url):
    """Three MGETs, one a view, sent together."""
    for _ in range(2):  # the first may compile for so long that what it found of the views' versions is old
        ranker.read_batch(QUERIES)
    with redis.Redis.from_url(redis_url) as client:
        client.config_resetstat()
        ranker.read_batch(QUERIES)
        commands = client.info("commandstats").items()
    asked = {name: stats["calls"] for name, stats in commands if not name.startswith("cmdstat_config")}
    assert asked == {"cmdstat_mget": 3}


def test_queries_whose_columns_have_other_types_are_kept_apart():
    """A column of a batch has one type, as it has alone: whole numbers and text are hashed otherwise."""

    class Paged(Learner):
        views = ()
        inputs = InputSpec(Categorical("thing"), Dense("page"))
        model = DeepFM(dim=2, hidden=(4,))

    rules = Ranker(RankingSpec(Paged, entity=("reader",), candidate="thing"), None).rules
    given = [("a", 1), ("b", 2), (3, 1), ("a", 1.5), ("a", None)]
    kinds = [rules.kind(Query({"reader": 7}, [thing], NOW_US, {"page": page})) for thing, page in given]
    assert kinds[0] == kinds[1]
    assert len(set(kinds)) == 4


def test_the_probe_has_a_requests_shape(ranker):
    """Same fingerprint and columns, the rows asked for, and no store."""
    probe, real = stage.NO_STORE_RANKER.probe(7), ranker.read({"reader": 7}, CANDIDATES, NOW_US, {}).inputs
    assert len(probe) == 7
    assert probe.fingerprint == real.fingerprint
    assert [bag.shape[1] for bag in probe.bags] == [bag.shape[1] for bag in real.bags]
    assert np.isfinite(probe.dense).all()


def test_a_view_with_a_key_that_requests_do_not_give_is_refused():
    """At the declaration, with the names."""
    with pytest.raises(DeclarationError, match="reader_activity: key reader; given are author"):
        RankingSpec(NextThing, entity=("author",), candidate="thing")


def test_a_context_column_that_is_missing_is_named():
    """The model reads `page`; a request without it is the caller's mistake."""

    class Paged(Learner):
        views = ()
        inputs = InputSpec(Categorical("thing"), Dense("page"))
        model = DeepFM(dim=2, hidden=(4,))

    ranker = Ranker(RankingSpec(Paged, entity=("reader",), candidate="thing"), None)
    assert ranker.spec.context == ("page",)
    with pytest.raises(Refusal) as refused:
        ranker.read({"reader": 7}, ["a"], NOW_US, {})
    assert (refused.value.status, refused.value.body.field) == (422, "context.page")
    inputs = ranker.read({"reader": 7}, ["a", "b"], NOW_US, {"page": 3}).inputs
    assert inputs.dense.tolist() == [[3.0], [3.0]]


def test_equal_scores_keep_the_requests_order():
    """Otherwise two replicas could answer one request differently."""
    assert best(np.zeros(5, np.float32), 3).tolist() == [0, 1, 2]


def test_candidates_of_no_view_may_be_text_or_integers_but_not_both():
    """Nothing declares their type, so the first one does."""

    class Plain(Learner):
        views = ()
        inputs = InputSpec(Categorical("thing"))
        model = DeepFM(dim=2, hidden=(4,))

    ranker = Ranker(RankingSpec(Plain, entity=(), candidate="thing"), None)
    assert ranker.read({}, [3, 4], NOW_US, {}).inputs.ids.tolist() == [[3], [4]]
    assert ranker.read({}, ["3", "4"], NOW_US, {}).inputs.ids.tolist() != [[3], [4]]
    with pytest.raises(Refusal, match="candidates\\[1\\]"):
        ranker.read({}, [3, "4"], NOW_US, {})


def not_of_made_up_records(_columns):
    raise ValueError("these are no records of ours")


def test_a_function_that_fails_on_made_up_records_keeps_no_replica_unready(store):
    """Warming up ends, and requests say themselves what they fail with."""

    class Picky(Learner):
        views = stage.NextThing.views
        inputs = InputSpec(Categorical("thing"), Derived("odd", not_of_made_up_records, ("reader",)))
        model = stage.NextThing.model

    ranker = Ranker(RankingSpec(Picky, entity=("reader",), candidate="thing"), store)
    with pytest.raises(Exception, match="no records of ours"):
        ranker.warm()
    answers = Answers(ranker, stage.swap_of(ranker, stage.Published({})), None, stage.CLOCK)
    assert not answers.is_warm
    answers.warm()
    assert answers.is_warm
    answers.close()
