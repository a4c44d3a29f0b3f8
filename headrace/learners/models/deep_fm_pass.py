"""DeepFM's forward and backward pass without autograd: equal to it, at a fraction of its fixed cost.

Autograd builds and traverses a graph of some forty operations, 1 ms for any batch size; this pass is two kernels and a
dozen matrix products. It reads the module's parameters and writes their `.grad` in place.

    x (B, E * dim + N)  the vectors side by side, then the numbers       s (B, dim)  sum of an example's vectors
    logits = linear weights + numbers @ first_order + 1/2 sum(s^2 - sum of v^2) + mlp(x)
    d logits / d v = s - v + d mlp / d x
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.kernels.compile import kernel
from headrace.learners.models.model import ZeroHead

Floats = NDArray[np.float32]


class DeepFMPass:
    """The pass of one module. Not thread-safe: `backward` uses state of `forward`; `score` is.

    Args:
        dim: length of a vector.
        mlp: Linear, ReLU, Linear, ReLU, .., ZeroHead.
        first_order: the numbers' linear part.
    """

    def __init__(self, dim: int, mlp: nn.Sequential, first_order: ZeroHead) -> None:
        self._dim = dim
        self._layers = [layer for layer in mlp if isinstance(layer, nn.Linear)]
        self._first_order = first_order

    @staticmethod
    def fits(mlp: nn.Sequential) -> bool:
        """Whether `mlp` has only the layers that this pass computes."""
        kinds = [type(layer) for layer in mlp]
        return kinds == [nn.Linear, nn.ReLU] * (len(kinds) // 2) + [ZeroHead]

    def score(self, embedded: Floats, dense: Floats) -> Floats:
        """Logits (B,) of rows (B, E, W) and numbers (B, N); keeps nothing, so any number of threads may call it."""
        return self._forward(embedded, dense)[0]

    def forward(self, embedded: Floats, dense: Floats) -> Floats:
        """Logits (B,) as `score` gives them; keeps what `backward` needs."""
        logits, self._sums, self._dense, self._inputs = self._forward(embedded, dense)
        return logits

    @torch.no_grad()
    def _forward(self, embedded: Floats, dense: Floats) -> tuple[Floats, Floats, Tensor, list[Tensor]]:
        """Logits, sums of vectors, numbers, and the inputs of each layer."""
        count, columns = embedded.shape[:2]
        x = np.empty((count, columns * self._dim + dense.shape[1]), np.float32)
        sums, logits = np.empty((count, self._dim), np.float32), np.empty(count, np.float32)
        _first_and_second_order(embedded, dense, x, sums, logits)
        numbers, hidden = torch.from_numpy(dense), torch.from_numpy(x)
        inputs = [hidden]
        for layer in self._layers[:-1]:
            hidden = torch.addmm(layer.bias, hidden, layer.weight.t()).relu_()
            inputs.append(hidden)
        out = torch.from_numpy(logits)
        for head, taken in ((self._layers[-1], hidden), (self._first_order, numbers)):
            out.add_(head.bias).addmv_(taken, head.weight[0])
        return logits, sums, numbers, inputs

    @torch.no_grad()
    def backward(self, grads: Floats, embedded: Floats) -> Floats:
        """Gradients (B, E, W) by the rows, from those by the logits (B,); the parameters' are written into `.grad`."""
        g = torch.from_numpy(grads)
        total = g.sum()
        for layer, inputs in ((self._layers[-1], self._inputs[-1]), (self._first_order, self._dense)):
            torch.mv(inputs.t(), g, out=_grad(layer.weight)[0])
            _grad(layer.bias).copy_(total)
        below = torch.outer(g, self._layers[-1].weight[0])
        for layer, inputs, outputs in zip(self._layers[-2::-1], self._inputs[-2::-1], self._inputs[:0:-1], strict=True):
            below = torch.ops.aten.threshold_backward(below, outputs, 0)
            torch.mm(below.t(), inputs, out=_grad(layer.weight))
            torch.sum(below, 0, out=_grad(layer.bias))
            below = below @ layer.weight
        out = np.empty_like(embedded)
        _by_rows(below.numpy(), grads, embedded, self._sums, out)
        return out


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None, "gradients are views of one row, made with the learner"
    return parameter.grad


@kernel
def _first_and_second_order(embedded: Floats, dense: Floats, x: Floats, sums: Floats, out: Floats) -> None:
    dim = sums.shape[1]
    for i in range(embedded.shape[0]):
        sums[i] = 0.0
        linear, squares = 0.0, 0.0
        for e in range(embedded.shape[1]):
            for j in range(dim):
                v = embedded[i, e, j]
                x[i, e * dim + j] = v
                sums[i, j] += v
                squares += v * v
            linear += embedded[i, e, dim]
        for j in range(dense.shape[1]):
            x[i, embedded.shape[1] * dim + j] = dense[i, j]
        whole = 0.0
        for j in range(dim):
            whole += sums[i, j] * sums[i, j]
        out[i] = linear + 0.5 * (whole - squares)


@kernel
def _by_rows(below: Floats, grads: Floats, embedded: Floats, sums: Floats, out: Floats) -> None:
    dim = sums.shape[1]
    for i in range(embedded.shape[0]):
        for e in range(embedded.shape[1]):
            for j in range(dim):
                out[i, e, j] = below[i, e * dim + j] + grads[i] * (sums[i, j] - embedded[i, e, j])
            out[i, e, dim] = grads[i]
