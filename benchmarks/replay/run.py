"""Training set: rows as of their time, over one history, ours against Polars and DuckDB; every value is compared.

python -m benchmarks.replay.run [--events 1000000] [--spine 500000] [--join-events 50000] [--join-spine 25000]
                                [--users 100000] [--repeats 5] [--seed 7]

Times are medians; a core's rows are those of a second of processor time, of all threads, which wait for each other's
memory: `taskset -c 0 python -m ...` tells what one core does alone, some 8 % more. Of the 320 ns that an event or row
costs us there 45 go to Parquet, which zstd bounds, 115 to three windows, 45 to lists, of which a third is writing the
answers, 150 MB for 500,000 rows, 35 to putting operations in the order of entities and 25 to finding those. Memory that
was not used before costs most where a machine must first be given it. A range join pairs each row with all events of
its user, so its cost grows with the history: its figures hold for its own size, which is printed.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from polars.testing import assert_frame_equal

from benchmarks.conditions import describe
from benchmarks.replay import ours, rival_duckdb, rival_polars
from benchmarks.replay.declaration import make, write

PACKAGES = ("polars", "duckdb", "numpy", "numba")
LONG_S = 5.0
Answer = Callable[[Path, Path], pl.DataFrame]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--spine", type=int, default=500_000)
    parser.add_argument("--join-events", type=int, default=50_000, help="of the range join, which pairs them")
    parser.add_argument("--join-spine", type=int, default=25_000)
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5, help="of ours; a rival that takes over 5 s is run once")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args(arguments)
    describe("benchmarks.replay.run", PACKAGES, given)
    whole = {"Polars": rival_polars.answer, "DuckDB frames": rival_duckdb.frames_answer}
    compare(given.events, given.spine, given, whole)
    compare(given.join_events, given.join_spine, given, {"DuckDB range join": rival_duckdb.join_answer})


def compare(events: int, spine: int, given: argparse.Namespace, rivals: dict[str, Answer]) -> None:
    with tempfile.TemporaryDirectory() as name:
        paths = write(Path(name), *make(events, spine, given.users, given.seed))
        ours.answer(*paths)  # compiles the kernels once; they are cached on disk
        wanted, mine = timed(ours.answer, paths, given.repeats)
        report("Headrace", events + spine, mine, mine)
        for label, rival in rivals.items():
            found, theirs = timed(rival, paths, given.repeats)
            assert_same(found, wanted)
            report(label, events + spine, theirs, mine)


def timed(answer: Answer, paths: tuple[Path, Path], repeats: int) -> tuple[pl.DataFrame, tuple[float, float]]:
    """The answer, and the medians of the seconds by the clock and of processor time that it took."""
    took: list[tuple[float, float]] = []
    while len(took) < repeats and sum(clock_s for clock_s, _ in took) < LONG_S:
        started_s, cpu_s = time.perf_counter(), time.process_time()
        found = answer(*paths)
        took.append((time.perf_counter() - started_s, time.process_time() - cpu_s))
    clock_s, cpu_s = np.median(took, axis=0).tolist()
    return found, (clock_s, cpu_s)


def assert_same(found: pl.DataFrame, wanted: pl.DataFrame) -> None:
    """Every value of every row; a mean's division may round either way, and SQL's null is our NaN."""
    floats = pl.selectors.float()
    plain = [frame.with_columns(floats.fill_nan(None)) for frame in (found.cast({"recent": pl.List(pl.Int64)}), wanted)]
    assert_frame_equal(plain[0].select(wanted.columns), plain[1], check_dtypes=False, rel_tol=1e-12)


def report(label: str, rows: int, took: tuple[float, float], mine: tuple[float, float]) -> None:
    clock_s, cpu_s = took
    rates = f"{rows / clock_s:>11,.0f} rows/s {rows / cpu_s:>11,.0f} a core"
    print(f"{label:<18} {rows:>10,} events and rows {rates}  {clock_s:6.2f} s  x {clock_s / mine[0]:.1f} of ours")


if __name__ == "__main__":
    main()
