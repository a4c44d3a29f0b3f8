"""`dedupe=`: an event that comes again inside the span is left out, whatever happened in between.

events   a1 b1 ..... b1 ... a1 ................ a1        times of the deliveries; the number is the event's own time
span          |<------------------>|
                     out     out                counted again: 1 is older than a's newest less the span
"""

import random
from datetime import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import LayoutError
from headrace.features import Count, FeatureView, LastN, Slab, entity_ids, plan_of, read_packed
from headrace.features.state import seen as seen_ids
from headrace.features.state.operations import DUPLICATE, LATE, TAKEN, TOO_LATE
from headrace.history.replay import Replay
from headrace.schemas import Event
from tests import oracle
from tests.features.test_law import RIDERS, batches, history, read, reload
from tests.rides import BASE_US, GOLDEN_ONCE, ONCE, Ride, RiderOnce, add, frames, golden_records, ride
from tests.spines import replay_micros
from tests.tiers import by_tier

SPAN_US = 600_000_000
SEEDS = st.integers(0, 2**32)


class Trip(Event, topic="trips", key="rider", time="at", id="trip"):
    """A trip; the id is a number."""

    trip: int
    at: datetime
    rider: int


class TripsOnce(FeatureView, source=Trip, entity="rider", dedupe="10m"):
    """Each trip once."""

    trips = Count(windows=("10m", "lifetime"))


def trips(ids, seconds, riders=0):
    """Trips at so many seconds."""
    at = pl.Series([BASE_US + round(moment * 1e6) for moment in seconds], dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))
    return pl.DataFrame({"trip": list(ids), "at": at}).with_columns(rider=pl.lit(riders, pl.Int64))


def take_in(slab, frame):
    return slab.take_in(slab.plan.rows(Trip, frame)).tolist()


def counted(slab, rider=0):
    ids, _ = entity_ids(slab.plan, pl.DataFrame({"rider": [rider]}))
    return int(slab.read(slab.locate(ids), 2**60).columns["trips_lifetime"][0])


def defined(events, now_us):
    """What each rider's features must be, from the set of events."""
    return [oracle.answers(ONCE, [event for event in events if event["rider"] == rider], now_us) for rider in RIDERS]


def delivered(rng, events):
    """Batches of the events in any order, with events of this or an earlier one again, inside the span."""
    newest, came = dict.fromkeys(RIDERS, -(2**62)), []
    for batch in batches(rng, events):
        came += batch
        for event in batch:
            newest[event["rider"]] = max(newest[event["rider"]], event["time"])
        known = [event for event in came if event["time"] > newest[event["rider"]] - SPAN_US]
        again = rng.choices(known, k=rng.randrange(6)) if known else []
        yield rng.sample(batch + again, len(batch + again))


@settings(max_examples=by_tier(fast=25, whole=60))
@given(seed=SEEDS)
def test_duplicates_change_no_byte_in_any_order_and_batching_with_eviction(seed):
    """With and without duplicates, in two orders: equal bytes; reads are those of the set of events."""
    rng = random.Random(seed)
    events = history(rng, rng.randrange(1, 60))
    twice, once = Slab(plan_of(RiderOnce), 1), Slab(plan_of(RiderOnce), 1)
    for batch in delivered(rng, events):
        add(twice, batch)
        if rng.random() < 0.3:
            twice = reload(twice, rng)
    for batch in batches(rng, events):
        add(once, batch)
    ids = once.ids(once.rows())
    packed = twice.pack(twice.locate(ids))
    assert packed == once.pack(once.locate(ids))
    now_us = max(event["time"] for event in events) + rng.randrange(1, 10**9)
    found = read(twice, now_us)
    for row, expected in zip(found, defined(events, now_us), strict=True):
        assert all(oracle.same(row[name], value, 1e3) for name, value in expected.items()), (row, expected)
    answer = read_packed(twice.plan, ids, twice.texts(twice.locate(ids)), packed, now_us)
    assert answer.to_polars().equals(twice.read(twice.locate(ids), now_us).to_polars())


@settings(max_examples=by_tier(fast=40, whole=100))
@given(seed=SEEDS)
def test_each_delivery_is_judged_as_defined(seed):
    """A plain set as the model: known is what came with a time after the entity's newest less the span, to the edge."""
    rng = random.Random(seed)
    slab, came, newest, expected = Slab(plan_of(TripsOnce), 1), set(), {}, dict.fromkeys(RIDERS, 0)
    for _ in range(rng.randrange(1, 12)):
        size = rng.randrange(1, 40)
        riders = [rng.choice(RIDERS) for _ in range(size)]
        numbers = [rng.randrange(12) for _ in range(size)]
        seconds = [rng.choice([0, 1, 599, 599.999999, 600, 600.000001, 1_200]) for _ in range(size)]
        marks = []
        for event in zip(riders, numbers, seconds, strict=True):
            rider, _, moment = event
            newest[rider] = max(newest.get(rider, 0), moment)
            is_known = event in came and moment > newest[rider] - 600
            came.add(event)
            marks.append(is_known)
            expected[rider] += not is_known
        frame = trips(numbers, seconds).with_columns(rider=pl.Series(riders, dtype=pl.Int64))
        assert [mark == DUPLICATE for mark in take_in(slab, frame)] == marks
        if rng.random() < 0.3:
            slab = reload(slab, rng)
    assert {rider: counted(slab, rider) for rider in newest} == {rider: expected[rider] for rider in newest}


