"""Losses of several labels, each with its own loss, with support for unknown labels.

    outputs (B, L)   labels (B, L), NaN where unknown      output k is for label k

An unknown label adds nothing to the loss and has no gradient; the other labels of its example count. An example's loss
is the sum over its known labels.

Source: Caruana (1997), "Multitask Learning", Machine Learning 28, for the sum of the tasks' losses.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.learners.models.checks import check_loss
from headrace.learners.models.loss import LABEL_MAX, Doubles, Floats, LogRate, Loss


class SquaredError:
    """Squared error of one number; the intercept is the running mean of the module's residuals."""

    name = "squared_error"
    is_binary = False
    label_values = f"a finite number, at most {LABEL_MAX:g} from 0"

    def is_allowed(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """Allow finite numbers of at most `LABEL_MAX` in magnitude."""
        return np.asarray(np.abs(labels) <= LABEL_MAX)

    def predictions(self, outputs: Floats) -> Floats:
        """The outputs."""
        return outputs

    def values(self, predictions: NDArray[Any], labels: NDArray[Any]) -> Doubles:
        """Squared error (B,)."""
        return np.asarray((predictions.astype(np.float64) - labels) ** 2)

    def gradients(self, outputs: Floats, labels: Floats, weights: Floats) -> tuple[float, Floats]:
        """Mean weighted squared error, and its gradient (B,)."""
        weighted = weights * (outputs.astype(np.float64) - labels) / max(len(outputs), 1)
        return float(weighted @ (outputs.astype(np.float64) - labels)), (2 * weighted).astype(np.float32)

    def base(self, labels: Floats, weights: Floats, log_rate: LogRate) -> NDArray[Any]:
        """Weighted mean (1,) of a batch's labels."""
        del log_rate
        return np.array([np.average(labels, weights=weights)])

    def follow(self, outputs: Floats, labels: Floats, weights: Floats, information: Doubles) -> tuple[Doubles, Doubles]:
        """Shift (1,) by the mean residual, with `information` as the count of earlier rows; and the batch's weight."""
        added = float(weights.sum())
        residual = float(weights @ (labels - outputs))
        return np.array([residual / max(float(information[0]) + added, 1e-12)]), np.array([added])


class PerLabel:
    """The loss of several labels, each with its own loss; NaN is an unknown label.

    Args:
        losses: one loss of one output for each label, in order, such as `LogLoss()` or `SquaredError()`.

    Raises:
        DeclarationError: no loss is given, or one lacks a method.
    """

    is_binary = False
    name = "loss"

    def __init__(self, *losses: Loss) -> None:
        if not losses:
            raise DeclarationError("PerLabel: no losses; write one for each label, such as PerLabel(LogLoss())")
        for loss in losses:
            check_loss("PerLabel", loss)
        self.losses = losses

    def __repr__(self) -> str:
        return f"PerLabel({', '.join(loss.name for loss in self.losses)})"

    @property
    def label_values(self) -> str:
        """The allowed labels in words."""
        return "; ".join(f"label {k}: {loss.label_values}, or NaN" for k, loss in enumerate(self.losses))

    def is_allowed(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """Allow what each label's loss allows, and NaN."""
        columns = self._columns(labels)
        allowed = [
            np.isnan(column) | loss.is_allowed(column) for loss, column in zip(self.losses, columns, strict=True)
        ]
        return np.stack(allowed, axis=-1)

    def predictions(self, outputs: Floats) -> Floats:
        """Predictions (B, L), by each label's loss."""
        columns = [loss.predictions(z) for loss, z in zip(self.losses, self._columns(outputs), strict=True)]
        return np.stack(columns, axis=-1)

    def values(self, predictions: NDArray[Any], labels: NDArray[Any]) -> Doubles:
        """Sum (B,) of the known labels' losses."""
        total = np.zeros(len(labels))
        for loss, p, y, known in self._known(predictions, labels):
            total += np.where(known, loss.values(p, y), 0.0)
        return total

    def gradients(self, outputs: Floats, labels: Floats, weights: Floats) -> tuple[float, Floats]:
        """Mean over B of the weighted losses, and its gradient (B, L), which is 0 for unknown labels."""
        by_label = [loss.gradients(z, y, weights * known) for loss, z, y, known in self._known(outputs, labels)]
        return sum(loss for loss, _ in by_label), np.stack([grads for _, grads in by_label], axis=-1)

    def base(self, labels: Floats, weights: Floats, log_rate: LogRate) -> NDArray[Any]:
        """Outputs (L,) that fit a batch; 0 for a label that is unknown in all examples."""
        del log_rate
        bases = [
            float(loss.base(y, w, 0.0)[0]) if (w := weights * known).any() else 0.0
            for loss, _, y, known in self._known(labels, labels)
        ]
        return np.array(bases)

    def follow(self, outputs: Floats, labels: Floats, weights: Floats, information: Doubles) -> tuple[Doubles, Doubles]:
        """Shifts (L,) of each label's loss by its known labels, and the batch's information."""
        parts = [
            loss.follow(z, y, weights * known, information[k : k + 1])
            for k, (loss, z, y, known) in enumerate(self._known(outputs, labels))
        ]
        return np.concatenate([shift for shift, _ in parts]), np.concatenate([added for _, added in parts])

    def _columns(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """Contiguous columns (B,) of an array (B, L), or of (B,) for one label."""
        return [np.ascontiguousarray(column) for column in (array if array.ndim == 2 else array[:, None]).T]

    def _known(
        self, outputs: NDArray[Any], labels: NDArray[Any]
    ) -> list[tuple[Loss, NDArray[Any], NDArray[Any], NDArray[np.bool_]]]:
        """Loss, outputs (B,), labels (B,) with 0 if unknown, and mask of the known ones, for each label."""
        triples = zip(self.losses, self._columns(outputs), self._columns(labels), strict=True)
        return [(loss, z, np.nan_to_num(y, nan=0.0), ~np.isnan(y)) for loss, z, y in triples]
