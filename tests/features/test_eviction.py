"""A Redis that may evict records is not written to: their entities would begin at 0 again, and nobody would know."""

import contextlib
import shutil
import time

import numpy as np
import pytest
import redis

from headrace.errors import EvictionError, FencedError, StoreError, StoreUnavailableError
from headrace.features import Count, FeatureView, OnlineStore, plan_of
from headrace.features.store import eviction
from headrace.features.store.fences import Fence, ShardWrite
from headrace.local import EmbeddedRedis
from headrace.pipelines import EventBatch, Materializer, ShardSet
from tests.logs import capture_logs
from tests.meters import Reading, log_frame

POLICIES = (
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "volatile-lru",
    "volatile-lfu",
    "volatile-random",
    "volatile-ttl",
    "noeviction",
)


class Lasting(FeatureView, source=Reading, entity="meter", name="lasting"):
    """Records without a ttl."""

    readings = Count(windows="lifetime")


class Passing(FeatureView, source=Reading, entity="meter", name="passing", ttl="1d"):
    """Records with a ttl, which volatile policies may drop before it."""

    readings = Count(windows="10m")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with EmbeddedRedis(tmp_path_factory.mktemp("redis"), aof=False) as running:
        yield running


@pytest.fixture
def client(server):
    with redis.Redis.from_url(server.url) as opened:
        opened.flushall()
        try:
            yield opened
        finally:
            opened.config_set("maxmemory", 0)
            opened.config_set("maxmemory-policy", "noeviction")


def one_record(count=1):
    texts = [b"%d" % number for number in range(count)]
    return ShardWrite(0, 0, "writer", texts, [b"x" * 200] * count, {"readings/0": count})


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("maxmemory", ["0", "50mb"])
@pytest.mark.parametrize("view", [Lasting, Passing])
def test_a_store_is_written_only_where_its_records_stay(server, client, policy, maxmemory, view):
    """The policy decides, whether or not there is a maxmemory yet."""
    client.config_set("maxmemory-policy", policy)
    client.config_set("maxmemory", maxmemory)
    with OnlineStore.open(server.url, shards=1) as store:
        plan = plan_of(view)
        if policy == "noeviction":
            Materializer([view], store)
            store.flush(plan, [one_record()])
            return
        with pytest.raises(EvictionError, match=f"view {plan.name}: .*{policy}.*noeviction.*HEADRACE_ALLOW_EVICTION"):
            Materializer([view], store)
        with pytest.raises(EvictionError, match=policy):
            ShardSet(plan, store, range(1))
        with pytest.raises(EvictionError, match=policy):
            store.flush(plan, [one_record()])
        assert store.fence(plan, 0) == Fence()
        assert store.active(plan.name) is None
        store.read(view, [1])  # reading changes nothing
    with OnlineStore.open(server.url, shards=1, allow_eviction=True) as store:
        store.flush(plan, [one_record()])
        assert store.fence(plan, 0).sequence == 1


def test_where_eviction_is_allowed_records_do_go(server, client):
    """The fault itself: under pressure entities that were counted are missing, without any error."""
    client.config_set("maxmemory-policy", "allkeys-random")
    client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 3_000_000)
    plan, texts = plan_of(Lasting), [b"%d" % number for number in range(20_000)]
    with OnlineStore.open(server.url, shards=1, allow_eviction=True) as store:
        for sequence in range(20):
            part = texts[1_000 * sequence :][:1_000]
            with contextlib.suppress(FencedError):  # the fence may be dropped as well
                store.flush(plan, [ShardWrite(0, sequence, "writer", part, [b"x" * 200] * 1_000, {})])
        records = store.records(plan, np.arange(20_000), texts)
    assert client.info("stats")["evicted_keys"] > 0
    assert records.count(None) > 0


