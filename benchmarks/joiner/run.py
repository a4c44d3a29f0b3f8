"""How long a save stops training while a million requests are open, and what it costs in memory.

    python benchmarks/joiner/run.py [--requests 1000000] [--features 400] [--in-memory 1000000]

Requests come at an even rate over one label window, engagements beside them, and the joiner is saved every 30 s of
event time, as the training flow does every 30 s of wall time. Beside it: the time of a joiner that keeps no files.
"""

import argparse
import os
import resource
import tempfile
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from headrace.pipelines import EventBatch, Joiner, JoinSpec
from headrace.pipelines.checkpoints import Checkpoints
from headrace.schemas import Event

START_US = 1_700_000_000_000_000
WINDOW_S = 600
SAVE_S = 30
CANDIDATES = 10
BATCH_ROWS = 4_096


class Request(Event, topic="requests", key="visitor", time="at", id="request_id"):
    """A ranking of ten candidates."""

    request_id: str
    at: datetime
    visitor: int
    candidates: list[int]
    features: bytes


class Follow(Event, topic="follows", key="visitor", time="at", id="follow_id"):
    """A candidate was followed."""

    follow_id: str
    at: datetime
    visitor: int
    candidate: int


SPEC = JoinSpec(Request, Follow, candidates="candidates", candidate="candidate", within_us=WINDOW_S * 1_000_000)


def requests(first: int, rows: int, total: int, features: int, rng: np.random.Generator) -> EventBatch:
    numbers = np.arange(first, first + rows)
    frame = pl.DataFrame(
        {
            "request_id": pl.Series(numbers).cast(pl.String),
            "at": pl.Series(START_US + numbers * (WINDOW_S * 1_000_000) // total).cast(pl.Datetime("us", "UTC")),
            "visitor": numbers % 100_003,
            "candidates": pl.Series(rng.integers(0, 50_000, (rows, CANDIDATES))).cast(pl.List(pl.Int64)),
            "features": [rng.bytes(features)] * rows,
        }
    )
    return EventBatch(Request, "requests/0", numbers, first + rows, frame, None, 0)


def follows(of: EventBatch, rng: np.random.Generator) -> EventBatch:
    rows = of.frame.select(
        pl.format("f{}", "request_id").alias("follow_id"), "at", "visitor", candidate=pl.col("candidates").list.get(0)
    ).filter(pl.Series(rng.random(of.frame.height) < 0.2))
    end = of.next_offset
    return EventBatch(Follow, "follows/0", np.arange(end - rows.height, end), end, rows, None, 0)


def run(arguments: argparse.Namespace, folder: Path, *, keeps: bool) -> None:
    rng = np.random.default_rng(0)
    joiner = Joiner(SPEC, requests_max=arguments.in_memory, spill=folder / "spill")
    checkpoints = Checkpoints(folder / "state")
    if keeps:
        joiner.keep_in(folder / "state")
    saves, adds, each = [], [], arguments.requests * SAVE_S // WINDOW_S
    due = each
    for first in range(0, arguments.requests, BATCH_ROWS):
        batch = requests(
            first, min(BATCH_ROWS, arguments.requests - first), arguments.requests, arguments.features, rng
        )
        started = time.perf_counter()
        joiner.add(batch)
        joiner.add(follows(batch, rng))
        adds.append(time.perf_counter() - started)
        if first + BATCH_ROWS >= due:
            due += each
            started = time.perf_counter()
            with checkpoints.write({}) as partial:
                joiner.save(partial)
            saves.append(time.perf_counter() - started)
    assert joiner.open_requests == arguments.requests
    restored = Joiner(SPEC, requests_max=arguments.in_memory, spill=folder / "again")
    if keeps:
        restored.keep_in(folder / "state")
    started, newest = time.perf_counter(), checkpoints.newest()
    assert newest is not None
    restored.load(newest[0])
    load_s = time.perf_counter() - started
    assert restored.open_requests == arguments.requests
    words = "files are kept" if keeps else "everything is written"
    print(
        f"{words}: {len(saves)} saves, p50 {np.median(saves) * 1e3:.0f} ms, longest {max(saves) * 1e3:.0f} ms,"
        f" the last {saves[-1] * 1e3:.0f} ms; adding {BATCH_ROWS} rows at most {max(adds) * 1e3:.0f} ms;"
        f" load {load_s:.2f} s with {restored.requests_in_memory:,} requests in memory; peak {peak_mb():,} MB"
    )


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=400, help="bytes of each request's features")
    parser.add_argument("--in-memory", type=int, default=1_000_000)
    arguments = parser.parse_args()
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Polars {pl.__version__}"
    print(f"{arguments.requests:,} open requests, {machine}")
    for keeps in (True, False):  # the one that needs more memory last, since the peak is that of the process
        with tempfile.TemporaryDirectory() as folder:
            run(arguments, Path(folder), keeps=keeps)


if __name__ == "__main__":
    main()
