"""ShardSet: each event counts once, whatever happens to the engine, the wire, or Redis.

log   ----1----2----3----4----5----6----7---->
store ----------^ offsets and records of the last flush
slab  -------------------^ applied; lost in a crash, read again
"""

import shutil
from datetime import timedelta
from itertools import cycle, islice

import numpy as np
import pytest
import redis

from headrace.clock import FixedClock
from headrace.errors import FencedError, StoreError, StoreUnavailableError
from headrace.features import plan_of, read_header
from headrace.features.store import OnlineStore
from headrace.history.verify import verify
from headrace.local import EmbeddedRedis
from headrace.pipelines.shard import ShardSet
from headrace.schemas import Event
from tests.faults import Wire
from tests.meters import START_US, BriefLoad, MeterLoad, Reading, SiteKind, batches, log_frame

LOG = log_frame(6_000, meters=300)
BATCHES = batches(LOG, 250)
SHARDS = 8


@pytest.fixture
def store(redis_url):
    with OnlineStore.open(redis_url, shards=SHARDS) as opened:
        yield opened


def shard_set(store, view=MeterLoad, shards=range(SHARDS), **options):
    return ShardSet(plan_of(view), store, shards, **options)


def bodies(store, view=MeterLoad):
    """key -> record without what differs from run to run: sequence and arrival."""
    found = {text: (read_header(blob), blob) for text, blob in store.scan(plan_of(view))}
    return {text: (head.version, head.newest_us, blob[head.size_bytes :]) for text, (head, blob) in found.items()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The records of one undisturbed run in one batch per partition."""
    with EmbeddedRedis(tmp_path_factory.mktemp("calm"), aof=False) as server, OnlineStore.open(server.url) as store:
        found = {}
        for view in (MeterLoad, SiteKind):
            calm = shard_set(store, view, range(32))
            for batch in batches(LOG, LOG.height):
                calm.apply(batch)
            calm.flush()
            found[view] = bodies(store, view)
        return found


def batched(items, count):
    """The items, `count` at a time."""
    to_come = iter(items)
    while part := list(islice(to_come, count)):
        yield part


def replay(shards):
    """What a restarted engine does: read on from its positions."""
    for batch in batches(LOG, 250, shards.positions()):
        shards.apply(batch)
    shards.flush()


@pytest.mark.parametrize("view", [MeterLoad, SiteKind])
@pytest.mark.parametrize("ahead", [(True,), (True, False), (False, True, True)])
def test_what_was_prepared_ahead_gives_the_same_records(store, expected, view, ahead):
    """Batches applied together, all or some of them prepared before."""
    shards = shard_set(store, view)
    for together in batched(batches(LOG, 250), 3):
        for batch, is_ahead in zip(together, cycle(ahead), strict=False):
            if is_ahead:
                shards.prepare(batch)
                assert plan_of(view).fingerprint in batch.prepared
        shards.apply(*together)
    shards.flush()
    assert bodies(store, view) == expected[view]


@pytest.mark.parametrize("view", [MeterLoad, SiteKind])
@pytest.mark.parametrize(("size", "flush_every"), [(1_000, 1), (250, 3), (37, 40)])
def test_records_do_not_depend_on_batches_flushes_or_shards(store, expected, view, size, flush_every):
    """Byte for byte the same records, for int keys and for composite text keys."""
    shards = shard_set(store, view)
    for index, batch in enumerate(batches(LOG, size)):
        shards.apply(batch)
        if index % flush_every == 0:
            shards.flush()
    shards.flush()
    assert bodies(store, view) == expected[view]
    assert verify(view, LOG, store).ok


def test_positions_are_the_least_over_shards_and_unknown_partitions_are_left_out(store):
    """Where a source must start so that every shard gets what it lacks."""
    first, second = shard_set(store, shards=[0, 1]), shard_set(store, shards=[2])
    assert first.positions() == {}
    for batch in BATCHES[:6]:
        first.apply(batch)
    for batch in BATCHES[:3]:
        second.apply(batch)
    first.flush()
    second.flush()
    ahead = first.positions()
    assert ahead == {batch.partition: batch.next_offset for batch in BATCHES[:6]}
    both = shard_set(store, shards=[0, 1, 2])
    assert both.positions() == {batch.partition: batch.next_offset for batch in BATCHES[:3]}
    assert shard_set(store, shards=range(4)).positions() == {}


def test_shards_at_different_offsets_each_skip_what_they_have(store, expected):
    """Two engines stop at different places; one engine takes over all shards from the lesser position."""
    for shards, count in (((0, 2, 4), 7), ((1, 3), 16), ((5, 6, 7), 0)):
        part = shard_set(store, shards=shards)
        for batch in BATCHES[:count]:
            part.apply(batch)
        part.flush()
    replay(shard_set(store))
    assert bodies(store) == expected[MeterLoad]


def test_the_whole_log_again_changes_nothing(store, expected):
    """Every row is below its shard's offsets."""
    shards = shard_set(store)
    for _ in range(2):
        for batch in BATCHES:
            shards.apply(batch)
    assert shards.flush().records == len(expected[MeterLoad])
    for batch in BATCHES:
        shards.apply(batch)
    assert (shards.dirty_count, shards.flush().records) == (0, 0)
    assert bodies(store) == expected[MeterLoad]


def test_idle_shards_offsets_move_on(store):
    """A shard without rows still follows the log, or a restart would read all of it again."""
    shards = shard_set(store)
    lone = LOG.filter(meter=1)
    for batch in batches(lone.with_columns(_offset=np.arange(lone.height)), 100):
        shards.apply(batch)
    shards.flush()
    offsets = [fence.offsets for fence in store.fences(shards.plan, range(SHARDS)).values()]
    assert offsets == [{"readings/1": lone.height}] * SHARDS


def test_events_of_other_classes_are_ignored(store):
    """They belong to other views; their partitions do not hold this view's positions back."""
    shards = shard_set(store)
    other = type(BATCHES[0])(Event, "others/0", np.arange(3), 3, LOG.head(3), None, START_US)
    shards.apply(other)
    assert (shards.positions(), shards.record_count) == ({}, 0)


def test_start_at_hands_over_from_a_backfill(store, expected):
    """Rows before the given offsets are in the records already, from files."""
    shards = shard_set(store)
    for batch in BATCHES[:8]:
        shards.apply(type(batch)(Reading, "files/" + batch.partition, *_fields(batch)))
    shards.start_at({batch.partition: batch.next_offset for batch in BATCHES[:8]})
    shards.flush()
    replay(shard_set(store))
    assert bodies(store) == expected[MeterLoad]


def _fields(batch):
    return batch.offsets, batch.next_offset, batch.frame, batch.appended_us, batch.arrival_us


@pytest.mark.parametrize("records_max", [20, 100])
def test_eviction_gives_the_same_bytes(store, expected, records_max):
    """Records that leave the memory come back from Redis on the next touch."""
    shards = shard_set(store, records_max=records_max)
    for batch in batches(LOG, 40):
        shards.apply(batch)
        assert shards.record_count <= max(records_max, batch.frame["meter"].n_unique())
    shards.flush()
    assert bodies(store) == expected[MeterLoad]


def test_of_two_writers_the_later_flush_is_fenced(store, expected):
    """The zombie stops, for good; the engine that flushed first carries on, and the totals are exact."""
    old, new = shard_set(store), shard_set(store)
    for batch in BATCHES[:5]:
        old.apply(batch)
    for batch in BATCHES[:7]:
        new.apply(batch)
    new.flush()
    with pytest.raises(FencedError, match="shard 0: expected sequence 0 of writer nobody"):
        old.flush()
    with pytest.raises(FencedError, match="fenced before"):
        old.flush()
    with pytest.raises(FencedError, match="fenced before"):
        old.apply(BATCHES[5])
    for batch in BATCHES[7:]:
        new.apply(batch)
    new.flush()
    assert bodies(store) == expected[MeterLoad]


def test_flushall_under_a_live_engine_is_noticed(store, redis_url, expected):
    """Without the fence only newly dirty records would be written, and the rest be lost in silence."""
    shards = shard_set(store)
    for batch in BATCHES[:10]:
        shards.apply(batch)
    shards.flush()
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    for batch in BATCHES[10:]:
        shards.apply(batch)
    with pytest.raises(FencedError, match="found 0 of nobody"):
        shards.flush()
    replay(shard_set(store))
    assert bodies(store) == expected[MeterLoad]


def test_a_store_emptied_before_the_first_flush_is_registered_anew(store, redis_url, expected):
    """
    engine opened --- FLUSHALL --- first event, first flush      no fence differs, for none was written yet

    Without its names in the store, readers of a changed view would find no records and no error, and a process with
    another number of shards would read beside them.
    """
    shards = shard_set(store)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    for batch in BATCHES:
        shards.apply(batch)
    shards.flush()
    assert bodies(store) == expected[MeterLoad]
    assert store.active("meter_load") == plan_of(MeterLoad).fingerprint
    with redis.Redis.from_url(redis_url) as client:
        assert client.hget("hr:meta", "shards") == str(SHARDS).encode()
        assert client.hexists("hr:owners", "meter_load")
    with pytest.raises(StoreError, match=f"made with shards = {SHARDS}, not 16"):
        OnlineStore.open(redis_url, shards=16)


def test_a_store_emptied_and_opened_with_other_shards_is_refused(store, redis_url):
    """Its readers would look for the records in other shards."""
    shards = shard_set(store)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    with OnlineStore.open(redis_url, shards=16):
        shards.apply(BATCHES[0])
        with pytest.raises(StoreError, match=f"made with shards = 16, not {SHARDS}"):
            shards.flush()


def test_an_older_dump_restored_is_noticed(tmp_path, expected):
    """Redis goes back in time with data and offsets together; the engine stops, restarts and replays."""
    with EmbeddedRedis(tmp_path, aof=False) as server, OnlineStore.open(server.url, shards=SHARDS) as store:
        shards = shard_set(store)
        for index, batch in enumerate(BATCHES[:12]):
            shards.apply(batch)
            shards.flush()
            if index == 6:
                with redis.Redis.from_url(server.url) as client:
                    client.save()
                shutil.copy(tmp_path / "dump.rdb", tmp_path / "older.rdb")
        server.kill()
        shutil.copy(tmp_path / "older.rdb", tmp_path / "dump.rdb")
        server.start()
        for batch in BATCHES[12:]:
            shards.apply(batch)
        with pytest.raises(FencedError, match=r"expected sequence 12 .* found 7 of"):
            shards.flush()
        assert verify(MeterLoad, LOG, store).ok
        replay(shard_set(store))
        assert bodies(store) == expected[MeterLoad]


def test_redis_killed_and_restarted_goes_on_or_is_noticed(tmp_path, expected):
    """The append-only file may lack the last second: then the fence is older and the engine replays."""
    with EmbeddedRedis(tmp_path) as server, OnlineStore.open(server.url, shards=SHARDS) as store:
        shards = shard_set(store)
        for index, batch in enumerate(BATCHES):
            if index in {5, 13}:
                server.kill()
                with pytest.raises(StoreUnavailableError, match="check that Redis runs there"):
                    _apply_and_flush(shards, batch)
                server.start()
            try:
                _apply_and_flush(shards, batch)
            except FencedError:
                shards = shard_set(store)
                replay(shards)
        assert bodies(store) == expected[MeterLoad]
        assert verify(MeterLoad, LOG, store).ok


def _apply_and_flush(shards, batch):
    shards.apply(batch)
    shards.flush()


@pytest.mark.parametrize("then_cut", [False, True])
@pytest.mark.parametrize("holding", [b"", b"\r\n:"], ids=["the fence", "what EXEC did"])
def test_a_flush_with_an_unknown_outcome_is_applied_once(redis_url, expected, holding, then_cut):
    """The reply is lost: retried at once by the connection, or, with the wire cut, by a later flush that holds more."""
    with Wire(redis_url) as wire, OnlineStore.open(wire.url, shards=SHARDS) as store:
        shards = shard_set(store)
        for index, batch in enumerate(BATCHES):
            shards.apply(batch)
            if index % 6 == 5:
                wire.lose_next_reply(holding=holding, then_cut=then_cut)
                if then_cut:
                    with pytest.raises(StoreUnavailableError):
                        shards.flush()
                    wire.mend()
                else:
                    shards.flush()
        shards.flush()
        assert wire.lost_replies == 4
        assert bodies(store) == expected[MeterLoad]
        assert verify(MeterLoad, LOG, store).ok


def test_while_redis_is_away_nothing_is_lost(redis_url, expected):
    """Rows of entities in memory still apply; others say that the store is away, and the same batch works later."""
    with Wire(redis_url) as wire, OnlineStore.open(wire.url, shards=SHARDS) as store:
        shards = shard_set(store)
        for batch in BATCHES[:6]:
            shards.apply(batch)
        shards.flush()
        shards = shard_set(store)
        for batch in BATCHES[6:]:
            wire.cut()
            for attempt in (shards.flush, lambda batch=batch: shards.apply(batch)):
                try:
                    attempt()
                except StoreUnavailableError:
                    continue
            wire.mend()
            shards.apply(batch)
        shards.flush()
        assert bodies(store) == expected[MeterLoad]


def test_a_view_with_a_ttl_starts_anew_in_memory_when_redis_forgets(store):
    """With or without a restart the entity is new: memory does not outlive the record."""
    view = BriefLoad
    part = [batch for batch in BATCHES if batch.partition == "readings/1"][:2]
    clock = FixedClock(START_US)
    shards = shard_set(store, view, clock=clock)
    shards.apply(part[0])
    shards.flush()
    for key in list(store.views.scan_records(shards.plan)):
        store._link.client.delete(key)
    shards._clock = FixedClock(START_US + 1_000_000)
    shards.apply(part[1])
    shards.flush()
    found = store.read(view, part[1].frame.select("meter").unique(maintain_order=True), now=part[1].frame["at"].max())
    counts = dict(part[1].frame.group_by("meter").len().iter_rows())
    assert dict(found.select("meter", "readings_lifetime").iter_rows()) == counts


def test_a_changed_view_materialises_beside_the_active_one(store):
    """A warning says that readers do not get it yet."""
    shard_set(store)
    changed = type(
        "MeterLoad", (MeterLoad.__base__,), {"__module__": MeterLoad.__module__, "readings": MeterLoad.readings}, **KEYS
    )
    beside = ShardSet(plan_of(changed), store, range(SHARDS))
    for batch in BATCHES[:3]:
        beside.apply(batch)
    beside.flush()
    assert store.active("meter_load") == plan_of(MeterLoad).fingerprint
    store.activate(beside.plan)
    assert store.read(changed, [1], now=LOG["at"].max() + timedelta(seconds=1))["_status"].to_list() == ["fresh"]


KEYS = {"source": Reading, "entity": "meter"}
