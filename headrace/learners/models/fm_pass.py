"""Forward and backward pass, without autograd, of linear models with a factorisation machine's pair products.

These are `Logistic`, whose rows have no vector, and `DeepFM` without hidden layers. The sums of an example run in
float64 and in order, one example at a time, so that an example's output does not depend on its batch.

    output = linear weights + first . numbers + bias + 1/2 sum(s^2 - sum of v^2) + deep . (vectors, numbers) + deep bias

    rows (E, W): vectors v (E, dim) and linear weights, W = dim + 1     numbers (N,)     s (dim,) = sum of the vectors
    first (N,)   bias (1,)   deep (E * dim + N,) and deep bias (1,), or (0,) each if the model has no such layer
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from headrace.kernels.compile import kernel, lean_kernel

Floats = NDArray[np.float32]
Head = tuple[Floats, Floats, Floats, Floats]
"""first, bias, deep, deep bias, each flat, or their gradients."""


class FMPass:
    """The pass of one module. Only `score` is thread-safe: `backward` uses state from `forward`.

    The parameters must stay at the same place in memory.

    Args:
        first_order: linear layer of the numbers, one output.
        deep: linear layer of vectors and numbers, or None.
    """

    def __init__(self, first_order: nn.Linear, deep: nn.Linear | None = None) -> None:
        layers = [first_order] if deep is None else [first_order, deep]
        self._parameters = [array for layer in layers for array in (layer.weight, layer.bias)]
        self.head = flat_head([parameter.detach().numpy() for parameter in self._parameters])

    def score(self, embedded: Floats, dense: Floats) -> Floats:
        """Outputs (B,) of rows (B, E, W) and numbers (B, N); keeps no state, so any number of threads may call it."""
        return self._outputs(embedded, dense)[0]

    def forward(self, embedded: Floats, dense: Floats) -> Floats:
        """Outputs (B,), equal to those of `score`; keeps what `backward` needs."""
        outputs, self._sums = self._outputs(embedded, dense)
        self._dense = dense
        return outputs

    def backward(self, grads: Floats, embedded: Floats) -> Floats:
        """Gradients (B, E, W) of the rows, from gradients (B,) of the outputs; the parameters' go to their `.grad`."""
        out = np.empty_like(embedded)
        fm_gradients(grads, embedded, self._dense, self.head, self.head_grads, self._sums, out)
        return out

    @property
    def head_grads(self) -> Head:
        """Gradients of `head`: the parameters' `.grad`."""
        grads: list[Any] = [parameter.grad for parameter in self._parameters]
        return flat_head([grad.numpy() for grad in grads])

    def _outputs(self, embedded: Floats, dense: Floats) -> tuple[Floats, Floats]:
        outputs = np.empty(len(embedded), np.float32)
        sums = np.empty((len(embedded), embedded.shape[2] - 1), np.float32)
        fm_outputs(embedded, dense, self.head, sums, outputs)
        return outputs, sums


def flat_head(arrays: list[Floats]) -> Head:
    """Flat views of the weights and biases of one or two layers."""
    first, bias, deep, deep_bias = [array.reshape(-1) for array in arrays] + [np.empty(0, np.float32)] * (
        4 - len(arrays)
    )
    return first, bias, deep, deep_bias


@kernel
def fm_outputs(embedded: Floats, dense: Floats, head: Head, sums: Floats, out: Floats) -> None:
    """Write the outputs to `out` (B,) and the sums of vectors to `sums` (B, dim), of rows (B, E, W), numbers (B, N)."""
    first, bias, deep, deep_bias = head
    for i in range(embedded.shape[0]):
        total = np.float64(bias[0]) + pair_products(embedded[i], sums[i])
        for j in range(dense.shape[1]):
            total += np.float64(first[j]) * dense[i, j]
        for e in range(embedded.shape[1]):
            total += embedded[i, e, sums.shape[1]]
        if deep.size:
            total += deep_bias[0] + _deep(embedded[i], dense[i], deep)
        out[i] = total


@lean_kernel
def pair_products(rows: Floats, sums: Floats) -> float:
    """Sum over pairs of the products of vectors; `sums` (dim,) receives the sum of the vectors."""
    squares, whole = 0.0, 0.0
    sums[:] = 0.0
    for e in range(rows.shape[0]):
        for j in range(sums.size):
            sums[j] += rows[e, j]
            squares += np.float64(rows[e, j]) * rows[e, j]
    for j in range(sums.size):
        whole += np.float64(sums[j]) * sums[j]
    return 0.5 * (whole - squares)


@lean_kernel
def _deep(rows: Floats, numbers: Floats, deep: Floats) -> float:
    """Product of `deep` with the vectors of `rows`, side by side, and the numbers."""
    total, dim = 0.0, rows.shape[1] - 1
    for e in range(rows.shape[0]):
        for j in range(dim):
            total += np.float64(deep[e * dim + j]) * rows[e, j]
    for j in range(numbers.size):
        total += np.float64(deep[rows.shape[0] * dim + j]) * numbers[j]
    return total


@kernel
def fm_gradients(
    grads: Floats, embedded: Floats, dense: Floats, head: Head, head_grads: Head, sums: Floats, out: Floats
) -> None:
    """Write the gradients of the rows to `out` (B, E, W), overwrite `head_grads`, from `grads` (B,) of the outputs."""
    deep, dim = head[2], sums.shape[1]
    first_grads, bias_grads, deep_grads, deep_bias_grads = head_grads
    first_grads[:] = 0.0
    deep_grads[:] = 0.0
    total = np.float32(0.0)
    for i in range(embedded.shape[0]):
        g = grads[i]
        total += g
        for e in range(embedded.shape[1]):
            for j in range(dim):
                out[i, e, j] = g * (sums[i, j] - embedded[i, e, j])
            out[i, e, dim] = g
        for j in range(dense.shape[1]):
            first_grads[j] += g * dense[i, j]
        if deep.size:
            _deep_gradients(g, embedded[i], dense[i], deep, deep_grads, out[i])
    bias_grads[:] = total
    deep_bias_grads[:] = total


@lean_kernel
def _deep_gradients(g: float, rows: Floats, numbers: Floats, deep: Floats, deep_grads: Floats, out: Floats) -> None:
    """Add the deep layer's part to `out` (E, W) and to its own gradients."""
    dim = rows.shape[1] - 1
    for e in range(rows.shape[0]):
        for j in range(dim):
            out[e, j] += g * deep[e * dim + j]
            deep_grads[e * dim + j] += g * rows[e, j]
    for j in range(numbers.size):
        deep_grads[rows.shape[0] * dim + j] += g * numbers[j]
