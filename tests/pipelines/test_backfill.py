"""Backfill: history, then the live flow from where history ends; each event once, the old version until the switch.

archive |----- rows below the hand-over -----|
topic        ..........overlap...............|------ rows of the live flow ------>
"""

import os
import random
import signal
import subprocess
import time
import uuid
from datetime import datetime

import fsspec
import orjson
import polars as pl
import pytest

from headrace.cli.materialize import backfill_views, materialize_views
from headrace.errors import ConfigError, FencedError, LayoutError, SourceError
from headrace.features import Count, FeatureView, LastN, OnlineStore, Sum, plan_of
from headrace.pipelines import Archiver, FileSource, Intake, Materializer, ShardSet, create_topics, flow, loop
from headrace.pipelines.backfill import backfill
from headrace.schemas import Event, FileDeadLetters
from headrace.settings import Settings
from headrace.streams.source import MergedSource
from headrace.streams.urls import source_of_url, sources_of_urls
from tests.forked import Forked
from tests.meters import Reading, batches, log_frame

ROWS = 8_000
LOG = log_frame(ROWS, meters=300)  # times go back and forth by half a minute, also around the hand-over


class Load(FeatureView, source=Reading, entity="meter", name="load"):
    """The first version."""

    readings = Count(windows=("10m", "lifetime"))


class LoadToo(FeatureView, source=Reading, entity="meter", name="load"):
    """The same view, changed."""

    __qualname__ = "Load"
    readings = Count(windows=("10m", "1h", "lifetime"))
    watts = Sum("watts", windows="lifetime")
    recent = LastN("watts", n=4)


@pytest.fixture
def store(redis_url):
    with OnlineStore.open(redis_url) as opened:
        yield opened


def archived(folder, rows):
    """An archive of the first `rows` of each partition, in several files."""
    archiver = Archiver(folder)
    for index, batch in enumerate(batches(LOG.filter(pl.col("_offset") < rows), 250)):
        archiver.apply(batch)
        if index % 3 == 0:
            archiver.finish()
    archiver.finish()
    return FileSource(folder, Reading).ends()


def live(view, store, until=ROWS):
    """The live flow over the topic, as a fresh engine that begins at its positions."""
    step = Materializer([view], store)
    for batch in batches(LOG.filter(pl.col("_offset") < until), 250, step.positions()):
        step.apply(batch)
    step.finish()


def assert_exact(view, store, log=LOG):
    truth = log.group_by("meter").agg(pl.len().cast(pl.Int64).alias("n"), pl.col("watts").sum()).sort("meter")
    found = store.read(view, truth.select("meter"), now=log["at"].max())
    assert found["readings_lifetime"].to_list() == truth["n"].to_list()
    if "watts_lifetime" in found.columns:
        assert found["watts_lifetime"].to_list() == truth["watts"].to_list()


def test_events_around_the_hand_over_are_counted_once_and_the_old_version_serves_meanwhile(store, tmp_path):
    """The archive ends at row 1,200 of each partition, the topic still has all rows from the first on."""
    live(Load, store)
    ends = archived(tmp_path / "archive", 1_200)
    history = source_of_url(str(tmp_path / "archive"), [Reading])
    seen = []

    def while_it_runs(_summary):
        assert_exact(Load, store)
        with pytest.raises(LayoutError, match="view load: .* run `headrace backfill`"):
            store.read(LoadToo, [1])
        seen.append(True)

    letters = FileDeadLetters(tmp_path / "letters")
    [done] = backfill([LoadToo], history, store, handover=ends, dead_letters=letters, on_flush=while_it_runs)
    assert seen
    assert (done.before, done.after) == (plan_of(Load).fingerprint, plan_of(LoadToo).fingerprint)
    assert_exact(LoadToo, store, LOG.filter(pl.col("_offset") < 1_200))
    live(LoadToo, store)
    assert_exact(LoadToo, store)


