"""Optimizers over rows: the dense parameters are one row, an embedding table has one row per id.

An optimizer is a declaration (learning rate and the like) with a compiled step. Its state is a plain float32 array
beside the weights, (rows, S). Steps of table rows compute in float64 and store float32. Other rows are not touched.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeGuard

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.features.argument_types import checked
from headrace.learners.tables.steps import ADAGRAD, ADAM, FTRL, Doubles, Floats, Ints, Rates, step_rows


class Optimizer(Protocol):
    """The rule by which gradients change weights."""

    def initial_state(self, width: int) -> NDArray[np.float32]:
        """State (S,) of a new row of `width` weights; S is the same for every row."""
        ...

    def step(self, weights: Floats, state: Floats, rows: Ints, grads: Doubles) -> None:
        """Change `weights[rows]` (n, W) and `state[rows]` in place; rows are distinct, grads (n, W)."""
        ...


class Compiled(ABC):
    """Base class of optimizers whose steps other kernels can take: see `headrace.learners.tables.steps`.

    Attributes:
        kind: the step's kind, a constant of that module.
    """

    __slots__ = ()
    kind: ClassVar[int]

    @property
    @abstractmethod
    def rates(self) -> Rates:
        """The step's parameters, by kind."""

    def step(self, weights: Floats, state: Floats, rows: Ints, grads: Doubles) -> None:
        """Take one step; see `Optimizer.step`."""
        step_rows(self.kind, self.rates, weights, state, rows, grads)


def is_compiled(optimizer: Optimizer) -> TypeGuard[Compiled]:
    """Whether kernels can take the optimizer's step: it is a `Compiled` whose subclass does not override `step`."""
    step: Any = type(optimizer).step
    return isinstance(optimizer, Compiled) and step is Compiled.step


@checked
@dataclass(frozen=True, slots=True)
class Adagrad(Compiled):
    """Row-wise Adagrad: one accumulator for a row's vector and one for its linear weight.

    Args:
        lr: learning rate.
        initial: initial value of the accumulators; damps the first steps of a new row.
        eps: added to the accumulator's square root.

    Source: Duchi, Hazan, Singer (2011), "Adaptive Subgradient Methods", JMLR 12. Differs from the paper in: the
        accumulator is of the mean square of a row's gradient, not per coordinate (as in Gupta et al. 2014, "Training
        Highly Multiclass Classifiers").
    """

    kind: ClassVar[int] = ADAGRAD
    lr: float = 0.05
    initial: float = 0.01
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not (self.lr > 0 and self.initial >= 0 and self.eps > 0):
            raise DeclarationError(f"{self}: lr and eps must be above 0, initial not below")

    @property
    def rates(self) -> Rates:
        """See `headrace.learners.tables.steps`."""
        return (float(self.lr), float(self.eps), 0.0, 0.0)

    def initial_state(self, width: int) -> NDArray[np.float32]:
        """Two accumulators (2,), both at `initial`."""
        del width
        return np.full(2, self.initial, dtype=np.float32)


@checked
@dataclass(frozen=True, slots=True)
class Ftrl(Compiled):
    """FTRL-proximal: per-coordinate rates, and exact zeros by l1.

    The default `alpha` suits ids that occur some ten to some thousand times. With 0.1 instead, `Logistic` loses 1 to 4
    points of prequential AUC on ratings, clicks, purchases and a planted model, at any micro-batch size.

    Source: McMahan et al. (2013), "Ad Click Prediction: a View from the Trenches", algorithm 1.
    """

    kind: ClassVar[int] = FTRL
    alpha: float = 0.5
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        if not (self.alpha > 0 and self.beta >= 0 and self.l1 >= 0 and self.l2 >= 0):
            raise DeclarationError(f"{self}: alpha must be above 0, the others not below")

    @property
    def rates(self) -> Rates:
        """See `headrace.learners.tables.steps`."""
        return (float(self.alpha), float(self.beta), float(self.l1), float(self.l2))

    def initial_state(self, width: int) -> NDArray[np.float32]:
        """Values z and n of each coordinate (2 W,), zeros; a weight is computed from them, first at its first step."""
        return np.zeros(2 * width, dtype=np.float32)


@checked
@dataclass(frozen=True, slots=True)
class Adam(Compiled):
    """Adam with bias correction.

    Source: Kingma, Ba (2015), "Adam", arXiv:1412.6980, algorithm 1. The step number is a float32, exact to 16.7 M
        steps; long before it stops growing, the correction is 1.
    """

    kind: ClassVar[int] = ADAM
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if not (self.lr > 0 and 0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.eps > 0):
            raise DeclarationError(f"{self}: lr and eps must be above 0, the betas in [0, 1)")

    @property
    def rates(self) -> Rates:
        """See `headrace.learners.tables.steps`."""
        return (float(self.lr), float(self.beta1), float(self.beta2), float(self.eps))

    def initial_state(self, width: int) -> NDArray[np.float32]:
        """First moments, second moments, step number (2 W + 1,), all zeros."""
        return np.zeros(2 * width + 1, dtype=np.float32)
