"""What the serving tests play with: readers, things, views of both, a learner, and models that sign their scores."""

import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from headrace.clock import FixedClock
from headrace.features import Count, FeatureView, LastN, hash_text, plan_of
from headrace.features.store import OnlineStore
from headrace.learners import (
    Bag,
    Categorical,
    DeepFM,
    Dense,
    InputSpec,
    Learner,
    Match,
    OnlineLearner,
    Scorer,
    Snapshot,
)
from headrace.pipelines.shard import ShardSet
from headrace.schemas import Event
from headrace.serving import Loaded, Ranker, RankingSpec, Swap
from headrace.streams.source import EventBatch

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
CLOCK = FixedClock(NOW_US)
SIGN = 2.0**16  # a version below this is exact in a float32 score of version / SIGN
SHARDS = 4


class Reading(Event, topic="readings", key="reader", time="event_time", id="event_id"):
    """A reader read a thing."""

    event_id: str
    event_time: datetime
    reader: int
    thing: str


class Shown(Event, topic="shown", key="reader", time="event_time", id="request_id"):
    """A ranking as served."""

    request_id: str
    event_time: datetime
    reader: int
    candidates: list[str]
    scores: list[float]
    shadow_scores: list[float]
    model_version: int
    features: bytes
    page: int | None


class ReaderActivity(FeatureView, source=Reading, entity="reader"):
    """What a reader read."""

    reads = Count(windows=("1h",))
    recent = LastN("thing", n=10)


class ThingActivity(FeatureView, source=Reading, entity="thing"):
    """How often a thing is read."""

    reads = Count(windows=("1h",))


class PairActivity(FeatureView, source=Reading, entity=("reader", "thing")):
    """How often a reader read a thing."""

    reads = Count(windows="lifetime")


class NextThing(Learner):
    """What a reader reads next."""

    views = (ReaderActivity, ThingActivity, PairActivity)
    inputs = InputSpec(
        Categorical("thing"),
        Bag("recent", "reader_activity.recent", table="thing", length=5),
        Dense("reads", "reader_activity.reads_1h"),
        Dense("popularity", "thing_activity.reads_1h"),
        Dense("again", "pair_activity.reads_lifetime"),
        Match("seen", candidate="thing", column="reader_activity.recent"),
    )
    model = DeepFM(dim=4, hidden=(8,))


SPEC = RankingSpec(NextThing, entity=("reader",), candidate="thing")


def readings(*rows: tuple[int, str, float], skip: int = 0) -> pl.DataFrame:
    """Events from (reader, thing, minutes before NOW); the first has number `skip`."""
    return pl.DataFrame(
        {
            "event_id": [f"e{skip + i}" for i in range(len(rows))],
            "event_time": [NOW - timedelta(minutes=minutes) for _, _, minutes in rows],
            "reader": [reader for reader, _, _ in rows],
            "thing": [thing for _, thing, _ in rows],
        },
        schema={
            "event_id": pl.String,
            "event_time": pl.Datetime("us", "UTC"),
            "reader": pl.Int64,
            "thing": pl.String,
        },
    )


def fill(store: OnlineStore, frame: pl.DataFrame) -> None:
    """Materialise `frame` into all views."""
    offsets = frame["event_id"].str.slice(1).cast(pl.Int64).to_numpy()
    batch = EventBatch(Reading, "readings/0", offsets, int(offsets[-1]) + 1, frame, None, NOW_US)
    for view in NextThing.views:
        plan = plan_of(view)
        shards = ShardSet(plan, store, range(SHARDS), clock=CLOCK)
        shards.apply(batch)
        shards.flush()
        store.activate(plan)


ASK = {"entity": {"reader": 7}, "candidates": ["c", "b", "a", "z"]}
EVENTS = readings((7, "a", 5), (7, "b", 10), (7, "a", 90), (8, "b", 20), (9, "c", 30))


class Signature:
    """A model whose every score is its version / SIGN, worked out in stages so that a mix would show."""

    def __init__(self, version: int, pause_s: float = 0.0) -> None:
        self.version = version
        self.pause_s = pause_s

    def score(self, inputs):
        first = np.full(len(inputs), self.version / SIGN / 2, dtype=np.float32)
        if self.pause_s:
            time.sleep(self.pause_s)
        return first + np.float32(self.version / SIGN / 2)


class Ranks:
    """A model that prefers what the reader read before, then what is popular."""

    def score(self, inputs):
        names = NextThing.inputs.dense_names
        again = inputs.dense[:, names.index("again")]
        popularity = inputs.dense[:, names.index("popularity")]
        return (again * 0.1 + popularity * 0.01).astype(np.float32)


class Recorded:
    """A model that remembers how many rows it scored at a time; its first batches wait for `gate`."""

    def __init__(self, gate=None, fails_at=None) -> None:
        self.rows, self.gate, self.fails_at = [], gate, fails_at

    def score(self, inputs):
        self.rows.append(len(inputs))
        if self.gate is not None and len(self.rows) > 1:  # the first is the probe of the swap
            assert self.gate.wait(20)
        if self.fails_at is not None and (inputs.ids[:, 0] == self.fails_at).any():
            raise ValueError("a candidate that the model cannot take")
        return Ranks().score(inputs)


class Published:
    """`Releases` in memory: `models` by version."""

    def __init__(self, models: Mapping[int, object] | None = None, fingerprints: Mapping[str, str] | None = None):
        self.models = dict(models or {})
        self.fingerprints = NextThing.fingerprints() if fingerprints is None else fingerprints
        self.loads: list[int] = []

    def versions(self):
        return list(self.models)

    def state_of(self, version):
        return id(self.models.get(version))

    def wait(self, timeout_s):
        time.sleep(min(timeout_s, 0.002))

    def load(self, version):
        self.loads.append(version)
        model = self.models[version]
        if isinstance(model, Exception):
            raise model
        return Loaded(model, self.fingerprints, {"version": version})


def swap_of(ranker: Ranker, releases, **options) -> Swap:
    """A quick Swap for tests: no cadence guard unless asked."""
    return Swap(
        releases, probe=ranker.probe, fingerprints=ranker.fingerprints, **{"cadence_s": 0, "cost_ratio": 0, **options}
    )


NO_STORE_RANKER = Ranker(SPEC, None)  # for probes: they ask no store


def warm_ranker(store: OnlineStore) -> Ranker:
    """A ranker whose kernels are loaded: requests have a deadline, and loading takes seconds."""
    ranker = Ranker(SPEC, store)
    ranker.warm()
    return ranker


def learned(seed: int) -> OnlineLearner:
    """A learner after some steps: a new one gives every thing the same score, whatever its seed."""
    learner, rng = OnlineLearner(NextThing, seed=seed), np.random.default_rng(seed)
    examples = NO_STORE_RANKER.probe(16)
    for _ in range(3):
        learner.learn(examples, rng.integers(0, 2, 16))
    return learner


def learned_scorer(seed: int) -> Scorer:
    """The learner of `learned`, frozen."""
    return Scorer(Snapshot.of(learned(seed)), NextThing)


def id_of(thing: str) -> int:
    """The id of a thing's text."""
    return int(hash_text([thing])[0])


def until(condition, seconds=60.0):
    """Return once `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.005)
