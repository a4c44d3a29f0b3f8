"""The recipe of CONTRIBUTING: an aggregation from outside the package, in one file, through public names alone."""

import importlib.util
import math
import random
import re

import numpy as np
import polars as pl
import pytest

from headrace import Count, FeatureView, OnlineStore
from headrace.errors import DeclarationError
from headrace.features import Slab, entity_ids, plan_of, read_packed
from headrace.features.aggregations.aggregation import Aggregation, Combination, Windowed, aggregation
from headrace.pipelines.shard import ShardSet
from headrace.streams.source import EventBatch
from tests import oracle
from tests.definitions import Definition, windowed
from tests.rides import BASE_US, Ride, add, frames, ride
from tests.spines import replay_micros

SPANS = ("10m", "24h", "lifetime")
NOW_US = BASE_US + 7_200_000_000
RIDERS = [0, 1, 2]


@pytest.fixture
def recipe(repo):
    """The code of CONTRIBUTING's section on aggregations."""
    section = (repo / "CONTRIBUTING.md").read_text().split("## Add an aggregation")[1].split("\n## ")[0]
    [code] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return code


@pytest.fixture
def definition(recipe, tmp_path):
    """The recipe's aggregation, imported from one file, and what it means."""
    path = tmp_path / "root_mean_square.py"
    path.write_text(recipe)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Definition(module.RootMeanSquare("fare", windows=SPANS), windowed(root_mean_square, *SPANS))


def root_mean_square(events):
    """By the textbook."""
    found = oracle.numbers(events, "fare")
    return math.sqrt(math.fsum(x * x for x in found) / len(found)) if found else None


@pytest.fixture
def events():
    rng = random.Random(5)
    return [ride(i, BASE_US + rng.randrange(7_200) * 1_000_000, rng.choice([0, 1]), rng) for i in range(200)]


def require(definition, rows, events, now_us=NOW_US):
    """Each rider's row is what the definition says; one of them has rides."""
    rides = [event for event in events if event["class"] == "Ride"]
    for rider, row in zip(RIDERS, rows, strict=True):
        assert definition.holds(row, [event for event in rides if event["rider"] == rider], now_us), row
    assert rows[0]["it_lifetime"] > 0


def test_it_uses_public_names_alone(recipe):
    """Only the package and its room are imported."""
    modules = set(re.findall(r"^(?:from|import) (\S+)", recipe, re.MULTILINE))
    assert modules == {"numpy", "headrace", "headrace.features"}


def test_it_is_right_in_memory_and_packed(definition, events):
    """A slab's read, a packed record's, and one that was loaded."""
    plan = plan_of(definition.view)
    slab, again = Slab(plan), Slab(plan)
    add(slab, events)
    ids, texts = entity_ids(plan, pl.DataFrame({"rider": RIDERS}))
    rows = slab.locate(ids)
    blobs = [slab.pack(rows[i : i + 1])[0] if row >= 0 else None for i, row in enumerate(rows)]
    require(definition, slab.read(rows, NOW_US).to_polars().to_dicts(), events)
    require(definition, read_packed(plan, ids, texts, blobs, NOW_US).to_polars().to_dicts(), events)
    again.load(ids, texts, blobs)
    require(definition, again.read(again.locate(ids), NOW_US).to_polars().to_dicts(), events)


def test_it_is_right_in_replay(definition, events):
    """As of a moment among the events, and after them."""
    for now_us in (BASE_US + 3_600_000_000, NOW_US):
        spine = pl.DataFrame({"rider": RIDERS, "event_time": [now_us] * len(RIDERS)})
        result = replay_micros(definition.view, frames(events)[Ride], spine)
        require(definition, result.rename(lambda name: name.split(".")[-1]).to_dicts(), events, now_us)


def test_it_is_right_in_the_store(definition, events, redis_url):
    """Applied by a shard, flushed to Redis, read by the public `OnlineStore.read`."""
    view = definition.view
    with OnlineStore.open(redis_url) as store:
        shards = ShardSet(plan_of(view), store, range(store.shards))
        rows = frames(events)[Ride]
        offsets = np.arange(rows.height)
        shards.apply(EventBatch(Ride, "rides/0", offsets, rows.height, rows, None, NOW_US))
        shards.flush()
        require(definition, store.read(view, RIDERS, now=NOW_US).to_dicts(), events)


@pytest.mark.parametrize(("base", "missing"), [(Aggregation, "state"), (Windowed, "cells"), (Combination, "combine")])
def test_one_that_lacks_a_method_is_refused_by_its_name(base, missing):
    """At the declaration of the view, with the methods that it needs."""
    lacking = aggregation(type("Lacking", (base,), {"__annotations__": {}}))
    with pytest.raises(DeclarationError, match=rf"Lacking defines no `{missing}`"):
        plan_of(
            type(
                "Lacks",
                (FeatureView,),
                {"value": lacking(), "count": Count(windows="lifetime")},
                source=Ride,
                entity="rider",
            )
        )
