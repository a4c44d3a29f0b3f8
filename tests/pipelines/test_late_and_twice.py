"""Events that come again, and events that come too late, through whole flows: counted once, put aside once."""

import signal

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from prometheus_client import REGISTRY

from headrace.features import Count, FeatureView, OnlineStore, Sum, plan_of, read_header
from headrace.history.verify import verify
from headrace.pipelines import FileSource, Materializer, ShardSet, create_topics
from headrace.pipelines.backfill import backfill
from headrace.pipelines.flow import materialize_flow
from headrace.schemas import codec_for
from tests.meters import Reading, batches, log_frame
from tests.pipelines.test_flows import RUNNERS, Engine, publish, run_as, wait_for
from tests.turnstiles import START_US, Passage, Shelf, as_batch, door_use, passage_of, passages, read_doors

LOG = log_frame(6_000, meters=300)


class LoadOnce(FeatureView, source=Reading, entity="meter", dedupe="1h"):
    """Each reading once."""

    readings = Count(windows=("10m", "lifetime"))
    watts = Sum("watts", windows="lifetime")


class SiteOnce(FeatureView, source=Reading, entity="site", dedupe="7h"):
    """The same by site, which is not what the log is partitioned by."""

    readings = Count(windows=("10m", "lifetime"))


class Recent(FeatureView, source=Passage, entity="door", dedupe="1h"):
    """Windows only."""

    passages = Count(windows=("10m", "1h"))


class Quick(FeatureView, source=Passage, entity="door"):
    """A short window."""

    passages = Count(windows="10s")


class Ever(FeatureView, source=Passage, entity="door"):
    """A window, and a lifetime: nothing is too late."""

    passages = Count(windows=("10s", "lifetime"))


@pytest.fixture
def store(redis_url):
    with OnlineStore.open(redis_url, shards=8) as opened:
        yield opened


def metric(name, **labels):
    return REGISTRY.get_sample_value(f"headrace_{name}_total", labels) or 0


def bodies(store, view):
    """key -> record without what differs from run to run: sequence and arrival."""
    found = {text: (read_header(blob), blob) for text, blob in store.scan(plan_of(view))}
    return {text: (head.version, head.newest_us, blob[head.size_bytes :]) for text, (head, blob) in found.items()}


def with_duplicates(frame, seed):
    """The log as its partitions have it when their writers send again what they sent shortly before."""
    rng = np.random.default_rng(seed)
    twice = frame.with_columns(place=pl.col("_offset").cast(pl.Float64))
    again = twice.sample(fraction=0.3, seed=seed).with_columns(pl.col("place") + rng.uniform(0.5, 20.0))
    both = pl.concat([twice, again]).sort("_partition", "place", maintain_order=True).drop("place")
    return both.with_columns(pl.int_range(pl.len()).over("_partition").alias("_offset"))


def fill(store, view, log, restart_every=None, **options):
    """Bring the log in; every so often lose what was applied since the last flush, and read it again."""
    shards, parts = ShardSet(plan_of(view), store, range(8), **options), batches(log, 200)
    for index, batch in enumerate(parts):
        shards.apply(batch)
        if restart_every and index % restart_every == 0:
            shards.flush()
        elif restart_every and index % restart_every == 2:
            shards = ShardSet(plan_of(view), store, range(8), **options)
            for read_before in parts[: index + 1]:
                shards.apply(read_before)
    shards.flush()


@pytest.mark.parametrize("view", [LoadOnce, SiteOnce])
@pytest.mark.parametrize(("restart_every", "records_max"), [(None, None), (5, None), (4, 40)])
def test_duplicates_leave_no_trace_across_restarts_and_evictions(store, redis_url, view, restart_every, records_max):
    """A log with duplicates gives the records of the log without; the verifier agrees; the metric counts them."""
    before = metric("rows_duplicate", view=plan_of(view).name)
    log = with_duplicates(LOG, 1)
    fill(store, view, log, restart_every, records_max=records_max)
    assert verify(view, log, store).ok
    duplicates = metric("rows_duplicate", view=plan_of(view).name) - before
    assert duplicates == log.height - LOG.height if restart_every is None else duplicates > 0
    with OnlineStore.open(redis_url, shards=8, namespace="calm") as calm:
        fill(calm, view, LOG)
        assert bodies(store, view) == bodies(calm, view)


