"""Forward and backward pass of hidden layers Linear, ReLU, .., for batches too small to repay calls of BLAS.

Through torch a layer takes five calls, with the views that they need; at 16 examples and layers of 64 and 32 they are
half of a step. These loops add rows, so that the compiler works on a vector of floats at once, and they skip what ReLU
has set to zero. An example's values do not depend on its batch.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compile import kernel

Floats = NDArray[np.float32]
Tuple = tuple[Any, ...]
"""Arrays of one type, one a layer."""

PRODUCTS_MAX = 1 << 19
"""Products of a forward pass up to which the loops are faster than BLAS with its calls (measured)."""


@kernel
def mlp_forward(weights: Tuple, biases: Tuple, outputs: Tuple) -> None:
    """`outputs[l + 1]` (B, H) = ReLU of layer l's weights (H, K) by `outputs[l]` (B, K), and its biases (H,)."""
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
def mlp_backward(grads: Floats, weights: Tuple, outputs: Tuple, weight_grads: Tuple, bias_grads: Tuple) -> Floats:
    """Gradients (B, K) by `outputs[0]` from `grads` (B, H) by the last of `outputs`; the parameters' are overwritten.

    `outputs` are those of `mlp_forward`.
    """
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
