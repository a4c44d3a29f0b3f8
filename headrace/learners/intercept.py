"""The intercept of a model's outputs: a constant per output that starts at the level of the labels and follows it.

The loss defines how it starts and moves: see `headrace.learners.models.log_loss` for the log-odds of a base rate.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.learners.models.loss import Floats, LogRate, Loss

INFORMATION_MAX = 100.0
"""Largest remembered information about the intercept: for log-loss the sum of w p (1 - p) over older examples."""


class Intercept:
    """The intercept of K outputs: `value` (K,) float32 and `information` (K,) float64."""

    def __init__(self, loss: Loss, outputs: int) -> None:
        self.value = np.zeros(outputs, np.float32)
        self.information = np.zeros(outputs, np.float64)
        self._loss = loss
        self._is_started = False

    @property
    def is_started(self) -> bool:
        """Whether a batch or a snapshot has set the intercept."""
        self._is_started = self._is_started or bool(self.information.any() or self.value.any())
        return self._is_started

    def start(self, labels: Floats, weights: Floats, log_rate: LogRate) -> None:
        """Set it to the constant outputs that fit a first batch, labels (B, L); a batch without weight is ignored."""
        if not weights.any():
            return
        base = np.asarray(self._loss.base(labels, weights, log_rate))
        if base.shape not in (self.value.shape, (1,)) or not np.isfinite(base).all():
            raise DeclarationError(
                f"loss {type(self._loss).__name__}: `base` returned {base}; return finite numbers {self.value.shape}"
            )
        self.value[:] = base

    def step(self, outputs: Floats, labels: Floats, weights: Floats) -> None:
        """Update it from a batch: outputs (B, K) before learning, at the examples' own rates, and labels (B, L)."""
        shift, added = self._loss.follow(outputs, labels, weights, self.information)
        self.value += shift.astype(np.float32)
        self.information = np.minimum(self.information + added, np.maximum(INFORMATION_MAX, added))

    def load(self, value: Floats, information: NDArray[Any] | None) -> None:
        """Load saved state; without `information`, the value counts as fully settled (`INFORMATION_MAX`)."""
        self.value[:] = value
        self.information[:] = INFORMATION_MAX if information is None else information
        self._is_started = False
