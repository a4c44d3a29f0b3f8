"""The intercept of a model's logit: it holds the base rate, and follows it.

Each batch moves it to where the batch's log-loss and what is known from before are in balance: to the minimum of
log-loss(logits + shift) + information / 2 * shift ** 2, found by Newton steps. Information is the sum of w p (1 - p)
over older examples, up to `INFORMATION_MAX`: shifts are long while little is known and short later. After a change of
the base rate the intercept follows within some `INFORMATION_MAX` / (p (1 - p)) examples (5,000 at a rate of 2 %), and
at rest it varies by less than 0.1.

Source: the scalar case of a Kalman filter for logistic regression, posterior modes batch by batch; Fahrmeir, Tutz
(2001), "Multivariate Statistical Modelling Based on Generalized Linear Models", chapter 8.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compile import kernel

INFORMATION_MAX = 100.0
"""Sum of p (1 - p) over the examples that are remembered."""
STEP_MAX = 1.0
"""Longest Newton step, in log-odds: far from the minimum the curvature says little."""
STEPS_MAX = 20


class Intercept:
    """`value` (1,) float32, `information` (1,) float64."""

    def __init__(self) -> None:
        self.value = np.zeros(1, np.float32)
        self.information = np.zeros(1, np.float64)

    @property
    def is_started(self) -> bool:
        """Whether a batch or a snapshot has set it."""
        return bool(self.information[0] > 0 or self.value[0] != 0)

    def start(self, labels: NDArray[np.float32], weights: NDArray[np.float32] | None, log_rate: Any) -> None:
        """Set it to the log-odds of the base rate of a first batch, labels (B,) 0 or 1."""
        weight = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
        # Half an example of either kind more, so that a batch of one kind gives a finite number.
        half = 0.5 * float(weight.mean())
        positives, negatives = float(weight @ labels) + half, float(weight @ (1 - labels)) + half
        self.value[0] = np.log(positives / negatives) - float(np.mean(log_rate))

    def step(
        self, logits: NDArray[np.float32], labels: NDArray[np.float32], weights: NDArray[np.float32] | None
    ) -> None:
        """Take a batch: the model's logits (B,) before learning, at the examples' own rates, and labels (B,) 0 or 1."""
        weight = np.ones(len(labels), np.float32) if weights is None else weights
        shift, added = _fit(logits, labels, weight, self.information[0])
        self.value[0] += shift
        self.information[0] = min(self.information[0] + added, max(INFORMATION_MAX, added))

    def load(self, value: NDArray[np.float32], information: NDArray[Any] | None) -> None:
        """Take over saved state; a value without `information` counts as one that has seen enough."""
        self.value[:] = value
        self.information[:] = INFORMATION_MAX if information is None else information


@kernel
def _fit(
    logits: NDArray[np.float32], labels: NDArray[np.float32], weights: NDArray[np.float32], prior: float
) -> tuple[float, float]:
    """(shift, information at the shift) that balance a batch, all (B,), with the information `prior`."""
    shift, information = 0.0, 0.0
    for _ in range(STEPS_MAX):
        gradient, information = -prior * shift, 0.0
        for i in range(logits.size):
            p = 1.0 / (1.0 + math.exp(-(np.float64(logits[i]) + shift)))
            gradient += weights[i] * (labels[i] - p)
            information += weights[i] * p * (1.0 - p)
        step = min(max(gradient / max(prior + information, 1e-12), -STEP_MAX), STEP_MAX)
        shift += step
        if abs(step) < 1e-3:
            break
    return shift, information
