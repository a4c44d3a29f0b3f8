"""The gate: checks before a snapshot is published. Each check returns metrics and, if it fails, a reason.

The candidate and the live model score a window of recent examples. The candidate has learned from all of them and the
live model from some, so the comparison favours the candidate. It detects breakage and does not rank models. NaN fails.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter

from headrace.errors import DeclarationError, GateRefusedError
from headrace.learners.inputs import Inputs
from headrace.learners.publishing.scorer import Scorer

CHECKED = Counter("headrace_gate_checked_total", "Snapshots that went through the gate.", ["outcome"])


@dataclass(frozen=True, slots=True, eq=False)
class Recent:
    """Labelled examples: labels (n,) or (n, L), the log-rate (n,) of their sampling, and weights (n,) or None."""

    inputs: Inputs
    labels: NDArray[np.float32]
    log_rate: NDArray[np.float32]
    weights: NDArray[np.float32] | None = None

    @property
    def importance(self) -> NDArray[np.float32]:
        """Weights (n,), all 1 if none were given."""
        return np.ones(len(self.labels), np.float32) if self.weights is None else self.weights


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """The data available to a check.

    Attributes:
        scores, live_scores: predictions (n,) or (n, K) for `recent`; None without recent examples, or a live model.
    """

    candidate: Scorer
    live: Scorer | None
    recent: Recent | None
    scores: NDArray[np.float32] | None
    live_scores: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True)
class Finding:
    """Metrics of one check, and the reason if it fails."""

    figures: dict[str, float] = field(default_factory=dict)
    reason: str = ""


class Check(Protocol):
    """One check."""

    def __call__(self, evidence: Evidence) -> Finding:
        """Check one candidate. Called once per candidate, in the trainer's thread."""
        ...


@dataclass(frozen=True, slots=True)
class Finite:
    """Requires that all weights are finite numbers."""

    def __call__(self, evidence: Evidence) -> Finding:
        """Check the module's arrays and every table."""
        arrays = _arrays(evidence.candidate)
        bad = {name: int((~np.isfinite(array)).sum()) for name, array in arrays.items()}
        worst = [f"{name} ({count})" for name, count in bad.items() if count]
        reason = f"not finite: {', '.join(worst)}" if worst else ""
        return Finding({"not_finite": float(sum(bad.values()))}, reason)


@dataclass(frozen=True, slots=True)
class NormJump:
    """Limits the root mean square of each parameter and table to `ratio` times the live one, or `floor` if larger."""

    ratio: float = 3.0
    floor: float = 0.5

    def __call__(self, evidence: Evidence) -> Finding:
        """Compare array by array; passes without a live model."""
        if evidence.live is None:
            return Finding()
        live = {name: _rms(array) for name, array in _arrays(evidence.live, buffers=False).items()}
        candidate = _arrays(evidence.candidate, buffers=False)
        jumps = {name: _rms(array) / max(live[name], self.floor) for name, array in candidate.items()}
        name, jump = max(jumps.items(), key=lambda item: (not np.isfinite(item[1]), item[1]))
        reason = (
            "" if jump <= self.ratio else f"norm of {name} is {jump:.3g} times the live one, {self.ratio:g} allowed"
        )
        return Finding({"norm_jump": jump}, reason)


