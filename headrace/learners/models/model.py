"""What a model is: a declaration that builds a torch module, which turns the fields of a batch into logits.

B batch   F id fields   J bags   L ids of a bag   R distinct bags   W = dim + 1   D numbers
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from headrace.learners.input_spec import InputSpec
from headrace.learners.optimizers import Optimizer


@dataclass(frozen=True, slots=True)
class Fields:
    """A batch, looked up.

    Attributes:
        embedded: (B, F + J, W) rows of the id fields, then the bags' means; the last of W is the linear weight.
        dense: (B, D) numbers, not normalised.
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
        it changes nothing.
        """
        ...


class RunningNorm(nn.Module):
    """(x - mean) / sqrt(var) by statistics of the training batches so far: a row's score does not depend on its batch.

    In training mode a batch first updates the statistics: with rate 1/t at step t, and `rate_min` once t is large, so
        they follow a drifting stream. Values are clipped to `clip` standard deviations.
    """

    mean: Tensor
    var: Tensor
    steps: Tensor

    def __init__(self, width: int, *, rate_min: float = 1e-3, clip: float = 8.0) -> None:
        super().__init__()
        self.rate_min = rate_min
        self.clip = clip
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))
        self.register_buffer("steps", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, D) into (B, D)."""
        if self.training and len(x):
            self._observe(x)
        return ((x - self.mean) * torch.rsqrt(self.var + 1e-6)).clamp(-self.clip, self.clip)  # (B, D)

    @torch.no_grad()
    def _observe(self, x: Tensor) -> None:
        self.steps += 1
        rate = max(1.0 / float(self.steps), self.rate_min)
        shift = x.mean(0) - self.mean
        spread = x.var(0, correction=0)
        # Variance of the mixture of the old statistics and the batch, weights (1 - rate) and rate.
        self.var += rate * (spread + (1.0 - rate) * shift * shift - self.var)
        self.mean += rate * shift
