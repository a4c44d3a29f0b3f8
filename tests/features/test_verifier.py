"""The verifier finds what is wrong, and nothing where nothing is."""

import numpy as np
import polars as pl
import pytest

from headrace.errors import LayoutError, SchemaError, StoreError
from headrace.features import Count, FeatureView, plan_of
from headrace.features.keys import shard_of
from headrace.features.state.slab import Slab
from headrace.features.store import OnlineStore
from headrace.history.verify import compare, verify
from headrace.pipelines.shard import ShardSet
from tests.meters import SPAN_US, START_US, BriefLoad, MeterLoad, Reading, SiteKind, batches, log_frame

LOG = log_frame(4_000, meters=60)
PLAN = plan_of(MeterLoad)


@pytest.fixture
def store(redis_url):
    with OnlineStore.open(redis_url, shards=8) as opened:
        yield opened


def fill(store, view, log_batches):
    shards = ShardSet(plan_of(view), store, range(store.shards))
    for batch in log_batches:
        shards.apply(batch)
    shards.flush()
    return shards


def tamper(store, text, blob):
    """Overwrite one record behind everyone's back."""
    shard = int(shard_of(np.array([int(text)]), store.shards)[0])
    store._link.client.set(store._prefix(PLAN, shard) + b":" + text, blob)


@pytest.mark.parametrize("view", [MeterLoad, SiteKind])
def test_a_store_that_followed_the_log_has_no_differences(store, view):
    """Every feature of every entity is checked; the log may reach further than the store."""
    log_batches = batches(LOG, 300)
    fill(store, view, log_batches[:9])
    result = verify(view, LOG, store)
    assert result.ok
    assert result.features["feature"].to_list() == [feature.name for feature in plan_of(view).features]
    assert result.features["checked"].unique().to_list() == [result.entities]
    assert result.rows == sum(batch.frame.height for batch in log_batches[:9])
    assert verify(view, log_batches, store).rows == result.rows
    assert verify(view, {Reading: LOG}, store).rows == result.rows


def test_shards_at_different_offsets_are_each_compared_at_their_own(store):
    """Half of the shards stopped early."""
    log_batches = batches(LOG, 300)
    for shards, count in ((range(4), 5), (range(4, 8), 12)):
        shard_set = ShardSet(PLAN, store, shards)
        for batch in log_batches[:count]:
            shard_set.apply(batch)
        shard_set.flush()
    assert verify(MeterLoad, LOG, store).ok


def test_a_wrong_record_is_found_feature_by_feature(store):
    """A record with one event too many differs in what that event touches."""
    fill(store, MeterLoad, batches(LOG, 300))
    twice = pl.concat([LOG.filter(meter=3), LOG.filter(meter=3).tail(1).with_columns(reading_id=pl.lit("again"))])
    slab = Slab(PLAN)
    slab.update(PLAN.rows(Reading, twice.drop("_partition", "_offset")))
    tamper(store, b"3", slab.pack(slab.locate(np.array([3])))[0])
    result = verify(MeterLoad, LOG, store)
    assert not result.ok
    wrong = dict(result.features.select("feature", "mismatches").rows())
    assert wrong["readings_lifetime"] == 1
    assert max(wrong.values()) == 1
    [example] = result.examples.filter(feature="readings_lifetime").rows(named=True)
    count = LOG.filter(meter=3).height
    assert (example["key"], float(example["expected"]), float(example["found"])) == ("3", count, count + 1)


def test_a_lost_record_and_one_too_many_are_found(store):
    """Missing and unexpected entities differ in every feature."""
    fill(store, MeterLoad, batches(LOG, 300))
    blob = store.records(PLAN, np.array([3]), [b"3"])[0]
    tamper(store, b"777", blob)
    result = verify(MeterLoad, LOG, store)
    assert result.features["mismatches"].unique().to_list() == [1]
    assert result.examples.row(0)[0::3] == ("777", result.examples["found"][0])
    assert result.examples["expected"].unique().to_list() == ["missing"]
    assert verify(MeterLoad, LOG, store, keys=[3, 1]).ok
    long_after = verify(MeterLoad, LOG, store, keys=[777], now_us=START_US + 10 * SPAN_US)
    assert long_after.features["mismatches"].unique().to_list() == [1]


