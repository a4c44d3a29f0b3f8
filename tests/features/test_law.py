"""A record is a function of the set of its events, and a read is what the definition says."""

import random
import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.features import Slab, aggregations, entity_ids, plan_of, read_packed
from tests import oracle
from tests.definitions import DEFINITIONS, Definition, name_of
from tests.rides import BASE_US, FLOATS, TRIPS, WHOLES, Ride, RiderFloats, RiderTrips, RiderWhole, add, frames, ride
from tests.spines import replay_micros

RIDERS = [0, 1, 2]
SPANS_S = (3, 40, 700, 4_000, 100_000, 3_000_000)
MIXED = {RiderTrips: TRIPS, RiderFloats: FLOATS, RiderWhole: WHOLES}
"""Views of several aggregations that share state, of two sources, or of numbers that a float cannot hold."""
VIEWS = pytest.mark.parametrize("view", MIXED)
EACH = pytest.mark.parametrize("definition", DEFINITIONS, ids=name_of)

SEEDS = st.integers(0, 2**32)


def history(rng, size):
    """Events of three riders, some at equal times, some far apart, around a whole day."""
    spans = [rng.choice(SPANS_S) for _ in range(3)]
    return [
        ride(
            i,
            BASE_US + int(rng.random() * rng.choice(spans)) * rng.choice([1_000_000, 500_000]),
            rng.choice(RIDERS),
            rng,
        )
        for i in range(size)
    ]


def batches(rng, events):
    """The events in any order, cut anywhere."""
    events = rng.sample(events, len(events))
    while events:
        cut = rng.randrange(1, len(events) + 1)
        yield events[:cut]
        events = events[cut:]


def reload(slab, rng):
    """Evict some records, and load them again from their bytes; some into a new slab altogether."""
    rows = slab.rows()
    ids, texts, blobs = slab.ids(rows), slab.texts(rows), slab.pack(rows)
    target = slab if rng.random() < 0.5 else Slab(slab.plan, 1)
    slab.drop(rows)
    target.load(ids, texts, blobs)
    return target


def read(slab, now_us):
    """Answers by rider."""
    ids, _ = entity_ids(slab.plan, pl.DataFrame({"rider": RIDERS}))
    return rows_of(slab.read(slab.locate(ids), now_us))


def rows_of(answer):
    """An answer as one dict an entity, times as microseconds."""
    frame = answer.to_polars()
    times = [name for name, dtype in frame.schema.items() if dtype == pl.List(pl.Datetime("us", "UTC"))]
    return frame.with_columns(pl.col(times).cast(pl.List(pl.Int64))).to_dicts()


def check(rows, view, events, now_us):
    """Every feature of every rider is what its definition says."""
    for rider, row in zip(RIDERS, rows, strict=True):
        mine = [event for event in events if event["rider"] == rider]
        if view is not RiderTrips:
            mine = [event for event in mine if event["class"] == "Ride"]
        for name, expected in oracle.answers(MIXED[view], mine, now_us).items():
            assert oracle.same(oracle.plain(row[name]), oracle.plain(expected), 1e3), (name, rider, row[name], expected)


@VIEWS
@settings(max_examples=40)
@given(seed=SEEDS)
def test_any_order_batching_and_eviction_reads_as_defined(view, seed):
    """Events come in any order; the read is at or after the newest."""
    rng = random.Random(seed)
    events = history(rng, rng.randrange(60))
    slab = Slab(plan_of(view), 1)
    for batch in batches(rng, events):
        add(slab, batch)
        if rng.random() < 0.3:
            slab = reload(slab, rng)
    newest_us = max((event["time"] for event in events), default=BASE_US)
    now_us = newest_us + 1 + int(rng.random() * rng.choice(SPANS_S) * 1e6)
    check(read(slab, now_us), view, events, now_us)


@pytest.mark.parametrize("view", [RiderTrips, RiderWhole])
@settings(max_examples=40)
@given(seed=SEEDS)
def test_bytes_follow_from_the_set_of_events(view, seed):
    """Two orders, two batchings, with and without eviction: the same bytes, and the same reads, of the past too."""
    rng = random.Random(seed)
    events = history(rng, rng.randrange(1, 60))
    slabs = []
    for _ in range(2):
        slab = Slab(plan_of(view), 1)
        for batch in batches(rng, events):
            add(slab, batch)
            if rng.random() < 0.3:
                slab = reload(slab, rng)
        slabs.append(slab)
    ids = slabs[0].ids(slabs[0].rows())
    one, two = (slab.pack(slab.locate(ids)) for slab in slabs)
    assert one == two
    past_us = min(event["time"] for event in events) + rng.randrange(1, 10**12)
    assert read(slabs[0], past_us) == read(slabs[1], past_us)