def test_an_id_with_another_time_or_entity_is_another_event():
    slab = Slab(plan_of(TripsOnce))
    assert take_in(slab, trips([1, 1, 1], [0, 1, 0])) == [TAKEN, TAKEN, DUPLICATE]
    assert take_in(slab, trips([1], [0], riders=1)) == [TAKEN]
    assert (counted(slab), counted(slab, 1)) == (2, 1)


def test_a_large_batch_finds_its_own_duplicates():
    """Large batches are carried out entity by entity, in threads; marks come back in the order of the events."""
    rng = np.random.default_rng(3)
    numbers = rng.permutation(np.repeat(np.arange(70_000), 2))
    frame = trips(numbers, numbers / 1_000).with_columns(rider=pl.Series(numbers % 7))
    slab = Slab(plan_of(TripsOnce))
    marks = np.array(take_in(slab, frame))
    first = np.unique(numbers, return_index=True)[1]
    again = np.ones(len(numbers), np.bool_)
    again[first] = False
    assert ((marks == DUPLICATE) == again).all()
    assert sum(counted(slab, rider) for rider in range(7)) == 70_000


@pytest.mark.slow
def test_of_very_many_events_in_the_span_the_newest_are_known():
    """70,000 events in 70 s, oldest first and in any order; what is known is the same after a reload."""
    count, forgotten = 70_000, 70_000 - seen_ids.KEEP_MAX
    numbers = np.arange(count)
    for order in (numbers, np.random.default_rng(1).permutation(numbers)):
        slab = Slab(plan_of(TripsOnce))
        for part in np.array_split(order, 9):
            assert DUPLICATE not in take_in(slab, trips(part, part / 1_000))
        copy, at = Slab(slab.plan), slab.rows()
        copy.load(slab.ids(at), slab.texts(at), slab.pack(at))
        for held in (slab, copy):
            marks = np.array(take_in(held, trips(numbers, numbers / 1_000)))
            assert (marks[:forgotten] == TAKEN).all()
            assert (marks[forgotten:] == DUPLICATE).all()
            assert counted(held) == count + forgotten


def test_memory_follows_the_events_of_the_span():
    """What leaves the span, and what is evicted, makes room: a hundred times the events take no more memory."""
    slab = Slab(plan_of(TripsOnce))
    sizes = []
    for turn in range(100):
        moments = turn * 700 + np.arange(2_000) * 0.3
        for rider in (0, 1 + turn):
            take_in(slab, trips(np.arange(2_000) + 2_000 * turn, moments, riders=rider))
        slab.drop(slab.locate(np.array([1 + turn])))
        sizes.append(slab.nbytes)
    assert sizes[-1] == sizes[2]


def test_golden_records():
    """Bytes on the wire are fixed: `python -m tests.rides` remakes them, with a new record version only."""
    fingerprint, *records = GOLDEN_ONCE.read_text().split()
    assert records == golden_records(RiderOnce, 900)
    assert plan_of(RiderOnce).fingerprint == fingerprint


def test_a_view_with_dedupe_is_another_version():
    """The span is part of the fingerprint; without it the layout is what it was."""
    kinds = [
        type("TripsOnce", (FeatureView,), {"trips": TripsOnce.trips}, source=Trip, entity="rider", dedupe=span)
        for span in (None, "10m", "600s", "11m")
    ]
    prints = [plan_of(kind).fingerprint for kind in kinds]
    assert prints[1] == prints[2] == plan_of(TripsOnce).fingerprint
    assert len(set(prints)) == 3
    assert plan_of(kinds[0]).layout.needs_ids is False


def test_damaged_records_are_refused_by_readers_and_engines():
    """Cut anywhere, also among the ids; changed bytes give an error or other ids, never a crash."""
    blob = bytes.fromhex(GOLDEN_ONCE.read_text().split()[1])
    plan = plan_of(RiderOnce)
    ids, texts = entity_ids(plan, pl.DataFrame({"rider": [0]}))
    for damaged in (*(blob[:end] for end in range(len(blob))), blob + b"\0"):
        with pytest.raises(LayoutError, match="damaged"):
            read_packed(plan, ids, texts, [damaged], BASE_US)
        with pytest.raises(LayoutError, match="damaged"):
            Slab(plan).load(ids, texts, [damaged])
    rng = np.random.default_rng(1)
    refused = 0
    for _ in range(400):
        changed = bytearray(blob)
        changed[rng.integers(32, len(blob))] = rng.integers(256)
        slab = Slab(plan)
        try:
            slab.load(ids, texts, [bytes(changed)])
        except LayoutError:
            refused += 1
        add(slab, [ride(1, BASE_US, 0, random.Random(1))])
        slab.pack(slab.rows())
    assert refused > 50


