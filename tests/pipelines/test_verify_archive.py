"""A store that was filled from the topic, compared with the archive of that topic, whichever of them is ahead.

topic    0 ............................................ n
archive  |--- files, with the offset of each row ---|          rows below the shards' offsets are replayed
store    |---------- applied ---------|...............|        entities with events past the archive are left out
"""

import numpy as np
import polars as pl
import pytest

from headrace.cli.materialize import materialize_views, verify_views
from headrace.errors import StoreError
from headrace.features import Count, FeatureView, LastN, OnlineStore, Sum, plan_of
from headrace.features.keys import shard_of
from headrace.features.state.slab import Slab
from headrace.features.store.fences import fence_key
from headrace.pipelines import Archiver, Materializer, TopicWriter, create_topics
from headrace.pipelines.backfill import backfill
from headrace.settings import Settings
from headrace.streams.files.archive_names import OFFSET_COLUMN
from headrace.streams.urls import sources_of_urls
from tests.meters import Reading, batches, log_frame
from tests.turnstiles import Shelf, passage_of, passages, views_of

ROWS = 3_000
LOG = log_frame(ROWS, meters=300).sort("at", maintain_order=True)
LOG = LOG.with_columns(pl.int_range(pl.len()).over("_partition").alias("_offset"))
END = LOG.group_by("_partition").len()["len"].min()
"""Offset that both partitions reach."""


class Load(FeatureView, source=Reading, entity="meter"):
    """Windows, a sum and a list."""

    readings = Count(windows=("10m", "lifetime"))
    watts = Sum("watts", windows="lifetime")
    recent = LastN("watts", n=4)


class LoadOnce(FeatureView, source=Reading, entity="meter", dedupe="10m"):
    """Leaves out what comes twice."""

    readings = Count(windows="lifetime")


@pytest.fixture
def store(redis_url):
    with OnlineStore.open(redis_url, 4) as opened:
        yield opened


def archive(folder, until=ROWS, *, rows=300):
    """Archive the rows of each partition below an offset, in files of some rows."""
    archiver = Archiver(folder)
    for batch in batches(LOG.filter(pl.col("_offset") < until), rows):
        archiver.apply(batch)
        archiver.finish()
    return str(folder)


def live(store, until=ROWS, view=Load):
    """Bring the rows of each partition below an offset into the store, as the topic's flow does."""
    step = Materializer([view], store)
    for batch in batches(LOG.filter(pl.col("_offset") < until), 250, step.positions()):
        step.apply(batch)
    step.finish()


def compared(store, *urls, view=Load, settings=None):
    [result] = verify_views([view], list(urls), store, settings or Settings())
    return result


@pytest.mark.parametrize("view", [Load, LoadOnce])
def test_a_live_store_is_compared_with_the_whole_archive(tmp_path, store, view):
    live(store, view=view)
    result = compared(store, archive(tmp_path), view=view)
    assert result.ok
    assert (result.entities, result.rows, result.waiting, result.beyond) == (LOG["meter"].n_unique(), ROWS, 0, 0)
    assert result.features["checked"].unique().to_list() == [result.entities]


def test_a_record_that_was_changed_is_found(tmp_path, store):
    live(store)
    meter, plan = LOG["meter"][0], plan_of(Load)
    [shard] = shard_of(np.array([meter]), store.shards).tolist()
    changed = pl.concat([LOG.filter(meter=meter), LOG[:1]]).drop("_partition", "_offset")
    slab = Slab(plan)
    slab.update(plan.rows(Reading, changed))
    [record] = slab.pack(slab.locate(np.array([meter])))
    store._link.client.set(store._prefix(plan, shard) + b":%d" % meter, record)
    result = compared(store, archive(tmp_path))
    assert set(result.examples["key"]) == {str(LOG["meter"][0])}
    assert result.mismatches >= 2


