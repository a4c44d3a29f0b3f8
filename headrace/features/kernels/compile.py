"""The one decorator of every compiled loop, so that the numeric policy is one line; and short names of array types.

Compiled code is cached on disk, runs without the GIL, keeps IEEE arithmetic (no fast math) and never raises on a
division. Call a kernel with the same dtypes and C-contiguous writable arrays every time: each new combination compiles
again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

P = ParamSpec("P")
R = TypeVar("R")
Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Bytes: TypeAlias = NDArray[np.uint8]
Int: TypeAlias = int | np.integer[Any]

_SOURCES = tuple(
    (path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(Path(__file__).parent.glob("*.py"))
)


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` at its first call."""
    return cast("Callable[P, R]", _compiled(function))


def lean_kernel(function: Callable[P, R]) -> Callable[P, R]:
    """A kernel that makes no arrays: those it gets need not be counted, which cost more than the work (measured)."""
    return cast("Callable[P, R]", _compiled(function, _nrt=False))


def part(function: Callable[P, R]) -> Callable[P, R]:
    """A lean kernel that is compiled into its callers: for what they do once an event or a byte."""
    return cast("Callable[P, R]", _compiled(function, _nrt=False, forceinline=True))


def _compiled(function: Callable[..., Any], **flags: bool) -> Any:
    compiled = njit(cache=True, nogil=True, error_model="numpy", **flags)(function)
    # Numba's cache looks at the file of the function alone: a part that changed in another file would live on in it.
    cache_file = compiled._cache._cache_file  # noqa: SLF001
    cache_file._source_stamp = (cache_file._source_stamp, _SOURCES)  # noqa: SLF001
    return compiled
