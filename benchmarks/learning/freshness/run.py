"""AUC by publish interval: what a model is worth that is published every day, hour, minute or ten seconds.

    python -m benchmarks.learning.freshness.run [--clicks globo_clicks.parquet] [--days 16] [--seeds 0,1,2]
                                                [--out docs/images/freshness.svg]

Each click is a positive; four negatives are drawn from as many clicks before it as a day has on average, in proportion
to their popularity then (no correction: popularity of the last day alone tells nothing). Features are
as of the click. One learner reads the stream once, in micro-batches of ten seconds of event time. At each boundary of
an interval its weights are published, and predict all that comes before the next boundary. The first day only warms
up; "never" is the model after that day. Beside it: a live co-visit counter, which forgets nothing.

In the clicks of Globo half of the gaps in a session are exactly 30.000 s, the invented time of its last click. Here no
time between clicks is label or feature; such a click only stands up to half a minute from its place.
"""

import argparse
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.conditions import describe
from benchmarks.learning.freshness.declaration import Click, NextStory, load_clicks
from benchmarks.learning.freshness.plot import draw
from benchmarks.learning.freshness.rival_covisit import CoVisits
from headrace.learners import OnlineLearner, Scorer, Snapshot, auc
from headrace.pipelines.examples import EventExamples, Examples

PACKAGES = ("torch", "numpy", "numba", "polars")
STEP_US = 10_000_000
"""Event time of a micro-batch, and the shortest interval."""
DAY_US = 86_400_000_000
INTERVALS_S = {"never": None, "24 h": 86_400, "5 h": 18_000, "1 h": 3_600, "10 min": 600, "1 min": 60, "10 s": 10}
RIVAL = "co-visit counter"
NEGATIVES = 4
POINTS = 0.10
"""What a minute must gain on a day, and on the counter."""


class Publisher:
    """Predictions of the versions that one interval publishes; None publishes the first version alone."""

    def __init__(self, interval_s: int | None) -> None:
        self._interval_us = None if interval_s is None else interval_s * 1_000_000
        self._number = -1
        self._until_us = 0
        self._live: Scorer | None = None
        self._out = np.empty(0, np.float32)

    def start_day(self, examples: Examples) -> NDArray[np.float32]:
        """Predict with the version that is live until its boundary; returns the day's array, to be filled."""
        self._out = np.full(len(examples), np.nan, np.float32)
        if self._live is not None:
            end = len(examples) if self._interval_us is None else examples.time_us.searchsorted(self._until_us)
            self._out[:end] = self._live.predict(examples.inputs.take(slice(0, int(end))))
        return self._out

    def publish(self, online: OnlineLearner, examples: Examples, row: int, now_us: int, day_end_us: int) -> None:
        """Publish if `now_us`, the time of `row`, is in another interval than the last; predict up to its boundary."""
        if self._interval_us is None:
            is_due = self._live is None
            self._until_us = day_end_us + 1
        else:
            number = now_us // self._interval_us
            is_due, self._number = number != self._number, number
            self._until_us = (number + 1) * self._interval_us
        if is_due:
            rows = slice(row, int(examples.time_us.searchsorted(self._until_us)))
            # A published version predicts what the learner does at that moment; a copy serves where the day ends first.
            self._out[rows] = online.predict(examples.inputs.take(rows))
            if self._until_us > day_end_us:
                self._live = Scorer(Snapshot.of(online), NextStory)


def measure(clicks: pl.DataFrame, seed: int) -> dict[str, float]:
    """AUC of each interval and of the counter, over all days but the first; one pass over the clicks."""
    times_us = clicks["event_time"].dt.epoch("us").to_numpy()
    origin_us = int(times_us[0]) // STEP_US * STEP_US
    days = (times_us - origin_us) // DAY_US
    online = OnlineLearner(NextStory, seed)
    made = EventExamples(NextStory, negatives=NEGATIVES, capacity=max(len(clicks) // int(days[-1] + 1), 1), seed=seed)
    publishers = {name: Publisher(interval_s) for name, interval_s in INTERVALS_S.items()}
    rival = CoVisits()
    scores: dict[str, list[NDArray[np.float32]]] = {name: [] for name in (*publishers, RIVAL)}
    labels: list[NDArray[np.float32]] = []
    for day in np.unique(days).tolist():
        examples = made.add({Click: clicks.filter(pl.Series(days == day))})
        assert examples is not None
        counts = rival.scores(examples)
        if day > 0:
            labels.append(examples.labels)
            scores[RIVAL].append(counts)
            for name, publisher in publishers.items():
                scores[name].append(publisher.start_day(examples))
        learn_day(online, examples, publishers if day > 0 else {}, origin_us, origin_us + (day + 1) * DAY_US)
    truth = np.concatenate(labels)
    return {name: auc(np.concatenate(parts), truth) for name, parts in scores.items()}


def learn_day(
    online: OnlineLearner, examples: Examples, publishers: dict[str, Publisher], origin_us: int, end_us: int
) -> None:
    """Learn the steps of a day, each after the versions that are published before it."""
    steps = (examples.time_us - origin_us) // STEP_US
    edges = [*np.flatnonzero(np.diff(steps, prepend=-1)).tolist(), len(examples)]
    for first, end in pairwise(edges):
        for publisher in publishers.values():
            publisher.publish(online, examples, first, int(examples.time_us[first]), end_us)
        rows = slice(first, end)
        online.learn(examples.inputs.take(rows), examples.labels[rows], event_time_us=examples.time_us[rows])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clicks", type=Path, help="Parquet with event_time, user_id, article_id")
    parser.add_argument("--days", type=int, help="the first days alone")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, help="a picture, .svg or .png")
    given = parser.parse_args(arguments)
    describe("benchmarks.learning.freshness.run", PACKAGES, given)
    name, clicks = load_clicks(given.clicks)
    if given.days:
        clicks = clicks.filter(pl.col("event_time") < pl.col("event_time").min() + pl.duration(days=given.days))
    print(f"{clicks.height:,} clicks of {name}, {NEGATIVES} negatives each")
    by_seed = []
    for seed in map(int, given.seeds.split(",")):
        started_s = time.monotonic()
        by_seed.append(measure(clicks, seed))
        figures = "  ".join(f"{name} {area:.4f}" for name, area in by_seed[-1].items())
        print(f"seed {seed}, {time.monotonic() - started_s:.0f} s: {figures}", flush=True)
    means = {name: float(np.mean([areas[name] for areas in by_seed])) for name in by_seed[0]}
    spread = {name: float(np.std([areas[name] for areas in by_seed])) for name in by_seed[0]}
    print("published        AUC      sd")
    for name, mean in means.items():
        print(f"{name:<16} {mean:.4f}   {spread[name]:.4f}")
    report(means, spread)
    if given.out:
        draw(given.out, {name: means[name] for name in INTERVALS_S}, {RIVAL: means[RIVAL]})
        print(f"picture: {given.out}")


def report(means: dict[str, float], spread: dict[str, float]) -> None:
    """Print whether a shorter interval is never worse, and what a minute gains."""
    names = list(INTERVALS_S)
    worse = [f"{b} after {a}" for a, b in pairwise(names) if means[b] < means[a] - spread[a]]
    print(f"a shorter interval is {f'worse: {worse}' if worse else 'never worse'}")
    for other in ("24 h", RIVAL):
        gain = means["1 min"] - means[other]
        verdict = "as asked" if gain >= POINTS else f"less than the {100 * POINTS:.0f} asked for"
        print(f"1 min against {other}: {100 * gain:+.1f} points of AUC, {verdict}")


if __name__ == "__main__":
    main()
