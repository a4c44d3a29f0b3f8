"""One entity and many candidates, from the request's keys to the best 100: resident candidates beside the plain path.

    python -m benchmarks.serving.fan_out --rounds 60
    python -m venv ../feast && ../feast/bin/pip install 'feast[redis,glide]==0.67.0' torch
    python -m benchmarks.serving.fan_out --feast ../feast/bin/python      with Feast beside it (rival_feast.py)

In one process, one thread of torch, over a Redis of its own: what a scoring thread does between the parsed request
and the answer. Both paths take turns and their scores must agree. Each figure is the least and the median of
the wall time in ms, and the median of the thread's CPU: on a machine that others use, the wall time is theirs as well.
"""

import argparse
import contextlib
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
import polars as pl
import torch

from benchmarks.serving.stage import CUSTOMERS, HERE, SEED, Stage, stage
from headrace.clock import WallClock, wall_us
from headrace.features import hash_text, plan_of
from headrace.features.store import OnlineStore
from headrace.learners import DeepFM, OnlineLearner, Scorer, Snapshot
from headrace.serving import Ranker, RankingSpec
from headrace.serving.queries import Query
from headrace.serving.resident import ResidentCandidates
from headrace.serving.resident.batch_read import best

SIZES = (1_000, 5_000)
HIDDEN = ((64, 32), (256, 128))
CATALOGUE = 6_000
K = 100


class Waterfall:
    """Wall and CPU time of the stages of a request, by name."""

    def __init__(self) -> None:
        self.wall_ms: dict[str, list[float]] = defaultdict(list)
        self.cpu_ms: dict[str, list[float]] = defaultdict(list)

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Time a stage and return what it returned."""
        cpu_s, wall_s = time.thread_time(), time.perf_counter()
        result = work()
        self.wall_ms[name].append((time.perf_counter() - wall_s) * 1e3)
        self.cpu_ms[name].append((time.thread_time() - cpu_s) * 1e3)
        return result

    def add(self, spent: dict[str, list[float]]) -> None:
        """Times of one request that another process took: stage -> ms of wall and of CPU; "all" is their sum."""
        for name, (wall_ms, cpu_ms) in {
            **spent,
            "all": [sum(part) for part in zip(*spent.values(), strict=True)],
        }.items():
            self.wall_ms[name].append(wall_ms)
            self.cpu_ms[name].append(cpu_ms)

    def __str__(self) -> str:
        return "  ".join(
            f"{name} {min(wall):.2f}/{np.median(wall):.2f} ({np.median(self.cpu_ms[name]):.2f})"
            for name, wall in self.wall_ms.items()
        )


def request(ranker: Ranker, scorer: Scorer, query: Query, times: Waterfall) -> np.ndarray:
    """Scores of a request, each stage timed."""

    def whole() -> np.ndarray:
        batch = times.run("read and assemble", lambda: ranker.read_batch([query]))
        scores = times.run("score", lambda: batch.scores(scorer))
        times.run("top-k", lambda: best(scores, K))
        return scores

    return times.run("all", whole)


def trained(learner_of: Any, ranker: Ranker, names: list[str], rng: np.random.Generator) -> Scorer:
    """A model that has learnt a little, so that its scores differ, with a row for each candidate."""
    learner = OnlineLearner(learner_of, SEED)
    for table in learner.tables.values():
        table.admit(hash_text(names), 1)
    for _ in range(20):
        query = Query({"customer_id": int(rng.integers(0, CUSTOMERS))}, list(rng.choice(names, 64)), wall_us())
        learner.learn(ranker.read_batch([query]).inputs, rng.integers(0, 2, 64))
    return Scorer(Snapshot.of(learner), learner_of)


def export(store: OnlineStore, names: list[str], folder: Path) -> pl.DataFrame:
    """Write what the model reads of each item and customer, as of now, for the rival; return the items' columns."""
    from learners.next_item import NextItem

    frames = []
    for view, key, keys in zip(NextItem.views, ("customer", "item"), (list(range(CUSTOMERS)), names), strict=True):
        prefix = f"{plan_of(view).name}."
        read = {name for each in NextItem.inputs.columns if (name := each.removeprefix(prefix)) != each}
        frame = store.read(view, keys)
        features = [
            pl.col(name) if frame[name].dtype == pl.List(pl.String) else pl.col(name).cast(pl.Float64)
            for name in frame.columns
            if name in read
        ]
        table = frame.select(pl.Series(key, keys), pl.lit(datetime.now(UTC)).alias("event_time"), *features)
        table.write_parquet(folder / f"{key}.parquet")
        frames.append(table)
    return frames[1]


