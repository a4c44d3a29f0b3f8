"""Replay = oracle = live flow, however history is cut and wherever the spine's rows fall."""

import random

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ConfigError, DeclarationError, LayoutError, SchemaError, SourceError, SpineError
from headrace.features import Count, FeatureView, LastN, Slab, Sum, col, entity_ids, plan_of
from headrace.history.replay import Replay, replay
from tests import oracle
from tests.features.test_law import RIDERS, check, history, rows_of
from tests.oracle import plain
from tests.rides import BASE_US, TRIPS, Check, Ride, RiderFloats, RiderTrips, add, frames, ride
from tests.spines import in_time, replay_micros


def spine_of(rng, events, rows):
    """Rows at the times of events, just beside them, and anywhere; one rider never rides."""
    moments = [event["time"] for event in events] or [BASE_US]
    return pl.DataFrame(
        {
            "rider": [rng.choice([*RIDERS, 77]) for _ in range(rows)],
            "event_time": [rng.choice(moments) + rng.choice([0, 0, 1, -1, 700_000_000]) for _ in range(rows)],
            "note": list(range(rows)),
        },
        schema={"rider": pl.Int64, "event_time": pl.Int64, "note": pl.Int64},
    )


def assert_defined(result, events, definitions, view):
    """Every row of a replayed frame is what the definitions say."""
    names = [f"{view}.{name}" for name in definitions]
    times = [name for name, dtype in result.schema.items() if dtype == pl.List(pl.Datetime("us", "UTC"))]
    for row in result.with_columns(pl.col(times).cast(pl.List(pl.Int64))).to_dicts():
        mine = [event for event in events if event["rider"] == row["rider"]]
        expected = oracle.answers(definitions, mine, row["event_time"])
        for name in names:
            found = plain(expected[name.split(".")[1]])
            assert oracle.same(row[name], found, 1e3), (name, row["note"], row[name], found)


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_replay_is_the_oracle_and_the_live_flow(seed):
    """One call, many calls, and a live slab that is read as events come give the same."""
    rng = random.Random(seed)
    events = sorted(history(rng, rng.randrange(50)), key=lambda event: event["time"])
    spine = spine_of(rng, events, rng.randrange(1, 25))
    whole = replay_micros([RiderTrips], frames(events), spine)
    assert whole.select(spine.columns).equals(spine)
    assert_defined(whole, events, TRIPS, "rider_trips")

    walk, slab = Replay([RiderTrips]), Slab(plan_of(RiderTrips))
    cuts = sorted(rng.choices(spine["event_time"].to_list(), k=2))
    done = 0
    for start, end in zip([-1, *cuts], [*cuts, 2**60], strict=True):
        part = [event for event in events if start <= event["time"] < end]
        rows = spine.filter(pl.col("event_time").is_between(start, end, closed="right"))
        answers = walk.advance(frames(part), rows)
        wanted = whole.filter(pl.col("note").is_in(rows["note"].implode())).select(pl.selectors.contains("."))
        assert answers["rider_trips"].to_polars("rider_trips.").equals(wanted)
        done += rows.height
    assert done == spine.height

    for row in spine.sort("event_time").to_dicts():
        add(slab, [event for event in events if event["time"] < row["event_time"]])
        events = [event for event in events if event["time"] >= row["event_time"]]
        ids, _ = entity_ids(slab.plan, pl.DataFrame({"rider": [row["rider"]]}))
        live = slab.read(slab.locate(ids), row["event_time"]).to_polars("rider_trips.")
        assert live.equals(whole.filter(pl.col("note") == row["note"]).select(live.columns)), row


class Pair(FeatureView, source=Ride, entity=("rider", "line")):
    """A composite entity, of an integer and a text."""

    rides = Count(windows="lifetime")


class Short(FeatureView, source=Ride, entity="rider"):
    """A few features, for a large history."""

    rides = Count(windows=("10m", "24h"))
    tickets = Count(where=col("kind") == "ticket", windows="1h")
    stops = Sum("stops", windows="1h")
    lines = LastN("line", n=5, distinct=True)


SHORT = {
    "rides_10m": lambda e, t: oracle.count(oracle.window(e, "10m", t)),
    "rides_24h": lambda e, t: oracle.count(oracle.window(e, "24h", t)),
    "tickets_1h": lambda e, t: oracle.count([x for x in oracle.window(e, "1h", t) if x["kind"] == "ticket"]),
    "stops_1h": lambda e, t: oracle.total(oracle.window(e, "1h", t), "stops"),
    "lines": lambda e, t: oracle.last_distinct(oracle.before(e, t), "line", 5),
}