def test_a_second_backfill_of_what_was_handed_over_changes_nothing(store, tmp_path):
    """Not even when the archive has grown by rows that the live flow has counted."""
    letters = FileDeadLetters(tmp_path / "letters")
    ends = archived(tmp_path / "archive", 500)
    backfill([Load], source_of_url(str(tmp_path / "archive"), [Reading]), store, handover=ends, dead_letters=letters)
    live(Load, store)
    more = archived(tmp_path / "archive", 900)
    assert more != ends
    [again] = backfill(
        [Load], source_of_url(str(tmp_path / "archive"), [Reading]), store, handover=more, dead_letters=letters
    )
    assert again.records == 0
    assert_exact(Load, store)


@pytest.mark.parametrize("kind", ["a folder with =", "memory"])
def test_any_archive_hands_over_to_the_live_flow(store, tmp_path, kind):
    """Wherever it is and whatever it is called: rows of the archive are not counted again."""
    place = str(tmp_path / "year=2024")
    ends = archived(place, 700)
    if kind == "memory":
        local, place = place, f"memory://{uuid.uuid4().hex}"
        fsspec.filesystem("memory").put(local, place, recursive=True)
    settings = Settings(dead_letter_dir=tmp_path / "letters")
    [done] = backfill_views([Load], [f"Reading={place}"], store, settings)
    assert done.handed_over == ends
    live(Load, store)
    assert_exact(Load, store)


def test_plain_files_must_say_where_the_topic_goes_on(store, tmp_path, monkeypatch):
    """Else the live flow would count their rows again; it asks once more where it is not said."""
    LOG.filter(pl.col("_offset") < 700).drop("_partition", "_offset").write_parquet(tmp_path / "log.parquet")
    urls, settings = [str(tmp_path / "log.parquet")], Settings(dead_letter_dir=tmp_path / "letters")
    ways = r"topic 'readings' .* give --handover FILE with .* read the topic itself .* or say --no-handover"
    with pytest.raises(ConfigError, match=ways):
        backfill_views([Load], urls, store, settings)
    assert store.active("load") is None
    ends = tmp_path / "ends.json"
    ends.write_bytes(orjson.dumps(dict.fromkeys(LOG["_partition"].unique(), 700)))
    [done] = backfill_views([Load], urls, store, settings, ends)
    assert done.handed_over == orjson.loads(ends.read_bytes())
    live(Load, store)
    assert_exact(Load, store)
    monkeypatch.setattr("headrace.cli.materialize.run_flow", lambda *_, **__: None)
    materialize_views([Load], ["kafka://127.0.0.1:1"], store, settings)  # it was handed over
    monkeypatch.undo()
    with OnlineStore.open(store.url, namespace="files") as other:
        [done] = backfill_views([LoadToo], urls, other, settings, files_only=True)
        assert (done.records, done.handed_over) == (LOG.filter(pl.col("_offset") < 700)["meter"].n_unique(), {})
        with pytest.raises(
            ConfigError, match=r"load was filled from files \(readings/log.parquet@.*, 1 in all\) .* start="
        ):
            materialize_views([LoadToo], ["kafka://127.0.0.1:1"], other, settings)


def test_files_alone_do_not_replace_a_version_that_has_read_the_topic(store, tmp_path):
    """
    topic  ......... 700 | ......... 4000 |   V1 has read all of it
    files  |--- 700 ---|                      V2 of these alone would be read in its place, without 700 to 4000
    """
    LOG.filter(pl.col("_offset") < 700).drop("_partition", "_offset").write_parquet(tmp_path / "log.parquet")
    url, settings = str(tmp_path / "log.parquet"), Settings(dead_letter_dir=tmp_path / "letters")
    live(Load, store)
    known = r"view load: its active version \w{8} has read topic 'readings', .*it is (\{.*\})"
    with pytest.raises(ConfigError, match=known) as caught:
        backfill_views([LoadToo], [url], store, settings, files_only=True)
    with pytest.raises(ConfigError, match=known):
        backfill([LoadToo], FileSource(url, Reading), store, dead_letters=FileDeadLetters(tmp_path / "letters"))
    assert store.active("load") == plan_of(Load).fingerprint
    assert_exact(Load, store)
    ends = tmp_path / "ends.json"
    ends.write_text(str(caught.value).rpartition(" it is ")[2])
    LOG.drop("_partition", "_offset").write_parquet(tmp_path / "closed.parquet")
    [done] = backfill_views([LoadToo], [str(tmp_path / "closed.parquet")], store, settings, ends)
    assert done.handed_over == dict(LOG.group_by("_partition").len().rows())
    live(LoadToo, store)
    assert_exact(LoadToo, store)


