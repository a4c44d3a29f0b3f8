"""What a model is: a declaration that builds a torch module, which turns the fields of a batch into logits.

B batch   F id fields   J bags   L ids of a bag   R distinct bags   W = dim + 1   N = 2 x numbers
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from headrace.learners.input_spec import InputSpec
from headrace.learners.tables.optimizers import Optimizer


@dataclass(frozen=True, slots=True)
class Fields:
    """A batch, looked up.

    Attributes:
        embedded: (B, F + J, W) rows of the id fields, then the bags' means; the last of W is the linear weight.
        dense: (B, N) standardised numbers, then their missing-value indicators (`Standardizer.transform`).
        elements: per bag (R, L, W) rows of its ids, empty of R for a model without attention.
        present: per bag (R, L) bool, False where `elements` holds a missing id.
        run: per bag (B,) int64, which of the R bags a row has.
    """

    embedded: Tensor
    dense: Tensor
    elements: tuple[Tensor, ...] = ()
    present: tuple[Tensor, ...] = ()
    run: tuple[Tensor, ...] = ()


class Model(Protocol):
    """A model's declaration: a frozen dataclass whose repr says all that changes shapes or meaning."""

    @property
    def dim(self) -> int:
        """Length of an id's vector; 0 for a linear weight alone."""
        ...

    @property
    def attention(self) -> bool:
        """Whether the module reads `Fields.elements`."""
        ...

    @property
    def sparse(self) -> Optimizer:
        """Steps the embedding tables."""
        ...

    @property
    def optimizer(self) -> Optimizer:
        """Steps the module's parameters, as one row."""
        ...

    def build(self, spec: InputSpec) -> nn.Module:
        """A new module for inputs of `spec`: `forward(fields: Fields) -> logits (B,)`.

        Called once a learner and once a snapshot load, with torch's generator seeded. Everything that must survive a
        restart is a parameter or a persistent buffer. A module in training mode may update its buffers; in eval mode
        it changes nothing. A new module should return zeros, or nearly: the learner's intercept holds the base rate,
        and what the module adds to it at first only makes the first versions wrong.
        """
        ...


class ZeroHead(nn.Linear):
    """A linear layer (.., width) -> (.., 1) that begins at zero: a new model says the base rate."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)

    def reset_parameters(self) -> None:
        """Zeros. Called by torch once, when the layer is made."""
        with torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()
