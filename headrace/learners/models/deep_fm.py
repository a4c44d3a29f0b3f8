"""DeepFM: a factorisation machine and an MLP over the same embeddings, with an optional attention over bags.

Sources: Guo et al. (2017), "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction",
arXiv:1703.04247, section 2; attention after Zhou et al. (2018), "Deep Interest Network", arXiv:1706.06978, section
4.3. Differs from the papers in: numbers enter the MLP and the first-order term after a running normalisation; a bag
is a mean of its ids' vectors; the attention's activation is a softmax of scaled dot products instead of a small
network, so it adds one parameter per bag.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from headrace.errors import DeclarationError
from headrace.features.argument_types import checked
from headrace.learners.input_spec import Bag, InputSpec
from headrace.learners.models.deep_fm_pass import DeepFMPass
from headrace.learners.models.fm_pass import FMPass
from headrace.learners.models.model import Fields, Model, Pass, ZeroHead, hidden_layers
from headrace.learners.tables.optimizers import Adagrad, Adam, Optimizer


@checked
@dataclass(frozen=True, slots=True)
class DeepFM(Model):
    """Declaration of a DeepFM.

    Args:
        dim: length of an id's vector.
        hidden: widths of the MLP's layers.
        attention: weigh a bag's ids by their similarity to the row's candidate, if the bag names one
            (`Bag.candidate`).
        sparse: optimizer of the embedding tables.
        optimizer: optimizer of all other parameters.
    """

    dim: int = 16
    hidden: tuple[int, ...] = (64, 32)
    attention: bool = False
    sparse: Optimizer = field(default_factory=Adagrad)
    optimizer: Optimizer = field(default_factory=Adam)

    def __post_init__(self) -> None:
        if self.dim < 1 or any(width < 1 for width in self.hidden):
            raise DeclarationError(f"{self}: dim and the hidden widths must be at least 1")

    def build(self, spec: InputSpec) -> nn.Module:
        """Build the module for inputs of `spec`."""
        return DeepFMNet(self, spec)

    def reads_elements(self, bag: Bag) -> bool:
        """Whether the attention weighs the ids of `bag`."""
        return self.attention and bool(bag.candidate)

    def make_pass(self, module: nn.Module) -> Pass | None:
        """Return the pass without autograd; None for a module with attention or other layers."""
        if type(module) is not DeepFMNet or module.attends or not DeepFMPass.fits(module.mlp):
            return None
        if isinstance(only := module.mlp[0], ZeroHead):
            return FMPass(module.first_order, only)
        return DeepFMPass(self.dim, module.mlp, module.first_order)


class DeepFMNet(nn.Module):
    """The torch module. B batch, F id fields, J bags, E = F + J, W = dim + 1, N = 2 x numbers."""

    def __init__(self, model: DeepFM, spec: InputSpec) -> None:
        super().__init__()
        self.dim = model.dim
        self.id_count = len(spec.categoricals)
        # For each bag the column of its candidate, -1 if the bag is a plain mean.
        self.candidates = [spec.id_names.index(bag.candidate) if model.reads_elements(bag) else -1 for bag in spec.bags]
        self.attends = max(self.candidates, default=-1) >= 0
        embedded, dense = self.id_count + len(spec.bags), 2 * len(spec.numbers)
        self.first_order = ZeroHead(dense)
        widths = (embedded * model.dim + dense, *model.hidden)
        self.mlp = nn.Sequential(*hidden_layers(widths), ZeroHead(widths[-1]))
        self.sharpness = nn.Parameter(torch.ones(len(spec.bags)))

    def forward(self, fields: Fields) -> Tensor:
        """Logits (B,)."""
        dense = fields.dense  # (B, N)
        vectors = fields.embedded[..., : self.dim]  # (B, E, dim)
        if self.attends:
            vectors = self._attend(vectors, fields)  # (B, E, dim)
        linear = fields.embedded[..., self.dim].sum(1) + self.first_order(dense).squeeze(1)  # (B,)
        pairs = 0.5 * (vectors.sum(1).square() - vectors.square().sum(1)).sum(1)  # (B,)
        deep = self.mlp(torch.cat([vectors.flatten(1), dense], dim=1)).squeeze(1)  # (B,)
        logits: Tensor = linear + pairs + deep
        return logits

    def _attend(self, vectors: Tensor, fields: Fields) -> Tensor:
        """Replace the mean of each bag that has a candidate by a weighted mean."""
        columns = list(vectors[:, self.id_count :].unbind(1))  # J x (B, dim)
        for bag, candidate in enumerate(self.candidates):
            if candidate >= 0:
                columns[bag] = self._weigh(bag, vectors[:, candidate], fields)
        return torch.cat([vectors[:, : self.id_count], torch.stack(columns, dim=1)], dim=1)  # (B, E, dim)

    def _weigh(self, bag: int, query: Tensor, fields: Fields) -> Tensor:
        keys, present = fields.elements[bag][..., : self.dim], fields.present[bag]  # (R, L, dim), (R, L)
        if len(keys) == 1:  # one bag for all rows: not copied per row
            likeness = query @ keys[0].T  # (B, L)
            weights = _masked_softmax(self.sharpness[bag] * likeness, present)
            return weights @ keys[0]  # (B, dim)
        keys, present = keys.index_select(0, fields.run[bag]), present.index_select(0, fields.run[bag])  # (B, L, ..)
        likeness = torch.bmm(keys, query.unsqueeze(2)).squeeze(2)  # (B, L)
        weights = _masked_softmax(self.sharpness[bag] * likeness, present)
        return torch.bmm(weights.unsqueeze(1), keys).squeeze(1)  # (B, dim)


def _masked_softmax(scores: Tensor, present: Tensor) -> Tensor:
    """Softmax over the present elements (B, L); zeros in rows without any."""
    return torch.softmax(scores.masked_fill(~present, -1e9), dim=1) * present
