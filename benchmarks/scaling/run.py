"""What an event costs as entities grow from 10^4 to 10^7, and as features grow from 1 to 50, with a plot.

python -m benchmarks.scaling.run [--entities-max 1000000] [--features-max 50] [--feature-entities 10000]
                                 [--batches 30] [--out PLOT.svg] [--seed 7]

Entities are drawn evenly, which no cache helps with: on a shared machine an event took 45 to 60 ns with 10,000 of them,
which lie in its cache, and 95 to 120 ns with a million or ten, where its map entry, its record and its tiles each come
from memory, fetched ahead, at 10 ns a line that is read and written (measured alone). That is the limit: counting
itself is a nanosecond or so. Features of one window share its look-up, so a feature costs less the more there are: 58
ns for one, 4 to 6 ns each for 50. The map is given its size beforehand; growing it is not in these figures.
"""

import argparse
from itertools import chain, islice
from pathlib import Path

import numpy as np

from benchmarks.conditions import describe
from benchmarks.scaling import ours, rival_dict
from benchmarks.scaling.declaration import FEATURES_MAX, HOUR_US, START_US, Visits, batches, everyone, view_of
from benchmarks.scaling.plot import Axis, Chart, decades, draw, ticks_up_to

PACKAGES = ("numpy", "numba", "polars")
RIVAL_ENTITIES_MAX = 1_000_000
RIVAL_BATCHES = 12
FEATURES = (1, 2, 5, 10, 20, 30, 40, 50)
SAMPLED = 300
Points = list[tuple[float, float]]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--entities-max", type=int, default=1_000_000, help="some 130 bytes each")
    parser.add_argument("--features-max", type=int, default=FEATURES_MAX)
    parser.add_argument("--feature-entities", type=int, default=10_000, help="17 kB each at 50 features")
    parser.add_argument("--batches", type=int, default=30, help=f"of {ours.BATCH_ROWS:,} events")
    parser.add_argument("--out", type=Path, help="an SVG file")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args(arguments)
    describe("benchmarks.scaling.run", PACKAGES, given)
    check(given.seed)
    by_entities, rival = entity_sweep(given)
    by_features = feature_sweep(given)
    if given.out:
        plot(given.out, by_entities, rival, by_features)
        print(f"plot: {given.out}")


def check(seed: int) -> None:
    """Both sides count the same."""
    entities, count = 5_000, 4
    _, slab = ours.cost(Visits, entities, count, seed)
    users = np.random.default_rng(seed).integers(0, entities, SAMPLED).tolist()
    now_us = START_US + HOUR_US
    frames = chain(everyone(entities, ours.BATCH_ROWS, seed), batches(entities, ours.BATCH_ROWS, count, seed))
    wanted = rival_dict.counts(frames, users, now_us)
    found = ours.read(slab, users, now_us)["visits_1h"]
    assert found == wanted, [pair for pair in zip(users, found, wanted, strict=True) if pair[1] != pair[2]][:5]
    print(f"equal: the counts of {len(users)} entities, {sum(wanted):,} events")


def entity_sweep(given: argparse.Namespace) -> tuple[Points, Points]:
    mine: Points = []
    rival: Points = []
    for entities in islice((10**power for power in range(4, 10)), 6):
        if entities > given.entities_max:
            break
        took_ns, slab = ours.cost(Visits, entities, given.batches, given.seed)
        mine.append((entities, took_ns))
        words = f"{slab.nbytes / entities:>5.0f} bytes each, {took_ns:>7.1f} ns an event"
        del slab
        if entities <= RIVAL_ENTITIES_MAX:
            rival_ns = rival_dict.cost(entities, RIVAL_BATCHES, given.seed)
            rival.append((entities, rival_ns))
            words += f"; Python dict {rival_ns:>7.1f} ns  x {rival_ns / took_ns:.1f}"
        print(f"{entities:>12,} entities, 1 feature: {words}")
    return mine, rival


def feature_sweep(given: argparse.Namespace) -> Points:
    points: Points = []
    for features in [count for count in FEATURES if count <= given.features_max]:
        took_ns, slab = ours.cost(view_of(features), given.feature_entities, given.batches, given.seed)
        points.append((features, took_ns))
        size = slab.nbytes / given.feature_entities
        words = f"{took_ns:>7.1f} ns an event, {took_ns / features:>6.1f} ns a feature, {size:>7,.0f} bytes each"
        print(f"{features:>4} features, {given.feature_entities:,} entities: {words}")
    return points


def plot(path: Path, by_entities: Points, rival: Points, by_features: Points) -> None:
    costs = [cost for _, cost in by_entities + rival]
    entities = Axis("entities", decades(by_entities[0][0], by_entities[-1][0]), log=True)
    features = Axis("windowed features in the view", ticks_up_to(by_features[-1][0]))
    draw(
        path,
        [
            Chart(
                "one windowed count",
                entities,
                Axis("ns an event", decades(min(costs), max(costs)), log=True),
                {"Headrace": by_entities, "Python dict": rival},
            ),
            Chart(
                "as features are added",
                features,
                Axis("ns an event", ticks_up_to(max(cost for _, cost in by_features))),
                {"Headrace": by_features},
            ),
        ],
    )


if __name__ == "__main__":
    main()
