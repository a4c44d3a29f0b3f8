"""The arrays of a learner's state, and those of them that belong to the torch module.

dense.<name>              the module's parameters and buffers
intercept                 (K,)
numbers.<name>            statistics of the numbers
table.<table>.<array>     ids (n,), weights (n, W), and with the optimizer all training state
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.errors import SnapshotError
from headrace.learners.learner import Learner
from headrace.learners.models.checks import check_module, running
from headrace.learners.tables.optimizers import Optimizer, is_compiled
from headrace.learners.tables.steps import step_dense

Arrays = dict[str, NDArray[Any]]


def build_module(learner: type[Learner], seed: int = 0) -> torch.nn.Module:
    """Build the learner's module with initial weights from `seed`; torch's global generator keeps its state.

    Raises:
        DeclarationError: the model's `build` returned something else, or a module that cannot be trained or saved.
        ModelError: it failed.
    """
    with torch.random.fork_rng(devices=[]), running(f"model {type(learner.model).__name__}: its `build`"):
        torch.manual_seed(seed)
        module = learner.model.build(learner.inputs)
    check_module(learner.model, module)
    return module


def load_module(module: torch.nn.Module, arrays: Mapping[str, NDArray[Any]], name: str) -> None:
    """Copy the `dense.*` arrays into `module`.

    Raises:
        SnapshotError: names or shapes differ.
    """
    saved = prefixed(arrays, "dense.")
    present = module.state_dict()
    shapes = {key: array.shape for key, array in saved.items()}
    if shapes != {key: tuple(value.shape) for key, value in present.items()}:
        differing = sorted(
            key for key in {*shapes, *present} if shapes.get(key) != getattr(present.get(key), "shape", None)
        )
        raise SnapshotError(f"learner {name}: dense arrays differ from the model's: {', '.join(differing)}")
    with torch.no_grad():
        for key, value in present.items():
            value.copy_(torch.from_numpy(np.array(saved[key])))


def intercept_of(arrays: Mapping[str, NDArray[Any]], learner: type[Learner]) -> NDArray[np.float32]:
    """A copy of the intercept (K,).

    Raises:
        SnapshotError: it is missing, or has another number of outputs.
    """
    shape = (learner.model.outputs,)
    if "intercept" not in arrays or arrays["intercept"].shape != shape:
        raise SnapshotError(f"learner {learner.name}: no intercept of shape {shape}")
    return np.array(arrays["intercept"], dtype=np.float32)


def table_arrays(arrays: Mapping[str, NDArray[Any]], table: str, learner: str) -> Arrays:
    """Select the arrays of one table, without their prefix.

    Raises:
        SnapshotError: its ids or weights are missing.
    """
    table_state = prefixed(arrays, f"table.{table}.")
    if not {"ids", "weights"} <= set(table_state):
        raise SnapshotError(f"learner {learner}: no arrays of table {table!r}")
    return table_state


def prefixed(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Arrays:
    """Select the arrays whose names begin with `prefix`, and strip it."""
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


class FlatParameters:
    """A module's parameters as views of `weights` (1, P), gradients as views of `grads` (P,): a step is one call."""

    def __init__(self, module: torch.nn.Module) -> None:
        parameters = list(module.parameters())
        flat = [parameter.detach().reshape(-1) for parameter in parameters]
        self._flat = torch.cat(flat) if flat else torch.empty(0)
        self._grads = torch.zeros_like(self._flat)
        start = 0
        for parameter in parameters:
            end = start + parameter.numel()
            parameter.data = self._flat[start:end].view_as(parameter)
            parameter.grad = self._grads[start:end].view_as(parameter)
            start = end
        self.weights: NDArray[np.float32] = self._flat.numpy()[None]
        self.grads: NDArray[np.float32] = self._grads.numpy()
        self._row = np.zeros(1, dtype=np.int64)

    def zero_grads(self) -> None:
        """Set all gradients to zero, in place."""
        self._grads.zero_()

    def step(self, optimizer: Optimizer, state: NDArray[np.float32]) -> None:
        """Take one optimizer step of the parameters; `state` (1, S) is the optimizer's."""
        if is_compiled(optimizer):
            step_dense(optimizer.kind, optimizer.rates, self.weights, state, self.grads)
        else:
            optimizer.step(self.weights, state, self._row, self.grads[None].astype(np.float64))
