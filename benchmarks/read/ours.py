"""Headrace: one record an entity, one MGET, windows as of now."""

from collections.abc import Sequence

import numpy as np
import polars as pl

from benchmarks.materialize.declaration import Engagement
from benchmarks.read.declaration import UserActivity
from headrace.features import Slab, plan_of
from headrace.features.keys import shard_of
from headrace.features.store import OnlineStore
from headrace.features.store.fences import ShardWrite


def write(store: OnlineStore, log: pl.DataFrame) -> pl.Series:
    """Records of the whole log in the store; returns the users that have one."""
    plan = plan_of(UserActivity)
    slab = Slab(plan)
    slab.update(plan.rows(Engagement, log))
    rows = slab.rows()
    shards = shard_of(slab.ids(rows), store.shards)
    writes = []
    for shard in range(store.shards):
        at = rows[shards == shard]
        writes.append(ShardWrite(shard, 0, "benchmark", slab.texts(at), slab.pack(at, 1, 0), {}))
    store.flush(plan, writes)
    store.register(plan)
    return pl.Series("user_id", np.sort(slab.ids(rows)))


def read(store: OnlineStore, users: Sequence[int], now_us: int) -> pl.DataFrame:
    """A frame: user, 20 features, status and age."""
    return store.read(UserActivity, users, now=now_us)
