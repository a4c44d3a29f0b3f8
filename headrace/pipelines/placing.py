"""The steps of a flow, made before its first batch, so that the source begins where these very steps stand.

    build of worker 0 --> make all groups' steps --> their positions --> seek
    build of worker 1 ----------------------------> the same ---------> seek
    batches ----------> step of the group

Were the positions asked of other objects, a store that goes back in time between the two questions would leave a gap
that nothing shows.
"""

import threading
from collections.abc import Callable, Hashable, Sequence

from headrace.pipelines.loop import Step
from headrace.streams.positions import Positions, least_positions

MakeStep = Callable[[int, int], Step]
"""Makes the step of one group: (group index, group count) -> Step."""


class PlacedSteps:
    """One step for each of some groups, made anew for each run of a flow. Thread-safe."""

    def __init__(self, make: MakeStep) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._asked: set[Hashable] = set()
        self._positions = Positions()
        self.made: Sequence[Step] = ()

    def positions(self, asker: Hashable, groups: int) -> Positions:
        """Where a source must begin. An `asker` asks once a run: asking again, it begins the next run."""
        with self._lock:
            if not self.made or asker in self._asked:
                self._asked.clear()
                self.made = [self._make(group, groups) for group in range(groups)]
                self._positions = least_positions(step.positions() for step in self.made)
            self._asked.add(asker)
            return self._positions
