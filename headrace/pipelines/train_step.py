"""The trainer as a step of a flow: requests joined with their labels; every other engagement an example of its own.

    impressions --+
                  +--> Joiner --watermark--> labelled requests ----------------------+
    engagements --+                                                                  +--> Trainer
                  '--> held until watermark - within --> those no request showed ----'

An engagement is held until every request that it may label has come out: only then is it known whether the engagement
was served, and an engagement that labels a request is learned from there alone. Held events leave in event-time order,
so what they are read as of is exact, and the examples are a function of the events, not of how they were batched.

Micro-batches end at multiples of the joiner's step in event time, however far the watermark moves at once: first the
requests of a step are learned, then its other engagements, then the next step's. So weights are a function of the
events as well.

State: the joiner's, the trainer's and what is held are saved together, with the offsets; a restart goes on from there.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import structlog

from headrace.learners import Verdict
from headrace.pipelines.joiner import Joiner
from headrace.pipelines.trainer import Trainer
from headrace.schemas import Event, spec_of
from headrace.streams.positions import Positions, positions_of
from headrace.streams.source import EventBatch
from headrace.streams.watermark import Watermark

SAVE_S = 30.0  # between two saves: what a crash makes it train again
RELEASE_S = 0.1  # between two looks at the watermark; each costs a scan of what is held
IDLE_S = 5.0  # wall time after which a silent partition no longer holds the watermark back

log = structlog.get_logger(__name__)


class TrainStep:
    """A `Step` around one trainer. Used by one thread.

    Args:
        trainer: made with `events`, so that it can make examples of engagements.
        joiner: of the requests that serving logs.
        events: classes that the learner's views read; the engagement of the joiner is one of them.
        state: folder of the saved state; None keeps nothing.
    """

    def __init__(
        self,
        trainer: Trainer,
        joiner: Joiner,
        events: Sequence[type[Event]],
        *,
        state: Path | None = None,
        save_s: float = SAVE_S,
        idle_s: float = IDLE_S,
    ) -> None:
        self.trainer = trainer
        self.joiner = joiner
        self._events = tuple(events)
        self._state = state
        self._save_s = save_s
        self._watermark = Watermark(lateness_us=joiner.spec.lateness_us, idle_s=idle_s)
        self._held = _Held(self._events)
        self._served: list[pl.DataFrame] = []  # ids of engagements that labelled a request, with their times
        self._released_s = 0.0
        self._saved_s = time.monotonic()
        self._positives = 0
        self._joined = 0
        if state is not None:
            self._load(state)

    def describe(self) -> str:
        """Learner, models and state."""
        directory = self.trainer.directory
        return f"models of {self.trainer.learner.name} to {directory.path if directory else 'memory alone'}"

    def positions(self) -> Positions:
        """Next offset of each partition that the state has taken in."""
        return positions_of("the trainer", self.joiner.positions() | self._held.positions)

    def expect(self, partitions: Sequence[str]) -> None:
        """The watermark waits for each of these."""
        self._watermark.expect(partitions)

    def apply(self, batch: EventBatch) -> None:
        """Take in requests or engagements."""
        self._watermark.observe(batch)
        if batch.event in (self.joiner.spec.request, self.joiner.spec.engagement):
            self.joiner.add(batch)
        if batch.event in self._events:
            self._held.add(batch)

    @property
    def due_s(self) -> float | None:
        """Monotonic time of the next look at the watermark."""
        return self._released_s + RELEASE_S

    def tick(self) -> list[Verdict]:
        """Release what the watermark allows, train on what is due, publish if it is time."""
        now_s = time.monotonic()
        if now_s - self._released_s >= RELEASE_S:
            self._released_s = now_s
            self._release()
        verdict = self.trainer.poll()
        if self._state is not None and now_s - self._saved_s >= self._save_s:
            self.save(self._state)
        return [] if verdict is None else [verdict]

    def finish(self) -> list[Verdict]:
        """Save: what waits for the watermark or its micro-batch is in the saved state, to be learned after a start."""
        self._release()
        if self._state is not None:
            self.save(self._state)
        return []

    def status(self) -> dict[str, Any]:
        """Figures to show: examples, marks of what was served, progress."""
        counts = self.joiner.counts
        return {
            "joined": self._joined,
            "positives": self._positives,
            "late": counts.get("late_requests", 0) + counts.get("late_engagements", 0),
            "duplicates": counts.get("duplicate_requests", 0) + counts.get("duplicate_engagements", 0),
            "trained": self.trainer.trained,
            "held": self._held.rows,
            "watermark_us": self._watermark.value_us(),
            "served": self.trainer.served.snapshot(),
            "shadow": self.trainer.shadow.snapshot(),
            "prequential": self.trainer.prequential.snapshot(),
        }

    def save(self, folder: Path) -> None:
        """Write the whole state into `folder`, atomically; only the newest stays."""
        name = f"s{time.time_ns()}"
        target = folder / name
        target.mkdir(parents=True)
        self.trainer.save(target / "trainer")
        self.joiner.save(target / "joiner")
        self._held.save(target / "held")
        pl.concat([_no_ids(), *self._served]).write_ipc(target / "served.arrow")
        (target / "progress.json").write_bytes(orjson.dumps([self._joined, self._positives]))
        pointer = folder / "LATEST.new"
        pointer.write_text(name)
        pointer.replace(folder / "LATEST")
        for old in folder.glob("s*"):
            if old.is_dir() and old.name != name:
                shutil.rmtree(old)
        self._saved_s = time.monotonic()

    def _load(self, folder: Path) -> None:
        if not (folder / "LATEST").is_file():
            return
        found = folder / (folder / "LATEST").read_text()
        self.trainer.load(found / "trainer")
        self.joiner.load(found / "joiner")
        self._held.load(found / "held")
        self._served = [pl.read_ipc(found / "served.arrow")]
        self._joined, self._positives = orjson.loads((found / "progress.json").read_bytes())
        log.info("train_step_resumed", state=found.name, positions=self.positions())

    def _release(self) -> None:
        watermark_us = self._watermark.value_us()
        if watermark_us is None:
            return
        step_us = self.joiner.spec.step_us
        requests = self.joiner.advance(watermark_us)
        # The joiner gives requests out in steps: only below the last of them is every request of an engagement known.
        through_us = (watermark_us - self.joiner.spec.within_us) // step_us * step_us
        events = self._held.take(through_us)
        frames = {} if requests is None else {self.joiner.spec.request: requests}
        asked, alone = _by_step(frames, step_us), _by_step(events, step_us)
        for number in sorted({*asked, *alone}):
            for frame in asked.get(number, {}).values():
                self._learn_from(frame)
            if number in alone:
                self.trainer.add_events(alone[number], served=self._served_ids()["id"])
            self.trainer.drain()
        if events:
            self.trainer.add_events({}, self._held.learned_positions())
            # A request is no older than `within` before its engagement: older ids cannot be asked for again.
            self._served = [self._served_ids().filter(pl.col("time_us") >= through_us)]

    def _served_ids(self) -> pl.DataFrame:
        return pl.concat([_no_ids(), *self._served])

    def _learn_from(self, requests: pl.DataFrame) -> None:
        labels = requests["labels"].explode()
        self._joined += labels.len()
        self._positives += int(labels.sum() or 0)
        self.trainer.add_requests(requests)
        ids = requests.select(
            pl.col("label_ids").explode().cast(pl.String).alias("id"),
            pl.col("label_times").explode().dt.epoch("us").alias("time_us"),
        )
        self._served.append(ids.drop_nulls())


class _Held:
    """Events that wait for the watermark, by class, and how far each partition has been learned."""

    def __init__(self, events: Sequence[type[Event]]) -> None:
        self.positions: dict[str, int] = {}
        self._frames: dict[type[Event], list[pl.DataFrame]] = {event: [] for event in events}

    @property
    def rows(self) -> int:
        return sum(frame.height for frames in self._frames.values() for frame in frames)

    def add(self, batch: EventBatch) -> None:
        known = self.positions.get(batch.partition, 0)
        self.positions[batch.partition] = max(known, batch.next_offset)
        frame = batch.frame.with_columns(
            pl.lit(batch.partition).alias("__partition"), pl.Series("__offset", batch.offsets, dtype=pl.Int64)
        )
        fresh = frame.filter(pl.col("__offset") >= known)
        if fresh.height:
            self._frames[batch.event].append(fresh)

    def take(self, through_us: int) -> dict[type[Event], pl.DataFrame]:
        """Remove and return the events before `through_us`, in order of time, then id."""
        taken: dict[type[Event], pl.DataFrame] = {}
        for event, frames in self._frames.items():
            if not frames:
                continue
            spec = spec_of(event)
            held = pl.concat(frames)
            due = pl.col(spec.time).dt.epoch("us") < through_us
            ready = held.filter(due)
            self._frames[event] = [held.filter(~due)] if ready.height < held.height else []
            if ready.height:
                order = [spec.time, *([spec.id] if spec.id else ["__partition", "__offset"])]
                taken[event] = ready.sort(order).drop("__partition", "__offset")
        return taken

    def learned_positions(self) -> dict[str, int]:
        """Next offset of each partition below which nothing waits."""
        positions = dict(self.positions)
        for frames in self._frames.values():
            for frame in frames:
                first = frame.group_by("__partition").agg(pl.col("__offset").min())
                for partition, offset in first.iter_rows():
                    positions[partition] = min(positions[partition], offset)
        return positions

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for event, frames in self._frames.items():
            if frames:
                pl.concat(frames).write_ipc(folder / f"{event.__name__}.arrow")
        (folder / "positions.json").write_bytes(orjson.dumps(self.positions))

    def load(self, folder: Path) -> None:
        self.positions = orjson.loads((folder / "positions.json").read_bytes())
        for event in self._frames:
            path = folder / f"{event.__name__}.arrow"
            self._frames[event] = [pl.read_ipc(path)] if path.is_file() else []


def _by_step(frames: Mapping[type[Event], pl.DataFrame], step_us: int) -> dict[int, dict[type[Event], pl.DataFrame]]:
    """Rows of each event class by event time // step_us, each frame in its own order."""
    steps: dict[int, dict[type[Event], pl.DataFrame]] = {}
    for event, frame in frames.items():
        numbers = frame[spec_of(event).time].dt.epoch("us") // step_us
        parts = frame.with_columns(numbers.alias("__step")).partition_by(
            "__step", as_dict=True, include_key=False, maintain_order=True
        )
        for (number,), part in parts.items():
            steps.setdefault(int(number), {})[event] = part
    return steps


def _no_ids() -> pl.DataFrame:
    return pl.DataFrame(schema={"id": pl.String, "time_us": pl.Int64})
