"""TrainStep: training in a flow, on requests joined with their labels, and on every other engagement as an example.

    impressions --+
                  +--> Joiner --watermark--> labelled requests ----------------------+
    engagements --+                                                                  +--> Trainer
                  '--> wait until watermark - within --> those no request showed ----'

An engagement waits until every request that it may label has been emitted. Only then is it known whether it labels a
request; if so, it is learned only as part of that request. Waiting events are released in event-time order, so features
are read as of exactly that time, and examples are a function of the events, not of their batching.

Micro-batches end at multiples of the joiner's step in event time, however far the watermark moves at once: first the
requests of a step are learned, then its other engagements, then the next step. So weights are also a function of the
events. Without a joiner every engagement is an example and waits only for the watermark.

State: joiner, trainer and waiting events are saved together, with one table of offsets that covers every event. A
restart resumes from there.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import structlog
from prometheus_client import Histogram

from headrace.atomic import claim
from headrace.errors import DeclarationError, SnapshotError
from headrace.learners import Correct, Label, Learner, Verdict, Wait
from headrace.learners.labels.policy import ages_us
from headrace.pipelines.checkpoints import Checkpoints, CheckpointThread, KeepsFiles, keeping_the_last
from headrace.pipelines.joiner import Joiner, Offsets
from headrace.pipelines.joining.spec import EMITTED, label_column, micros, step_us_of
from headrace.pipelines.trainer import Trainer
from headrace.pipelines.training.waiting import WaitingEvents, waiting_served
from headrace.schemas import Event, spec_of
from headrace.streams.positions import Positions, positions_of
from headrace.streams.source import EventBatch
from headrace.streams.watermark import Watermark

SAVE_S = 30.0  # between two saves; after a crash, about this much is trained again
RELEASE_S = 0.1  # between two checks of the watermark, which cost a scan of the waiting events
IDLE_S = 5.0  # wall time after which a silent partition no longer holds the watermark back

REQUEST_ROWS = 16_384
"""Requests converted to examples at a time, since all requests of a long step could take gigabytes."""

SAVE_SECONDS = Histogram(
    "headrace_checkpoint_seconds",
    "Time that one checkpoint stops the training for; a thread writes it.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)

log = structlog.get_logger(__name__)


class TrainStep:
    """A `Step` around one trainer. Used by one thread.

    Args:
        trainer: the trainer; it needs its own `events`, to make examples of engagements, unless `events` is empty.
        joiner: joins the requests that serving logs; None if there are no requests.
        events: classes that the learner's views read, including the joiner's engagement. If empty, only requests are
            learned, as with several labels.
        state: folder of the saved state; None: nothing is saved.
        lateness_us: without a joiner, how far behind the newest event another may arrive, in event time.

    Attributes:
        classes: events that are read beside the requests.

    Raises:
        DeclarationError: there is no joiner, and the learner has no label, or several; or the joiner's labels or policy
            differ from the learner's.
        ServiceError: another process uses the state.
        SnapshotError: the state is damaged, or of another learner.
    """

    def __init__(
        self,
        trainer: Trainer,
        joiner: Joiner | None,
        events: Sequence[type[Event]],
        *,
        state: Path | None = None,
        idle_s: float = IDLE_S,
        lateness_us: int = 0,
    ) -> None:
        self.trainer = trainer
        self.joiner = joiner
        self.events = tuple(events)
        self.lateness_us = lateness_us if joiner is None else joiner.spec.lateness_us
        self._step_us = _step_us(trainer) if joiner is None else joiner.spec.step_us
        if joiner is not None:
            _check_join(trainer.learner, joiner)
        engagements = () if joiner is None else joiner.spec.engagements
        self.classes = tuple(dict.fromkeys((*self.events, *engagements)))
        self._offsets = Offsets() if joiner is None else joiner
        self._saves = None if state is None else CheckpointThread(Checkpoints(state))
        self._watermark = Watermark(lateness_us=self.lateness_us, idle_s=idle_s)
        self._early = WaitingEvents(self.events, self._step_us)
        self._served = waiting_served(self._step_us)
        self._released_s = 0.0
        self._saved_s = time.monotonic()
        self._positives = 0
        self._joined = 0
        if self._saves is not None:
            folder = self._saves.checkpoints.folder
            claim(folder)
            if joiner is not None:
                joiner.keep_in(folder)
            self._early.keep_in(folder / "waiting")
            self._served.keep_in(folder / "served")
            self._load(self._saves.checkpoints)

    def describe(self) -> str:
        """Name the learner and the folder of its models."""
        directory = self.trainer.directory
        return f"models of {self.trainer.learner.name} to {directory.path if directory else 'memory alone'}"

    @property
    def state_folder(self) -> Path | None:
        """Folder of the saved state; None if nothing is saved."""
        return None if self._saves is None else self._saves.checkpoints.folder

    def positions(self) -> Positions:
        """Next offset of each partition in the state."""
        return positions_of("the trainer", self._offsets.positions())

    def expect(self, partitions: Sequence[str]) -> None:
        """Make the watermark wait for each of these partitions."""
        self._watermark.expect(partitions)

    def apply(self, batch: EventBatch) -> None:
        """Add requests or engagements, and update the watermark."""
        self._watermark.observe(batch)
        self.add(batch)

    def add(self, batch: EventBatch) -> None:
        """Add requests or engagements without updating the watermark, which the caller passes to `advance`."""
        new = self._offsets.new_rows(batch)
        if self.joiner is not None and batch.event in (self.joiner.spec.request, *self.joiner.spec.engagements):
            self.joiner.add_new(new)
        if batch.event in self.events:
            self._early.add(new)

    def skip_to(self, positions: Mapping[str, int]) -> None:
        """Mark rows before `positions` (partition -> next offset) as learned."""
        self._offsets.skip_to(positions)

    @property
    def due_s(self) -> float | None:
        """Monotonic time of the next check of the watermark."""
        return self._released_s + RELEASE_S

    def tick(self) -> list[Verdict]:
        """Release what the watermark allows, train on what is due, and publish if that is due."""
        now_s = time.monotonic()
        if now_s - self._released_s >= RELEASE_S:
            self._released_s = now_s
            self._release()
        verdict = self.trainer.poll()
        is_due = self._saves is not None and now_s - self._saved_s >= SAVE_S and not self._saves.is_busy
        if is_due and self.trainer.prepare_capture():
            self.save(waits=False)
        return [] if verdict is None else [verdict]

    def finish(self) -> list[Verdict]:
        """Save, including examples that still wait for the watermark or their micro-batch, to learn after a restart."""
        self._release()
        self.save()
        return []

    @property
    def waiting(self) -> int:
        """Number of events that wait for the watermark."""
        return self._early.rows

    def status(self) -> dict[str, Any]:
        """Status to show: examples, metrics of served predictions, progress."""
        counts = {} if self.joiner is None else self.joiner.counts
        return {
            "joined": self._joined,
            "positives": self._positives,
            "late": counts.get("late_requests", 0) + counts.get("late_engagements", 0),
            "duplicates": counts.get("duplicate_requests", 0) + counts.get("duplicate_engagements", 0),
            "trained": self.trainer.trained,
            "micro_batch": self.trainer.micro_batch.rows,
            "held": self.waiting,
            "watermark_us": self._watermark.value_us(),
            "served": self.trainer.served.snapshot(),
            "shadow": self.trainer.shadow.snapshot(),
            "prequential": self.trainer.prequential.snapshot(),
        }

    def save(self, *, waits: bool = True) -> None:
        """Write a checkpoint into the folder of the state, if there is one; with `waits` return once it is on disk.

        Raises:
            SnapshotError: it cannot be written. The previous checkpoint stays, and a later call may succeed.
        """
        if self._saves is None:
            return
        stores: list[KeepsFiles] = [self._served, self._early]
        stores += [] if self.joiner is None else [self.joiner]
        with keeping_the_last(self._saves.checkpoints.folder, *stores):
            self._submit(self._saves)
            if waits:
                self._saves.wait()

    @SAVE_SECONDS.time()
    def _submit(self, saves: CheckpointThread) -> None:
        """Capture the state, during which training stops, and let a thread write it."""
        saves.wait()
        counts = {"joined": self._joined, "positives": self._positives}
        served = self._served.capture()
        writers = {"trainer": self.trainer.capture(), "held": self._early.capture()}
        if self.joiner is not None:
            writers["joiner"] = self.joiner.capture()
        facts = {"trainer": self.trainer.facts(), "positions": self._offsets.positions(), **counts}

        def fill(folder: Path) -> None:
            for name, writer in writers.items():
                (folder / name).mkdir()
                writer(folder / name)
            (folder / "served.json").write_bytes(orjson.dumps(served(folder)))

        saves.submit(facts, fill)
        self._saved_s = time.monotonic()

    def _load(self, checkpoints: Checkpoints) -> None:
        newest = checkpoints.newest()
        if newest is None:
            return
        folder, facts = newest
        if facts:
            try:
                self.trainer.read(folder / "trainer", facts["trainer"])
            except SnapshotError as exc:  # the files are intact, as `newest` has compared their checksums
                raise SnapshotError(
                    f"{exc}. The state in {self.state_folder} is of the learner as it was declared before: take the "
                    "change back, or delete that folder to train anew, from history with `headrace train` or live"
                ) from exc
            self._joined, self._positives = facts["joined"], facts["positives"]
        else:  # of an earlier release
            self.trainer.load(folder / "trainer")
            self._joined, self._positives = orjson.loads((folder / "progress.json").read_bytes())
        if self.joiner is not None:
            self.joiner.load(folder / "joiner")
        self.skip_to(facts.get("positions", {}))
        if (offsets := folder / "held" / "positions.json").is_file():  # of an earlier release
            self.skip_to(orjson.loads(offsets.read_bytes()))
        self._early.load(folder / "held")
        path = folder / "served.json"
        self._served.load(folder, orjson.loads(path.read_bytes()) if path.is_file() else {})
        log.info("train_step_resumed", state=folder.name, positions=self.positions())

    def _release(self) -> None:
        watermark_us = self._watermark.value_us()
        if watermark_us is not None:
            self.advance(watermark_us)

    def advance(self, watermark_us: int, *, awaits_requests: bool = True) -> None:
        """Learn from what the watermark allows, one step of event time after another.

        `awaits_requests` False: all requests that an engagement before the watermark may label are known, as in a
        history without requests, so engagements do not wait for requests.
        """
        within_us = self._within_us if awaits_requests else 0
        requests = None if self.joiner is None else self.joiner.advance(watermark_us)
        # Only whole steps are learned: below the last of them all requests and engagements are known.
        through_us = (watermark_us - within_us) // self._step_us * self._step_us
        events = self._early.take(through_us)
        # In the order of release: an engagement is released after its step has waited so many steps.
        self._learn(requests, events, 1 + within_us // self._step_us if self._is_early else 0)
        if events:
            self.trainer.add_examples(None, self._early.learned_positions(self._offsets.positions()))
            # A request is at most `within` older than its engagement, so older ids are not needed any more.
            self._served.drop(self._served.due(through_us // self._step_us))

    @property
    def _is_early(self) -> bool:
        """Whether requests are emitted before their window has closed."""
        return self.joiner is not None and self.joiner.spec.is_early

    @property
    def _within_us(self) -> int:
        """Time in microseconds that an engagement waits for the requests that it may label."""
        if self.joiner is None:
            return 0
        within_us = self.joiner.spec.within_us
        return -(-within_us // self._step_us) * self._step_us if self._is_early else within_us

    def _learn(
        self, requests: pl.DataFrame | None, events: Mapping[type[Event], pl.DataFrame], events_after: int
    ) -> None:
        """Learn step by step, in each step first requests and then events, which are shifted by `events_after` steps.

        Examples of all events are made at once, which costs less; they do not depend on the requests between them.
        """
        requests_by_step: dict[int, pl.DataFrame] = {}
        if requests is not None and self.joiner is not None:
            self._remember_served(requests)
            step = pl.col(EMITTED)
            if not self._is_early:
                step = micros(spec_of(self.joiner.spec.request).time) // self._step_us
            requests_by_step = _by_step(requests, step)
        examples = self.trainer.examples_of(events, served=self._served.read()["id"]) if events else None
        examples_by_step = {} if examples is None else examples.by_step(self._step_us)
        events_by_step = {number + events_after: part for number, part in examples_by_step.items()}
        for number in sorted({*requests_by_step, *events_by_step}):
            if number in requests_by_step:
                self._learn_from(requests_by_step[number])
            self.trainer.add_examples(events_by_step.get(number))
            self.trainer.drain()

    def _learn_from(self, requests: pl.DataFrame) -> None:
        """Learn from the requests of a step, with the same micro-batches as if all examples were made at once."""
        assert self.joiner is not None
        columns = [label_column("labels", name) for name in self.joiner.spec.joins]
        for piece in requests.iter_slices(REQUEST_ROWS):
            labels = piece.select(columns).filter(pl.col(columns[0]).list.len() > 0).explode(columns)
            self._joined += labels.filter(~pl.all_horizontal(pl.all().is_null())).height
            self._positives += int((labels.fill_null(0) > 0).sum_horizontal().sum()) if labels.height else 0
            self.trainer.add_requests(piece)
            self.trainer.train_whole()

    def _remember_served(self, requests: pl.DataFrame) -> None:
        if "label_ids" not in requests.columns:
            return  # with several labels no event is learned alone
        ids = requests.select(
            pl.col("label_ids").explode().cast(pl.String).alias("id"),
            pl.col("label_times").explode().dt.epoch("us").alias("time_us"),
        )
        if (known := ids.drop_nulls()).height:
            self._served.add(known)


def _step_us(trainer: Trainer) -> int:
    label = trainer.learner.label
    if not isinstance(label, Label):
        what = "no label" if label is None else f"{len(label)} labels"
        raise DeclarationError(
            f"learner {trainer.learner.name}: {what}, so no event is an example; declare one, or give a joiner"
        )
    return step_us_of(label.within_us)


def _check_join(learner: type[Learner], joiner: Joiner) -> None:
    """Raise if a join differs from what its learner declares."""
    names, joined = list(learner.labels()) or [""], list(joiner.spec.joins)
    is_same = names == joined
    if is_same and learner.label is not None:
        ages = {name: ages_us(learner.policy, label.within_us) for name, label in learner.labels().items()}
        corrects = isinstance(learner.policy, Correct)
        is_early = not isinstance(learner.policy, Wait) or joiner.spec.is_early
        is_same = not is_early or (ages[""] == joiner.spec.ages_us and corrects == joiner.spec.corrects)
    if not is_same:
        raise DeclarationError(
            f"learner {learner.name}: its joiner has labels {joined} and ages {joiner.spec.ages_us} us, it "
            f"declares {names} and {learner.policy}; make the join with JoinSpec.of_learner({learner.__name__}, ...)"
        )


def _by_step(frame: pl.DataFrame, step: pl.Expr) -> dict[int, pl.DataFrame]:
    """Split rows by step number; each frame keeps the order of its rows."""
    parts = frame.with_columns(step.alias("__step")).partition_by(
        "__step", as_dict=True, include_key=False, maintain_order=True
    )
    return {int(number): part for (number,), part in parts.items()}
