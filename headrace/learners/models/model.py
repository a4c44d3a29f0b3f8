"""Model: a declaration that builds a torch module and defines what it reads and what its outputs mean.

    class Mine(Model):                        B batch   F id fields   J bags   L ids of a bag   R distinct bags
        dim, sparse, optimizer = ...          W = dim + 1 (a vector and a linear weight)   N = 2 x numbers
        loss, outputs, labels = ...           K outputs; an array of one column is (B,), not (B, 1)
        def build(self, spec): ...            Fields -> outputs (B, K)

The learner, network, scorer, metrics and gate use only this interface. The defaults are one output, one label and
log-loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from headrace.errors import DeclarationError
from headrace.learners.input_spec import Bag, InputSpec
from headrace.learners.models.log_loss import LogLoss
from headrace.learners.models.loss import Floats, Loss
from headrace.learners.tables.optimizers import Optimizer


@dataclass(frozen=True, slots=True)
class Fields:
    """A batch after the table lookup.

    Attributes:
        embedded: (B, F + J, W) rows of the id fields, then the bags' means; the last of W is the linear weight.
        dense: (B, N) standardised numbers, then their missing-value indicators (`Standardizer.transform`).
        elements: per bag (R, L, W) rows of its ids, newest first; R = 0 for bags whose single ids the model ignores.
        present: per bag (R, L) bool, False where `elements` holds a missing id.
        run: per bag (B,) int64, which of the R bags an example has.
    """

    embedded: Tensor
    dense: Tensor
    elements: tuple[Tensor, ...] = ()
    present: tuple[Tensor, ...] = ()
    run: tuple[Tensor, ...] = ()


class Pass(Protocol):
    """A module's forward and backward pass without autograd, with the same results. Only `score` is thread-safe."""

    def score(self, embedded: Floats, dense: Floats) -> Floats:
        """Outputs (B, K) of rows (B, F + J, W) and numbers (B, N); any number of threads may call it."""
        ...

    def forward(self, embedded: Floats, dense: Floats) -> Floats:
        """Outputs (B, K), equal to those of `score`; keeps what `backward` needs."""
        ...

    def backward(self, grads: Floats, embedded: Floats) -> Floats:
        """Gradients (B, F + J, W) of the rows, from gradients of the outputs; writes the parameters' `.grad`."""
        ...


class Model:
    """Base class of model declarations: a frozen dataclass whose repr includes all that affects shapes or meaning.

    A subclass defines the attributes `dim`, `sparse` and `optimizer`, and the method `build`. The other attributes and
    methods have defaults.

    Attributes:
        dim: length of an id's vector; 0 for a linear weight alone.
        sparse: optimizer of the embedding tables.
        optimizer: optimizer of the module's parameters, which are one row to it.
        loss: the meaning of the outputs, and how they are compared with labels.
        outputs: K, the number of outputs per example.
        labels: number of labels per example.
    """

    if TYPE_CHECKING:  # read-only for the type checker; at run time plain defaults, which dataclass fields may replace

        @property
        def dim(self) -> int:
            """Length of an id's vector; 0 for a linear weight alone."""

        @property
        def sparse(self) -> Optimizer:
            """Optimizer of the embedding tables."""

        @property
        def optimizer(self) -> Optimizer:
            """Optimizer of the module's parameters, which are one row to it."""

        @property
        def loss(self) -> Loss:
            """The meaning of the outputs, and how they are compared with labels."""

        @property
        def outputs(self) -> int:
            """K, the number of outputs per example."""

        @property
        def labels(self) -> int:
            """Number of labels per example."""

    else:
        loss = LogLoss()
        outputs = 1
        labels = 1

    def build(self, spec: InputSpec) -> nn.Module:  # noqa: ARG002
        """Build a module for inputs of `spec`: `forward(fields: Fields) -> outputs`, (B,) for one output, else (B, K).

        Called once per learner and once per snapshot load, with torch's generator seeded. Everything that must survive
        a restart is a parameter or a persistent buffer. A module in training mode may update its buffers; in eval mode
        it changes nothing. With log-loss a new module should return values near zero: the learner's intercept holds the
        base rate, and anything else that an untrained module adds only makes the first versions wrong.
        """
        raise DeclarationError(f"{type(self).__name__} defines no `build`: it makes the torch module")

    def reads_elements(self, bag: Bag) -> bool:
        """Whether the module reads the single ids of `bag` in `Fields.elements`, not only their mean."""
        del bag
        return False

    def score(self, predictions: Floats) -> Floats:
        """Scores (B,) to rank candidates by, from predictions (B, K): those of the first output."""
        return predictions if predictions.ndim == 1 else np.ascontiguousarray(predictions[:, 0])

    def make_pass(self, module: nn.Module) -> Pass | None:
        """Return `module`'s pass without autograd, or None. Such a module must have no state but its parameters."""
        del module
        return None


def hidden_layers(widths: Sequence[int]) -> list[nn.Module]:
    """Layers Linear, ReLU, Linear, ReLU, .. from each width to the next."""
    return [layer for inner, outer in pairwise(widths) for layer in (nn.Linear(inner, outer), nn.ReLU())]


class ZeroHead(nn.Linear):
    """A linear layer (.., width) -> (.., outputs) that starts at zero, so that a new model predicts the base rate."""

    def __init__(self, width: int, outputs: int = 1) -> None:
        super().__init__(width, outputs)

    def reset_parameters(self) -> None:
        """Set all parameters to zero. Torch calls it once, when the layer is constructed."""
        with torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()
