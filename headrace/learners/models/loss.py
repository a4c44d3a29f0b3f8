"""Losses: the meaning of a model's outputs, and the gradients that a step learns from.

B batch   K outputs   L labels of an example   (an array of one column is (B,), not (B, 1))

    outputs (B, K) --predictions--> predictions (B, K)      returned, served, evaluated
    outputs, labels (B, L) --gradients--> d loss / d outputs (B, K), which the learner backpropagates

`headrace.learners.models.log_loss.LogLoss` is the default. For another loss, subclass `TorchLoss` and write two torch
functions.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headrace.errors import DeclarationError
from headrace.learners.models.checks import running

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
LogRate = float | NDArray[np.floating[Any]]

LABEL_MAX = 1e12
"""Largest distance of a numeric label from 0: the square of its gradient is within float32 (3e38)."""


class Loss(Protocol):
    """A model's loss. Stateless: one object may serve several learners and threads."""

    @property
    def name(self) -> str:
        """Key of its metrics, such as `logloss`."""
        ...

    @property
    def is_binary(self) -> bool:
        """Whether labels are 0 or 1 and predictions their probabilities, so that AUC and log-rates apply."""
        ...

    @property
    def label_values(self) -> str:
        """The allowed labels in words, for error messages."""
        ...

    def is_allowed(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """Mask of the allowed labels, in the shape of `labels`."""
        ...

    def predictions(self, outputs: Floats) -> Floats:
        """Convert the model's outputs (B, K) to predictions (B, K)."""
        ...

    def values(self, predictions: NDArray[Any], labels: NDArray[Any]) -> Doubles:
        """Loss (B,) of each example, from predictions (B, K) and labels (B, L). Used to evaluate."""
        ...

    def gradients(self, outputs: Floats, labels: Floats, weights: Floats) -> tuple[float, Floats]:
        """Mean over B of the weighted losses, and its gradient (B, K) with respect to the outputs. Used to learn."""
        ...

    def base(self, labels: Floats, weights: Floats, log_rate: LogRate) -> NDArray[Any]:
        """Constant outputs (K,) or (1,) that fit a first batch, the start of the intercept. Zeros: no intercept."""
        ...

    def follow(self, outputs: Floats, labels: Floats, weights: Floats, information: Doubles) -> tuple[Doubles, Doubles]:
        """Shift (K,) of the intercept after a batch, and the information (K,) that the batch adds to `information`."""
        ...


class TorchLoss:
    """Base class of losses written with torch, with gradients by autograd.

    A subclass defines `losses`, `link` if predictions are not the outputs themselves, and the allowed labels. It has no
    intercept unless it overrides `base`, whose value is then kept; the module's own biases follow the labels.
    """

    name = "loss"
    is_binary = False
    label_values = f"a finite number, at most {LABEL_MAX:g} from 0"

    def link(self, outputs: Tensor) -> Tensor:
        """Convert outputs (B, K) to predictions (B, K)."""
        return outputs

    def losses(self, predictions: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        """Loss (B,) of each example, from predictions (B, K) and labels (B, L)."""
        raise DeclarationError(f"{type(self).__name__} defines no `losses`: the loss of each example")

    def is_allowed(self, labels: NDArray[Any]) -> NDArray[np.bool_]:
        """Allow finite numbers of at most `LABEL_MAX` in magnitude."""
        allowed: NDArray[np.bool_] = np.abs(labels) <= LABEL_MAX
        return allowed

    def predictions(self, outputs: Floats) -> Floats:
        """Predictions (B, K) by `link`."""
        with torch.inference_mode():
            linked = self._checked("link", outputs.shape, self.link, torch.from_numpy(outputs))
        predictions: Floats = linked.numpy()
        return predictions

    def values(self, predictions: NDArray[Any], labels: NDArray[Any]) -> Doubles:
        """Loss (B,) of each example by `losses`, in float64."""
        with torch.inference_mode():
            pair = torch.tensor(predictions, dtype=torch.float64), torch.tensor(labels).double()
            losses = self._checked("losses", predictions.shape[:1], self.losses, *pair)
        return np.asarray(losses.numpy())

    def gradients(self, outputs: Floats, labels: Floats, weights: Floats) -> tuple[float, Floats]:
        """Mean weighted loss, and its gradient with respect to the outputs, computed in float64."""
        leaf = torch.from_numpy(outputs).double().requires_grad_()
        predictions = self._checked("link", outputs.shape, self.link, leaf)
        losses = self._checked("losses", outputs.shape[:1], self.losses, predictions, torch.from_numpy(labels).double())
        mean = (losses * torch.from_numpy(weights)).sum() / max(len(outputs), 1)
        if not mean.requires_grad:
            raise DeclarationError(f"{type(self).__name__}: `losses` has no gradient; compute it with torch")
        mean.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        assert leaf.grad is not None
        return float(mean.detach()), leaf.grad.float().numpy()

    def _checked(self, name: str, shape: tuple[int, ...], method: Callable[..., Any], *given: Tensor) -> Tensor:
        """The result of a method that a subclass defines.

        Raises:
            DeclarationError: it has another shape.
            ModelError: the method failed.
        """
        with running(f"loss {type(self).__name__}: `{name}`"):
            result = method(*given)
        if not isinstance(result, Tensor) or tuple(result.shape) != shape:
            returned = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise DeclarationError(f"loss {type(self).__name__}: `{name}` returned {returned}; return a tensor {shape}")
        return result

    def base(self, labels: Floats, weights: Floats, log_rate: LogRate) -> NDArray[Any]:
        """Zeros: no intercept."""
        del labels, weights, log_rate
        return np.zeros(1)

    def follow(self, outputs: Floats, labels: Floats, weights: Floats, information: Doubles) -> tuple[Doubles, Doubles]:
        """No shift; the batch's weight counts as information, so that `base` is called once."""
        del outputs, labels
        return np.zeros_like(information), np.full_like(information, float(weights.sum()))
