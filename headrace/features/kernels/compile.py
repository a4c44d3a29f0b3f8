"""The one decorator of every compiled loop, so that the numeric policy is one line.

Compiled code is cached on disk, runs without the GIL, keeps IEEE arithmetic (no fast math) and never raises on a division.
Call a kernel with the same dtypes and C-contiguous writable arrays every time: each new combination compiles again.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

from numba import njit

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` at its first call."""
    return cast("Callable[P, R]", njit(cache=True, nogil=True, error_model="numpy")(function))
