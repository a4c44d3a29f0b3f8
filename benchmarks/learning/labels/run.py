"""What each label policy costs: AUC and bias of the predictions at the time of a request, against its final label.

    python -m benchmarks.learning.labels.run [--rows 60000] [--mean-s 1200] [--seed 0] [--clicks globo_clicks.parquet]

A label comes up to an hour after its request, with an exponential delay. One model, a weight a story, is trained on the
same stream: by an oracle that knows labels at once, by each policy through the joiner and the trainer, and by a short
wait that takes what it sees for final. All predict each request before anything of it is learned. The first third only
warms up. Asked for at a sixth of the window: at most 0.3 points of AUC below the whole wait, and 2 % of bias.
"""

import argparse
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.learning.labels.data import CANDIDATES, Requests, frames, globo, planted
from headrace import Categorical, Event, InputSpec, Label, Learner, Logistic
from headrace.learners import Adagrad, Correct, Importance, Inputs, OnlineLearner, Wait, auc
from headrace.pipelines import EventBatch, Joiner, JoinSpec
from headrace.pipelines.examples import RequestColumns
from headrace.pipelines.train_step import TrainStep
from headrace.pipelines.trainer import Cadence, Trainer

STEP_US = 150_000_000
"""Event time between two looks at the stream."""
AFTER = "10m"


class Asked(Event, topic="asked", key="request_id", time="at", id="request_id"):
    """Stories that were shown."""

    request_id: str
    at: datetime
    stories: list[int]
    features: bytes


class Opened(Event, topic="opened", key="request_id", time="at", id="open_id"):
    """One of them was opened."""

    open_id: str
    at: datetime
    request_id: str
    story: int


class Stories(Learner):
    """A weight a story."""

    label = Label(Opened, within="60m", candidate="story")
    inputs = InputSpec(Categorical("story"))
    model = Logistic(sparse=Adagrad(lr=0.1, initial=0.1))


class Hasty(Stories):
    """What is seen after ten minutes is taken for final."""

    label = Label(Opened, within=AFTER, candidate="story")


class Corrected(Stories):
    """Learned after ten minutes, late positives once more."""

    policy = Correct(AFTER)


class Weighed(Stories):
    """Learned after ten minutes, positives for those to come as well."""

    policy = Importance(AFTER)


POLICIES = {
    "whole wait": Stories,
    f"{AFTER}, taken for final": Hasty,
    f"{Corrected.policy}": Corrected,
    f"{Weighed.policy}": Weighed,
}
Learn = Callable[[int, int, int], OnlineLearner]
"""Takes the first and last request of a step and its end in microseconds; returns the learner after it."""


def oracle(requests: Requests, inputs: Inputs) -> Learn:
    """Learns final labels at once."""
    online = OnlineLearner(Stories)

    def learn(first: int, end: int, end_us: int) -> OnlineLearner:
        rows = slice(first * CANDIDATES, end * CANDIDATES)
        online.learn(inputs.take(rows), requests.labels[first:end].reshape(-1), event_time_us=end_us)
        return online

    return learn


def by_policy(learner: type[Learner], asked: pl.DataFrame, opened: pl.DataFrame) -> Learn:
    """Learns through the joiner and the trainer."""
    trainer = Trainer(
        learner,
        cadence=Cadence(rows_min=512, publish_s=None),
        columns=RequestColumns(time="at", scores=None),
    )
    step = TrainStep(trainer, Joiner(JoinSpec.of_learner(learner, Asked, "stories")), [], idle_s=1e9)
    opened_us = opened["at"].dt.epoch("us").to_numpy()
    at = 0

    def learn(first: int, end: int, end_us: int) -> OnlineLearner:
        nonlocal at
        begin, at = at, int(opened_us.searchsorted(end_us))
        numbers, opens = np.arange(first, end), np.arange(begin, at)
        step.add(EventBatch(Asked, "asked/0", numbers, end, asked[first:end], None, 0))
        step.add(EventBatch(Opened, "opened/0", opens, at, opened[begin:at], None, 0))
        step.advance(end_us)
        return trainer.online

    return learn


def measure(learn: Learn, requests: Requests, inputs: Inputs) -> tuple[float, float]:
    """AUC, and sum of predictions over that of labels, after the first third."""
    scores = np.full(len(inputs), np.nan, np.float32)
    first_us = int(requests.time_us[0])
    online, first = None, 0
    while first < len(requests.time_us):
        end_us = int(requests.time_us[first] - first_us) // STEP_US * STEP_US + STEP_US + first_us
        end = int(requests.time_us.searchsorted(end_us))
        if online is not None:
            rows = slice(first * CANDIDATES, end * CANDIDATES)
            scores[rows] = online.predict(inputs.take(rows))
        online, first = learn(first, end, end_us), end
    counted = slice(len(inputs) // 3, None)
    labels: NDArray[np.bool_] = requests.labels.reshape(-1)[counted]
    return auc(scores[counted], labels), float(scores[counted].sum(dtype=np.float64) / labels.sum())


def compare(name: str, requests: Requests) -> None:
    """Print a row for the oracle and each policy."""
    inputs = Stories.inputs.assemble({"story": requests.stories.reshape(-1)}, requests.stories.size)
    packed = [
        inputs.take(slice(row * CANDIDATES, (row + 1) * CANDIDATES)).to_bytes() for row in range(len(requests.time_us))
    ]
    asked, opened = frames(requests, packed)
    late = float((requests.delay_us[requests.labels] >= 600_000_000).mean())
    hours = (requests.time_us[-1] - requests.time_us[0]) / 3.6e9
    shares = f"{100 * requests.labels.mean():.1f} % positive, {100 * late:.0f} % of them later than {AFTER}"
    print(f"\n{name}: {len(asked):,} requests in {hours:.1f} h, {shares}")
    print(f"{'policy':<28} {'AUC':>7} {'points':>7} {'bias':>7} {'seconds':>8}")
    learns = {"oracle": lambda: oracle(requests, inputs)}
    learns |= {words: lambda learner=learner: by_policy(learner, asked, opened) for words, learner in POLICIES.items()}
    whole = float("nan")
    for words, make in learns.items():
        started_s = time.perf_counter()
        area, ratio = measure(make(), requests, inputs)
        whole = area if words == "whole wait" else whole
        points, seconds = 100 * (area - whole), time.perf_counter() - started_s
        print(f"{words:<28} {area:>7.4f} {points:>+7.2f} {100 * (ratio - 1):>+6.1f}% {seconds:>8.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=60_000, help="requests")
    parser.add_argument("--mean-s", type=float, default=1_200.0, help="mean delay of a label, before it is cut")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clicks", type=Path, help="Parquet with event_time, user_id, article_id")
    given = parser.parse_args()
    assert isinstance(Stories.policy, Wait)
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, seed {given.seed}, points: AUC against the whole wait"
    )
    compare("planted", planted(given.rows, given.mean_s, given.seed))
    clicks = globo(given.clicks, given.rows, given.mean_s, given.seed)
    if clicks is None:
        print("Globo's clicks are absent: see benchmarks/learning/freshness/declaration.py")
    else:
        compare("Globo's clicks, planted delays", clicks)


if __name__ == "__main__":
    main()
