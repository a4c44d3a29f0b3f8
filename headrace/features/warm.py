"""Run a view's kernels once, so that the first real batch does not wait for them to be loaded or compiled."""

import numpy as np

from headrace.features.slab import Slab
from headrace.features.view import ViewPlan
from headrace.schemas import sample_frame, spec_of


def warm_up(plan: ViewPlan) -> None:
    """Update, pack, load and read one record made of one plausible event of each source, in memory only."""
    slab, copy = Slab(plan), Slab(plan)
    for event in plan.sources:
        slab.update(plan.rows(event, sample_frame(spec_of(event))))
    rows = slab.rows()
    ids, texts = slab.ids(rows), slab.texts(rows)
    copy.load(ids, texts, slab.pack(rows))
    copy.read(copy.locate(ids), int(np.iinfo(np.int32).max) * 1_000_000)
