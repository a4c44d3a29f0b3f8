"""Optimizers over rows: the dense parameters are one row, an embedding table has a row an id.

An optimizer is a declaration (learning rate and the like) with a compiled step; its state is a plain float32 array
beside the weights, (rows, state_width). Steps compute in float64 and store float32. A row that is not in `rows` is
not touched.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.kernels.compile import kernel
from headrace.learners.tables.kernels import Doubles, Floats, Ints


class Optimizer(Protocol):
    """How gradients change weights."""

    def state_width(self, width: int) -> int:
        """Floats of state beside a row of `width` weights."""
        ...

    def initial_state(self, width: int) -> NDArray[np.float32]:
        """State (state_width,) of a new row."""
        ...

    def step(self, weights: Floats, state: Floats, rows: Ints, grads: Doubles) -> None:
        """Change `weights[rows]` (n, W) and `state[rows]` in place; rows are distinct, grads (n, W)."""
        ...


@dataclass(frozen=True, slots=True)
class Adagrad:
    """Row-wise Adagrad: one accumulator for a row's vector and one for its linear weight.

    Args:
        lr: learning rate.
        initial: accumulators start here; damps the first steps of a new row.
        eps: added to the accumulator's root.

    Source: Duchi, Hazan, Singer (2011), "Adaptive Subgradient Methods", JMLR 12. Differs from the paper in: the
        accumulator is the mean square of a row's gradient, not one a coordinate (as in Gupta et al. 2014, "Training
        Highly Multiclass Classifiers").
    """

    lr: float = 0.05
    initial: float = 0.01
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.initial >= 0 and self.eps > 0):
            raise DeclarationError(f"{self}: lr and eps must be above 0, initial not below")

    def state_width(self, width: int) -> int:
        """Two accumulators."""
        del width
        return 2

    def initial_state(self, width: int) -> NDArray[np.float32]:
        """Both at `initial`."""
        return np.full(self.state_width(width), self.initial, dtype=np.float32)

    def step(self, weights: Floats, state: Floats, rows: Ints, grads: Doubles) -> None:
        """One step; see `Optimizer.step`."""
        _adagrad(weights, state, rows, grads, self.lr, self.eps)


@dataclass(frozen=True, slots=True)
class Ftrl:
    """FTRL-proximal: per-coordinate rates, and exact zeros by l1.

    Source: McMahan et al. (2013), "Ad Click Prediction: a View from the Trenches", algorithm 1.
    """

    alpha: float = 0.1
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        if not (self.alpha > 0 and self.beta >= 0 and self.l1 >= 0 and self.l2 >= 0):
            raise DeclarationError(f"{self}: alpha must be above 0, the others not below")

    def state_width(self, width: int) -> int:
        """Z and n of each coordinate."""
        return 2 * width

    def initial_state(self, width: int) -> NDArray[np.float32]:
        """Zeros: a weight becomes what z and n say at its first step."""
        return np.zeros(2 * width, dtype=np.float32)

    def step(self, weights: Floats, state: Floats, rows: Ints, grads: Doubles) -> None:
        """One step; see `Optimizer.step`."""
        _ftrl(weights, state, rows, grads, self.alpha, self.beta, self.l1, self.l2)


@dataclass(frozen=True, slots=True)
class Adam:
    """Adam with bias correction.

    Source: Kingma, Ba (2015), "Adam", arXiv:1412.6980, algorithm 1. The step number is a float32: exact to 16.7 M
        steps, and where it stops growing the correction has long been 1.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not (self.lr > 0 and 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.eps > 0):
            raise DeclarationError(f"{self}: lr and eps must be above 0, the betas in [0, 1)")

    def state_width(self, width: int) -> int:
        """First moments, second moments, step number."""
        return 2 * width + 1

    def initial_state(self, width: int) -> NDArray[np.float32]:
        """Zeros."""
        return np.zeros(self.state_width(width), dtype=np.float32)

    def step(self, weights: Floats, state: Floats, rows: Ints, grads: Doubles) -> None:
        """One step; see `Optimizer.step`."""
        _adam(weights, state, rows, grads, self.lr, self.beta1, self.beta2, self.eps)


@kernel
def _adagrad(weights: Floats, state: Floats, rows: Ints, grads: Doubles, lr: float, eps: float) -> None:
    last = weights.shape[1] - 1
    for i in range(rows.size):
        row = rows[i]
        if last > 0:
            square = 0.0
            for j in range(last):
                square += grads[i, j] * grads[i, j]
            state[row, 0] += square / last
            rate = lr / (np.sqrt(state[row, 0]) + eps)
            for j in range(last):
                weights[row, j] -= rate * grads[i, j]
        state[row, 1] += grads[i, last] * grads[i, last]
        weights[row, last] -= lr / (np.sqrt(state[row, 1]) + eps) * grads[i, last]


@kernel
def _ftrl(
    weights: Floats, state: Floats, rows: Ints, grads: Doubles, alpha: float, beta: float, l1: float, l2: float
) -> None:
    width = weights.shape[1]
    for i in range(rows.size):
        row = rows[i]
        for j in range(width):
            g = grads[i, j]
            n = np.float64(state[row, width + j])
            sigma = (np.sqrt(n + g * g) - np.sqrt(n)) / alpha
            z = np.float64(state[row, j]) + g - sigma * weights[row, j]
            n += g * g
            state[row, j] = z
            state[row, width + j] = n
            shrunk = max(abs(z) - l1, 0.0)
            weights[row, j] = -np.sign(z) * shrunk / ((beta + np.sqrt(n)) / alpha + l2)


@kernel
def _adam(
    weights: Floats, state: Floats, rows: Ints, grads: Doubles, lr: float, beta1: float, beta2: float, eps: float
) -> None:
    width = weights.shape[1]
    for i in range(rows.size):
        row = rows[i]
        step = state[row, 2 * width] + 1.0
        state[row, 2 * width] = step
        rate = lr / (1.0 - beta1**step)
        root = np.sqrt(1.0 - beta2**step)
        for j in range(width):
            g = grads[i, j]
            m = beta1 * state[row, j] + (1.0 - beta1) * g
            v = beta2 * state[row, width + j] + (1.0 - beta2) * g * g
            state[row, j] = m
            state[row, width + j] = v
            weights[row, j] -= rate * m / (np.sqrt(v) / root + eps)