@dataclass(frozen=True, slots=True)
class NotWorse:
    """Limits the loss on recent examples to (1 + margin) times the live model's; passes below `rows_min` examples."""

    margin: float = 0.05
    rows_min: int = 256

    def __call__(self, evidence: Evidence) -> Finding:
        """Compare the losses; without a live model the candidate's loss must only be finite."""
        if evidence.recent is None or evidence.scores is None or len(evidence.recent.labels) < self.rows_min:
            return Finding()
        loss = evidence.candidate.learner.model.loss
        weights = evidence.recent.importance
        mean = float(np.average(loss.values(evidence.scores, evidence.recent.labels), weights=weights))
        if evidence.live_scores is None:
            return Finding({loss.name: mean}, "" if np.isfinite(mean) else f"{loss.name} is not finite")
        live = float(np.average(loss.values(evidence.live_scores, evidence.recent.labels), weights=weights))
        # A loss such as a log-density may be negative, so the margin is relative to its magnitude.
        is_fine = mean <= live + abs(live) * self.margin
        reason = f"{loss.name} {mean:.5g} against {live:.5g} of the live model, {self.margin:.1%} more allowed"
        return Finding({loss.name: mean, f"live_{loss.name}": live}, "" if is_fine else reason)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Requires sum of probabilities / sum of labels to be in [low, high] on recent examples, for each label.

    Labels with fewer than `positives_min` positives and losses that are not of probabilities are skipped.
    """

    low: float = 0.5
    high: float = 2.0
    positives_min: int = 50

    def __call__(self, evidence: Evidence) -> Finding:
        """Check the candidate; the live model is not used."""
        model = evidence.candidate.learner.model
        if evidence.recent is None or evidence.scores is None or not model.loss.is_binary:
            return Finding()
        rows = len(evidence.recent.labels)
        weights = evidence.recent.importance
        positives = weights @ evidence.recent.labels.reshape(rows, -1)
        predicted = weights.astype(np.float64) @ evidence.scores.reshape(rows, -1)
        figures, reasons = {}, []
        for k in np.flatnonzero(positives >= self.positives_min).tolist():
            name = "calibration" if model.labels == 1 else f"calibration of label {k}"
            figures[name] = ratio = float(predicted[k]) / float(positives[k])
            if not self.low <= ratio <= self.high:
                reasons.append(f"{name} {ratio:.3g}, [{self.low:g}, {self.high:g}] allowed")
        return Finding(figures, "; ".join(reasons))


@dataclass(frozen=True, slots=True)
class ProbeParity:
    """Requires the loaded snapshot to score its probe as the learner did, within `tolerance`."""

    tolerance: float = 1e-5

    def __call__(self, evidence: Evidence) -> Finding:
        """Score the probe; passes if the snapshot has none."""
        candidate = evidence.candidate
        if candidate.probe is None or candidate.probe_scores is None:
            return Finding()
        off = float(np.abs(candidate.predict(candidate.probe) - candidate.probe_scores).max(initial=0.0))
        fine = off <= self.tolerance
        return Finding(
            {"probe_off": off}, "" if fine else f"probe scores differ by {off:.3g}, {self.tolerance:g} allowed"
        )


CHECKS: tuple[Check, ...] = (Finite(), NormJump(), NotWorse(), Calibration(), ProbeParity())


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of all checks: reasons against publishing, and all metrics."""

    passed: bool
    reasons: tuple[str, ...]
    figures: dict[str, float]
    version: int = 0


class Gate:
    """Checks a candidate against the live model on recent examples.

    Args:
        checks: all must pass.
        window: number of recent examples to keep; one more micro-batch may be kept.
    """

    def __init__(self, checks: Sequence[Check] = CHECKS, *, window: int = 4_096) -> None:
        if window < 1:
            raise DeclarationError(f"gate: window={window}; write the number of examples to compare, at least 1")
        self.checks = tuple(checks)
        self._window = window
        self._parts: deque[Recent] = deque()
        self._rows = 0

    def remember(
        self,
        inputs: Inputs,
        labels: NDArray[np.float32],
        log_rate: NDArray[np.float32],
        weights: NDArray[np.float32] | None = None,
    ) -> None:
        """Add a micro-batch to the recent examples."""
        self._parts.append(Recent(inputs, labels, log_rate, weights))
        self._rows += len(labels)
        while self._rows - len(self._parts[0].labels) >= self._window:
            self._rows -= len(self._parts.popleft().labels)

    def recent(self) -> Recent | None:
        """The recent examples, oldest first; None before the first."""
        if not self._parts:
            return None
        return Recent(
            Inputs.concat([part.inputs for part in self._parts]),
            np.concatenate([part.labels for part in self._parts]),
            np.concatenate([part.log_rate for part in self._parts]),
            np.concatenate([part.importance for part in self._parts]),
        )

    def check(self, candidate: Scorer, live: Scorer | None = None, recent: Recent | None = None) -> Verdict:
        """Run all checks; `recent` defaults to the gate's own window."""
        recent = recent or self.recent()
        scores = live_scores = None
        if recent is not None:
            scores = candidate.predict(recent.inputs, recent.log_rate)
            live_scores = live.predict(recent.inputs, recent.log_rate) if live is not None else None
        evidence = Evidence(candidate, live, recent, scores, live_scores)
        findings = [check(evidence) for check in self.checks]
        reasons = tuple(finding.reason for finding in findings if finding.reason)
        figures = {name: value for finding in findings for name, value in finding.figures.items()}
        CHECKED.labels(outcome="refused" if reasons else "passed").inc()
        return Verdict(not reasons, reasons, figures, candidate.version)

    def require(self, candidate: Scorer, live: Scorer | None = None, recent: Recent | None = None) -> Verdict:
        """Run all checks as `check` does, and raise if one fails.

        Raises:
            GateRefusedError: a check failed; the message lists every reason.
        """
        verdict = self.check(candidate, live, recent)
        if not verdict.passed:
            raise GateRefusedError(
                f"model {candidate.version} of {candidate.learner.name}: {'; '.join(verdict.reasons)}"
            )
        return verdict


def _arrays(scorer: Scorer, *, buffers: bool = True) -> dict[str, NDArray[Any]]:
    return scorer.dense(buffers=buffers) | {f"table {name}": table.weights for name, table in scorer.tables.items()}


def _rms(array: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) if array.size else 0.0
