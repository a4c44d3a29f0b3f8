"""How long a reader waits for 20 features of 100 and of 5,000 entities, ours against Feast's layout, in the same Redis.

python -m benchmarks.read.run [--events 600000] [--users 20000] [--rounds 500] [--large-rounds 100] [--seed 7]

Each side gives Python what a model can take: ours a frame with windows decayed to the moment, the rivals columns of the
final values as they were written. Sides take turns of ten reads, and read the same entities. The bytes alone
are the limit: a bare socket sends the ready-made MGET and throws the reply away.

Feast itself takes part where it is installed (pip install "feast[redis]"), in every fifth turn only, as it is slow. It
wants older redis and tenacity than we do: give it an environment of its own, with us in it, and heed no warning of pip.

Where our time goes. 100 entities: of 1.3 ms, 0.2 are Redis and the wire, 0.3 decoding, the rest Polars and pyarrow,
some 20 us for each of 23 columns. 5,000 entities, records of 430 bytes: 11 ms of our processor time, of which decoding
is 7, the wire 2, the frame, whose lists are decoded to where they lie in it, 1, and asking for keys 1; Redis takes 7,
most of it at the same time where there is a free core. A record holds some 300 numbers, in columns of bits: 1.4 us, of
which a nanosecond a number, the rest for the heads of columns and for guesses where they end. A second thread for
decoding gained nothing on two cores.
"""

import argparse
import importlib.util
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import numpy as np
import polars as pl
import redis

from benchmarks.conditions import describe
from benchmarks.read import ours, rival_feast_layout
from benchmarks.read.declaration import UserActivity, make_log
from headrace.features import entity_ids, plan_of
from headrace.features.store import OnlineStore
from headrace.features.store.reader import entity_frame
from headrace.local import EmbeddedRedis

SMALL, LARGE = 100, 5_000
RUN = 10
"""Reads of one side before the next one's turn; the first of a run, which finds the other's data in the cache, is not
counted."""
FEAST_EVERY = 5
"""Feast itself takes part in the first of so many turns."""
HAS_FEAST = importlib.util.find_spec("feast") is not None
FEAST, LAYOUT, OURS = "Feast itself", "Feast's layout", "Headrace"
VIEW, ENTITY = "user_activity", "user_id"
PACKAGES = ("polars", "numpy", "numba", "redis", "hiredis", "protobuf", "mmh3", "feast")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=600_000)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--large-rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args(arguments)
    describe("benchmarks.read.run", PACKAGES, given)
    log = make_log(given.events, given.users, given.seed)
    now_us = int(log["event_time"].dt.epoch("us").max()) + 1
    with (
        tempfile.TemporaryDirectory() as name,
        EmbeddedRedis(Path(name) / "redis") as server,
        OnlineStore.open(server.url) as store,
        redis.Redis.from_url(server.url) as client,
        Wire(server.url) as wire,
    ):
        users = ours.write(store, log).to_list()
        dtypes = {feature.name: feature.dtype for feature in plan_of(UserActivity).features}
        for start in range(0, len(users), LARGE):
            rows = ours.read(store, users[start : start + LARGE], now_us).iter_rows(named=True)
            rival_feast_layout.write(client, VIEW, ENTITY, rows, dtypes, now_us // 1_000_000)
        sides: dict[str, Callable[[Sequence[int]], object]] = {
            **feast(Path(name), server.url, ours.read(store, users, now_us), now_us // 1_000_000),
            LAYOUT: lambda asked: rival_feast_layout.read(client, VIEW, ENTITY, asked, list(dtypes)),
            OURS: lambda asked: ours.read(store, asked, now_us),
        }
        check(sides, users[:: max(1, len(users) // 1_000)], list(dtypes))
        rng = np.random.default_rng(given.seed)
        for count, rounds in ((SMALL, given.rounds), (min(LARGE, len(users)), given.large_rounds)):
            waits: dict[str, list[float]] = {side: [] for side in (*sides, "the bytes alone")}
            for turn in range(rounds // RUN):
                asked = [rng.choice(users, count, replace=False).tolist() for _ in range(RUN + 1)]
                for side, read in sides.items():
                    if side == FEAST and turn % FEAST_EVERY:
                        continue
                    waits[side] += [timed(read, each) for each in asked][1:]
                commands = [wire.mget(store, each) for each in asked]
                waits["the bytes alone"] += [timed(wire.receive, each) for each in commands][1:]
            report(count, waits)


def feast(folder: Path, url: str, values: pl.DataFrame, seconds: int) -> dict[str, Callable[[Sequence[int]], object]]:
    """Feast as a side that holds `values`; none where it is not installed."""
    if not HAS_FEAST:
        print("no Feast beside its layout: feast is not installed")
        return {}
    from benchmarks.read import rival_feast

    dtypes = {feature.name: feature.dtype for feature in plan_of(UserActivity).features}
    store = rival_feast.open_store(folder, url, VIEW, ENTITY, dtypes)
    rival_feast.write(store, VIEW, values.select(ENTITY, *dtypes).to_dicts(), seconds)
    return {FEAST: lambda asked: rival_feast.read(store, VIEW, ENTITY, asked, list(dtypes))}


def timed(act: Callable[[object], object], given: object) -> float:
    started = time.perf_counter()
    act(given)
    return time.perf_counter() - started


def report(count: int, waits: dict[str, list[float]]) -> None:
    print(f"{count:,} entities x 20 features")
    baseline = np.percentile(waits[LAYOUT], 50)
    for side, seconds in waits.items():
        p50, p99 = np.percentile(seconds, (50, 99))
        line = f"p50 {p50 * 1e3:>8.2f} ms   p99 {p99 * 1e3:>8.2f} ms   x {baseline / p50:<6.1f}"
        print(f"  {side:<16} {line} of {len(seconds)} reads")


def check(sides: dict[str, Callable], users: list[int], features: list[str]) -> None:
    """Every rival gives our values."""
    mine = sides[OURS](users)
    for side in sides.keys() - {OURS}:
        theirs = sides[side](users)
        for feature in features:
            assert mine[feature].to_list() == theirs[feature], (side, feature)
        print(f"equal to {side}: {len(features)} features of {len(users)} users")


class Wire:
    """A bare socket to Redis."""

    def __init__(self, url: str) -> None:
        self._socket = socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=10)
        self._room = bytearray(1 << 20)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def mget(self, store: OnlineStore, users: Sequence[int]) -> tuple[bytes, int]:
        """The command that `store` sends for `users`, and the size of its reply."""
        plan = plan_of(UserActivity)
        ids, texts = entity_ids(plan, entity_frame(plan, users))
        keys = store._keys(plan, ids, texts)  # noqa: SLF001 - no reader needs them
        sizes = [len(record) for record in store.records(plan, ids, texts) if record is not None]
        command = b"*%d\r\n$4\r\nMGET\r\n" % (len(keys) + 1)
        command += b"".join(b"$%d\r\n%s\r\n" % (len(key), key) for key in keys)
        return command, len(b"*%d\r\n" % len(keys)) + sum(len(b"$%d\r\n\r\n" % size) + size for size in sizes)

    def receive(self, asked: tuple[bytes, int]) -> None:
        """Send and wait for the whole reply."""
        command, left = asked
        self._socket.sendall(command)
        while left > 0:
            left -= self._socket.recv_into(self._room)


if __name__ == "__main__":
    main()