@pytest.mark.parametrize("applied", [0, 300, 777])
def test_rows_of_the_archive_that_the_store_lacks_are_waiting(tmp_path, store, applied):
    live(store, applied or 1)
    result = compared(store, archive(tmp_path))
    assert result.ok
    assert result.rows == (LOG["_offset"] < (applied or 1)).sum()
    assert result.waiting == ROWS - result.rows


def test_entities_with_events_past_the_archive_are_left_out_and_counted(tmp_path, store):
    live(store)
    url = archive(tmp_path, END - 50)
    result = compared(store, url)
    past = LOG.filter(pl.col("_offset") >= END - 50)
    assert result.ok
    assert result.beyond == past.height
    assert result.newer == past["meter"].n_unique()
    assert result.features["checked"].unique().to_list() == [result.entities - result.newer]
    with pytest.raises(
        StoreError, match=r"all its 273 entities have newer events than the log: nothing can be compared"
    ):
        compared(store, archive(tmp_path / "short", 1))


def replaced(store, begin, *, known=True):
    """The archive begins at an offset that the store has applied from 0 on; `known`: the store's fences say so."""
    live(store)
    if not known:
        for shard in range(store.shards):
            key = fence_key(store._prefix(plan_of(Load), shard))
            fields = [name for name in store._link.client.hkeys(key) if name.startswith(b"s:")]
            assert fields
            store._link.client.hdel(key, *fields)
    return LOG.filter(pl.col("_offset") >= begin)


def archived(folder, log):
    archiver = Archiver(folder)
    for batch in batches(log, 300):
        archiver.apply(batch)
    archiver.finish()
    return str(folder)


@pytest.mark.parametrize("known", [True, False], ids=["known", "of an earlier release"])
def test_an_archive_that_begins_after_the_store_is_compared_with_nothing(tmp_path, store, known):
    """It listed every row as differing. It is said from when on the log is, and since when the records are."""
    log = replaced(store, 300, known=known)
    first = log.filter(_partition="readings/0").sort("_offset")["at"][0]
    since = r"from offset 0 on" if known else r"up to offset \d[\d,]+ and does not know from where"
    with pytest.raises(
        StoreError,
        match=r"load: the log of readings/0 begins at offset 300 "
        rf"\(with an event of {first:%Y-%m-%dT%H:%M:%S}\+00:00\), and the store has applied it {since}: "
        r".* nothing can be compared",
    ):
        compared(store, archived(tmp_path, log))


def test_an_archive_without_a_partition_is_compared_with_nothing(tmp_path, store):
    live(store)
    with pytest.raises(StoreError, match=r"the log has nothing of readings/1, and the store has applied it from "):
        compared(store, archived(tmp_path, LOG.filter(_partition="readings/0")))


def test_a_store_that_began_where_the_log_begins_is_compared(tmp_path, store):
    """A topic whose first events were gone before the view was: nothing of them is in the records."""
    log = LOG.filter(pl.col("_offset") >= 300)
    step = Materializer([Load], store)
    for batch in batches(log, 250):
        step.apply(batch)
    step.finish()
    result = compared(store, archived(tmp_path, log))
    assert (result.ok, result.rows, set(result.begins.values())) == (True, log.height, {300})
    longer = compared(store, archived(tmp_path / "whole", LOG))
    assert (longer.ok, longer.rows, longer.earlier, longer.waiting) == (True, log.height, ROWS - log.height, 0)


def test_files_that_the_store_has_read_must_be_in_the_log(tmp_path, store):
    """A second file of the same events would show as lost entities."""
    settings = Settings(dead_letter_dir=tmp_path / "letters")
    for name, part in (("a", LOG[:1_500]), ("b", LOG[1_500:])):
        part.drop("_partition", "_offset").write_parquet(tmp_path / f"{name}.parquet")
    materialize_views([Load], [f"{tmp_path}/*.parquet"], store, settings)
    assert compared(store, f"{tmp_path}/*.parquet").ok
    with pytest.raises(StoreError, match=r"the log lacks file readings/a.parquet@.*, which the store has applied"):
        compared(store, f"{tmp_path}/b.parquet")