def test_a_policy_that_changes_while_a_flow_runs_stops_it(server, client, monkeypatch):
    """Whether it has events to write or none; nothing of the refused flush is in the store."""
    monkeypatch.setattr(eviction, "EVICTION_S", 0.0)
    frame = log_frame(200).drop("_partition", "_offset")
    with OnlineStore.open(server.url, shards=2) as store:
        busy = Materializer([Lasting], store)
        busy.apply(EventBatch(Reading, "readings/0", np.arange(100), 100, frame[:100], None, 1))
        busy.flush()
        client.config_set("maxmemory", "50mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        busy.apply(EventBatch(Reading, "readings/0", np.arange(100, 200), 200, frame[100:], None, 1))
        with pytest.raises(EvictionError, match="allkeys-lru"):
            busy.flush()
        assert {fence.offsets["readings/0"] for fence in store.fences(plan_of(Lasting), range(2)).values()} == {100}
        client.config_set("maxmemory-policy", "noeviction")
        idle = Materializer([Lasting], store)
        client.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(EvictionError, match="allkeys-lru"):
            tick_for(idle, 20)


def tick_for(engine, seconds):
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        engine.tick()
        time.sleep(0.01)


def test_every_master_of_a_cluster_is_looked_at(redis_cluster):
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(redis_cluster.node(index)) for index in range(len(redis_cluster.ports))]
        for node in nodes:
            node.flushall()
        nodes[2].config_set("maxmemory", "100mb")
        nodes[2].config_set("maxmemory-policy", "allkeys-lru")
        try:
            with (
                OnlineStore.open(redis_cluster.url) as store,
                pytest.raises(
                    EvictionError, match=f"127.0.0.1:{redis_cluster.ports[2]} has maxmemory-policy allkeys-lru"
                ),
            ):
                Materializer([Lasting], store)
        finally:
            nodes[2].config_set("maxmemory", 0)
            nodes[2].config_set("maxmemory-policy", "noeviction")
    with OnlineStore.open(redis_cluster.url) as store:
        Materializer([Lasting], store)


def test_a_user_who_may_not_ask_is_warned_and_goes_on(server, client):
    """The rights that the docs name do not include INFO."""
    client.config_set("maxmemory", "50mb")
    client.config_set("maxmemory-policy", "allkeys-lru")
    rights = ("+@read", "+@write", "+@transaction", "+@scripting", "+@connection")
    client.execute_command("ACL", "SETUSER", "writer", "on", ">long-word", "~*", *rights, "-info")
    try:
        url = server.url.replace("//", "//writer:long-word@")
        with capture_logs() as lines, OnlineStore.open(url, shards=1) as store:
            store.flush(plan_of(Lasting), [one_record()])
            store.flush(plan_of(Passing), [one_record()])
    finally:
        client.execute_command("ACL", "DELUSER", "writer")
    (warning,) = [line for line in lines if line["event"] == "eviction_unknown"]
    assert "+info" in warning["advice"]
    assert "long-word" not in str(lines)


def test_a_full_redis_and_a_replica_are_typed_errors(server, client, tmp_path):
    """None of them is a partial success; what heals by itself is waited for, a full memory is not."""
    plan = plan_of(Lasting)
    with OnlineStore.open(server.url, shards=1) as store:
        client.config_set("maxmemory", "100kb")
        with pytest.raises(StoreError, match="raise its maxmemory") as full:
            store.flush(plan, [one_record(100)])
        assert type(full.value) is StoreError
        client.config_set("maxmemory", 0)
        with EmbeddedRedis(tmp_path / "other", aof=False) as primary:
            client.execute_command("REPLICAOF", "127.0.0.1", primary.port)
            try:
                with pytest.raises(StoreUnavailableError, match="this is a replica"):
                    store.flush(plan, [one_record()])
                with pytest.raises(StoreUnavailableError, match="this is a replica"):
                    OnlineStore.open(server.url, shards=1)
            finally:
                client.execute_command("REPLICAOF", "NO", "ONE")
        assert store.fence(plan, 0) == Fence()


def test_a_failed_save_is_a_typed_error(tmp_path):
    """The folder that Redis saves in is gone, as a full disk would be: it takes no writes until it can save again."""
    plan, folder = plan_of(Lasting), tmp_path / "gone"
    with (
        EmbeddedRedis(folder, aof=False) as server,
        redis.Redis.from_url(server.url) as client,
        OnlineStore.open(server.url, shards=1) as store,
    ):
        client.config_set("save", "1 1")
        shutil.rmtree(folder)
        client.set("any", 1)
        with contextlib.suppress(redis.RedisError):
            client.bgsave()
        deadline_s = time.monotonic() + 20
        while client.info("persistence")["rdb_last_bgsave_status"] == "ok" and time.monotonic() < deadline_s:
            time.sleep(0.02)
        with pytest.raises(StoreUnavailableError, match="cannot write to its disk"):
            store.flush(plan, [one_record()])
        assert store.fence(plan, 0) == Fence()
        client.config_set("save", "")  # else it would not stop, since it cannot save, until it is killed
