"""Broker to Redis: events a second on a backlog, as Avro messages and as Arrow blocks, and freshness under load.

python -m benchmarks.broker.run [--events 8000000] [--rival-events 50000] [--users 100000] [--block-rows 16384]
                                [--live-seconds 20] [--live-rate 280000] [--seed 7]

Rivals: plain Bytewax and, where it is installed (pip install quixstreams), Quix Streams.

Where an event's processor time goes: a message costs 1.1 us on the thread that reads ahead, two thirds of it for the
client's objects and the rest for decoding; an event in a block costs that thread next to nothing. Finding its entity,
putting a batch in the order of entities, four windows and two lists are 0.25 us on other threads. A record of 450 bytes
is packed and sent in 2.5 us, and costs Redis 1.5 to 2.5 us, append-only file included, however many events it came
from. Broker and Redis take their share of the same two cores. Of blocks every sixth second goes to pages of memory that
the machine is given anew: 160 bytes of state an entity and window, and the client's and Polars' buffers.

The limits beneath: decoding alone is 130 ns a message and a message of the client 400 to 500 (both measured in loops of
their own), so messages of one event each stay below a million a second however fast the rest is. Freshness under load
is a matter of distinct keys: 280,000 events a second of 100,000 keys are 60,000 to 100,000 records a second. Of 170 ms
at the median the broker, its client and the pause between polls have 90, a batch waits 35 for the flush before it, and
its own takes 40. Flushes may take nine tenths of the time (`FLUSH_SHARE`); waiting longer saves few writes. All four
processes leave a quarter of two cores, so a machine with noisy neighbours can double p99 for a minute.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

from benchmarks.broker import ours, rival_bytewax
from benchmarks.broker.declaration import PARTITIONS, EngagementBlock, UserActivityOfBlocks, publish
from benchmarks.conditions import describe
from benchmarks.materialize import rival_bytewax as rival_state
from benchmarks.materialize.declaration import Engagement, UserActivity, write_log
from headrace.local import EmbeddedBroker, EmbeddedRedis
from headrace.schemas import spec_of

ROOT = Path(__file__).resolve().parents[2]
SAMPLED = 300
PACKAGES = ("bytewax", "confluent-kafka", "fastavro", "polars", "pyarrow", "numpy", "numba", "redis", "quixstreams")
HAS_QUIX = importlib.util.find_spec("quixstreams") is not None
LIVE_LOG_ROWS = 1_000_000
WAIT_S = 30.0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=8_000_000)
    parser.add_argument("--rival-events", type=int, default=50_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--block-rows", type=int, default=16_384)
    parser.add_argument("--live-seconds", type=float, default=20.0)
    parser.add_argument("--live-rate", type=float, default=280_000, help="events a second: 70 %% of 400,000")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args(arguments)
    describe("benchmarks.broker.run", PACKAGES, given)
    print(f"broker, Redis (append-only file on) and engine on the same cores; {PARTITIONS} partitions, one worker")
    avro, blocks = spec_of(Engagement).topic, spec_of(EngagementBlock).topic
    with (
        tempfile.TemporaryDirectory() as name,
        EmbeddedRedis(Path(name) / "redis") as server,
        EmbeddedBroker(Path(name) / "broker", topics={avro: PARTITIONS, blocks: PARTITIONS}) as broker,
    ):
        folder, url, bootstrap = Path(name), server.url, broker.bootstrap
        path = write_log(folder, given.events, given.users, given.seed)
        log = pl.read_parquet(path)
        publish(bootstrap, avro, Engagement, log[: given.rival_events])
        ours.run_backlog(bootstrap, UserActivity, url, "warm", folder)  # compiles the kernels; they are cached on disk
        rivals_s = {"plain Bytewax": rival_bytewax.run_backlog(bootstrap, avro, url, "plain Bytewax")}
        rivals_s |= quix_backlog(bootstrap, avro, url, given.rival_events, folder)
        small_s = ours.run_backlog(bootstrap, UserActivity, url, "small", folder)
        for rival in rivals_s:
            check(log[: given.rival_events], url, rival)
        publish(bootstrap, avro, Engagement, log[given.rival_events :])
        large_s = ours.run_backlog(bootstrap, UserActivity, url, "large", folder)
        publish(bootstrap, blocks, EngagementBlock, log, given.block_rows)
        blocks_s = ours.run_backlog(bootstrap, UserActivityOfBlocks, url, "blocks", folder)
        check_blocks(log, url)
        rates = {
            **{
                f"{rival}, Avro, {given.rival_events:,} events": given.rival_events / s for rival, s in rivals_s.items()
            },
            f"Headrace, Avro, {given.rival_events:,} events": given.rival_events / small_s,
            f"Headrace, Avro, {given.events:,} events": given.events / large_s,
            f"Headrace, Arrow x {given.block_rows:,}, {given.events:,} events": given.events / blocks_s,
        }
        baseline = given.rival_events / rivals_s["plain Bytewax"]
        for label, rate in rates.items():
            print(f"{label:<48} {rate:>12,.0f} events/s  x {rate / baseline:.1f}")
    if given.live_seconds:
        live(given, given.live_rate)


def quix_backlog(bootstrap: str, topic: str, url: str, events: int, folder: Path) -> dict[str, float]:
    """Seconds of Quix Streams on a topic of `events`, by its name; nothing where it is not installed."""
    if not HAS_QUIX:
        print("no Quix Streams beside it: quixstreams is not installed")
        return {}
    from benchmarks.broker import rival_quix

    return {"Quix Streams": rival_quix.run_backlog(bootstrap, topic, url, "Quix Streams", events, folder)}


def sample(log: pl.DataFrame) -> tuple[list[int], int]:
    """Some users, and the moment after the last event."""
    everyone = log["user_id"].unique().sort()
    users = everyone.sample(min(SAMPLED, len(everyone)), seed=0).to_list()
    return users, int(log["event_time"].dt.epoch("us").max()) + 1


def check(log: pl.DataFrame, url: str, rival: str) -> None:
    """We and `rival`, which wrote to a namespace of its name, hold the same values for a sample of users."""
    users, now_us = sample(log)
    mine, theirs = ours.read(UserActivity, url, "small", users, now_us), rival_state.read(url, rival, users, now_us)
    for user in users:
        differing = [name for name in theirs[user] if mine[user][name] != theirs[user][name]]
        assert not differing, (user, [(name, mine[user][name], theirs[user][name]) for name in differing])
    print(f"equal to {rival}: {len(theirs[users[0]]) - 1} features of {len(users)} users")


def check_blocks(log: pl.DataFrame, url: str) -> None:
    """Messages and blocks of the same log became the same values, and the log's own totals."""
    users, now_us = sample(log)
    mine = ours.read(UserActivity, url, "large", users, now_us)
    assert mine == ours.read(UserActivityOfBlocks, url, "blocks", users, now_us)
    # of an entity whose newest list is not full, the list is the log's
    events = log.filter(pl.col("user_id").is_in(users)).sort("event_time", descending=True)
    newest = {user: items for (user,), items in events.partition_by("user_id", as_dict=True).items()}
    for user in users:
        assert mine[user]["recent"] == newest[user]["item_id"].head(50).to_list(), user
    print(f"equal as messages, as blocks and to the log: {len(users)} users")


