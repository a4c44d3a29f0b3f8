"""Run a view's kernels once, so that the first batch does not wait until they are compiled or loaded."""

import numpy as np
from numpy.typing import NDArray

from headrace.features.state.slab import Slab
from headrace.features.view import ViewPlan


def warm_up(plan: ViewPlan) -> None:
    """Update, pack, load and read synthetic records, in memory only."""
    copy = Slab(plan)
    ids, texts, records = sample_records(plan)
    copy.load(ids, texts, records)
    now_us = np.full(len(ids), np.iinfo(np.int32).max, np.int64) * 1_000_000
    reads = plan.layout.read_operations(copy.locate(ids), now_us)
    copy.run(reads, plan.layout.outputs(len(ids)), np.empty(len(ids), np.int64))


def sample_records(plan: ViewPlan) -> tuple[NDArray[np.int64], list[bytes], list[bytes]]:
    """Ids (n,), key texts and packed records of synthetic entities.

    They are built from arrays. The view's expressions are not evaluated, since they may raise for synthetic events.
    """
    slab = Slab(plan)
    for reader in plan.readers.values():
        slab.update(reader.sample())
    rows = slab.rows()
    return slab.ids(rows), slab.texts(rows), slab.pack(rows)
