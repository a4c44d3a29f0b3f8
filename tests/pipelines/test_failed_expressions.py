"""An event that a view's expression has no value for costs itself alone: live, on replay and in verify."""

from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np
import polars as pl
import pytest
from prometheus_client import REGISTRY

from headrace import Count, Event, FeatureView, Last, LastN, OnlineStore, Quantile, Sum, col, replay
from headrace.features import plan_of
from headrace.history.export import replay_to_file
from headrace.history.verify import verify
from headrace.pipelines import FileSource, Intake, Materializer, loop
from headrace.pipelines.shard import ShardSet
from headrace.schemas import codec_for
from headrace.streams.source import EventBatch
from tests.logs import capture_logs

START = datetime(2026, 1, 1, tzinfo=UTC)


class Ping(Event, topic="pings", key="host", time="at", id="ping_id", codec="json"):
    """A host was measured; levels and tags come as texts."""

    ping_id: str
    at: datetime
    host: int | None
    level: str
    kind: Literal["a", "b", "c"]
    tags: list[str]


class Plain(FeatureView, source=Ping, entity="host"):
    """Takes every event."""

    pings = Count(windows="lifetime")


class Strict(FeatureView, source=Ping, entity="host"):
    """Takes those whose level is a number, whose kind is known, and that have a second tag."""

    pings = Count(windows="lifetime")
    level = Sum(col("level").cast(pl.Int64), windows="lifetime")
    kind = Last(col("kind").replace_strict({"a": 1, "b": 2}))
    second = LastN(col("tags").list.get(1), n=3)
    big = Count(where=col("level").cast(pl.Int64) > 5, windows="1h")
    middle = Quantile(col("level").str.to_integer(), q=0.5, windows="lifetime")


class Letters:
    """Dead letters in memory."""

    def __init__(self):
        self.all = []

    def write(self, letters):
        self.all += letters

    def close(self):
        """Nothing to close."""


def pings(n, seed=0, bad=0.5, hosts=7):
    """(n,) events, of which about `bad` fail in `Strict`; every tenth has no host."""
    rng = np.random.default_rng(seed)
    fails = rng.random(n) < bad
    which = rng.integers(0, 3, n)
    return pl.DataFrame(
        {
            "ping_id": [f"p{i}" for i in range(n)],
            "at": [START + timedelta(seconds=int(i)) for i in range(n)],
            "host": [None if i % 10 == 9 else int(rng.integers(hosts)) for i in range(n)],
            "level": ["high" if fails[i] and which[i] == 0 else str(int(rng.integers(12))) for i in range(n)],
            "kind": ["c" if fails[i] and which[i] == 1 else str(rng.choice(["a", "b"])) for i in range(n)],
            "tags": [["x"] if fails[i] and which[i] == 2 else ["x", str(i)] for i in range(n)],
        },
        schema={
            "ping_id": pl.String,
            "at": pl.Datetime("us", "UTC"),
            "host": pl.Int64,
            "level": pl.String,
            "kind": pl.String,
            "tags": pl.List(pl.String),
        },
    )


def is_good(frame):
    """By the definition of `Strict`."""
    return frame.filter((pl.col("level") != "high") & (pl.col("kind") != "c") & (pl.col("tags").list.len() > 1))


def batch_of(frame, start, end, partition="pings/0"):
    return EventBatch(Ping, partition, np.arange(start, end), end, frame[start:end], None, 0)


def metric(name, **labels):
    return REGISTRY.get_sample_value(f"headrace_{name}_total", labels) or 0


def spine(frame):
    hosts = sorted(set(frame["host"].drop_nulls()))
    return pl.DataFrame({"host": hosts, "event_time": [START + timedelta(days=1)] * len(hosts)})


@pytest.fixture
def store(redis_url):
    with OnlineStore.open(redis_url, shards=4) as opened:
        yield opened


def assert_as_if_only_good_ones_came(store, frame):
    """Live, replayed, and replayed without the bad ones: one answer."""
    asked = spine(frame)
    live = store.read(Strict, asked["host"].to_list(), START + timedelta(days=1))
    expected = replay(Strict, is_good(frame), asked)
    found = replay(Strict, frame, asked)
    assert found.equals(expected)
    for name in live.columns:
        if name != "host" and not name.startswith("_"):
            assert live[name].to_list() == expected[f"strict.{name}"].to_list(), name