def live(given: argparse.Namespace, rate: float) -> None:
    """Freshness from an empty store on, while a process of its own sends `rate` events a second."""
    topic = spec_of(Engagement).topic
    with (
        tempfile.TemporaryDirectory() as name,
        EmbeddedRedis(Path(name) / "redis") as server,
        EmbeddedBroker(Path(name) / "broker", topics={topic: PARTITIONS}) as broker,
    ):
        path = write_log(Path(name), min(LIVE_LOG_ROWS, given.events), given.users, given.seed + 1)
        follow(given, path, broker.bootstrap, server.url, rate)


def follow(given: argparse.Namespace, path: Path, bootstrap: str, url: str, rate: float) -> None:
    topic = spec_of(Engagement).topic
    words = [sys.executable, "-m", "benchmarks.broker.producer", bootstrap, topic, str(path), str(rate)]
    words.append(str(given.live_seconds))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started_s: list[float] = []
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, env=environment, text=True
    ) as producer:
        assert producer.stdin is not None
        assert producer.stdout is not None
        assert producer.stdout.readline() == "ready\n"

        def is_over() -> bool:
            if not started_s:  # the flow reads: now something may come
                started_s.append(time.monotonic())
                producer.stdin.write("\n")
                producer.stdin.flush()
            assert time.monotonic() - started_s[0] < given.live_seconds + WAIT_S, "the producer does not end"
            return producer.poll() is not None

        figures = ours.run_live(bootstrap, UserActivity, url, "live", path.parent, is_over)
        sent, took_s = producer.stdout.read().split()
    freshness = figures["freshness_ms"]
    print(
        f"live: {int(sent) / float(took_s):,.0f} events/s sent (wanted {rate:,.0f}) for {float(took_s):.1f} s; "
        f"freshness p50 {freshness['p50']:,.0f} ms, p99 {freshness['p99']:,.0f} ms of {freshness['count']:,} samples"
    )


if __name__ == "__main__":
    main()
