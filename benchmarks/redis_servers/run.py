"""Which server the embedded Redis should be: speed of our flushes and reads, and memory an entity, of each one given.

python -m benchmarks.redis_servers.run --server valkey=/path/valkey-server --server redis=/path/redis-server
    [--entities 20000] [--rounds 30] [--seed 7]

A round flushes the records of all entities through `OnlineStore.flush` (32 shards, transactions, append-only file on,
`appendfsync everysec`) and reads 5,000 of them with `OnlineStore.read`. Servers take turns round by round, so that a busy
machine slows all of them alike. Memory is `used_memory_dataset` after the last round, by entity, and the process's
resident size. Every server must return the values that the first one returned.
"""

import argparse
import os
import platform
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import redis

from benchmarks.read.declaration import Engagement, UserActivity, make_log
from headrace.features import Slab, plan_of
from headrace.features.fences import ShardWrite
from headrace.features.keys import shard_of
from headrace.features.store import OnlineStore
from headrace.local import EmbeddedRedis
from headrace.local.redis_server import SERVER_VARIABLE

READ = 5_000
WARM = 3
"""Rounds that are not counted."""


class Side:
    """One server with the records of a slab."""

    def __init__(self, name: str, folder: Path, slab: Slab) -> None:
        self.name = name
        self.server = EmbeddedRedis(folder)
        self.flush_s: list[float] = []
        self.read_s: list[float] = []
        self._slab = slab
        self._sequence = 0

    def flush(self) -> None:
        """Every record once more, shard by shard, behind its fence."""
        plan = plan_of(UserActivity)
        rows = self._slab.rows()
        shards = shard_of(self._slab.ids(rows), self.store.shards)
        writes = []
        for shard in range(self.store.shards):
            at = rows[shards == shard]
            blobs = self._slab.pack(at, self._sequence + 1, 0)
            writes.append(ShardWrite(shard, self._sequence, "benchmark", self._slab.texts(at), blobs, {"log/0": 1}))
        started = time.perf_counter()
        self.store.flush(plan, writes)
        self.flush_s.append(time.perf_counter() - started)
        self._sequence += 1
        self.store.register(plan)

    def read(self, users: list[int], now_us: int) -> pl.DataFrame:
        started = time.perf_counter()
        frame = self.store.read(UserActivity, users, now=now_us)
        self.read_s.append(time.perf_counter() - started)
        return frame

    def open(self) -> OnlineStore:
        self.store = OnlineStore.open(self.server.url)
        return self.store


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", action="append", required=True, metavar="NAME=PROGRAM")
    parser.add_argument("--entities", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args(arguments)
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {given}")
    log = make_log(30 * given.entities, given.entities, given.seed)
    now_us = int(log["event_time"].dt.epoch("us").max()) + 1
    slab = Slab(plan_of(UserActivity))
    slab.update(plan_of(UserActivity).rows(Engagement, log))
    entities = np.sort(slab.ids(slab.rows()))
    rng = np.random.default_rng(given.seed)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sides = [start(stack, Path(folder), slab, *server.split("=", 1)) for server in given.server]
        for _ in range(given.rounds + WARM):
            users = rng.choice(entities, min(READ, len(entities)), replace=False).tolist()
            frames = []
            for side in sides:
                side.flush()
                frames.append(side.read(users, now_us))
            assert all(frame.equals(frames[0]) for frame in frames), "servers return different values"
        print(f"{len(entities):,} entities, {given.rounds} rounds; equal values from all servers")
        for side in sides:
            report(side, len(entities))


def start(stack: ExitStack, folder: Path, slab: Slab, name: str, program: str) -> Side:
    os.environ[SERVER_VARIABLE] = program
    side = Side(name, folder / name, slab)
    stack.enter_context(side.server)
    stack.enter_context(side.open())
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.split(" bits")[
        0
    ]
    print(f"{name}: {version}")
    return side


def report(side: Side, entities: int) -> None:
    flush, read = (np.array(seconds[WARM:]) for seconds in (side.flush_s, side.read_s))
    with redis.Redis.from_url(side.server.url) as client:
        memory = client.info("memory")
        records = [len(client.get(key)) for key in client.scan_iter(match="hr:*:user_activity:*:*", count=1_000)]
    resident = psutil.Process(side.server.pid).memory_info().rss
    print(
        f"{side.name:<10} flush {entities / np.median(flush):>9,.0f} records/s (p95 {np.percentile(flush, 95) * 1e3:.0f} ms)"
        f"   read {READ:,}: p50 {np.median(read) * 1e3:>6.2f} ms, p95 {np.percentile(read, 95) * 1e3:>6.2f} ms"
        f"   {memory['used_memory_dataset'] / entities:>6.0f} bytes an entity (record {np.mean(records):.0f}),"
        f" resident {resident / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
