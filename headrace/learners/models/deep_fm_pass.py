"""DeepFM's forward and backward pass without autograd: the same results, at a fraction of the fixed cost.

Autograd builds and traverses a graph of some forty operations, 1 ms for any batch size. This pass takes three BLAS
matrix products per hidden layer, with a compiled kernel before and after each. It reads the module's parameters and
writes their `.grad` in place.

A batch too small for BLAS takes one kernel forward and one backward. Through torch a layer takes five calls and their
views, half the time of a step at 16 examples and layers of 64 and 32. The kernels' loops add rows, so that the compiler
vectorises them, and they skip what ReLU has set to zero. In the kernels an example's values do not depend on its batch.

    x (B, E * dim + N)  the vectors side by side, then the numbers       s (B, dim)  sum of an example's vectors
    logits = linear weights + numbers @ first_order + 1/2 sum(s^2 - sum of v^2) + mlp(x)
    d logits / d v = s - v + d mlp / d x
"""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headrace.kernels.compile import kernel
from headrace.learners.models.fm_pass import Floats, Head, flat_head, pair_products
from headrace.learners.models.model import ZeroHead

Layers = tuple[tuple[Floats, ...], tuple[Floats, ...]]
"""Weights (H, K) and biases (H,) of each hidden layer, or their gradients."""

PRODUCTS_MAX = 1 << 19
"""Number of products in a forward pass up to which the loops are faster than BLAS with its call overhead (measured)."""


