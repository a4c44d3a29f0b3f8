"""JoinStep: a joiner as a step of a flow, with its watermark and a folder for its state and offsets.

After a crash, the results since the last save are repeated, equal and in the same order. A consumer can remember the
last (event time, request id) or, as the trainer does, save the joiner together with its own state.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from headrace.atomic import claim
from headrace.pipelines.checkpoints import Checkpoints, CheckpointThread, keeping_the_last
from headrace.pipelines.joiner import Joiner
from headrace.streams.positions import Positions, positions_of
from headrace.streams.source import EventBatch
from headrace.streams.watermark import Watermark

SAVE_S = 30.0
"""Interval of saves in seconds; after a crash about this much is read again."""
IDLE_S = 30.0
"""Wall time after which a silent partition no longer holds the watermark back."""
TICK_S = 1.0


class JoinStep:
    """A `Step` that returns frames of labelled requests.

    With `state` None nothing is saved, and each start reads from the source's start.

    Raises:
        ServiceError: another process uses the state.
        SnapshotError: the state is damaged.
    """

    def __init__(
        self,
        joiner: Joiner,
        *,
        state: str | Path | None = None,
        idle_s: float | None = IDLE_S,
    ) -> None:
        self.joiner = joiner
        self._saves = None if state is None else CheckpointThread(Checkpoints(state))
        self._watermark = Watermark(lateness_us=joiner.spec.lateness_us, idle_s=idle_s)
        self._saved_s = time.monotonic()
        self._ticked_s = 0.0
        if self._saves is not None:
            claim(self._saves.checkpoints.folder)
            joiner.keep_in(self._saves.checkpoints.folder)
            if newest := self._saves.checkpoints.newest():
                joiner.load(newest[0])

    def describe(self) -> str:
        """Describe the output, and where the joiner's state is."""
        where = self._saves.checkpoints.folder if self._saves else "memory alone"
        return f"labelled requests, with the joiner's state in {where}"

    def positions(self) -> Positions:
        """Next offset of each partition in the joiner's state."""
        return positions_of("the joiner", self.joiner.positions())

    def expect(self, partitions: Sequence[str]) -> None:
        """Make the watermark wait for each of these partitions."""
        self._watermark.expect(partitions)

    def apply(self, batch: EventBatch) -> None:
        """Add requests or engagements to the joiner."""
        self._watermark.observe(batch)
        self.joiner.add(batch)

    @property
    def due_s(self) -> float | None:
        """Monotonic time of the next tick, once a second, since the watermark moves when a partition becomes idle."""
        return self._ticked_s + TICK_S

    def tick(self) -> list[pl.DataFrame]:
        """Return the requests that are due, and save the state if that is due."""
        self._ticked_s = time.monotonic()
        watermark_us = self._watermark.value_us()
        frame = None if watermark_us is None else self.joiner.advance(watermark_us)
        if self._saves is not None and time.monotonic() - self._saved_s > SAVE_S and not self._saves.is_busy:
            self._save(waits=False)
        return [] if frame is None else [frame]

    def status(self) -> dict[str, Any]:
        """Counts of the joiner, and the number of open requests."""
        return {"counts": dict(self.joiner.counts), "open_requests": self.joiner.open_requests}

    def finish(self) -> list[pl.DataFrame]:
        """Return the requests that are due, and save. At the end of the stream all are due; after a stop some stay."""
        frames = self.tick()
        self._save(waits=True)
        return frames

    def _save(self, *, waits: bool) -> None:
        """Capture the state, which a thread writes; with `waits`, return once it is on disk."""
        if self._saves is None:
            return
        with keeping_the_last(self._saves.checkpoints.folder, self.joiner):
            self._saves.wait()
            self._saves.submit({}, self.joiner.capture())
            if waits:
                self._saves.wait()
        self._saved_s = time.monotonic()
