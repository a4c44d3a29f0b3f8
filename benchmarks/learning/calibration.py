"""Calibration while the base rate moves: sum of predictions over sum of labels, by stretch of the stream.

    python -m benchmarks.learning.calibration [--examples 60000] [--batch 64] [--seed 7]

    step      30 % of the examples are positive, then 3 %
    slope     from 30 % down to 3 %, evenly
    season    10 %, up and down by 8 points, four times

Each example is predicted before it is learned. The inputs say nothing of the rate, so only the intercept can follow it.
Rivals: the same model whose intercept moves by the optimizer's steps, as a bias of plain torch does, and River's
logistic regression with its intercept's default rate. 1.00 is right; the worst of ten stretches is printed, and the
first stretch is the start from nothing.
"""

import argparse
import os
from collections.abc import Callable

import numpy as np
import torch
from river import linear_model, optim

from headrace.learners import Categorical, InputSpec, Learner, Logistic, OnlineLearner

STRETCHES = 10
IDS = 500
SPEC = InputSpec(Categorical("item"))


class Items(Learner):
    """A weight an item."""

    inputs = SPEC
    model = Logistic()


def rates(shape: str, count: int) -> np.ndarray:
    """Probability (n,) of a positive of each example."""
    place = np.arange(count) / count
    if shape == "step":
        return np.where(place < 0.5, 0.3, 0.03)
    if shape == "slope":
        return 0.3 - 0.27 * place
    return 0.1 + 0.08 * np.sin(2 * np.pi * 4 * place)


def ours(items: np.ndarray, labels: np.ndarray, batch: int) -> np.ndarray:
    """Predictions (n,), each before it was learned from."""
    online = OnlineLearner(Items)
    inputs = SPEC.assemble({"item": items}, len(items))
    parts = [slice(first, first + batch) for first in range(0, len(items), batch)]
    return np.concatenate([online.predict_and_learn(inputs.take(part), labels[part])[0] for part in parts])


def by_torch(items: np.ndarray, labels: np.ndarray, batch: int) -> np.ndarray:
    """Predictions (n,) of nn.Embedding and a bias under Adam."""
    weights, bias = torch.nn.Embedding(IDS, 1), torch.nn.Parameter(torch.zeros(1))
    torch.nn.init.zeros_(weights.weight)
    adam = torch.optim.Adam([*weights.parameters(), bias], lr=1e-3)
    said = []
    for first in range(0, len(items), batch):
        part = slice(first, first + batch)
        logits = weights(torch.from_numpy(items[part]))[:, 0] + bias
        said.append(torch.sigmoid(logits).detach().numpy())
        adam.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(labels[part])).backward()
        adam.step()
    return np.concatenate(said)


def by_river(items: np.ndarray, labels: np.ndarray, _: int) -> np.ndarray:
    """Predictions (n,) of River's logistic regression, an example at a time."""
    model = linear_model.LogisticRegression(optim.AdaGrad(0.1))
    said = []
    for item, label in zip(items.tolist(), labels.tolist(), strict=True):
        x = {f"item={item}": 1.0}
        said.append(model.predict_proba_one(x).get(True, 0.0))
        model.learn_one(x, bool(label))
    return np.array(said)


SIDES: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "Headrace": ours,
    "torch, Adam": by_torch,
    "River, AdaGrad": by_river,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, {given.examples:,} examples in batches of {given.batch}, seed {given.seed}")
    rng = np.random.default_rng(given.seed)
    for shape in ("step", "slope", "season"):
        items = rng.integers(0, IDS, given.examples)
        labels = (rng.random(given.examples) < rates(shape, given.examples)).astype(np.float32)
        for name, side in SIDES.items():
            said = side(items, labels, given.batch)
            pieces = zip(np.array_split(said, STRETCHES), np.array_split(labels, STRETCHES), strict=True)
            ratios = [float(predicted.sum() / came.sum()) for predicted, came in pieces]
            worst = max(ratios[1:], key=lambda ratio: abs(np.log(ratio)))
            print(f"{shape:8} {name:15} worst {worst:.2f}   {' '.join(f'{ratio:.2f}' for ratio in ratios)}", flush=True)


if __name__ == "__main__":
    main()