def test_a_view_of_files_is_built_anew_from_files(store, tmp_path):
    """No topic feeds it: its versions follow one another without a hand-over, also when the topic grows elsewhere."""
    LOG.drop("_partition", "_offset").write_parquet(tmp_path / "log.parquet")
    settings = Settings(dead_letter_dir=tmp_path / "letters")
    for view in (Load, LoadToo, Load):
        backfill_views([view], [str(tmp_path / "log.parquet")], store, settings, files_only=True)
        assert_exact(view, store)


def test_files_beside_the_topic_of_another_event_need_a_hand_over_too(store, broker, tmp_path):
    """A view of two events: one by files, the other by its topic."""

    class Alarm(Event, topic="alarms", key="meter", time="at"):
        at: datetime
        meter: int

    class Both(FeatureView, source=(Reading, Alarm), entity="meter"):
        events = Count(windows="lifetime")

    LOG.drop("_partition", "_offset").write_parquet(tmp_path / "log.parquet")
    create_topics(broker, {"alarms": 1})
    urls, settings = [f"Reading={tmp_path}/log.parquet", f"Alarm=kafka://{broker}"], Settings()
    with pytest.raises(ConfigError, match="topic 'readings' they reach, .* --handover FILE"):
        backfill_views([Both], urls, store, settings)
    assert store.active("both") is None
    [done] = backfill_views([Both], urls, store, settings, files_only=True)
    assert done.handed_over == {"alarms/0": 0}
    with pytest.raises(ConfigError, match=r"both was filled from files .* has never read topic 'readings'"):
        materialize_views([Both], [f"kafka://{broker}"], store, settings)


