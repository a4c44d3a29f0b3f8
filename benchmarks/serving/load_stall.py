"""How long the interpreter stands still while a snapshot of 140 MB loads: a thread that ticks every millisecond.

    python -m benchmarks.serving.load_stall

The longest time between two ticks while the snapshot is read, verified and made a scorer, beside reading it with the
safetensors library, which copies each tensor under the GIL, and beside doing nothing: what the machine adds.
"""

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load as load_tensors

from benchmarks.serving.stage import ROOT, SEED, arguments
from headrace.learners import ModelDirectory, OnlineLearner, Scorer, Snapshot
from headrace.learners.publishing.snapshot import MODEL

ROWS = 1_000_000


def longest_gap_ms(work: Callable[[], object]) -> tuple[float, float]:
    """(the longest time between two ticks, the time that `work` took), in ms."""
    ticks, done = [time.perf_counter()], threading.Event()

    def tick() -> None:
        while not done.is_set():
            time.sleep(0.001)
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    begin = time.perf_counter()
    work()
    seconds = time.perf_counter() - begin
    done.set()
    thread.join()
    return float(np.diff(ticks).max()) * 1e3, seconds * 1e3


def main(rounds: int) -> None:
    import sys

    sys.path.insert(0, str(ROOT))
    from learners.next_item import NextItem

    with tempfile.TemporaryDirectory(prefix="hrb") as folder:
        learner = OnlineLearner(NextItem, SEED)
        learner.tables["item"].admit(np.arange(ROWS, dtype=np.int64) * 7_919 + 1, 1)
        directory = ModelDirectory(Path(folder))
        version = directory.publish(Snapshot.of(learner))
        path = directory.folder(version) / MODEL
        works = {
            "ours": lambda: Scorer(directory.load(version, NextItem), NextItem),
            "library": lambda: load_tensors(path.read_bytes()),
            "nothing": lambda: time.sleep(0.3),
        }
        seen = {name: [longest_gap_ms(work) for _ in range(rounds)] for name, work in works.items()}
        print(f"{path.stat().st_size / 1e6:.0f} MB, {rounds} rounds: longest gap ms least/median, work ms median")
        for name, pairs in seen.items():
            gaps, took = np.array(pairs).T
            print(f"{name:8} {gaps.min():7.1f} {np.median(gaps):7.1f}   {np.median(took):7.0f}")


if __name__ == "__main__":
    main(arguments("stalls by a load", 0.0, rounds=7).rounds)
