"""A torch module with its table lookups: forward and backward by the model's own pass if it has one, or by autograd."""

import torch
from torch import nn

from headrace.errors import DeclarationError
from headrace.learners.models.checks import running
from headrace.learners.models.model import Fields, Model
from headrace.learners.tables.embedding import Floats, Lookup, Uses


class Network:
    """One module and its lookup. Not thread-safe while it trains; only `score` may be called from several threads.

    Args:
        model: the declaration that built `module`.
        module: the torch module; `forward` and `score` set its training mode.
        lookup: reads the rows of a batch.

    Attributes:
        by_hand: the module's pass without autograd, if the model has one.

    Raises:
        DeclarationError: from every method that runs the module: its outputs are not as the model declares.
        ModelError: from every method that runs the module: it failed.
    """

    def __init__(self, model: Model, module: nn.Module, lookup: Lookup) -> None:
        self._model = model
        self._what = f"model {type(model).__name__}"
        self._module = module
        self._lookup = lookup
        self.by_hand = model.make_pass(module)
        # Of the last forward pass, for `backward`:
        self._fields: Fields | None = None
        self._embedded: Floats | None = None
        self._outputs: torch.Tensor | None = None

    def score(self, uses: Uses, numbers: Floats) -> Floats:
        """Outputs (B, K) of a batch, without the intercept; changes nothing."""
        if self.by_hand is not None:
            return self.by_hand.score(self._lookup.gather(uses), numbers)
        self._module.eval()
        with torch.inference_mode():
            return self._run(self._lookup.fields(uses, numbers)).numpy()

    def forward(self, uses: Uses, numbers: Floats) -> Floats:
        """Outputs (B, K) of a training batch, without the intercept; keeps what `backward` needs."""
        if self.by_hand is not None:
            self._embedded = self._lookup.gather(uses)
            return self.by_hand.forward(self._embedded, numbers)
        self._module.train()
        self._fields = self._lookup.fields(uses, numbers, grad=True)
        self._outputs = self._run(self._fields)
        if not self._outputs.requires_grad:
            raise DeclarationError(
                f"{self._what}: its module's outputs have no gradient; compute them with torch from the fields and "
                "the parameters, without detach() or no_grad()"
            )
        return self._outputs.detach().numpy()

    def backward(self, grads: Floats) -> tuple[Floats, list[Floats]]:
        """Backpropagate gradients (B, K) of the outputs to the gathered rows (B, E, W) and to each bag's elements.

        A pass by hand overwrites the parameters' `.grad`. Autograd adds to `.grad`, so it must be zero before.
        """
        if self.by_hand is not None:
            assert self._embedded is not None, "backward follows forward"
            return self.by_hand.backward(grads, self._embedded), list(self._lookup.no_elements)
        assert self._outputs is not None, "backward follows forward"
        assert self._fields is not None
        with running(f"{self._what}: its module's backward pass"):
            self._outputs.backward(torch.from_numpy(grads))  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return _grad_of(self._fields.embedded), [_grad_of(elements) for elements in self._fields.elements]

    def rescored(self, outputs: Floats, known: Uses, uses: Uses, numbers: Floats) -> Floats:
        """Outputs (B, K) with the rows of `known`, given `outputs` with the rows of `uses`, a later lookup.

        Computes only the examples with a row that differs. Needs a model with a pass by hand.
        """
        changed = known.differs(uses)
        if not changed.size:
            return outputs
        assert self.by_hand is not None, "by autograd predictions are a pass of their own"
        out = outputs.copy()
        out[changed] = self.by_hand.score(self._lookup.gather(known, changed), numbers[changed])
        return out

    def _run(self, fields: Fields) -> torch.Tensor:
        rows, columns = len(fields.embedded), self._model.outputs
        with running(f"{self._what}: its module's forward pass"):
            outputs: torch.Tensor = self._module(fields)
        expected = (rows,) if columns == 1 else (rows, columns)
        if not isinstance(outputs, torch.Tensor) or not outputs.is_floating_point():
            given = outputs.dtype if isinstance(outputs, torch.Tensor) else type(outputs).__name__
            raise DeclarationError(f"{self._what}: its module returned {given}; return a tensor of floats {expected}")
        if tuple(outputs.shape) != expected:
            raise DeclarationError(
                f"{self._what}: outputs {tuple(outputs.shape)} of its module for {rows} "
                f"examples; with outputs={columns} return {expected}"
            )
        return outputs


def _grad_of(leaf: torch.Tensor) -> Floats:
    """The gradient collected by a leaf tensor; zeros if the module did not use it."""
    return (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).numpy()
