"""Examples a second and AUC by the size of micro-batches: ours, plain torch, River. Predict first, then learn.

python -m benchmarks.learning.speed.run [--ratings ml-100k.inter] [--rows 100000] [--batches 1,16,64,640,4096]
                                        [--seconds 20] [--seed 7]

Delay costs quality on a stream: what was learned from the examples of the same micro-batch is not known yet. At a
micro-batch of 1 `Headrace logistic` and `Headrace FM` run example by example in a compiled loop
(`predict_and_learn(per_example=True)`). Time is processor time
of all threads, so that a busy machine tells less; a contender that takes longer than --seconds is stopped, and its AUC
left out. The logistic models have rates at which each does well on MovieLens 100K, the others their defaults.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.conditions import describe
from benchmarks.learning.speed import ours, rival_river, rival_torch
from benchmarks.learning.speed.declaration import examples
from headrace.learners import auc

PACKAGES = ("torch", "river", "numpy", "numba")
RIVER_ROWS = 64
"""River learns one at a time; this many between two looks at the clock."""
Scores = Callable[[np.ndarray, np.ndarray, int], Iterator[np.ndarray]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ratings", type=Path, help="tab-separated user_id, item_id, rating, timestamp")
    parser.add_argument("--rows", type=int, default=100_000, help="of the planted model, used without ratings")
    parser.add_argument("--batches", default="1,16,64,640,4096")
    parser.add_argument("--seconds", type=float, default=20.0, help="most that one contender may take at one size")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args(arguments)
    describe("benchmarks.learning.speed.run", PACKAGES, given)
    name, ids, labels = examples(given.ratings, given.rows, given.seed)
    print(f"{len(ids):,} examples of {name}; {labels.mean():.1%} positive")
    best: dict[int, float] = {}
    for rows in map(int, given.batches.split(",")):
        for label, scores in contenders(rows).items():
            rate, area = measure(scores, ids, labels, rows, given.seconds)
            best.setdefault(rows, rate)
            shown = "stopped" if area is None else f"AUC {area:.4f}"
            print(
                f"micro-batch {rows:>5}  {label:<26} {rate:>11,.0f} examples/s  x {rate / best[rows]:5.2f}  {shown}",
                flush=True,
            )


def contenders(rows: int) -> dict[str, Scores]:
    """By name; the first is what the others are compared with. River has micro-batches of one alone."""
    named: dict[str, Scores] = {
        name: lambda *data, learner=learner: ours.scores(learner, *data) for name, learner in ours.LEARNERS.items()
    }
    named["torch, nn.Embedding"] = lambda *data: rival_torch.scores(False, *data)
    named["torch, sparse Embedding"] = lambda *data: rival_torch.scores(True, *data)
    if rows == 1:
        for name in rival_river.OPTIMIZERS:
            named[name] = lambda ids, labels, _, name=name: rival_river.scores(name, ids, labels, RIVER_ROWS)
    return named


def measure(
    scores: Scores, ids: np.ndarray, labels: np.ndarray, rows: int, most_s: float
) -> tuple[float, float | None]:
    """Examples a second of processor time, and the AUC of all; None if it was stopped before their end."""
    for _ in scores(ids[: max(2 * rows, 256)], labels[: max(2 * rows, 256)], rows):
        pass  # loads compiled code
    parts: list[np.ndarray] = []
    started_s = time.process_time()
    for part in scores(ids, labels, rows):
        parts.append(part)
        if time.process_time() - started_s > most_s:
            break
    took_s = time.process_time() - started_s
    probabilities = np.concatenate(parts)
    assert np.isfinite(probabilities).all()
    whole = len(probabilities) == len(labels)
    return len(probabilities) / took_s, auc(probabilities.astype(np.float32), labels) if whole else None


if __name__ == "__main__":
    main()
