"""A Redis Cluster whose slots move and whose masters die: records stay exact, and errors say what is wrong."""

import threading

import numpy as np
import pytest
from polars.testing import assert_frame_equal

from headrace.errors import StoreError
from headrace.features import plan_of
from headrace.features.keys import shard_of
from headrace.features.store import OnlineStore
from headrace.features.store.fences import ShardWrite
from headrace.pipelines.materializer import Materializer
from tests.turnstiles import Passage, as_batch, door_use, passages, read_doors, views_of

VIEWS = views_of(Passage)
PLAN = plan_of(VIEWS[0])
LOG = passages(20_000, doors=2_000)
pytestmark = pytest.mark.parametrize("store_url", ["cluster"], indirect=True)


@pytest.fixture
def store(store_url):
    with OnlineStore.open(store_url) as opened:
        yield opened


def slot_of(store, shard):
    return store._link.client.keyslot(store._prefix(PLAN, shard))


def use_all_shards(url):
    with OnlineStore.open(url) as alone:
        alone.flush(PLAN, [ShardWrite(shard, 0, "a", [b"1"], [b"x"], {}) for shard in range(32)])


def test_a_slot_that_moved_is_followed_by_reads_and_writes(store, redis_cluster):
    """Before every step the slot belongs to another master than the client believes; both see MOVED."""
    slot, home = slot_of(store, 7), store._link.client.get_node_from_key(b"{7}").port
    elsewhere = next(index for index, port in enumerate(redis_cluster.ports) if port != home)
    texts = [b"%d" % i for i in np.flatnonzero(shard_of(np.arange(1_000), 32) == 7)[:5]]
    writes = [
        ShardWrite(shard, 0, "a", texts if shard == 7 else [], [b"x"] * 5 * (shard == 7), {}) for shard in range(32)
    ]
    redis_cluster.give(slot, elsewhere)
    assert store._link.client.get_node_from_key(b"{7}").port == home
    assert store.records(PLAN, np.array([int(text) for text in texts]), texts) == [None] * 5
    redis_cluster.give(slot, redis_cluster.ports.index(home))
    assert store.flush(PLAN, writes).sequences == dict.fromkeys(range(32), 1)
    assert store.records(PLAN, np.array([int(text) for text in texts]), texts) == [b"x"] * 5


def test_a_materializer_waits_for_a_master_that_was_killed(store, redis_cluster):
    """flush | kill -9 | flush waits ... start | goes through. What the server had written to its file is not lost."""
    engine = Materializer(VIEWS, store)
    engine.apply(as_batch(Passage, LOG[:10_000]))
    engine.flush()
    for index in (0, 1):
        begin = 10_000 + 5_000 * index
        engine.apply(as_batch(Passage, LOG[begin : begin + 5_000], first=begin))
        redis_cluster.kill(index)
        reviving = threading.Timer(0.3, redis_cluster.start, [index])
        reviving.start()
        engine.flush()
        reviving.join()
        redis_cluster.wait()
    assert_frame_equal(read_doors(store, Passage, LOG), door_use(LOG))


def test_a_node_of_a_cluster_is_no_store_by_itself(store_url, redis_cluster):
    """The URL of one server finds most shards elsewhere: for good, so waiting would not help."""
    for port in redis_cluster.ports:
        with pytest.raises(StoreError, match=r"write redis\+cluster:// in the URL") as caught:
            use_all_shards(f"redis://127.0.0.1:{port}")
        assert type(caught.value) is StoreError