@contextlib.contextmanager
def feast(python: Path, made: Stage, store: OnlineStore, names: list[str]) -> Iterator[Callable[..., dict[str, Any]]]:
    """The rival's process over the same Redis; yields what asks it: customer, items, index of the hidden layers."""
    items = export(store, names, made.folder)
    values = dict(
        zip(
            names,
            items.select(pl.sum_horizontal(pl.all().exclude("item", "event_time").is_not_null())).to_series().to_list(),
            strict=True,
        )
    )
    address = urlsplit(made.env["HEADRACE_REDIS_URL"])
    words = [made.folder, f"{address.hostname}:{address.port}", *("-".join(map(str, hidden)) for hidden in HIDDEN)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([python, HERE / "rival_feast.py", *words], text=True, **pipes) as process:

        def ask(customer: int, picked: list[str], hidden: int) -> dict[str, Any]:
            asked = {"customer": customer, "items": picked, "hidden": hidden, "k": K}
            process.stdin.write(orjson.dumps(asked).decode() + "\n")
            process.stdin.flush()
            answer = orjson.loads(process.stdout.readline())
            assert answer["values"] == sum(values[name] for name in picked), "the rival read other features"
            return answer["ms"]

        if process.stdout.readline() != "ready\n":
            raise SystemExit("the rival did not start: see above")
        yield ask
        process.stdin.close()


def main(rounds: int, python: Path | None) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED)
    names = [f"item {i}" for i in range(CATALOGUE)]
    with (
        stage(CATALOGUE) as made,
        OnlineStore.open(made.env["HEADRACE_REDIS_URL"]) as store,
        feast(python, made, store, names) if python else contextlib.nullcontext() as rival,
    ):
        from learners.next_item import NextItem

        for index, hidden in enumerate(HIDDEN):
            declared = {"model": DeepFM(dim=NextItem.model.dim, hidden=hidden), "name": "next_item"}
            learner = type("Sized", (NextItem,), declared)
            spec = RankingSpec(learner, ("customer_id",), "item_id")
            resident = ResidentCandidates(spec, store, WallClock(), budget_bytes=512_000_000, refresh_s=1.0)
            plain, fast = Ranker(spec, store), Ranker(spec, store, resident=resident)
            plain.warm()
            scorer = trained(learner, plain, names, rng)
            for _ in range(2):
                fast.read_batch([Query({"customer_id": 0}, names, wall_us(), is_now=True)])
                resident.refresh()
            resident.prepare(scorer)
            catalogue = resident.catalogue
            assert catalogue is not None
            print(f"hidden {hidden}: {len(catalogue)} resident, {catalogue.nbytes / len(catalogue):.0f} bytes each")
            resident.start()
            for size in SIZES:
                paths = {"plain": (plain, Waterfall()), "resident": (fast, Waterfall())}
                apart, theirs = 0.0, Waterfall()
                for _ in range(rounds):
                    picked = orjson.loads(orjson.dumps([names[i] for i in rng.choice(CATALOGUE, size, replace=False)]))
                    query = Query({"customer_id": int(rng.integers(0, CUSTOMERS))}, picked, wall_us(), is_now=True)
                    scores = [request(ranker, scorer, query, times) for ranker, times in paths.values()]
                    apart = max(apart, float(np.abs(scores[0] - scores[1]).max()))
                    if rival is not None:
                        theirs.add(rival(query.entity["customer_id"], picked, index))
                assert apart < 1e-4, apart  # windows of the plain path are up to a refresh younger
                for path, (_, times) in paths.items():
                    print(f"  {size:5} {path:8}  {times}")
                ratio = np.median(paths["plain"][1].wall_ms["all"]) / np.median(paths["resident"][1].wall_ms["all"])
                print(f"        plain / resident {ratio:.1f}; scores {apart:.1e} apart")
                if rival is not None:
                    least = min(np.median(times.wall_ms["all"]) for _, times in paths.values())
                    print(f"  {size:5} Feast     {theirs}")
                    print(f"        Feast / the faster of ours {np.median(theirs.wall_ms['all']) / least:.1f}")
            resident.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="fan-out of one request")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--feast", type=Path, help="the Python of an environment that has Feast and torch")
    options = parser.parse_args()
    main(options.rounds, options.feast)
