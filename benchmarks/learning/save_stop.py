"""How long a save stops training, by the rows of the learner's table.

    python -m benchmarks.learning.save_stop [--rows 1000000,10000000] [--dim 16] [--saves 5]

A stop is what the training thread waits for `OnlineLearner.capture`; the rest, done by the thread of the checkpoints,
is to put the tables in order. Both are wall time, of the fastest and the slowest save, and processor time. The second
line is the copy in order, `OnlineLearner.state_dict`, which a save by the training thread would take.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from headrace.learners import Categorical, DeepFM, InputSpec, Learner, OnlineLearner, TablePolicy

PIECE = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="1000000,10000000")
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--saves", type=int, default=5)
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, dim {given.dim}")
    for rows in map(int, given.rows.split(",")):
        online = filled(rows, given.dim)
        megabytes = online.tables["item"].nbytes >> 20
        state, stops = timed(online.capture, given.saves)
        print(f"{rows:>11,} rows, {megabytes:,} MB: stop {stops}")
        wanted, whole = timed(online.state_dict, 1)
        print(f"{'':>11} in order, by the training thread: {whole}", flush=True)
        captured = state()
        assert all((captured[name] == array).all() for name, array in wanted.items())


def filled(rows: int, dim: int) -> OnlineLearner:
    """A learner whose table has `rows` rows of random ids."""
    learner = type(
        "Items",
        (Learner,),
        {
            "inputs": InputSpec(Categorical("item")),
            "model": DeepFM(dim=dim, hidden=(64, 32)),
            "tables": {"item": TablePolicy(rows_max=rows)},
        },
    )
    online = OnlineLearner(learner)
    ids = np.random.default_rng(0).permutation(rows) * 7_919 + 1
    for first in range(0, rows, PIECE):
        online.tables["item"].admit(ids[first : first + PIECE], first + 1)
    assert len(online.tables["item"]) == rows
    return online


def timed(call: Callable[[], Any], times: int) -> tuple[Any, str]:
    """What the last call gave, and the times of all in words."""
    walls, used = [], time.process_time()
    for _ in range(times):
        started = time.perf_counter()
        result = call()
        walls.append(time.perf_counter() - started)
    cpu_ms = (time.process_time() - used) / times * 1e3
    return result, f"{min(walls) * 1e3:,.0f} to {max(walls) * 1e3:,.0f} ms, processor {cpu_ms:,.0f} ms"


if __name__ == "__main__":
    main()
