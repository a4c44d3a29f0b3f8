"""Ten million open requests: memory, the longest stop for a save, the time to load, and the rate of the join.

    python benchmarks/joiner/open_requests.py [--requests 10000000] [--features 400]

Requests come at an even rate over one label window, a fifth of them with an engagement, in batches that are made by
vectors. The joiner is saved every 30 s of event time through the thread of the training flow; a stop is what the
feeding thread waits. Then another process loads the state, and joins the first sixteenth of the window. Memory is RSS
over that before the first request.
"""

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from benchmarks.joiner.run import SAVE_S, SPEC, START_US, WINDOW_S, Follow, Request
from headrace.pipelines import EventBatch, Joiner
from headrace.pipelines.checkpoints import Checkpoints, CheckpointThread

BATCH_ROWS = 32_768
CANDIDATES = 10


def rss_mb() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def batches(first: int, rows: int, total: int, features: int, rng: np.random.Generator) -> list[EventBatch]:
    numbers = np.arange(first, first + rows)
    shown = rng.integers(0, 50_000, (rows, CANDIDATES))
    packed = np.frombuffer(rng.bytes(rows * features), dtype=f"S{features}")
    at = pl.Series(START_US + numbers * (WINDOW_S * 1_000_000) // total).cast(pl.Datetime("us", "UTC"))
    asked = pl.DataFrame(
        {
            "request_id": pl.Series(numbers).cast(pl.String),
            "at": at,
            "visitor": numbers % 1_000_003,
            "candidates": pl.Series(shown, dtype=pl.Array(pl.Int64, CANDIDATES)).cast(pl.List(pl.Int64)),
            "features": pl.Series(packed.tolist(), dtype=pl.Binary),
        }
    )
    followed = rng.random(rows) < 0.2
    follows = pl.DataFrame(
        {
            "follow_id": pl.Series(numbers[followed]).cast(pl.String),
            "at": at.filter(pl.Series(followed)),
            "visitor": numbers[followed] % 1_000_003,
            "candidate": shown[followed, 0],
        }
    )
    end = first + rows
    return [
        EventBatch(Request, "requests/0", numbers, end, asked, None, 0),
        EventBatch(Follow, "follows/0", numbers[followed], end, follows, None, 0),
    ]


def feed(arguments: argparse.Namespace, folder: Path) -> None:
    """Take in all requests, saving as the flow does; print what it cost."""
    rng = np.random.default_rng(0)
    joiner = Joiner(SPEC)
    checkpoints = Checkpoints(folder)
    joiner.keep_in(folder)
    thread = CheckpointThread(checkpoints)
    batches(0, BATCH_ROWS, arguments.requests, arguments.features, rng)  # what the generator itself takes
    base, peak, stops, adds = rss_mb(), 0, [], 0.0
    each = arguments.requests * SAVE_S // WINDOW_S
    due = each
    for first in range(0, arguments.requests, BATCH_ROWS):
        rows = min(BATCH_ROWS, arguments.requests - first)
        made = batches(first, rows, arguments.requests, arguments.features, rng)
        started = time.perf_counter()
        for batch in made:
            joiner.add(batch)
        adds += time.perf_counter() - started
        peak = max(peak, rss_mb())
        if first + rows >= due:
            due += each
            thread.wait()  # the flow would put the save off
            started = time.perf_counter()
            thread.submit({}, joiner.capture())
            stops.append(time.perf_counter() - started)
    thread.wait()
    assert joiner.open_requests == arguments.requests
    print(
        f"{joiner.open_requests:,} open requests, {joiner.waiting_engagements:,} engagements: "
        f"memory {peak - base:,} MB at most ({joiner.requests_in_memory:,} requests in memory at the end); "
        f"{len(stops)} saves stop for p50 {np.median(stops) * 1e3:.0f} ms, longest {max(stops) * 1e3:.0f} ms; "
        f"{arguments.requests / adds:,.0f} requests/s taken in"
    )


def resume(arguments: argparse.Namespace, folder: Path) -> None:
    """Load the state, join the first steps of the window, save; print what it cost."""
    joiner = Joiner(SPEC)
    joiner.keep_in(folder)
    checkpoints = Checkpoints(folder)
    newest = checkpoints.newest()
    assert newest is not None
    gc.collect()
    base = rss_mb()
    started = time.perf_counter()
    joiner.load(newest[0])
    load_s = time.perf_counter() - started
    assert joiner.open_requests == arguments.requests
    loaded = rss_mb()
    started = time.perf_counter()
    frame = joiner.advance(START_US + WINDOW_S * 1_000_000 + 2 * SPEC.step_us)
    join_s = time.perf_counter() - started
    assert frame is not None
    assert 0.9 < frame.height / (arguments.requests / 16) < 2.1  # steps begin at multiples, not with the log
    labels = frame["labels"].explode()
    share = labels.sum() / frame.height
    assert abs(share - 0.2) < 0.01, share
    joined = rss_mb()
    print(
        f"load {load_s:.2f} s, memory {loaded - base:,} MB, requests in memory {joiner.requests_in_memory:,}; "
        f"then {frame.height:,} requests joined in {join_s:.1f} s: {len(labels) / join_s / 1e6:.2f} M candidates/s, "
        f"memory {joined - base:,} MB with the frame that came out ({frame.estimated_size() >> 20:,} MB)"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000_000)
    parser.add_argument("--features", type=int, default=400, help="bytes of each request's features")
    parser.add_argument("--resume", type=Path, help="folder of a state to load; internal")
    arguments = parser.parse_args()
    if arguments.resume is not None:
        resume(arguments, arguments.resume)
        return
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Polars {pl.__version__}"
    print(f"{arguments.requests:,} open requests of {arguments.features} B features, {machine}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        feed(arguments, Path(folder))
        words = ("--requests", str(arguments.requests), "--resume", folder)
        subprocess.run([sys.executable, __file__, *words], check=True)


if __name__ == "__main__":
    main()