@pytest.mark.parametrize("workers", [1, 2])
def test_records_in_memory_are_bounded(store, tmp_path, monkeypatch, workers):
    """The bound is that of all workers; what was let go of is fetched again, so nothing is lost."""
    asked = []

    class Told(Materializer):
        def __init__(self, *arguments, **options):
            asked.append(options["records_max"])
            super().__init__(*arguments, **options)

    monkeypatch.setattr(flow, "Materializer", Told)
    rows = LOG.drop("_partition", "_offset")
    rows.write_parquet(tmp_path / "log.parquet")
    settings = Settings(dead_letter_dir=tmp_path / "letters")
    materialize_views([Load], [str(tmp_path / "log.parquet")], store, settings, workers=workers, records_max=60)
    assert asked == [60 // workers] * workers
    assert_exact(Load, store)


def test_a_file_that_only_some_shards_have_read_must_not_change_either(store, tmp_path):
    """The flow asks where all shards stand; one that knows the file as it was is found all the same."""
    rows, path = LOG.drop("_partition", "_offset"), tmp_path / "log.parquet"
    rows[:500].write_parquet(path)
    shards = ShardSet(plan_of(Load), store, [3])
    shards.start_at({FileSource(path, Reading).partitions()[0]: 500})
    shards.flush()
    rows[:600].write_parquet(path)
    with pytest.raises(SourceError, match=r"log.parquet has changed since 500 of its rows were read"):
        materialize_views([Load], [str(path)], store, Settings(dead_letter_dir=tmp_path / "letters"))


ENGINE = """
import sys
from headrace.features.store import OnlineStore
from headrace.pipelines import backfill as module
from headrace.pipelines.backfill import backfill
from headrace.streams.urls import source_of_url
from headrace.schemas import Event, FileDeadLetters
from pathlib import Path
from tests.meters import Reading
from tests.pipelines.test_backfill import LoadToo
module.FLUSH_S = 0.0
archive = Path(sys.argv[2])
history = source_of_url(str(archive), [Reading], rows_max=200)
with OnlineStore.open(sys.argv[1]) as store:
    told = lambda summary: (print("flushed", flush=True), sys.stdin.readline())
    letters = FileDeadLetters(archive / "x")
    backfill([LoadToo], history, store, handover=history.ends(), dead_letters=letters, on_flush=told)
print("done", flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_backfill_killed_midway_goes_on_where_it_was(store, redis_url, tmp_path, repo):
    """kill -9 after some flushes, again and again; the last run ends, and the live flow goes on from the hand-over."""
    live(Load, store)
    archived(tmp_path / "archive", 1_500)
    moments, done, kills = random.Random(4), False, 0
    while not done:
        process = Forked(
            ["-c", ENGINE, redis_url, tmp_path / "archive"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(repo)},
        )
        limit = moments.randrange(3, 12) if kills < 4 else 10**9
        for lines, line in enumerate(process.stdout, 1):
            done |= line == b"done\n"
            if not done:  # it waits, so that it is never through before the kill
                process.stdin.write(b"go on\n")
                process.stdin.flush()
            if lines >= limit:
                time.sleep(moments.uniform(0, 0.01))
                process.send_signal(signal.SIGKILL)
                break
        process.stdin.close()
        process.stdout.close()
        assert process.wait() in {0, -9}
        kills += not done
    assert kills == 4
    assert store.active("load") == plan_of(LoadToo).fingerprint
    live(LoadToo, store)
    assert_exact(LoadToo, store)


def test_a_second_engine_on_the_new_version_is_fenced(store, tmp_path):
    archived(tmp_path / "archive", 1_000)
    history = source_of_url(str(tmp_path / "archive"), [Reading], rows_max=100)

    def interfere(_summary):
        live(LoadToo, store)

    letters = FileDeadLetters(tmp_path / "letters")
    with pytest.raises(FencedError):
        backfill([LoadToo], _Twice(history, interfere), store, dead_letters=letters)


class _Twice(MergedSource):
    """A source with which something happens at the third poll."""

    def __init__(self, source, act):
        super().__init__([source])
        self._act, self._polls = act, 0

    def poll(self):
        self._polls += 1
        if self._polls == 3:
            self._act(None)
        return super().poll()


def test_urls_name_sources(tmp_path):
    archived(tmp_path / "archive", 300)
    LOG[:100].drop("_partition", "_offset").write_parquet(tmp_path / "some.parquet")
    both = sources_of_urls([str(tmp_path / "archive"), f"Reading={tmp_path}/some.parquet"], [Reading])
    rows = 0
    both.seek({})
    while not both.exhausted:
        rows += sum(len(batch.offsets) for batch in both.poll())
    both.close()
    assert rows == LOG.filter(pl.col("_offset") < 300).height + 100
    halves = [both.share(index, 2) for index in range(2)]
    assert {name for half in halves for name in half.partitions()} == set(both.partitions())
    with pytest.raises(ConfigError, match="unknown speed"):
        source_of_url("kafka://somewhere:9092?speed=3", [Reading])
    with pytest.raises(ConfigError, match="write earliest, latest, stored, a time"):
        source_of_url("kafka://somewhere:9092?start=noon", [Reading])
    with pytest.raises(ConfigError, match="write Reading=PATH"):
        source_of_url("some.parquet", [Reading, Reading])


def test_the_archive_replays_to_what_the_topic_gave(store, tmp_path):
    """Topic -> archive -> records equals topic -> records, for every feature and key."""
    archived(tmp_path / "archive", ROWS)
    live(LoadToo, store)
    keys = LOG.select("meter").unique().sort("meter")
    direct = store.read(LoadToo, keys, now=LOG["at"].max())
    with OnlineStore.open(f"{store.url}", namespace="other") as other:
        step = Materializer([LoadToo], other)
        source = FileSource(tmp_path / "archive" / "readings" / "*" / "*.parquet", Reading)
        loop.run(source, Intake((Reading,), dead_letters=FileDeadLetters(tmp_path / "letters")), [step])
        assert other.read(LoadToo, keys, now=LOG["at"].max()).equals(direct)