@VIEWS
@settings(max_examples=20)
@given(seed=SEEDS)
def test_packed_records_read_like_the_slab(view, seed):
    """`read_packed` and a slab that loaded the bytes answer alike; so does what they pack again."""
    rng = random.Random(seed)
    events = history(rng, rng.randrange(1, 60))
    slab = Slab(plan_of(view))
    add(slab, events)
    ids, texts = entity_ids(slab.plan, pl.DataFrame({"rider": RIDERS}))
    at = slab.locate(ids)
    blobs = [slab.pack(np.array([row]), 5, 6)[0] if row >= 0 else None for row in at]
    now_us = max(event["time"] for event in events) + rng.randrange(1, 10**10)
    answer = read_packed(slab.plan, ids, texts, blobs, now_us)
    check(rows_of(answer), view, events, now_us)
    ours = slab.read(at, now_us)
    assert answer.to_polars().equals(ours.to_polars())
    assert answer.found.tolist() == ours.found.tolist() == [blob is not None for blob in blobs]
    assert answer.age_us.tolist() == ours.age_us.tolist()
    again = Slab(slab.plan)
    again.load(ids, texts, blobs)
    held = at >= 0
    assert again.pack(again.locate(ids)[held], 5, 6) == [blob for blob in blobs if blob]


def test_late_event_is_left_out_of_the_windows_it_missed_and_counted():
    """The older event is outside of 10 s, inside of 24 h.

    time  0 ------------------------ 1000 s
          late                       first to arrive
    """
    rng = random.Random(1)
    new, old = ride(1, BASE_US + 1_000_000_000, 0, rng), ride(2, BASE_US, 0, rng)
    slab = Slab(plan_of(RiderTrips))
    assert add(slab, [new]) == 0
    assert add(slab, [old]) == 1
    row = read(slab, BASE_US + 1_000_000_001)[0]
    assert (row["all_10s"], row["all_24h"]) == (1, 2)


def test_idle_windows_decay_without_events():
    """The same record, read later and later."""
    rng = random.Random(1)
    slab = Slab(plan_of(RiderTrips))
    add(slab, [ride(1, BASE_US, 0, rng)])
    counts = [read(slab, BASE_US + after * 1_000_000)[0]["all_10m"] for after in (1, 599, 620)]
    assert counts == [1, 1, 0]


def test_a_large_batch_is_like_its_events_one_by_one():
    """From some size on a batch is carried out entity by entity; nothing of it shows, late events are counted alike."""
    rng = random.Random(3)
    moments = [BASE_US + int(rng.random() * rng.choice(SPANS_S) * 1e6) for _ in range(8_000)]
    events = [ride(i, moment, rng.randrange(40), rng) for i, moment in enumerate(moments)]
    events = [event for event in events if event["class"] == "Ride"]
    plan = plan_of(RiderFloats)
    whole, parts = Slab(plan), Slab(plan)
    late = add(whole, events)
    late_of_parts = sum(add(parts, events[i : i + 100]) for i in range(0, len(events), 100))
    ids = whole.ids(whole.rows())
    assert whole.pack(whole.locate(ids)) == parts.pack(parts.locate(ids))
    assert late == late_of_parts > 0


def test_every_aggregation_is_defined():
    """A new aggregation comes with its definition."""
    assert {name_of(definition) for definition in DEFINITIONS} == set(aggregations.__all__)


def test_every_aggregation_has_an_example():
    """A doctest with a printed value, as the docs show it."""
    for name in aggregations.__all__:
        assert re.search(r">>> read_at_noon\((.|\n)*\n\s*\{'", getattr(aggregations, name).__doc__), name


def require(definition: Definition, rows, events, now_us):
    """Each rider's row is what the definition says."""
    for rider, row in zip(RIDERS, rows, strict=True):
        mine = [event for event in events if event["rider"] == rider and event["class"] == "Ride"]
        assert definition.holds(row, mine, now_us), (rider, row)


@EACH
@settings(max_examples=8)
@given(seed=SEEDS)
def test_each_aggregation_obeys_the_law(definition, seed):
    """Any order, batching and eviction: the defined value, from the slab and from its bytes, and the same bytes."""
    rng = random.Random(seed)
    events = history(rng, rng.randrange(1, 60))
    now_us = max(event["time"] for event in events) + 1 + int(rng.random() * rng.choice(SPANS_S) * 1e6)
    plan = plan_of(definition.view)
    ids, texts = entity_ids(plan, pl.DataFrame({"rider": RIDERS}))
    packed = []
    for _ in range(2):
        slab = Slab(plan, 1)
        for batch in batches(rng, events):
            add(slab, batch)
            if rng.random() < 0.3:
                slab = reload(slab, rng)
        require(definition, read(slab, now_us), events, now_us)
        rows = slab.locate(ids)
        blobs = [slab.pack(np.array([row]))[0] if row >= 0 else None for row in rows]
        require(definition, rows_of(read_packed(plan, ids, texts, blobs, now_us)), events, now_us)
        packed.append(blobs)
    assert definition.rounds or packed[0] == packed[1]


@EACH
@settings(max_examples=4)
@given(seed=SEEDS)
def test_each_aggregation_replays_as_defined(definition, seed):
    """Reads between the events of a history, in one pass."""
    rng = random.Random(seed)
    events = history(rng, rng.randrange(1, 60))
    moments = [rng.choice(events)["time"] + rng.choice([-1, 0, 1, 10**6, 10**9]) for _ in range(10)]
    spine = pl.DataFrame({"rider": [rng.choice(RIDERS) for _ in moments], "event_time": moments})
    result = replay_micros(definition.view, frames(events)[Ride], spine).rename(lambda name: name.split(".")[-1])
    for row in result.to_dicts():
        mine = [event for event in events if event["rider"] == row["rider"] and event["class"] == "Ride"]
        assert definition.holds(row, mine, row["event_time"]), row