def test_twenty_thousand_reads_in_many_chunks():
    """20,000 rows over 20,000 events of 2,000 riders, walked in chunks of 7,000."""
    rng = random.Random(11)
    events = [ride(i, BASE_US + rng.randrange(200_000) * 1_000_000, rng.randrange(2_000), rng) for i in range(25_000)]
    events = [event for event in events if event["class"] == "Ride"]
    spine = pl.DataFrame(
        {
            "rider": [rng.randrange(2_010) for _ in range(20_000)],
            "event_time": [BASE_US + rng.randrange(200_000) * 1_000_000 for _ in range(20_000)],
        }
    )
    result = replay_micros(Short, frames(events)[Ride], spine, chunk_rows=7_000)
    by_rider = {}
    for event in events:
        by_rider.setdefault(event["rider"], []).append(event)
    for row in result.to_dicts():
        for name, expected in oracle.answers(SHORT, by_rider.get(row["rider"], []), row["event_time"]).items():
            assert row[f"short.{name}"] == expected, (name, row)


def test_two_views_over_one_spine():
    """Columns of both, beside the spine's own."""
    rng = random.Random(3)
    events = history(rng, 40)
    spine = spine_of(rng, events, 10)
    result = replay_micros([RiderTrips, RiderFloats], frames(events), spine)
    names = [f.full_name for view in (RiderTrips, RiderFloats) for f in plan_of(view).features]
    assert result.columns == [*spine.columns, *names]


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "jsonl", "csv"])
def test_files_are_read_by_their_suffix(tmp_path, suffix):
    """The same answers from a file as from the frame it was written from."""
    rng = random.Random(4)
    events = [{**event, "fare": 0.25, "line": "1"} for event in history(rng, 40) if event["class"] == "Ride"]
    frame = frames(events)[Ride].sample(fraction=1.0, shuffle=True, seed=1)
    spine = spine_of(rng, events, 10)
    path = tmp_path / f"rides.{suffix}"
    if suffix == "parquet":
        frame.write_parquet(path)
    elif suffix == "arrow":
        frame.write_ipc(path)
    elif suffix == "jsonl":
        frame.write_ndjson(path)
    else:
        frame.write_csv(path)
    assert replay_micros(Short, path, spine).equals(replay_micros(Short, frame, spine))


def test_naive_and_coarse_times_are_utc():
    """Milliseconds and naive datetimes, of events and spine alike."""
    rng = random.Random(5)
    events = [event for event in history(rng, 40) if event["class"] == "Ride"]
    spine = spine_of(rng, events, 10)
    frame = frames(events)[Ride]
    other = frame.with_columns(pl.col("at").dt.replace_time_zone(None).dt.cast_time_unit("ns"))
    typed = spine.with_columns(pl.col("event_time").cast(pl.Datetime("us")))
    ours = replay(Short, other, typed).drop("event_time")
    assert ours.equals(replay_micros(Short, frame, spine).drop("event_time"))


def test_save_and_load_go_on_where_it_stopped(tmp_path):
    """Half of history, save, load into a new pass, the other half: as if never stopped."""
    rng = random.Random(6)
    events = sorted(history(rng, 60), key=lambda event: event["time"])
    first, whole = Replay([RiderTrips, RiderFloats]), Replay([RiderTrips, RiderFloats])
    first.advance(frames(events[:30]))
    first.save(tmp_path)
    second = Replay([RiderTrips, RiderFloats])
    second.load(tmp_path)
    second.advance(frames(events[30:]))
    whole.advance(frames(events))
    for name, slab in whole.slabs.items():
        rows = slab.rows()
        theirs = second.slabs[name]
        assert theirs.pack(theirs.locate(slab.ids(rows))) == slab.pack(rows) or name == "rider_floats"


def test_backfilled_rows_are_dirty_so_that_they_can_be_written():
    """Both ways of a pass mark what changed."""
    rng = random.Random(7)
    events = history(rng, 20)
    for spine in (None, spine_of(rng, events, 3)):
        walk = Replay([RiderTrips])
        walk.advance(frames(events), spine)
        assert len(walk.slabs["rider_trips"].dirty()) == len(walk.slabs["rider_trips"])


def test_a_null_key_is_answered_as_missing():
    """Spine rows of unknown riders, and events without one, are no error."""
    rng = random.Random(8)
    events = [event for event in history(rng, 20) if event["class"] == "Ride"]
    frame = frames(events)[Ride].with_columns(pl.when(pl.col("rider") > 0).then("rider"))
    spine = pl.DataFrame(
        {"rider": [None, 0, 1], "event_time": [BASE_US + 10**13] * 3}, schema_overrides={"rider": pl.Int64}
    )
    assert (replay_micros(Short, frame, spine)["short.rides_24h"] == 0).to_list()[:2] == [True, True]
    answer = Replay([Short]).advance({Ride: frame}, spine)["short"]
    assert answer.found.tolist()[:2] == [False, False]


