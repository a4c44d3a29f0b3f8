"""Checks of models, modules and losses that are written outside the package, with errors that name what to change."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from headrace.errors import DeclarationError, HeadraceError, ModelError

_LOSS_METHODS = ("is_allowed", "predictions", "values", "gradients", "base", "follow")
_BUFFER_TYPES = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_FLOATS = {torch.float32, torch.float64}


def check_model(where: str, model: Any) -> None:
    """Check that a model's attributes exist and have the right kind; `where` locates it in errors.

    Raises:
        DeclarationError: one is missing or of another kind.
    """
    what = f"{where} · model {type(model).__name__}"
    for name, least in (("dim", 0), ("outputs", 1), ("labels", 1)):
        number = getattr(model, name, None)
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise DeclarationError(f"{what}: {name}={number!r}; write a whole number of at least {least}")
    for name, width in (("sparse", model.dim + 1), ("optimizer", 1)):
        _check_optimizer(what, name, getattr(model, name, None), width)
    check_loss(what, getattr(model, "loss", None))


def check_loss(what: str, loss: Any) -> None:
    """Check that a loss has the attributes and methods of `Loss`.

    Raises:
        DeclarationError: one is missing.
    """
    lacking = [part for part in ("name", "is_binary", "label_values", *_LOSS_METHODS) if not hasattr(loss, part)]
    if isinstance(loss, type) or lacking:
        given = f"the class {loss.__name__}; call it" if isinstance(loss, type) else f"{loss!r} without {lacking[0]!r}"
        raise DeclarationError(f"{what}: loss is {given}; write LogLoss(), or an object of a subclass of TorchLoss")


def _check_optimizer(what: str, name: str, optimizer: Any, width: int) -> None:
    is_called = not isinstance(optimizer, type)
    if not (is_called and all(callable(getattr(optimizer, part, None)) for part in ("initial_state", "step"))):
        given = repr(optimizer) if is_called else f"the class {optimizer.__name__}; call it"
        raise DeclarationError(
            f"{what}: {name} is {given}; write an optimizer of headrace.learners, such as Adagrad(lr=0.05)"
        )
    state = optimizer.initial_state(width)
    if not isinstance(state, np.ndarray) or state.ndim != 1 or state.dtype.kind != "f":
        raise DeclarationError(f"{what}: {name} has the initial state {state!r}; return an array (S,) of float32")


def check_module(model: Any, module: Any) -> None:
    """Check that `build` returned a module whose parameters and buffers can be trained and saved.

    Raises:
        DeclarationError: it is no module, or one of its tensors has no size yet, or a type that is not supported.
    """
    what = f"model {type(model).__name__}"
    if not isinstance(module, nn.Module):
        raise DeclarationError(f"{what}: `build` returned {type(module).__name__}; return a torch.nn.Module")
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise DeclarationError(f"{what}: parameter {name} has no size yet; give lazy layers their sizes in `build`")
    types = {name: parameter.dtype for name, parameter in module.named_parameters()}
    wrong = [name for name, dtype in types.items() if dtype not in _FLOATS or dtype != next(iter(types.values()))]
    if wrong:
        raise DeclarationError(
            f"{what}: parameter {wrong[0]} is {types[wrong[0]]}; all parameters of a module are float32, or all float64"
        )
    for name, buffer in module.named_buffers():
        if buffer.dtype not in _FLOATS | _BUFFER_TYPES:
            raise DeclarationError(f"{what}: buffer {name} is {buffer.dtype}; use float32, or integers")


def are_finite(*arrays: Any) -> bool:
    """Whether all values of all arrays are finite numbers.

    The sum of squares is not finite if a value is not, and takes half of the time. Large values may overflow it.
    """
    for array in arrays:  # noqa: SIM110  # a generator would take longer than the arithmetic
        if not (math.isfinite(np.vdot(array, array)) or np.isfinite(array).all()):
            return False
    return True


@contextmanager
def running(what: str) -> Iterator[None]:
    """Context in which code of `what`, such as a module's forward pass, runs.

    Raises:
        ModelError: the code raised another error than those of Headrace.
    """
    try:
        yield
    except HeadraceError:
        raise
    except Exception as exc:
        raise ModelError(f"{what} failed: {type(exc).__name__}: {exc}") from exc