def test_a_backfill_hands_over_what_it_has_seen(store, tmp_path):
    """Rows of the files come again in the topic after the hand-over: they are known from the records."""
    log = LOG.drop("_partition", "_offset")
    log[:4_000].write_parquet(tmp_path / "history.parquet")
    backfill(
        [LoadOnce],
        FileSource(str(tmp_path / "*.parquet"), Reading),
        store,
        handover={"readings/0": 0},
        dead_letters=Shelf(),
    )
    step = Materializer([LoadOnce], store)
    for begin in range(3_500, 6_000, 500):
        step.apply(as_batch(Reading, log[begin : begin + 500], first=begin, partition="readings/0"))
    step.finish()
    truth = log.group_by("meter").agg(pl.len().cast(pl.Int64).alias("n")).sort("meter")
    found = store.read(LoadOnce, truth.select("meter"), now=log["at"].max())
    assert found["readings_lifetime"].to_list() == truth["n"].to_list()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_kill_and_deliver_again_counts_every_event_once(workers, tmp_path, repo, broker, topic, redis_url):
    """
    topic    0 ....... 2000 | 1200 .. 2000 again, 2000 .. 4000 | 3900 .. 4000 again
    engine    start ....x kill -9      start ........................ SIGTERM
    """
    event, log = passage_of(topic), passages(4_000)
    create_topics(broker, {topic: 4})
    given = {"topic": topic, "broker": broker, "redis": redis_url, "letters": str(tmp_path / "letters"), "dedupe": "2h"}
    with OnlineStore.open(redis_url) as store:
        publish(broker, event, log[:2_000])
        with Engine(tmp_path, repo, workers, **given) as engine:
            wait_for(store, event, log, 300, dedupe="2h")
            assert engine.end(signal.SIGKILL) == -signal.SIGKILL
        publish(broker, event, pl.concat([log[1_200:2_000], log[2_000:], log[3_900:]]))
        with Engine(tmp_path, repo, workers, **given) as engine:
            wait_for(store, event, log, 4_000, dedupe="2h")
            assert engine.end(signal.SIGTERM) == 0, engine.errors.read_text()
        assert_frame_equal(read_doors(store, event, log, "2h"), door_use(log))


@pytest.mark.parametrize("runner", RUNNERS)
def test_what_changes_nothing_is_counted_and_put_aside_once_a_view(runner, tmp_path, redis_url):
    """Of doors that were used after two hours, the passages of the first seconds are too late; the last view takes all.

    time     0 ............ 2 h
    arrival  2nd, twice     1st
    """
    views, names, shelf = (Recent, Quick, Ever), ("recent", "quick", "ever"), Shelf()
    at = START_US + pl.int_range(40) * 100_000
    log = passages(40, doors=4).with_columns(at.cast(pl.Datetime("us", "UTC")).alias("at"))
    new = log.with_columns(pl.col("at").dt.offset_by("2h"), passage_id=pl.format("new-{}", "passage_id"))
    frame = pl.concat([new, log, log[:10]])
    frame.write_parquet(tmp_path / "passages.parquet")
    before = {(kind, name): metric(kind, view=name) for kind in ("rows_late", "rows_too_late") for name in names}
    letters = metric("dead_letters", event="passages", reason="too_late")
    source = FileSource(str(tmp_path / "*.parquet"), Passage, sort=False)
    run_as(runner, materialize_flow(source, views, redis_url, {"dead_letters": shelf}))
    after = {key: metric(key[0], view=key[1]) - count for key, count in before.items()}
    assert {name: after["rows_too_late", name] for name in names} == {"recent": 50, "quick": 50, "ever": 0}
    assert {name: after["rows_late", name] for name in names} == {"recent": 50, "quick": 50, "ever": 50}
    assert metric("dead_letters", event="passages", reason="too_late") - letters == 100
    assert {letter.reason for letter in shelf.letters} == {"too_late"}
    for name in ("recent", "quick"):
        mine = sorted((x for x in shelf.letters if x.detail.startswith(f"view {name}:")), key=lambda x: x.offset)
        assert [(x.source, x.offset) for x in mine] == [("passages", offset) for offset in range(40, 90)]
        rows = codec_for(Passage, "json").decode([letter.payload for letter in mine]).frame
        assert_frame_equal(rows, frame[40:], check_dtypes=False)


def test_a_late_event_lands_in_its_place_and_is_no_letter(store):
    """Half an hour late: in the hour's window and in nothing shorter."""
    shelf, log = Shelf(), passages(1, doors=1)
    step = Materializer([Recent], store, dead_letters=shelf)
    for back, offset in (("0m", 0), ("-30m", 1), ("-3h", 2)):
        frame = log.with_columns(pl.col("at").dt.offset_by(back), passage_id=pl.lit(back))
        step.apply(as_batch(Passage, frame, first=offset))
    step.finish()
    now = int(log["at"].dt.epoch("us")[0]) + 1
    found = store.read(Recent, log.select("door"), now=now)
    assert found.select("passages_10m", "passages_1h").row(0) == (1, 2)
    assert [letter.offset for letter in shelf.letters] == [2]


def test_letters_that_find_no_room_stop_the_flow_before_anything_is_kept(store):
    """The offsets have not moved in the store, so events and letters come again after a restart."""

    class Full(Shelf):
        def write(self, letters):
            raise OSError("no space left on device")

    log = passages(2, doors=1)
    frame = log.with_columns(pl.Series([log["at"][0], log["at"][0]]).dt.offset_by(pl.Series(["0h", "-3h"])).alias("at"))
    step = Materializer([Recent], store, dead_letters=Full())
    step.apply(as_batch(Passage, frame))
    with pytest.raises(OSError, match="no space left"):
        step.finish()
    shelf = Shelf()
    again = Materializer([Recent], store, dead_letters=shelf)
    assert again.positions() == {}
    again.apply(as_batch(Passage, frame))
    again.finish()
    assert [letter.offset for letter in shelf.letters] == [1]
