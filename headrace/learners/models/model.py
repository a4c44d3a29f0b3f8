"""A model: a declaration that builds a torch module, and says what the module reads and what its outputs mean.

    class Mine(Model):                        B batch   F id fields   J bags   L ids of a bag   R distinct bags
        dim, sparse, optimizer = ...          W = dim + 1 (a vector and a linear weight)   N = 2 x numbers
        loss, outputs, labels = ...           K outputs; an array of one column is (B,), not (B, 1)
        def build(self, spec): ...            Fields -> outputs (B, K)

The learner, the network, the scorer, the marks and the gate ask the model; they know of no model by name. One output,
one label and log-loss are the defaults.
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
    """A batch, looked up.

    Attributes:
        embedded: (B, F + J, W) rows of the id fields, then the bags' means; the last of W is the linear weight.
        dense: (B, N) standardised numbers, then their missing-value indicators (`Standardizer.transform`).
        elements: per bag (R, L, W) rows of its ids, newest first; R = 0 for bags that the model does not read singly.
        present: per bag (R, L) bool, False where `elements` holds a missing id.
        run: per bag (B,) int64, which of the R bags an example has.
    """

    embedded: Tensor
    dense: Tensor
    elements: tuple[Tensor, ...] = ()
    present: tuple[Tensor, ...] = ()
    run: tuple[Tensor, ...] = ()


class Pass(Protocol):
    """A module's forward and backward pass without autograd: equal to it, cheaper. Not thread-safe but for `score`."""

    def score(self, embedded: Floats, dense: Floats) -> Floats:
        """Outputs (B, K) of rows (B, F + J, W) and numbers (B, N); any number of threads may call it."""
        ...

    def forward(self, embedded: Floats, dense: Floats) -> Floats:
        """Outputs (B, K) as `score` gives them; keeps what `backward` needs."""
        ...

    def backward(self, grads: Floats, embedded: Floats) -> Floats:
        """Gradients (B, F + J, W) by the rows, from those by the outputs; writes the parameters' into `.grad`."""
        ...


class Model:
    """Base of model declarations: a frozen dataclass whose repr names all that changes shapes or meaning.

    A subclass has the attributes `dim`, `sparse` and `optimizer`, and `build`. The other attributes and methods have
    defaults.

    Attributes:
        dim: length of an id's vector; 0 for a linear weight alone.
        sparse: steps the embedding tables.
        optimizer: steps the module's parameters, as one row.
        loss: what outputs mean, and how they are compared with labels.
        outputs: K, outputs of an example.
        labels: labels of an example.
    """

    if TYPE_CHECKING:  # read-only for the type checker; at run time plain defaults, which dataclass fields may replace

        @property
        def dim(self) -> int:
            """Length of an id's vector; 0 for a linear weight alone."""

        @property
        def sparse(self) -> Optimizer:
            """Steps the embedding tables."""

        @property
        def optimizer(self) -> Optimizer:
            """Steps the module's parameters, as one row."""

        @property
        def loss(self) -> Loss:
            """What outputs mean, and how they are compared with labels."""

        @property
        def outputs(self) -> int:
            """K, outputs of an example."""

        @property
        def labels(self) -> int:
            """Labels of an example."""

    else:
        loss = LogLoss()
        outputs = 1
        labels = 1

    def build(self, spec: InputSpec) -> nn.Module:  # noqa: ARG002
        """Build a module for inputs of `spec`: `forward(fields: Fields) -> outputs`, (B,) for one output, else (B, K).

        Called once a learner and once a snapshot load, with torch's generator seeded. Everything that must survive a
        restart is a parameter or a persistent buffer. A module in training mode may update its buffers; in eval mode
        it changes nothing. With log-loss a new module should return zeros, or nearly: the learner's intercept holds the
        base rate, and what the module adds to it at first only makes the first versions wrong.
        """
        raise DeclarationError(f"{type(self).__name__} defines no `build`: it makes the torch module")

    def reads_elements(self, bag: Bag) -> bool:
        """Whether the module reads the single ids of `bag` in `Fields.elements`, not their mean alone."""
        del bag
        return False

    def score(self, predictions: Floats) -> Floats:
        """Scores (B,) to rank candidates by, from predictions (B, K): the first output's."""
        return predictions if predictions.ndim == 1 else np.ascontiguousarray(predictions[:, 0])

    def make_pass(self, module: nn.Module) -> Pass | None:
        """Return `module`'s pass without autograd, or None. A module with one has no state but its parameters."""
        del module
        return None


def hidden_layers(widths: Sequence[int]) -> list[nn.Module]:
    """Linear, ReLU, Linear, ReLU, .. from each width to the next."""
    return [layer for inner, outer in pairwise(widths) for layer in (nn.Linear(inner, outer), nn.ReLU())]


class ZeroHead(nn.Linear):
    """A linear layer (.., width) -> (.., outputs) that begins at zero: a new model predicts the base rate."""

    def __init__(self, width: int, outputs: int = 1) -> None:
        super().__init__(width, outputs)

    def reset_parameters(self) -> None:
        """Set all to zero. Called by torch once, when the layer is made."""
        with torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()
