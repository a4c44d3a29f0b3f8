"""One entity and many candidates, from the request's keys to the best 100: resident candidates beside the plain path.

    python -m benchmarks.serving.fan_out --rounds 60

In one process, one thread of torch, over a Redis of its own: what a scoring thread does between the parsed request
and the answer. Both paths take turns and their scores must agree. Each figure is the least and the median of
the wall time in ms, and the median of the thread's CPU: on a machine that others use, the wall time is theirs as well.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import torch

from benchmarks.serving.stage import CUSTOMERS, SEED, arguments, stage
from headrace.clock import WallClock, wall_us
from headrace.features import hash_text
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


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED)
    names = [f"item {i}" for i in range(CATALOGUE)]
    with stage(CATALOGUE) as made, OnlineStore.open(made.env["HEADRACE_REDIS_URL"]) as store:
        from learners.next_item import NextItem

        for hidden in HIDDEN:
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
                apart = 0.0
                for _ in range(rounds):
                    picked = orjson.loads(orjson.dumps([names[i] for i in rng.choice(CATALOGUE, size, replace=False)]))
                    query = Query({"customer_id": int(rng.integers(0, CUSTOMERS))}, picked, wall_us(), is_now=True)
                    scores = [request(ranker, scorer, query, times) for ranker, times in paths.values()]
                    apart = max(apart, float(np.abs(scores[0] - scores[1]).max()))
                assert apart < 1e-4, apart  # windows of the plain path are up to a refresh younger
                for path, (_, times) in paths.items():
                    print(f"  {size:5} {path:8}  {times}")
                ratio = np.median(paths["plain"][1].wall_ms["all"]) / np.median(paths["resident"][1].wall_ms["all"])
                print(f"        plain / resident {ratio:.1f}; scores {apart:.1e} apart")
            resident.close()


if __name__ == "__main__":
    main(arguments("fan-out of one request", 4.0, rounds=60).rounds)