class DeepFMPass:
    """The pass of one module. Only `score` is thread-safe: `backward` uses state from `forward`.

    The parameters must stay at the same place in memory.

    Args:
        dim: length of a vector.
        mlp: Linear, ReLU, Linear, ReLU, .., ZeroHead; at least one Linear before the head.
        first_order: the numbers' linear part.
    """

    def __init__(self, dim: int, mlp: nn.Sequential, first_order: ZeroHead) -> None:
        self._dim = dim
        *hidden, head = [layer for layer in mlp if isinstance(layer, nn.Linear)]
        self._hidden = [(layer.weight.detach(), layer.bias.detach()) for layer in hidden]
        self._parameters = [layer.weight for layer in hidden], [layer.bias for layer in hidden]
        weights, biases = (tuple(one.detach().numpy() for one in kind) for kind in self._parameters)
        self._layers: Layers = (weights, biases)
        self._products = sum(layer.weight.numel() for layer in hidden)
        self._heads = [array for layer in (first_order, head) for array in (layer.weight, layer.bias)]
        # First-order weights (N,) and bias (1,), the MLP head's weights (H,) and bias (1,).
        self._head: Head = flat_head([array.detach().numpy() for array in self._heads])
        self._mlp_head = torch.from_numpy(self._head[2]), torch.from_numpy(self._head[3])

    @staticmethod
    def fits(mlp: nn.Sequential) -> bool:
        """Whether `mlp` has only the layers that this pass computes."""
        kinds = [type(layer) for layer in mlp]
        return kinds == [nn.Linear, nn.ReLU] * (len(kinds) // 2) + [ZeroHead]

    def score(self, embedded: Floats, dense: Floats) -> Floats:
        """Logits (B,) of rows (B, E, W) and numbers (B, N); keeps no state, so any number of threads may call it."""
        return self._forward(embedded, dense)[0]

    def forward(self, embedded: Floats, dense: Floats) -> Floats:
        """Logits (B,), equal to those of `score`; keeps what `backward` needs."""
        logits, self._sums, self._inputs = self._forward(embedded, dense)
        self._dense = dense
        return logits

    def _forward(self, embedded: Floats, dense: Floats) -> tuple[Floats, Floats, tuple[Floats, ...]]:
        """Logits, sums of vectors, and the inputs of each layer of the MLP, the head's last."""
        count, columns = embedded.shape[:2]
        x = np.empty((count, columns * self._dim + dense.shape[1]), np.float32)
        sums, logits = np.empty((count, self._dim), np.float32), np.empty(count, np.float32)
        if self._is_small(count):
            inputs = (x, *(np.empty((count, bias.size), np.float32) for bias in self._layers[1]))
            forward_small(embedded, dense, self._head, self._layers, inputs, sums, logits)
            return logits, sums, inputs
        first_and_second_order(embedded, dense, self._head, x, sums, logits)
        tensors = [torch.from_numpy(x)]
        for weight, bias in self._hidden:
            tensors.append(torch.addmm(bias, tensors[-1], weight.t()).relu_())
        weight, bias = self._mlp_head
        torch.from_numpy(logits).add_(torch.mv(tensors[-1], weight)).add_(bias)
        return logits, sums, tuple(tensor.numpy() for tensor in tensors)

    def backward(self, grads: Floats, embedded: Floats) -> Floats:
        """Gradients (B, E, W) of the rows, from gradients (B,) of the logits; the parameters' go to their `.grad`."""
        head_grads, layer_grads = self._grads
        out = np.empty_like(embedded)
        if self._is_small(len(grads)):
            batch = (grads, embedded, self._dense, self._sums, self._inputs)
            backward_small(batch, self._head, self._layers, head_grads, layer_grads, out)
            return out
        below = np.empty(self._inputs[-1].shape, np.float32)
        head_gradients(grads, self._dense, self._inputs[-1], self._head, head_grads, below)
        for layer in range(len(self._hidden) - 1, -1, -1):
            mask_and_sum(below, self._inputs[layer + 1], layer_grads[1][layer])
            above = torch.from_numpy(below)
            torch.mm(above.t(), torch.from_numpy(self._inputs[layer]), out=torch.from_numpy(layer_grads[0][layer]))
            below = torch.mm(above, self._hidden[layer][0]).numpy()
        gradients_by_rows(below, grads, embedded, self._sums, out)
        return out

    def _is_small(self, count: int) -> bool:
        return count * self._products <= PRODUCTS_MAX

    @functools.cached_property
    def _grads(self) -> tuple[Head, Layers]:
        """The gradients of the head and of the hidden layers, which also stay at the same place in memory."""
        weights, biases = (tuple(_grad(one) for one in kind) for kind in self._parameters)
        return flat_head([_grad(parameter) for parameter in self._heads]), (weights, biases)


def _grad(parameter: Tensor) -> Floats:
    assert parameter.grad is not None, "gradients are views of one row, made with the learner"
    return parameter.grad.numpy()


@kernel
def forward_small(
    embedded: Floats, dense: Floats, head: Head, layers: Layers, inputs: tuple[Floats, ...], sums: Floats, out: Floats
) -> None:
    """Write logits to `out` (B,); fills `inputs` of the layers, the head's last, and `sums` (B, dim) for `backward`."""
    first_and_second_order(embedded, dense, head, inputs[0], sums, out)
    mlp_forward(layers, inputs)
    hidden, weight, bias = inputs[-1], head[2], head[3]
    for i in range(out.size):
        total = np.float64(bias[0])
        for j in range(weight.size):
            total += np.float64(weight[j]) * hidden[i, j]
        out[i] += np.float32(total)


@kernel
def backward_small(
    batch: tuple[Any, ...], head: Head, layers: Layers, head_grads: Head, layer_grads: Layers, out: Floats
) -> None:
    """Write the gradients of the rows to `out` (B, E, W); overwrites the gradients of all parameters."""
    grads, embedded, dense, sums, inputs = batch
    below = np.empty(inputs[-1].shape, np.float32)
    head_gradients(grads, dense, inputs[-1], head, head_grads, below)
    by_x = mlp_backward(below, layers, inputs, layer_grads)
    gradients_by_rows(by_x, grads, embedded, sums, out)


@kernel
def mlp_forward(layers: Layers, outputs: tuple[Floats, ...]) -> None:
    """`outputs[l + 1]` (B, H) = ReLU(`outputs[l]` (B, K) @ weights.T + biases) with layer l's (H, K) and (H,)."""
    weights, biases = layers
    for layer in range(len(weights)):
        columns, below, above = np.ascontiguousarray(weights[layer].T), outputs[layer], outputs[layer + 1]
        for i in range(below.shape[0]):
            above[i] = biases[layer]
            for k in range(below.shape[1]):
                value = below[i, k]
                if value != 0.0:
                    for j in range(above.shape[1]):
                        above[i, j] += value * columns[k, j]
            for j in range(above.shape[1]):
                above[i, j] = max(above[i, j], np.float32(0.0))


@kernel
def mlp_backward(grads: Floats, layers: Layers, outputs: tuple[Floats, ...], layer_grads: Layers) -> Floats:
    """Gradients (B, K) of `outputs[0]`, from `grads` (B, H) of the last of `outputs`; overwrites `layer_grads`.

    `outputs` come from `mlp_forward`.
    """
    weights, (weight_grads, bias_grads) = layers[0], layer_grads
    for layer in range(len(weights) - 1, -1, -1):
        below, above = outputs[layer], outputs[layer + 1]
        weight, by_weight, by_bias = weights[layer], weight_grads[layer], bias_grads[layer]
        by_weight[:] = 0.0
        by_bias[:] = 0.0
        by_below = np.zeros(below.shape, np.float32)
        for i in range(below.shape[0]):
            for j in range(above.shape[1]):
                grad = grads[i, j]
                if above[i, j] > 0.0 and grad != 0.0:
                    by_bias[j] += grad
                    for k in range(below.shape[1]):
                        by_weight[j, k] += grad * below[i, k]
                        by_below[i, k] += grad * weight[j, k]
        grads = by_below
    return grads


@kernel
def first_and_second_order(embedded: Floats, dense: Floats, head: Head, x: Floats, sums: Floats, out: Floats) -> None:
    """Fill `x` (B, E * dim + N), `sums` (B, dim), see the module docstring, and `out` (B,), logits without the MLP."""
    first, bias, dim = head[0], head[1], sums.shape[1]
    for i in range(embedded.shape[0]):
        total = np.float64(bias[0]) + pair_products(embedded[i], sums[i])
        for e in range(embedded.shape[1]):
            for j in range(dim):
                x[i, e * dim + j] = embedded[i, e, j]
            total += embedded[i, e, dim]
        for j in range(dense.shape[1]):
            x[i, embedded.shape[1] * dim + j] = dense[i, j]
            total += np.float64(first[j]) * dense[i, j]
        out[i] = total


@kernel
def head_gradients(grads: Floats, dense: Floats, hidden: Floats, head: Head, head_grads: Head, below: Floats) -> None:
    """Overwrite `head_grads`, and `below` (B, H) with the gradients of the last hidden layer, from `grads` (B,)."""
    weight = head[2]
    first_grads, bias_grads, weight_grads, head_bias_grads = head_grads
    first_grads[:] = 0.0
    weight_grads[:] = 0.0
    total = np.float32(0.0)
    for i in range(hidden.shape[0]):
        g = grads[i]
        total += g
        for j in range(dense.shape[1]):
            first_grads[j] += g * dense[i, j]
        for j in range(hidden.shape[1]):
            weight_grads[j] += g * hidden[i, j]
            below[i, j] = g * weight[j]
    bias_grads[:] = total
    head_bias_grads[:] = total


@kernel
def mask_and_sum(below: Floats, outputs: Floats, bias_grads: Floats) -> None:
    """Set `below` (B, H) to zero where ReLU's `outputs` are zero; `bias_grads` (H,) = its sums over the examples."""
    bias_grads[:] = 0.0
    for i in range(below.shape[0]):
        for j in range(below.shape[1]):
            g = below[i, j] if outputs[i, j] > 0.0 else np.float32(0.0)
            below[i, j] = g
            bias_grads[j] += g


@kernel
def gradients_by_rows(below: Floats, grads: Floats, embedded: Floats, sums: Floats, out: Floats) -> None:
    """Write the gradients of the rows to `out` (B, E, W), from `below` (B, E * dim + N) of the MLP and `grads` (B,)."""
    dim = sums.shape[1]
    for i in range(embedded.shape[0]):
        for e in range(embedded.shape[1]):
            for j in range(dim):
                out[i, e, j] = below[i, e * dim + j] + grads[i] * (sums[i, j] - embedded[i, e, j])
            out[i, e, dim] = grads[i]
