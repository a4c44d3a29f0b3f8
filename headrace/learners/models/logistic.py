"""Logistic regression: one weight per id and per number. A bag adds the mean of its ids' weights.

Source: McMahan et al. (2013), "Ad Click Prediction: a View from the Trenches", for the model and its default
optimizer. Differs from the paper in: ids are exact, not hashed or Bloom-filtered.
"""

from dataclasses import dataclass, field

from torch import Tensor, nn

from headrace.features.argument_types import checked
from headrace.learners.input_spec import InputSpec
from headrace.learners.models.fm_pass import FMPass
from headrace.learners.models.model import Fields, Model, Pass, ZeroHead
from headrace.learners.tables.optimizers import Adam, Ftrl, Optimizer


@checked
@dataclass(frozen=True, slots=True)
class Logistic(Model):
    """Declaration of a logistic regression.

    Args:
        sparse: optimizer of the ids' weights; `Adagrad` is an alternative.
        optimizer: optimizer of the numbers' weights and the bias.
    """

    sparse: Optimizer = field(default_factory=Ftrl)
    optimizer: Optimizer = field(default_factory=lambda: Adam(lr=5e-3))

    @property
    def dim(self) -> int:
        """0: an id has a linear weight and no vector."""
        return 0

    def build(self, spec: InputSpec) -> nn.Module:
        """Build the module for inputs of `spec`."""
        return LogisticNet(len(spec.numbers))

    def make_pass(self, module: nn.Module) -> Pass | None:
        """Return the pass without autograd."""
        return FMPass(module.linear) if type(module) is LogisticNet else None


class LogisticNet(nn.Module):
    """The torch module. B batch, E id fields and bags, N = 2 x numbers."""

    def __init__(self, number_count: int) -> None:
        super().__init__()
        self.linear = ZeroHead(2 * number_count)

    def forward(self, fields: Fields) -> Tensor:
        """Logits (B,)."""
        logits: Tensor = fields.embedded[..., 0].sum(1) + self.linear(fields.dense).squeeze(1)  # (B,)
        return logits
