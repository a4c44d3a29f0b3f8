"""Trainer: trains on examples and publishes models, independent of any flow.

    joined requests --+
                      +--> waiting --(rows_min reached, or drained)--------> predict, learn -> metrics --+
    events, as of ----+                                                                                  |
                                            every publish_s: snapshot -> staged -> gate -> published <---+

Exactly once: `save` writes offsets, tables, dense weights, optimizer, RNG, the records of the replays, the sampler and
waiting examples, together and atomically. A trainer that loads this state and is fed from `positions` on trains on each
example once. A micro-batch ends after a number of rows, at a whole group, and when the caller drains the trainer, which
`TrainStep` does at fixed event times. So weights are a function of the examples: a resumed run ends with weights
bitwise equal to those of an uninterrupted run, however the stream is cut into frames. The machine's speed matters once,
when the trainer chooses the rows of its micro-batches (`headrace.pipelines.training.cadence`), and the saved state
records the choice.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import structlog
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge, Histogram
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from headrace.errors import DeclarationError, GateRefusedError, SnapshotError
from headrace.learners import Gate, Learner, ModelDirectory, OnlineLearner, Prequential, Scorer, Snapshot, Verdict
from headrace.learners.state import prefixed
from headrace.pipelines.checkpoints import Checkpoints
from headrace.pipelines.examples import (
    LATE,
    SOURCES,
    EventExamples,
    Examples,
    RequestColumns,
    requests_to_examples,
)
from headrace.pipelines.joining.spec import IS_FIRST, label_column
from headrace.pipelines.training.cadence import Cadence, MicroBatch
from headrace.schemas import Event

PROBE_ROWS = 64
EXPIRE_STEPS = 500  # micro-batches between two checks for expired rows
CHECKPOINTS_KEPT = 2
MANIFEST = "trainer.json"
"""File of a checkpoint with its metadata and digests."""

TRAINED = Counter("headrace_examples_trained_total", "Examples learnt from.", ["source"])
STEP_SECONDS = Histogram(
    "headrace_train_step_seconds",
    "Predict, marks and learn of a micro-batch.",
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 1),
)
WAITING = Gauge("headrace_examples_waiting", "Examples that wait for their micro-batch.")
REFUSED = Counter("headrace_models_refused_total", "Snapshots the gate refused.")
PUBLISH_SECONDS = Histogram(
    "headrace_publish_seconds",
    "Time of one publication: snapshot, gate, files and notice.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10),
)
AUC = Gauge("headrace_prequential_auc_ratio", "Area under the ROC curve of predictions made before learning.")
LOGLOSS = Gauge("headrace_prequential_logloss_nats", "Mean log-loss of predictions made before learning.")

log = structlog.get_logger(__name__)


class Trainer:
    """Trains one learner on a stream. Not thread-safe.

    Args:
        learner: the declaration.
        directory: directory of published versions; None: nothing is published.
        cadence: sizes of micro-batches and intervals of publications; None: the defaults, which choose the size.
        events: makes examples of events; None if `add_events` is not used.
        columns: names of the columns of the frames for `add_requests`.
        gate: checks before publishing; None: the default checks.
        seed, threads: see `OnlineLearner`.
        monotonic: a monotonic clock in seconds, for tests.
    """

    def __init__(
        self,
        learner: type[Learner],
        directory: ModelDirectory | None = None,
        *,
        cadence: Cadence | None = None,
        events: EventExamples | None = None,
        columns: RequestColumns | None = None,
        gate: Gate | None = None,
        seed: int = 0,
        threads: int = 1,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.learner = learner
        self.online = OnlineLearner(learner, seed, threads=threads)
        self.directory = directory
        self.cadence = cadence or Cadence()
        self.micro_batch = MicroBatch(learner, self.cadence, threads)
        self.gate = gate or Gate()
        self.prequential = Prequential(learner.model)
        self.served = Prequential(slices=False)
        self.shadow = Prequential(slices=False)
        self.trained = 0
        self.trained_positions: dict[str, int] = {}
        self.live: Scorer | None = None
        self._events = events
        self._columns = columns or RequestColumns()
        self._monotonic = monotonic
        self._waiting: deque[tuple[Examples, dict[str, int]]] = deque()
        self._waiting_rows = 0
        self._waiting_since = 0.0
        self._published_at = monotonic()
        self._published_steps = 0
        self._refusals = 0

    def add_requests(self, frame: pl.DataFrame, positions: Mapping[str, int] | None = None) -> int:
        """Add joined requests, in order, one per row; returns the number of examples.

        `positions` are the next offsets of the partitions, from which to resume when these requests are trained.
        """
        self._mark(frame, self._columns.scores, self.served)
        self._mark(frame, self._columns.shadow, self.shadow)
        return self.add_examples(requests_to_examples(frame, self.learner, self._columns), positions)

    def add_events(
        self,
        events: Mapping[type[Event], pl.DataFrame],
        positions: Mapping[str, int] | None = None,
    ) -> int:
        """Add events by class, in event-time order; returns the number of examples.

        Raises:
            DeclarationError: the trainer was created without `events`.
        """
        return self.add_examples(self.examples_of(events), positions)

    def examples_of(
        self, events: Mapping[type[Event], pl.DataFrame], *, served: pl.Series | None = None
    ) -> Examples | None:
        """Add events as `add_events` does, but return their examples instead of learning from them.

        `served` are ids of events that label a request: they are learned with the request and give no example here.
        Groups with a label that the model's loss does not allow are left out and counted.

        Raises:
            DeclarationError: the trainer was created without `events`.
        """
        examples = self._event_examples().add(events, served)
        return None if examples is None else examples.learnable(self.learner.model.loss.is_allowed)

    def add_examples(self, examples: Examples | None, positions: Mapping[str, int] | None = None) -> int:
        """Add examples to learn from, in order; returns their number."""
        if examples is None or len(examples) == 0:
            self._move_to(positions or {})
            return 0
        if not self._waiting:
            self._waiting_since = self._monotonic()
        self._waiting.append((examples, self.positions | dict(positions or {})))
        self._waiting_rows += len(examples)
        WAITING.set(self._waiting_rows)
        return len(examples)

    def observe_events(self, events: Mapping[type[Event], pl.DataFrame]) -> None:
        """Update features with events, by class, without learning from them, for history before a warm start.

        Raises:
            DeclarationError: the trainer was created without `events`.
        """
        self._event_examples().observe(events)

    def poll(self) -> Verdict | None:
        """Train on what is due, then publish if that is due; returns the gate's verdict if it ran.

        Raises:
            GateRefusedError: the gate refused `refusals_max` times in a row.
        """
        self.train_whole()
        wait_s = self.cadence.wait_s
        if self._waiting_rows and wait_s is not None and self._monotonic() - self._waiting_since >= wait_s:
            self.drain()
        publish_s = self.cadence.publish_s
        due = publish_s is not None and self._monotonic() - self._published_at >= publish_s
        if self.directory is None or not due or self.online.steps == self._published_steps:
            return None
        return self.publish()

    def train_whole(self) -> None:
        """Train on the waiting examples that fill micro-batches; fewer than the rows of one keep waiting."""
        while self._waiting_rows >= self.micro_batch.rows:
            self._train(self._cut(self.micro_batch.rows))

    def drain(self) -> None:
        """Train on all waiting examples; the last micro-batch may be smaller."""
        while self._waiting_rows:
            self._train(self._cut(self.micro_batch.rows))

    @PUBLISH_SECONDS.time()
    def publish(self) -> Verdict:
        """Take a snapshot, run the gate, and publish the snapshot if it passes.

        A snapshot that a rollback overtook meanwhile is refused, as it was not compared with what is live now.

        Raises:
            GateRefusedError: this and the previous `refusals_max - 1` snapshots were refused.
            SnapshotError: the directory cannot be written, or another trainer published meanwhile.
        """
        if self.directory is None:
            raise DeclarationError(f"trainer of {self.learner.name}: no directory to publish to")
        self._published_at, self._published_steps = self._monotonic(), self.online.steps
        if self.live is None or self.live.version != self.directory.latest():  # a rollback was published meanwhile
            self.live = self._latest() or self.live
        recent, metrics = self.gate.recent(), self.prequential.snapshot()
        for gauge, figure in ((AUC, "auc"), (LOGLOSS, "logloss")):
            if figure in metrics:
                gauge.set(metrics[figure])
        snapshot = Snapshot.of(
            self.online,
            parent=self.live.version if self.live else 0,
            offsets=self.trained_positions,
            metrics=metrics,
            probe=recent.inputs.take(slice(-PROBE_ROWS, None)) if recent else None,
        )
        staged = self.directory.stage(snapshot)
        candidate = Scorer(staged.snapshot, self.learner)
        verdict = self.gate.check(candidate, self.live, recent)
        if verdict.passed:
            version = staged.snapshot.manifest.version
            try:
                self.directory.publish(staged)
            except SnapshotError:
                if not self.directory.is_rollback(version):
                    raise
                log.warning("model_overtaken", model_version=version, advice="the next one is compared with it")
                return replace(
                    verdict, passed=False, reasons=(f"version {version} is a rollback, published meanwhile",)
                )
            self.live, self._refusals = candidate, 0
            return verdict
        self.directory.discard(staged)
        self._refusals += 1
        REFUSED.inc()
        log.error("model_refused", reasons=verdict.reasons, refusals=self._refusals, **verdict.figures)
        if self._refusals >= self.cadence.refusals_max:
            raise GateRefusedError(f"{self._refusals} models in a row refused, the last: {'; '.join(verdict.reasons)}")
        return verdict

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint into `folder`, which keeps the last two; returns the folder of the new one."""
        checkpoints = Checkpoints(folder, keep=CHECKPOINTS_KEPT, manifest=MANIFEST)
        with checkpoints.write(self.facts()) as partial:
            self.capture()(partial)
        log.info("training_saved", positions=self.positions, waiting=self._waiting_rows)
        return max(checkpoints.folder.glob("c????????"))

    def load(self, folder: str | Path) -> bool:
        """Resume from the newest checkpoint in `folder`; False if there is none. Seek the sources to `positions` then.

        Raises:
            SnapshotError: it is damaged, or of another learner.
        """
        newest = Checkpoints(folder, manifest=MANIFEST).newest()
        if newest is None:
            return False
        self.read(*newest)
        log.info("training_resumed", checkpoint=newest[0].name, positions=self.positions, waiting=self._waiting_rows)
        return True

    def facts(self) -> dict[str, Any]:
        """Offsets and counts of the state, in types that JSON supports."""
        return {
            "positions": self.positions,
            "trained_positions": self.trained_positions,
            "waiting_positions": [positions for _, positions in self._waiting],
            "trained": self.trained,
            "micro_batch": self.micro_batch.facts(),
        }

    def prepare_capture(self) -> bool:
        """Start to copy large tables during training; returns whether `capture` would not have to wait."""
        return self.online.prepare_capture()

    def capture(self) -> Callable[[Path], None]:
        """Copy the state without `facts`; returns a function that writes it into an empty folder, in any thread."""
        snapshot = Snapshot.capture(self.online, self.positions)
        state = self._state()
        events = None if self._events is None else self._events.capture()

        def write(folder: Path) -> None:
            snapshot().save(folder / "learner")
            (folder / "state.safetensors").write_bytes(save_tensors(state))
            if events is not None:
                (folder / "events").mkdir()
                events(folder / "events")

        return write

    def read(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """Load the state that `capture` wrote, and its `facts`.

        Raises:
            SnapshotError: it is damaged, or of another learner.
        """
        Snapshot.load(folder / "learner", self.learner).restore(self.online)
        self._set_state(load_tensors((folder / "state.safetensors").read_bytes()), facts["waiting_positions"])
        if self._events is not None:
            self._events.load(folder / "events")
        self.trained_positions = facts["trained_positions"]
        self._move_to(facts["positions"])
        self.trained = facts["trained"]
        self.micro_batch.load(facts.get("micro_batch"))
        self._published_steps = 0

    @property
    def positions(self) -> dict[str, int]:
        """Next offset of each partition that was added; see `trained_positions` for what is trained."""
        return self._waiting[-1][1] if self._waiting else self.trained_positions

    def _move_to(self, positions: Mapping[str, int]) -> None:
        """Advance to `positions`, which count as trained once all currently waiting examples are."""
        if self._waiting:
            examples, before = self._waiting[-1]
            self._waiting[-1] = (examples, before | dict(positions))
        else:
            self.trained_positions = self.trained_positions | dict(positions)

    def _cut(self, rows_min: int) -> Examples:
        """Remove and return the first groups with at least `rows_min` rows together, or all."""
        parts: list[Examples] = []
        missing = rows_min
        while missing > 0 and self._waiting:
            examples, positions = self._waiting.popleft()
            groups = int(np.searchsorted(examples.starts, missing, side="left"))
            if groups < len(examples.starts) - 1:
                rest = examples.groups(groups, len(examples.starts) - 1)
                self._waiting.appendleft((rest, positions))
                examples = examples.groups(0, groups)
            else:
                self.trained_positions = positions
            missing -= len(examples)
            parts.append(examples)
        batch = Examples.concat(parts)
        self._waiting_rows -= len(batch)
        self._waiting_since = self._monotonic()
        WAITING.set(self._waiting_rows)
        return batch

    def _train(self, batch: Examples) -> None:
        with STEP_SECONDS.time():
            weights = batch.weights(self.online.predict)
            probabilities, _ = self.online.predict_and_learn(
                batch.inputs,
                batch.labels,
                weights,
                log_rate=batch.log_rate,
                event_time_us=batch.time_us,
                starts=batch.starts,
                per_example=self.cadence.per_example,
            )
            # Late positives come without their other candidates, so they have no rank.
            starts = None if (batch.source == LATE).any() else batch.starts
            slices = np.array(SOURCES)[batch.source]
            self.prequential.observe(probabilities, batch.labels, weights=weights, starts=starts, slices=slices)
            self.gate.remember(batch.inputs, batch.labels, batch.log_rate, weights)
        self.trained += len(batch)
        self.micro_batch.observe(batch)
        for name in np.unique(slices).tolist():
            TRAINED.labels(source=name).inc(int((slices == name).sum()))
        if self.online.steps % EXPIRE_STEPS == 0:
            self.online.expire()

    def _event_examples(self) -> EventExamples:
        if self._events is None:
            raise DeclarationError(f"trainer of {self.learner.name}: no events=EventExamples(...)")
        return self._events

    def _mark(self, frame: pl.DataFrame, column: str | None, marks: Prequential) -> None:
        """Evaluate the scores in `column`, with which requests were answered or that a shadow model gave.

        They are compared with the first label, unless that is numeric.
        """
        name, label = next(iter(self.learner.labels().items()), ("", None))
        labels = label_column(self._columns.labels, name)
        if column is None or not {column, labels} <= set(frame.columns) or (label and label.value is not None):
            return
        first = frame.filter(IS_FIRST) if IS_FIRST in frame.columns else frame
        both = first.select(labels=labels, scores=column).filter(
            (pl.col("scores").list.len() == pl.col("labels").list.len()) & (pl.col("labels").list.len() > 0)
        )
        if both.is_empty():
            return
        known = both.with_row_index().explode("labels", "scores").drop_nulls("labels")  # unknown labels are dropped
        sizes = known.group_by("index", maintain_order=True).len()["len"].to_numpy()
        scores, truth = (known[name].to_numpy().astype(np.float32) for name in ("scores", "labels"))
        marks.observe(scores, truth, starts=np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))

    def _latest(self) -> Scorer | None:
        assert self.directory is not None
        version = self.directory.latest()
        if version is None:
            return None
        try:
            return Scorer(self.directory.load(version, self.learner), self.learner)
        except (SnapshotError, OSError) as exc:
            # Damaged, or the declaration has changed, so it cannot be compared with.
            log.warning("live_model_not_comparable", model_version=version, reason=str(exc))
            return None

    def _marks(self) -> dict[str, Prequential]:
        """The metrics, by their names in a saved state."""
        return {"prequential": self.prequential, "served": self.served, "shadow": self.shadow}

    def _state(self) -> dict[str, NDArray[Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        parts = {name: each.state_dict() for name, each in self._marks().items()}
        parts |= {f"waiting{i:06d}": examples.state_dict() for i, (examples, _) in enumerate(self._waiting)}
        for part, of_part in parts.items():
            arrays |= {f"{part}/{name}": np.ascontiguousarray(array) for name, array in of_part.items()}
        return arrays

    def _set_state(self, arrays: Mapping[str, NDArray[Any]], waiting_positions: list[dict[str, int]]) -> None:
        for name, marks in self._marks().items():
            marks.load_state_dict(prefixed(arrays, f"{name}/"))
        fingerprint, numbers = self.learner.inputs.fingerprint, range(len(waiting_positions))
        waiting = [Examples.of_state(prefixed(arrays, f"waiting{i:06d}/"), fingerprint) for i in numbers]
        self._waiting = deque(zip(waiting, waiting_positions, strict=True))
        self._waiting_rows = sum(len(examples) for examples in waiting)
        self._waiting_since = self._monotonic()