@settings(max_examples=by_tier(fast=12, whole=25))
@given(seed=SEEDS)
def test_replay_is_the_live_flow_and_knows_every_duplicate(seed):
    """A history with duplicates gives the values of the same history without; cut or whole, saved and loaded or not."""
    rng = random.Random(seed)
    events = sorted(history(rng, rng.randrange(1, 50)), key=lambda event: event["time"])
    doubled = sorted(events + rng.choices(events, k=10), key=lambda event: event["time"])
    moments = [event["time"] for event in events]
    spine = pl.DataFrame(
        {
            "rider": rng.choices(RIDERS, k=12),
            "event_time": [rng.choice(moments) + rng.choice([0, 1, 10**9]) for _ in range(12)],
        }
    )
    expected = replay_micros([RiderOnce], frames(events), spine)
    assert replay_micros([RiderOnce], frames(doubled), spine, chunk_rows=7).equals(expected)
    walk, live = Replay([RiderOnce]), Slab(plan_of(RiderOnce))
    for event in doubled:
        add(live, [event])
    for part in (doubled[: len(doubled) // 2], doubled[len(doubled) // 2 :]):
        walk.advance(frames(part))
    slab = walk.slabs["rider_once"]
    ids = live.ids(live.rows())
    assert slab.pack(slab.locate(ids)) == live.pack(live.locate(ids))


class Windows(FeatureView, source=Ride, entity="rider"):
    """Windows of several lengths, some for tickets only."""

    rides = Count(windows=("10s", "10m"))
    tickets = Count(where=pl.col("kind") == "ticket", windows="1h")


class WithList(FeatureView, source=Ride, entity="rider"):
    """A window and a list."""

    rides = Count(windows="10s")
    tickets = LastN("line", n=1, where=pl.col("kind") == "ticket")


@pytest.mark.parametrize("filler", [0, 3_000, 70_000])
def test_too_late_is_what_no_window_that_wanted_it_reaches(filler):
    """A ticket an hour back is late for two windows and in time for the third; a pass is too late. A list takes any."""
    newest_us = BASE_US + 3_000_000_000
    base = {"class": "Ride", "id": "a", "line": "1", "stops": 1, "fare": 1.0, "zone": None, "rider": 0, "kind": "pass"}

    def marks(view, *late):
        events = [{**base, "time": newest_us}]
        events += [{**base, "id": f"{i}", "time": newest_us, "rider": 9} for i in range(filler)]
        events += [{**base, "time": BASE_US + moment_s * 1_000_000, "kind": kind} for moment_s, kind in late]
        slab = Slab(plan_of(view))
        return slab.take_in(slab.plan.rows(Ride, frames(events)[Ride])).tolist()[filler + 1 :]

    assert marks(Windows, (2_995, "pass"), (2_900, "pass"), (100, "ticket"), (100, "pass")) == [
        TAKEN,
        LATE,
        LATE,
        TOO_LATE,
    ]
    assert marks(WithList, (2_000, "ticket"), (2_000, "pass")) == [LATE, TOO_LATE]


@settings(max_examples=by_tier(fast=20, whole=40))
@given(seed=SEEDS)
def test_marks_of_late_events_are_as_defined(seed):
    """By the newest event of the rider when each event comes, whatever the batches."""
    rng = random.Random(seed)
    rides = [event for event in history(rng, 80) if event["class"] == "Ride"]
    slab, newest, expected, found = Slab(plan_of(Windows), 1), {}, [], []
    for batch in batches(rng, rides):
        for event in batch:
            latest_us = newest[event["rider"]] = max(newest.get(event["rider"], 0), event["time"])
            spans = ("10s", "10m", "1h") if event["kind"] == "ticket" else ("10s", "10m")
            reached = [
                event["time"] >= latest_us // oracle.hop_us(span) * oracle.hop_us(span) - oracle.seconds(span) * 10**6
                for span in spans
            ]
            expected.append(TAKEN if all(reached) else LATE if any(reached) else TOO_LATE)
        found += slab.take_in(slab.plan.rows(Ride, frames(batch)[Ride])).tolist()
        if rng.random() < 0.3:
            slab = reload(slab, rng)
    assert found == expected


def test_every_kernel_is_compiled_once():
    found = {
        name: len(value.signatures)
        for name, value in vars(seen_ids).items()
        if hasattr(value, "signatures") and not value.targetoptions.get("forceinline")
    }
    assert len(found) == 4
    assert {name: count for name, count in found.items() if count > 1} == {}
