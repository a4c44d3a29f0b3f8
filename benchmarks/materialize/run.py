"""How many events a second become records in Redis, ours against plain Bytewax, both checked against each other.

python -m benchmarks.materialize.run [--events 12000000] [--rival-events 100000] [--users 100000] [--seed 7]

Where an event's processor time goes, of 500 ns on both cores (6 million events of 100,000 users): Polars reads and
checks it, 130; the view's columns and hashes of its id, 80; finding its entity and putting a batch in the order of
entities, 90; four windows and two lists, 170; packing and writing a record that 60 events came from, 30. Each of the
100,000 records is written at least once, which is half a second for the first 3 million events as for 12 million:
shorter logs come out slower. The limits beneath: an update is 30 ns a window, most of it memory that is not in the
cache; Redis takes 1.5 to 2.5 us a record, on the other core.
"""

import argparse
import tempfile
from pathlib import Path

import polars as pl

from benchmarks.conditions import describe
from benchmarks.materialize import ours, rival_bytewax
from benchmarks.materialize.declaration import write_log
from headrace.local import EmbeddedRedis

SAMPLED = 300
PACKAGES = ("bytewax", "polars", "numpy", "numba", "redis")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=12_000_000)
    parser.add_argument("--rival-events", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args(arguments)
    describe("benchmarks.materialize.run", PACKAGES, given)
    with tempfile.TemporaryDirectory() as name, EmbeddedRedis(Path(name) / "redis") as server:
        folder = Path(name)
        warm = write_log(folder, 1_000, 100, given.seed)
        small = write_log(folder, given.rival_events, given.users, given.seed)
        middle, large = (write_log(folder, n, given.users, given.seed) for n in (given.events // 4, given.events))
        ours.run_log(warm, server.url, "warm", folder)  # compiles the kernels once; they are cached on disk
        rival_s = rival_bytewax.run_log(small, server.url, "rival")
        small_s = ours.run_log(small, server.url, "small", folder)
        check(small, server.url)
        middle_s = ours.run_log(middle, server.url, "middle", folder)
        large_s = ours.run_log(large, server.url, "large", folder)
    rates = {
        f"plain Bytewax, {given.rival_events:,} events": given.rival_events / rival_s,
        f"Headrace, {given.rival_events:,} events": given.rival_events / small_s,
        f"Headrace, {given.events // 4:,} events": given.events // 4 / middle_s,
        f"Headrace, {given.events:,} events": given.events / large_s,
    }
    slowest = min(rates.values())
    for name, rate in rates.items():
        print(f"{name:<40} {rate:>12,.0f} events/s  x {rate / slowest:.1f}")


def check(log: Path, url: str) -> None:
    """Both sides hold the same values for a sample of users."""
    frame = pl.read_parquet(log)
    now_us = int(frame["event_time"].dt.epoch("us").max()) + 1
    everyone = frame["user_id"].unique().sort()
    users = everyone.sample(min(SAMPLED, len(everyone)), seed=0).to_list()
    mine, theirs = ours.read(url, "small", users, now_us), rival_bytewax.read(url, "rival", users, now_us)
    for user in users:
        differing = [name for name in theirs[user] if mine[user][name] != theirs[user][name]]
        assert not differing, (user, [(name, mine[user][name], theirs[user][name]) for name in differing])
    print(f"equal: {len(theirs[users[0]]) - 1} features of {len(users)} users")


if __name__ == "__main__":
    main()