def without_offsets(folder):
    """The files as they were written before they had a column for offsets."""
    for path in folder.rglob("*.parquet"):
        pl.read_parquet(path).drop(OFFSET_COLUMN).write_parquet(path)


def test_an_archive_without_offsets_is_compared_where_its_names_say_enough(tmp_path, store):
    url = archive(tmp_path, rows=100)
    without_offsets(tmp_path)
    live(store, 400)
    assert compared(store, url).ok
    live(store, 450)
    with pytest.raises(StoreError, match=r"up to offset 450, amid rows 400 to 499 of a file that was archived without"):
        compared(store, url)
    live(store)
    result = compared(store, url)
    assert (result.ok, result.rows) == (True, ROWS)


def test_a_store_that_was_filled_from_an_archive_is_compared_with_a_longer_one(tmp_path, store):
    """Some files are known by their names, others hold rows of the topic that came after the hand-over."""
    url = archive(tmp_path, 600)
    source = sources_of_urls([url], [Reading])
    backfill([Load], source, store, handover=source.ends(), dead_letters=Shelf())
    assert compared(store, url).ok
    live(store)
    result = compared(store, archive(tmp_path))
    assert (result.ok, result.rows, result.waiting) == (True, ROWS, 0)


def test_an_archive_that_is_only_read_as_files_stays_comparable(tmp_path, store):
    settings = Settings(dead_letter_dir=tmp_path / "letters")
    url = archive(tmp_path / "archive", 600)
    materialize_views([Load], [url], store, settings)
    archive(tmp_path / "archive")
    result = compared(store, url)
    assert result.ok
    assert (result.rows, result.waiting) == ((LOG["_offset"] < 600).sum(), (LOG["_offset"] >= 600).sum())
    assert plan_of(Load).name == result.view


def test_an_archive_and_its_topic_are_one_log(tmp_path, store, broker):
    """Rows that both hold count once; the topic has what the archive has not."""
    partitions = LOG["_partition"].n_unique()
    create_topics(broker, {"readings": partitions})
    writer = TopicWriter(broker, Reading)
    for part in LOG.drop("_partition", "_offset").iter_slices(500):
        writer.write(part)
    writer.flush()
    settings = Settings(dead_letter_dir=tmp_path / "letters", archive_dir=tmp_path / "archive")
    topic = f"kafka://{broker}"
    materialize_views([Load], [topic], store, settings, until_end=True)
    archiver = Archiver(tmp_path / "archive")
    source = sources_of_urls([topic], [Reading], until_end=True)
    for batch in decoded(source):
        archiver.apply(batch)
        if sum(archiver.positions().values()) > ROWS // 2:
            break
    archiver.finish()
    source.close()
    assert compared(store, topic).ok
    result = compared(store, str(tmp_path / "archive"), topic)
    assert (result.ok, result.rows, result.beyond) == (True, ROWS, 0)


def test_a_store_that_began_at_the_end_of_a_topic_is_compared_from_there(tmp_path, store, broker, topic):
    """start=latest: what the topic held before is not in the records, and no difference."""
    event, rows = passage_of(topic), passages(800)
    create_topics(broker, {topic: 2})
    writer, url, [view, _] = TopicWriter(broker, event), f"kafka://{broker}", views_of(event)
    settings = Settings(dead_letter_dir=tmp_path / "letters")
    for part, start in ((rows[:500], "?start=latest"), (rows[500:], "")):
        writer.write(part)
        writer.flush()
        materialize_views([view], [url + start], store, settings, until_end=True)
    result = compared(store, url, view=view)
    assert (result.ok, result.rows, result.earlier, result.waiting) == (True, 300, 500, 0)


def decoded(source):
    from headrace.pipelines import Intake

    intake = Intake([Reading], dead_letters=Shelf())
    source.seek({})
    while not source.exhausted:
        yield from map(intake.decode, source.poll())