def test_a_snapshot_is_compared_long_after_it_was_taken(store):
    """What `snapshot` saw in the middle of the run equals the log up to its offsets, whatever came later."""
    log_batches = batches(LOG, 300)
    shards = ShardSet(PLAN, store, range(8))
    meters = np.unique(LOG["meter"].to_numpy())
    mine = meters[shard_of(meters, 8) == 2]
    texts = [b"%d" % meter for meter in mine]
    taken = []
    for batch in log_batches:
        shards.apply(batch)
        shards.flush()
        taken.append(store.snapshot(PLAN, 2, texts))
    assert len({tuple(sorted(offsets.items())) for offsets, _ in taken}) == len(log_batches)
    results = [compare(PLAN, offsets, texts, blobs, LOG) for offsets, blobs in taken]
    assert all(result.ok for result in results)
    assert [result.rows for result in results] == sorted(result.rows for result in results)
    assert not compare(PLAN, taken[0][0], texts, taken[-1][1], LOG).ok


def test_records_that_expired_are_counted_apart(store):
    """A ttl is no difference."""
    fill(store, BriefLoad, batches(LOG, 300))
    plan = plan_of(BriefLoad)
    for key in list(store.views.scan_records(plan)):
        store._link.client.delete(key)
    result = verify(BriefLoad, LOG, store)
    assert result.ok
    assert result.expired == result.entities
    assert result.features["checked"].unique().to_list() == [0]


def test_an_empty_store_agrees_with_an_empty_log_and_with_no_other(store):
    """Nothing compared with nothing is no proof: a store that was emptied, or never read this log, is an error."""
    result = verify(MeterLoad, LOG.clear(), store)
    assert (result.ok, result.entities, result.rows) == (True, 0, 0)
    with pytest.raises(StoreError, match=r"has never read readings/0, .*; it has read nothing at all. Check store"):
        verify(MeterLoad, LOG, store)
    fill(store, MeterLoad, batches(LOG, 300))
    elsewhere = LOG.with_columns(pl.format("{}.parquet", "_partition").alias("_partition"))
    with pytest.raises(StoreError, match=r"has never read readings/0.parquet, .*; it has read readings/0, "):
        verify(MeterLoad, elsewhere, store)
    store._link.client.flushall()
    with pytest.raises(StoreError, match="it has read nothing at all"):
        verify(MeterLoad, LOG, store, keys=[3])


def test_a_changed_view_that_was_not_backfilled_is_refused(store):
    """Readers get the old version."""
    fill(store, MeterLoad, batches(LOG, 300))

    class Other(FeatureView, source=Reading, entity="meter", name=PLAN.name):
        __module__, __qualname__ = MeterLoad.__module__, MeterLoad.__qualname__
        readings = Count(windows="lifetime")

    with pytest.raises(LayoutError, match="run `headrace backfill`"):
        verify(Other, LOG, store)


def test_what_the_store_has_not_applied_yet_is_told(store):
    log_batches = batches(LOG, 300)
    fill(store, MeterLoad, log_batches[:9])
    result = verify(MeterLoad, iter(log_batches), store)
    assert result.waiting == LOG.height - result.rows > 0
    assert result.offsets == {
        name: max(batch.next_offset for batch in log_batches[:9] if batch.partition == name)
        for name in {batch.partition for batch in log_batches[:9]}
    }
    told = result.as_dict()
    assert (told["rows"], told["waiting"], told["mismatches"]) == (result.rows, result.waiting, 0)
    assert len(told["features"]) == result.features.height


def test_an_engine_that_writes_meanwhile_makes_no_difference(store):
    """It brings in further rows, and entities that no scan has shown, whenever the log is asked for a batch."""
    log_batches = batches(LOG, 100)
    shards = ShardSet(PLAN, store, range(8))

    class Growing:
        at = 0

        def __iter__(self):
            for index, batch in enumerate(log_batches):
                while self.at < min(index + 5, len(log_batches)):
                    shards.apply(log_batches[self.at])
                    shards.flush()
                    self.at += 1
                yield batch

    growing = Growing()
    next(iter(growing))
    result = verify(MeterLoad, growing, store)
    assert result.ok, result.examples
    assert result.entities > 0


def test_logs_that_cannot_be_replayed_are_refused(store):
    """Without offsets nobody can say which rows count; an event of another view is a mistake."""
    with pytest.raises(SchemaError, match="_partition and _offset is missing"):
        verify(MeterLoad, LOG.drop("_partition", "_offset"), store)
    with pytest.raises(SchemaError, match="meter_load does not read object"):
        verify(MeterLoad, {object: LOG}, store)