def test_the_event_is_a_dead_letter_of_that_view_and_the_others_count(store):
    """Each once, with place, feature, value and the event; other views count it."""
    frame, letters = pings(400), Letters()
    before = metric("rows_failed", view="strict"), metric("dead_letters", event="pings", reason="expression_failed")
    for view in (Plain, Strict):
        shards = ShardSet(plan_of(view), store, range(4), dead_letters=letters)
        for start in range(0, 400, 60):
            shards.apply(batch_of(frame, start, min(start + 60, 400)))
        shards.flush()
    with_host = frame.drop_nulls("host")
    bad = with_host.join(is_good(with_host), on="ping_id", how="anti")
    assert [letter.offset for letter in letters.all] == [int(name[1:]) for name in bad["ping_id"]]
    assert {letter.reason for letter in letters.all} == {"expression_failed"}
    assert metric("rows_failed", view="strict") == before[0] + bad.height
    assert metric("dead_letters", event="pings", reason="expression_failed") == before[1] + bad.height
    first = next(letter for letter in letters.all if frame["level"][letter.offset] == "high")
    assert first.detail.startswith('view strict · feature big: [(col("level").strict_cast(Int64)) > ')
    assert first.detail.endswith(' has no value for {"level":"high"}: conversion from `str` to `i64` failed')
    payload = codec_for(Ping, "json").decode([first.payload]).frame
    assert payload.equals(frame[first.offset : first.offset + 1].select(payload.columns))
    plain = store.read(Plain, spine(frame)["host"].to_list(), START + timedelta(days=1))
    assert plain["pings_lifetime"].sum() == with_host.height
    assert_as_if_only_good_ones_came(store, frame)


def test_several_engines_and_restarts_write_each_letter_once(store):
    """Two engines of two shards each; what is read again after a restart was applied before."""
    frame, letters = pings(300, seed=2), Letters()
    for owned in (range(2), range(2, 4)):
        for start in (0, 100, 50):
            shards = ShardSet(plan_of(Strict), store, owned, dead_letters=letters)
            batch = batch_of(frame, start, start + (200 if start == 50 else 100))
            shards.prepare(batch)
            shards.apply(batch)
            shards.flush()
        shards.apply(batch_of(frame, 250, 300))
        shards.flush()
    bad = frame.drop_nulls("host").join(is_good(frame), on="ping_id", how="anti")
    assert sorted(letter.offset for letter in letters.all) == [int(name[1:]) for name in bad["ping_id"]]
    assert_as_if_only_good_ones_came(store, frame)


@pytest.mark.parametrize("bad", [0.002, 1.0])
def test_a_flow_goes_on_and_verify_agrees(store, tmp_path, bad):
    """From files, through the materializer; the log in the store is compared with both left out alike."""
    frame, letters = pings(1_500, seed=3, bad=bad), Letters()
    frame.write_parquet(tmp_path / "pings.parquet")
    step = Materializer([Strict, Plain], store, dead_letters=letters)
    loop.run(FileSource(tmp_path / "pings.parquet", Ping), Intake([Ping], dead_letters=letters), [step])
    bad_rows = frame.drop_nulls("host").join(is_good(frame), on="ping_id", how="anti").height
    assert len(letters.all) == bad_rows
    assert_as_if_only_good_ones_came(store, frame)
    [partition] = step.positions()
    log = frame.with_columns(pl.lit(partition).alias("_partition"), pl.int_range(pl.len()).alias("_offset"))
    found = verify(Strict, log, store)
    assert found.ok
    assert found.failed == bad_rows
    assert found.as_dict()["failed"] == bad_rows


def test_a_replay_counts_what_it_leaves_out_in_one_line(tmp_path):
    """In memory and into a file."""
    frame, asked = pings(2_000, seed=4), spine(pings(2_000, seed=4))
    bad_rows = frame.drop_nulls("host").join(is_good(frame), on="ping_id", how="anti").height
    with capture_logs() as logs:
        found = replay(Strict, frame, asked, chunk_rows=100)
    [line] = logs
    assert (line["event"], line["view"], line["count"]) == ("events_left_out", "strict", bad_rows)
    assert "has no value" in line["detail"]
    frame.write_parquet(tmp_path / "pings.parquet")
    asked.write_parquet(tmp_path / "spine.parquet")
    with capture_logs() as logs:
        replay_to_file([Strict], tmp_path / "pings.parquet", tmp_path / "spine.parquet", tmp_path / "out.parquet")
    assert [line["count"] for line in logs] == [bad_rows]
    assert pl.read_parquet(tmp_path / "out.parquet").equals(found)


def test_a_storm_of_failing_events_is_taken_in_some_passes(store):
    """Half of a hundred thousand, each with a text of its own."""
    n, letters = 100_000, Letters()
    frame = pings(10, bad=0)[np.zeros(n, np.int64)].with_columns(
        pl.Series("level", [f"x{i}" if i % 2 else str(i) for i in range(n)]),
        pl.Series("ping_id", [f"p{i}" for i in range(n)]),
    )
    shards = ShardSet(plan_of(Strict), store, range(4), dead_letters=letters)
    shards.apply(batch_of(frame, 0, n))
    shards.flush()
    assert [letter.offset for letter in letters.all] == list(range(1, n, 2))
    found = store.read(Strict, [frame["host"][0]], START + timedelta(days=1))
    assert found["pings_lifetime"].to_list() == [n // 2]


def test_a_frame_of_other_types_is_refused_as_a_whole():
    """It is no event that is at fault."""
    frame = pings(5, bad=0).with_columns(pl.col("tags").list.len().alias("tags"))
    with pytest.raises(Exception, match="event Ping"):
        plan_of(Strict).rows(Ping, frame)
