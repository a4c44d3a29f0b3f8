"""SharedBottom: an MLP over embeddings and numbers, shared by several labels, with a linear head for each.

Source: Caruana (1997), "Multitask Learning", Machine Learning 28. Differs in: ids are embedded, a bag is a mean of its
ids' vectors, and each label has its own loss, which skips unknown labels.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from headrace.errors import DeclarationError
from headrace.features.argument_types import checked
from headrace.learners.input_spec import InputSpec
from headrace.learners.models.log_loss import LogLoss
from headrace.learners.models.loss import Floats, Loss
from headrace.learners.models.model import Fields, Model, ZeroHead, hidden_layers
from headrace.learners.models.per_label import PerLabel
from headrace.learners.tables.optimizers import Adagrad, Adam, Optimizer


@checked
@dataclass(frozen=True, slots=True)
class SharedBottom(Model):
    """Declaration of a model of several labels.

    Args:
        losses: one for each label, in order: `LogLoss()` for 0 and 1, `SquaredError()` for numbers.
        rank_by: factor of each label's prediction in the score that ranks candidates, such as (1, 0.2, -1) if the last
            label is negative feedback; empty: only the first label counts.
        dim: length of an id's vector.
        hidden: widths of the shared layers, at least one.
        sparse: optimizer of the embedding tables.
        optimizer: optimizer of all other parameters.

    Raises:
        DeclarationError: a width is below 1, there are fewer than two losses, or not one factor per loss.
    """

    losses: tuple[Loss, ...] = field(default=(LogLoss(), LogLoss()), repr=False)
    rank_by: tuple[float, ...] = ()
    dim: int = 16
    hidden: tuple[int, ...] = (64, 32)
    sparse: Optimizer = field(default_factory=Adagrad)
    optimizer: Optimizer = field(default_factory=Adam)
    loss: PerLabel = field(init=False)

    def __post_init__(self) -> None:
        if self.dim < 1 or not self.hidden or any(width < 1 for width in self.hidden):
            raise DeclarationError(f"{type(self).__name__}: dim and the hidden widths must be at least 1, of one layer")
        if len(self.losses) < 2 or len(self.rank_by) not in (0, len(self.losses)):
            raise DeclarationError(
                f"{type(self).__name__}: {len(self.losses)} losses and {len(self.rank_by)} factors; write at "
                "least two losses, and none or one factor for each"
            )
        object.__setattr__(self, "loss", PerLabel(*self.losses))

    @property
    def outputs(self) -> int:
        """One output per label."""
        return len(self.losses)

    @property
    def labels(self) -> int:
        """One label per loss."""
        return len(self.losses)

    def build(self, spec: InputSpec) -> nn.Module:
        """Build the module for inputs of `spec`."""
        return SharedBottomNet(self, spec)

    def score(self, predictions: Floats) -> Floats:
        """Scores (B,) by `rank_by`."""
        if not self.rank_by:
            return Model.score(self, predictions)
        scores: Floats = (predictions @ self.rank_by).astype("float32")
        return scores


class SharedBottomNet(nn.Module):
    """The torch module. B batch, E id fields and bags, W = dim + 1, N = 2 x numbers, L labels."""

    def __init__(self, model: SharedBottom, spec: InputSpec) -> None:
        super().__init__()
        embedded = (len(spec.categoricals) + len(spec.bags)) * (model.dim + 1)
        widths = (embedded + 2 * len(spec.numbers), *model.hidden)
        self.shared = nn.Sequential(*hidden_layers(widths))
        self.heads = ZeroHead(widths[-1], model.outputs)

    def forward(self, fields: Fields) -> Tensor:
        """Outputs (B, L)."""
        outputs: Tensor = self.heads(self.shared(torch.cat([fields.embedded.flatten(1), fields.dense], dim=1)))
        return outputs
