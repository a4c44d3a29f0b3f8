"""A module with its lookups: forward and backward, by hand where the module offers its own pass, else by autograd."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.learners.models.model import Fields
from headrace.learners.tables.embedding import Floats, Lookup, Uses


class Network:
    """One module. Not thread-safe while it trains; `score` alone may be called from any number of threads.

    `is_by_hand`: the module has a pass of its own (`by_hand()`), and so no state but its parameters.
    """

    def __init__(self, module: torch.nn.Module, lookup: Lookup) -> None:
        self._module = module
        self._lookup = lookup
        make_pass: Any = getattr(module, "by_hand", None)
        self._pass: Any = make_pass() if make_pass else None
        self._fields: Fields | None = None
        self._embedded: Floats | None = None
        self._logits: torch.Tensor | None = None

    @property
    def is_by_hand(self) -> bool:
        """Whether the module has a pass of its own."""
        return self._pass is not None

    def score(self, uses: Uses, numbers: Floats) -> Floats:
        """Logits (B,) of a batch, without the intercept; changes nothing."""
        if self._pass is not None:
            return np.asarray(self._pass.score(self._lookup.gather(uses), numbers))
        self._module.eval()
        with torch.inference_mode():
            logits: Floats = self._module(self._lookup.fields(uses, numbers)).numpy()
        return logits

    def forward(self, uses: Uses, numbers: Floats) -> Floats:
        """Logits (B,) of a training batch, without the intercept; keeps what `backward` needs."""
        if self._pass is not None:
            self._embedded = self._lookup.gather(uses)
            return np.asarray(self._pass.forward(self._embedded, numbers))
        self._module.train()
        self._fields = self._lookup.fields(uses, numbers, grad=True)
        self._logits = self._module(self._fields)
        return np.asarray(self._logits.detach().numpy())

    def backward(self, grads: Floats) -> tuple[Floats, list[Floats]]:
        """Gradients by the gathered rows (B, E, W) and by each bag's elements, from those by the logits (B,).

        Those by the parameters are added to, or written into, their `.grad`, which was zero.
        """
        if self._pass is not None:
            return np.asarray(self._pass.backward(grads, self._embedded)), self._no_elements()
        assert self._logits is not None
        assert self._fields is not None
        self._logits.backward(torch.from_numpy(grads))  # type: ignore[no-untyped-call]  # torch leaves it untyped
        embedded, elements = self._fields.embedded, self._fields.elements
        by_row = torch.zeros_like(embedded) if embedded.grad is None else embedded.grad
        return by_row.numpy(), [_grad_of(part) for part in elements]

    def rescored(self, logits: Floats, known: Uses, uses: Uses, numbers: Floats) -> Floats:
        """The logits (B,) of `uses` as they are of `known`, the same batch with the rows of an earlier moment."""
        changed = known.differs(uses)
        if not changed.size:
            return logits
        out = logits.copy()
        out[changed] = self.score(known.take(changed), numbers[changed])
        return out

    def _no_elements(self) -> list[Floats]:
        return [np.empty((0, 0, self._lookup.width), np.float32) for _ in range(self._lookup.bags)]


def _grad_of(part: torch.Tensor) -> Floats:
    return np.empty(part.shape, np.float32) if part.grad is None and not part.numel() else _present(part).numpy()


def _present(part: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(part) if part.grad is None else part.grad


def sigmoid(logits: Floats) -> NDArray[np.float32]:
    """Probabilities of logits, without overflow."""
    half = np.float32(0.5)
    probabilities: Floats = half * (np.float32(1.0) + np.tanh(half * logits))
    return probabilities
