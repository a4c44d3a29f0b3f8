"""Log-loss of 0/1 labels: outputs are log-odds, predictions probabilities. The default loss of a model.

The intercept of the log-odds holds the base rate and follows it. Each batch moves it to balance the batch's log-loss
against earlier information: to the minimum of log-loss(logits + shift) + information / 2 * shift ** 2, found by Newton
steps. Information is the sum of w p (1 - p) over older examples, at most
`headrace.learners.intercept.INFORMATION_MAX`, so shifts are long at first and short later. After a change of the base
rate the intercept follows within some 100 / (p (1 - p)) examples (5,000 at a rate of 2 %), and at a constant rate it
varies by less than 0.1.

Source: the scalar case of a Kalman filter for logistic regression, posterior modes batch by batch; Fahrmeir, Tutz
(2001), "Multivariate Statistical Modelling Based on Generalized Linear Models", chapter 8.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compile import kernel
from headrace.learners.models.loss import Doubles, Floats, LogRate

STEP_MAX = 1.0
"""Longest Newton step, in log-odds, since far from the minimum the curvature is a poor guide."""
STEPS_MAX = 20
FIRST_INFORMATION = 0.25
"""Information before the first batch, that of one example: without it a batch of one class has no finite balance."""
EPS = 1e-7
"""Probabilities are clipped to [EPS, 1 - EPS] for evaluation."""


@dataclass(frozen=True, slots=True)
class LogLoss:
    """Log-loss in nats; with several labels, output k is for label k, and an example's loss is the sum over labels."""

    @property
    def name(self) -> str:
        """The key in metrics."""
        return "logloss"

    @property
    def is_binary(self) -> bool:
        """True: predictions are probabilities."""
        return True

    @property
    def label_values(self) -> str:
        """The allowed labels in words."""
        return "0 or 1"

    def is_allowed(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """Allow 0 and 1."""
        allowed: NDArray[np.bool_] = (labels == 0) | (labels == 1)
        return allowed

    def predictions(self, outputs: Floats) -> Floats:
        """Probabilities."""
        return sigmoid(outputs)

    def values(self, predictions: NDArray[Any], labels: NDArray[Any]) -> Doubles:
        """Negative log-likelihood (B,) of each example's labels."""
        losses = log_losses(predictions, labels)
        return losses if losses.ndim == 1 else np.asarray(losses.sum(axis=1))

    def gradients(self, outputs: Floats, labels: Floats, weights: Floats) -> tuple[float, Floats]:
        """Mean weighted log-loss, and its gradient with respect to the log-odds."""
        if outputs.ndim == 1:
            grads = np.empty(len(outputs), np.float32)
            return log_loss_gradients(outputs, labels, weights, grads), grads
        columns = [self.gradients(z, y, weights) for z, y in _columns(outputs, labels)]
        return sum(loss for loss, _ in columns), np.stack([grads for _, grads in columns], axis=1)

    def base(self, labels: Floats, weights: Floats, log_rate: LogRate) -> NDArray[Any]:
        """Log-odds (K,) of a batch's base rates.

        Half a positive and half a negative example are added, so that a batch of one class gives a finite number.
        """
        weight = weights.astype(np.float64)
        half = 0.5 * float(weight.mean())
        positives, negatives = weight @ labels + half, weight @ (1 - labels) + half
        odds: NDArray[Any] = np.log(positives / negatives) - np.mean(np.atleast_1d(log_rate), axis=0, dtype=np.float64)
        return np.atleast_1d(odds)

    def follow(self, outputs: Floats, labels: Floats, weights: Floats, information: Doubles) -> tuple[Doubles, Doubles]:
        """Shifts (K,) that balance the batch against `information`, and the batch's information at them."""
        if outputs.ndim == 1:
            shift, added = balance(outputs, labels, weights, information[0] or FIRST_INFORMATION)
            return np.array([shift]), np.array([added])
        known = np.where(information > 0, information, FIRST_INFORMATION)
        pairs = zip(_columns(outputs, labels), known, strict=True)
        fits = [balance(z, y, weights, prior) for (z, y), prior in pairs]
        return np.array([shift for shift, _ in fits]), np.array([added for _, added in fits])


def sigmoid(logits: Floats) -> Floats:
    """Probabilities of logits, without overflow."""
    half = np.float32(0.5)
    probabilities: Floats = half * (np.float32(1.0) + np.tanh(half * logits))
    return probabilities


def log_losses(probabilities: NDArray[Any], labels: NDArray[Any]) -> Doubles:
    """Negative log-likelihood of each label, in nats, of any shape."""
    p = np.clip(probabilities.astype(np.float64), EPS, 1 - EPS)
    return np.asarray(-np.where(labels > 0.5, np.log(p), np.log1p(-p)))


def _columns(outputs: Floats, labels: Floats) -> list[tuple[Floats, Floats]]:
    """Contiguous columns (B,) of outputs and labels (B, K)."""
    return [(np.ascontiguousarray(z), np.ascontiguousarray(y)) for z, y in zip(outputs.T, labels.T, strict=True)]


@kernel
def log_loss_gradients(logits: Floats, labels: Floats, weights: Floats, grads: Floats) -> float:
    """Mean weighted log-loss of logits (B,) against labels (B,) 0 or 1; `grads` (B,) receives its gradient.

    max(z, 0) - z y + log1p(exp(-|z|)) is the log-loss without overflow at large |z|.
    """
    loss = 0.0
    for i in range(logits.size):
        z = np.float64(logits[i])
        grads[i] = weights[i] * (1.0 / (1.0 + math.exp(-z)) - labels[i]) / logits.size
        loss += weights[i] * (max(z, 0.0) - z * labels[i] + math.log1p(math.exp(-abs(z))))
    return loss / max(logits.size, 1)


@kernel
def balance(logits: Floats, labels: Floats, weights: Floats, prior: float) -> tuple[float, float]:
    """(shift, information at the shift) that balance a batch, arrays (B,), against the information `prior`."""
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
