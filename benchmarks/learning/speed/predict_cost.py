"""What predicting before learning costs: examples a second of `predict_and_learn` over those of `learn`.

    python -m benchmarks.learning.speed.predict_cost [--batch 4096] [--steps 40] [--rounds 9]

Two learners of one seed take turns with the same micro-batches; a ratio is that of the seconds of the two in one round,
and the median of the rounds is stated. The aim is 0.95 at micro-batches of 4,096.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import polars as pl

from benchmarks.learning.speed.declaration import examples
from benchmarks.learning.speed.ours import LEARNERS, SPEC
from headrace.learners import Bag, DeepFM, Inputs, InputSpec, Learner, OnlineLearner, column_of

BAG_IDS = 18


class Wide(Learner):
    """20 ids an example, an MLP of 256-128."""

    inputs = InputSpec(*SPEC.fields, Bag("ids"))
    model = DeepFM(dim=16, hidden=(256, 128))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=4_096)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, micro-batches of {given.batch:,}, seed {given.seed}")
    _, ids, labels = examples(None, given.batch * given.steps, given.seed)
    lists = np.random.default_rng(given.seed).zipf(1.3, (len(ids), BAG_IDS)) % 50_000
    for name, learner in {**LEARNERS, "DeepFM 256-128, 20 ids": Wide}.items():
        columns = {"user": ids[:, 0], "thing": ids[:, 1], "ids": column_of(pl.Series("ids", lists))}
        parts = [slice(first, first + given.batch) for first in range(0, len(ids), given.batch)]
        inputs = learner.inputs.assemble({each: columns[each] for each in learner.inputs.columns}, len(ids))
        batches = [(inputs.take(part), labels[part]) for part in parts]
        both, alone = OnlineLearner(learner), OnlineLearner(learner)
        rounds = [
            (seconds(both.predict_and_learn, batches), seconds(alone.learn, batches)) for _ in range(given.rounds)
        ]
        ratio = statistics.median(learn_s / both_s for both_s, learn_s in rounds[1:])
        rate = len(ids) / statistics.median(both_s for both_s, _ in rounds[1:])
        print(f"{name:24} {rate:>9,.0f} examples/s predicted and learned, {ratio:.3f} of learning alone", flush=True)


def seconds(step: Callable[[Inputs, np.ndarray], object], batches: list[tuple[Inputs, np.ndarray]]) -> float:
    """Wall seconds of all batches."""
    started_s = time.perf_counter()
    for inputs, labels in batches:
        step(inputs, labels)
    return time.perf_counter() - started_s


if __name__ == "__main__":
    main()
