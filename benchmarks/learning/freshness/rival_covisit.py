"""A live co-visit counter: how often was the candidate opened right after the story that the reader opened last?"""

from collections import defaultdict
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from headrace.learners import PAD
from headrace.pipelines.examples import Examples


class CoVisits:
    """Counts of (story before, story), which are read before each click and updated by it."""

    def __init__(self) -> None:
        self._next: defaultdict[int, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))

    def scores(self, examples: Examples) -> NDArray[np.float32]:
        """Count of each example (n,), 0 without a story before; the first row of a group is the click."""
        out = np.zeros(len(examples), np.float32)
        stories, before = examples.inputs.ids[:, 0].tolist(), examples.inputs.bags[0][:, 0].tolist()
        starts = examples.starts.tolist()
        for first, end in pairwise(starts):
            if before[first] != PAD:
                counts = self._next[before[first]]
                out[first:end] = [counts.get(story, 0) for story in stories[first:end]]
                counts[stories[first]] += 1
        return out
