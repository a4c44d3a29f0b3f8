"""How long a save stops training, by the rows of the learner's table.

    python -m benchmarks.learning.save_stop [--rows 1000000,10000000] [--dim 16] [--saves 5]

The learner trains on random ids of its table all the time. A save begins with `prepare_capture`: a thread copies the
table, while steps go on and are somewhat slower. A stop is what the training thread then waits for `capture`; the rest,
done by the thread of the checkpoints, is to put the tables in order. The second line is a stop without the thread, the
third the copy in order, `OnlineLearner.state_dict`, which a save by the training thread would take.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from headrace.learners import Categorical, DeepFM, Inputs, InputSpec, Learner, OnlineLearner, TablePolicy

PIECE = 1_000_000
BATCH = 256
IDS = 20
"""Ids of an example, all of the one table."""
SPEC = InputSpec(*[Categorical(f"item{number}", table="item") for number in range(IDS)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", default="1000000,10000000")
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--saves", type=int, default=5)
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, dim {given.dim}, steps of {BATCH} x {IDS} ids")
    for rows in map(int, given.rows.split(",")):
        online = filled(rows, given.dim)
        batches = [batch(rows, seed) for seed in range(64)]
        megabytes = online.tables["item"].nbytes >> 20
        seen = [prepared(online, batches) for _ in range(given.saves)]
        stops, copies, slow, steps = zip(*seen, strict=True)
        print(
            f"{rows:>11,} rows, {megabytes:,} MB: stop {shown(stops)}, after {shown(copies)} of copying beside "
            f"{min(steps)} to {max(steps)} steps, {statistics.median(slow):.2f} times as long as others"
        )
        print(f"{'':>11} without the thread: stop {shown([timed(online.capture)[1] for _ in range(given.saves)])}")
        wanted, whole_s = timed(online.state_dict)
        print(f"{'':>11} in order, by the training thread: {shown([whole_s])}", flush=True)
        captured = online.capture()()
        assert all((captured[name] == array).all() for name, array in wanted.items())


def filled(rows: int, dim: int) -> OnlineLearner:
    """A learner whose table has `rows` rows of random ids."""
    learner = type(
        "Items",
        (Learner,),
        {
            "inputs": SPEC,
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


def batch(rows: int, seed: int) -> tuple[Inputs, np.ndarray]:
    """Examples of ids that have a row, and labels."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, rows, (BATCH, IDS)) * 7_919 + 1
    columns = {f"item{number}": ids[:, number] for number in range(IDS)}
    return SPEC.assemble(columns, BATCH), (rng.random(BATCH) < 0.1).astype(np.float32)


def prepared(online: OnlineLearner, batches: list[tuple[Inputs, np.ndarray]]) -> tuple[float, float, float, int]:
    """Seconds of a stop after the thread's copy, of that copy, of a step beside it in those before, and the steps."""
    usual_s = statistics.median(timed(online.learn, *each)[1] for each in batches)
    began_s, beside_s = time.perf_counter(), []
    while not online.prepare_capture():
        beside_s.append(timed(online.learn, *batches[len(beside_s) % len(batches)])[1])
    copied_s = time.perf_counter() - began_s
    return timed(online.capture)[1], copied_s, statistics.median(beside_s or [usual_s]) / usual_s, len(beside_s)


def timed(call: Callable[..., Any], *given: Any) -> tuple[Any, float]:
    """What a call returned, and its wall seconds."""
    started_s = time.perf_counter()
    result = call(*given)
    return result, time.perf_counter() - started_s


def shown(seconds: "list[float] | tuple[float, ...]") -> str:
    """The least and the most, in milliseconds."""
    return f"{min(seconds) * 1e3:,.1f} to {max(seconds) * 1e3:,.1f} ms"


if __name__ == "__main__":
    main()