SPINE = in_time(pl.DataFrame({"rider": [1], "event_time": [BASE_US]}))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: replay(Short, _rides(), SPINE.drop("rider")),
            SpineError,
            "view short: no column 'rider'.*there are event_time",
        ),
        (
            lambda: replay(Short, _rides(), SPINE.drop("event_time")),
            SpineError,
            "view short.*'event_time'; there are rider",
        ),
        (
            lambda: replay(Short, _rides(), SPINE.cast({"event_time": pl.String})),
            SpineError,
            "is String; use a datetime",
        ),
        (
            lambda: replay(Short, _rides(), SPINE.with_columns(rider=pl.lit("x"))),
            SpineError,
            "view short: entity column rider: the column is String, such as 'x', and the events have an int",
        ),
        (
            lambda: replay(
                Short, _rides(), pl.concat([SPINE.cast({"rider": pl.Float64})] * 2).with_columns(rider=pl.lit(1.7))
            ),
            SpineError,
            "view short: entity column rider: 1.7 is no whole number",
        ),
        (
            lambda: replay(Pair, _rides(), SPINE.with_columns(rider=pl.lit(1.0), line=pl.lit("1"))),
            SpineError,
            r"view pair: entity column rider is Float64; cast it before, as pl\.col\(.rider.\)\.cast\(pl.Int64\)",
        ),
        (
            lambda: replay(Short, _rides(), SPINE.with_columns(pl.lit(0).alias("short.rides_10m"))),
            SpineError,
            "view short: the spine has a column 'short.rides_10m' already; drop or rename it, as spine.drop",
        ),
        (lambda: replay(Ride, _rides(), SPINE), DeclarationError, "class tests.rides:Ride is no view"),
        (
            lambda: replay(Short, _rides(), SPINE.with_columns(event_time=pl.lit(None, pl.Datetime("us")))),
            SpineError,
            "null in 1 of 1",
        ),
        (lambda: replay(5, _rides(), SPINE), DeclarationError, "5 is no view; name a class"),
        (lambda: replay(Short, _rides(), SPINE, memory_rows=0), ConfigError, "memory_rows=0: give 1 or more"),
        (lambda: replay(Short, _rides(), SPINE, chunk_rows=-1), ConfigError, "chunk_rows=-1: give 1 or more"),
        (
            lambda: replay(Short, _rides(), SPINE.with_columns(event_time=pl.lit(2**64 - 1)), time_unit="s"),
            SpineError,
            "spine: column 'event_time' has 18446744073709551615, beyond 64 bits",
        ),
        (lambda: replay(Short, "", SPINE), SourceError, "'' names no file; write a path, a glob"),
        (lambda: replay(Short, _rides().drop("line"), SPINE), SchemaError, "view short · event Ride.*line.*there are"),
        (lambda: replay(Short, _rides().drop("at"), SPINE), SchemaError, "event Ride.at: no such column"),
        (lambda: replay(RiderTrips, _rides(), SPINE), SchemaError, "Ride, Check; give events as a dict"),
        (lambda: replay(RiderTrips, {Ride: _rides()}, SPINE), SchemaError, "no events of Check"),
        (
            lambda: replay(Short, "rides.xml", SPINE),
            SourceError,
            "file rides.xml does not exist",
        ),
        (lambda: replay(Short, "none.parquet", SPINE), SourceError, "file none.parquet does not exist"),
        (lambda: Replay([Short, Short]), DeclarationError, "view short .* is given twice; give it once"),
        (lambda: plan_of(Short).rows(Check, _rides()), SchemaError, "view short: reads Ride, not Check"),
    ],
)
def test_errors_name_the_place_and_the_fix(call, error, words):
    """What was found, where, and what is allowed."""
    with pytest.raises(error, match=words):
        call()


def test_a_null_key_of_a_spine_is_nobody():
    """Also beside events whose key is what NaN becomes as int64."""
    events = _rides().with_columns(rider=pl.when(pl.int_range(pl.len()) > 2).then(-(2**63)).otherwise("rider"))
    spine = pl.DataFrame({"rider": [1, None, -(2**63)], "event_time": [BASE_US + 100] * 3})
    assert replay_micros(Short, events, spine)["short.rides_10m"].to_list() == [3, 0, 0]


def test_load_refuses_what_is_not_there_or_of_another_version(tmp_path):
    """An empty folder; a folder of a view that was changed."""
    with pytest.raises(SourceError, match="holds no saved records of short"):
        Replay([Short]).load(tmp_path)
    walk = Replay([Short])
    walk.advance({Ride: _rides()})
    walk.save(tmp_path)

    class Changed(FeatureView, source=Ride, entity="rider", name="short"):
        rides = Count(windows="10m")

    with pytest.raises(LayoutError, match="the view was changed"):
        Replay([Changed]).load(tmp_path)


def _rides():
    rng = random.Random(9)
    return frames([ride(i, BASE_US + i, 1, rng) for i in range(9)])[Ride]


def test_check_helper_sees_a_wrong_value():
    """The comparison itself fails where it must."""
    rng = random.Random(10)
    events = history(rng, 10)
    slab = Slab(plan_of(RiderTrips))
    add(slab, events)
    now_us = BASE_US + 10**13
    ids, _ = entity_ids(slab.plan, pl.DataFrame({"rider": RIDERS}))
    rows = rows_of(slab.read(slab.locate(ids), now_us))
    check(rows, RiderTrips, events, now_us)
    rows[0]["all_lifetime"] += 1
    with pytest.raises(AssertionError):
        check(rows, RiderTrips, events, now_us)
