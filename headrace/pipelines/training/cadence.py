"""Sizes and intervals of training, and the choice of the smallest micro-batch that keeps up with the stream.

An example affects predictions only after its micro-batch, so small micro-batches predict better, but each step has a
fixed cost. A trainer without a configured size learns its first examples in micro-batches of `START_ROWS`. Then it
times steps of each size on a separate learner, and chooses the fewest rows whose steps take at most `SHARE` of the time
in which so many examples arrive.

Invariant: the choice follows a micro-batch, never a frame, and is made once in the life of a training state, which
records it. So weights stay a function of the examples and the recorded number, on any machine that resumes.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog

from headrace.errors import DeclarationError
from headrace.features.argument_types import checked
from headrace.learners import Learner, OnlineLearner
from headrace.pipelines.examples import Examples

SIZES = (16, 64, 256, 1_024, 4_096)
START_ROWS = 1_024
"""Rows of a micro-batch before the choice."""
ENOUGH_ROWS = 2_048
"""Number of examples after which their rate is known well enough."""
ENOUGH_US = 1_000_000
"""Event time that these examples must span, since a burst has no rate."""
SHARE = 0.5
"""Share of the trainer's time that steps may take; the rest is for features, joins and publications."""
REPEATS = 3

log = structlog.get_logger(__name__)


@checked
@dataclass(frozen=True, slots=True)
class Cadence:
    """Sizes and intervals of training and publication.

    Args:
        rows_min: a micro-batch is the fewest whole groups with at least this many rows. None: the fewest rows that keep
            up with the stream, chosen after the first examples and recorded in the state.
        wait_s: wall-clock seconds after which waiting examples are trained on even if they are fewer. Weights then
            depend on the speed of the machine; None: never.
        publish_s: seconds between publications; None: only when `publish` is called.
        refusals_max: refusals by the gate in a row after which the trainer stops with GateRefusedError.
        per_example: predict and learn each example after the previous one, as in micro-batches of one, for any
            `rows_min`. See `OnlineLearner.predict_and_learn` for the models for which that is cheap.
    """

    rows_min: int | None = None
    wait_s: float | None = None
    publish_s: float | None = 2.0
    refusals_max: int = 10
    per_example: bool = False

    def __post_init__(self) -> None:
        if (self.rows_min is not None and self.rows_min < 1) or self.refusals_max < 1:
            raise DeclarationError(f"{self}: rows_min and refusals_max must be at least 1")
        if min(self.wait_s or 0, self.publish_s or 0) < 0:
            raise DeclarationError(f"{self}: wait_s and publish_s must be at least 0")


class MicroBatch:
    """The rows of a micro-batch: those of the cadence, or the fewest that keep up with the stream.

    Args:
        learner: the learner whose steps are timed.
        cadence: its `rows_min`, if given, is used unchanged.
        threads: torch threads, see `OnlineLearner`.

    Attributes:
        rows: current number of rows.
        is_chosen: whether this number is final.
    """

    def __init__(self, learner: type[Learner], cadence: Cadence, threads: int) -> None:
        self.rows = cadence.rows_min or START_ROWS
        # Learning one by one takes steps of one row, for any number of rows per call.
        self.is_chosen = cadence.rows_min is not None or cadence.per_example
        self._is_given = self.is_chosen
        self._learner = learner
        self._threads = threads
        self._seen = 0
        self._first_us, self._last_us = 0, 0

    def observe(self, batch: Examples) -> None:
        """Count a learned micro-batch, and choose the rows once enough examples have arrived."""
        if self.is_chosen:
            return
        first_us, last_us = int(batch.time_us.min()), int(batch.time_us.max())
        self._first_us = min(self._first_us, first_us) if self._seen else first_us
        self._last_us = max(self._last_us, last_us) if self._seen else last_us
        self._seen += len(batch)
        span_us = self._last_us - self._first_us
        if self._seen >= ENOUGH_ROWS and span_us >= ENOUGH_US:
            self._choose(self._seen / span_us * 1e6, batch)

    def facts(self) -> dict[str, Any]:
        """State of the choice, for JSON."""
        return {
            "rows": self.rows,
            "is_chosen": self.is_chosen,
            "seen": self._seen,
            "first_us": self._first_us,
            "last_us": self._last_us,
        }

    def load(self, facts: Mapping[str, Any] | None) -> None:
        """Load what `facts` returned, None for an old release with `START_ROWS`. A given `rows_min` has priority."""
        if self._is_given:
            return
        state = facts or {"rows": START_ROWS, "is_chosen": True, "seen": 0, "first_us": 0, "last_us": 0}
        self.rows, self.is_chosen, self._seen = state["rows"], state["is_chosen"], state["seen"]
        self._first_us, self._last_us = state["first_us"], state["last_us"]

    def _choose(self, rows_per_s: float, batch: Examples) -> None:
        budget_s = SHARE / rows_per_s
        for rows in SIZES:
            step_s = step_seconds(self._learner, batch, rows, self._threads)
            if step_s / rows <= budget_s:
                break
        self.rows, self.is_chosen = rows, True
        keeps_up = step_s / rows <= budget_s
        log.log(
            20 if keeps_up else 30,
            "micro_batch_chosen",
            learner=self._learner.name,
            rows=rows,
            step_ms=round(step_s * 1e3, 2),
            examples_per_s=round(rows_per_s, 1),
            keeps_up=keeps_up,
        )


def step_seconds(learner: type[Learner], batch: Examples, rows: int, threads: int = 1) -> float:
    """Seconds that a step of a new learner takes on `rows` examples like those of `batch`, the fastest of three."""
    online = OnlineLearner(learner, threads=threads)
    picked = np.arange(rows) % len(batch)
    inputs, labels, log_rate = batch.inputs.take(picked), batch.labels[picked], batch.log_rate[picked]
    fastest_s = math.inf
    for _ in range(1 + REPEATS):  # the first run adds the table rows
        started_s = time.perf_counter()
        online.predict_and_learn(inputs, labels, log_rate=log_rate)
        fastest_s = min(fastest_s, time.perf_counter() - started_s)
    return fastest_s
