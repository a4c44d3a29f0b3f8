"""Decorators and intrinsics for compiled loops, and short names of array types.

The compile options are set in one place. Compiled code is cached on disk, runs without the GIL, keeps IEEE arithmetic
(no fast math) and never raises on a division. Always call a kernel with the same dtypes and with C-contiguous writable
arrays, since each new combination is compiled anew.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeAlias, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from headrace.kernels.cache import compile_once

P = ParamSpec("P")
R = TypeVar("R")
Fields = TypeVar("Fields", bound=tuple[Any, ...])
Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
Bytes: TypeAlias = NDArray[np.uint8]
Int: TypeAlias = int | np.integer[Any]
Float: TypeAlias = Any
"""An element of an array of floats, which mypy does not distinguish from an array."""

LINE_WORDS = 8
"""Words of a cache line, the unit of a prefetch."""


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile `function` at its first call, see the module docstring."""
    return cast("Callable[P, R]", _compiled(function))


def lean_kernel(function: Callable[P, R]) -> Callable[P, R]:
    """A kernel that allocates no arrays. It counts no references, which cost more than the work (measured)."""
    return cast("Callable[P, R]", _compiled(function, _nrt=False))


def part(function: Callable[P, R]) -> Callable[P, R]:
    """A lean kernel that is inlined into its callers, for work done per event or per byte."""
    return cast("Callable[P, R]", _compiled(function, _nrt=False, forceinline=True))


def interpreted(compiled: Callable[P, R]) -> Callable[P, R]:
    """The Python function of a kernel.

    For the few calls made by declarations, since the first compiled call of a process takes 0.6 s, in which numba loads
    its registries.
    """
    return cast("Callable[P, R]", cast("Any", compiled).py_func)


def plain(fields: Fields) -> Fields:
    """Convert a named tuple to the plain tuple that kernels take; the static type stays, so that calls are checked.

    Numba looks up the type of a plain tuple in C, that of a named one in Python, which costs some 2 us per tuple
    (measured). The kernel restores the names in its first line: `blocks = Blocks(*blocks)`.
    """
    return cast("Fields", tuple(fields))


def _element(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Pointer to the element of a C-contiguous array; array and flat index are the first two arguments."""
    array_type, index_type = signature.args[:2]
    made = context.make_array(array_type)(context, builder, arguments[0])
    return builder.gep(made.data, [context.cast(builder, arguments[1], index_type, types.intp)])


@intrinsic
def prefetch(_context: Any, array: Any, index: Any) -> Any:
    """In a kernel: prefetch the element at flat `index` of a C-contiguous array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _element(context, builder, signature, arguments)
        pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, number, number, number])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        to_read, stay, data = (ir.Constant(number, value) for value in (0, 3, 1))
        builder.call(fetch, [builder.bitcast(place, pointer), to_read, stay, data])
        return context.get_dummy_value()

    return types.void(array, index), generate


@intrinsic
def load_word(_context: Any, data: Any, at: Any) -> Any:
    """In a kernel: the 8 bytes `data[at:at + 8]` as a little-endian uint64. They must be inside the array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _element(context, builder, signature, arguments)
        return builder.load(builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(data, at), generate


@intrinsic
def store_word(_context: Any, data: Any, at: Any, word: Any) -> Any:
    """In a kernel: write a uint64 to the 8 bytes `data[at:at + 8]`, little-endian. They must be inside the array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _element(context, builder, signature, arguments)
        value = context.cast(builder, arguments[2], signature.args[2], types.uint64)
        builder.store(value, builder.bitcast(place, ir.IntType(64).as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(data, at, word), generate


@intrinsic
def reverse_eight(_context: Any, words: Any, begin: Any, out: Any, at: Any) -> Any:
    """In a kernel: copy `words[begin:begin + 8]`, in reverse, to `out[at:at + 8]`. Both must be inside the arrays."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def place(array: int, index: int) -> Any:
            made = context.make_array(signature.args[array])(context, builder, arguments[array])
            at = context.cast(builder, arguments[index], signature.args[index], types.intp)
            return builder.bitcast(builder.gep(made.data, [at]), eight.as_pointer())

        eight = ir.VectorType(ir.IntType(64), 8)
        last_first = ir.Constant(ir.VectorType(ir.IntType(32), 8), list(range(7, -1, -1)))
        eight_words = builder.load(place(0, 1), align=8)
        builder.store(builder.shuffle_vector(eight_words, eight_words, last_first), place(2, 3), align=8)
        return context.get_dummy_value()

    return types.void(words, begin, out, at), generate


@intrinsic
def copy_bytes(_context: Any, data: Any, begin: Any, out: Any, at: Any, size: Any) -> Any:
    """In a kernel: copy `data[begin:begin + size]` to `out[at:at + size]`. Both must be inside the arrays."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def place(array: int, index: int) -> Any:
            made = context.make_array(signature.args[array])(context, builder, arguments[array])
            return builder.gep(made.data, [wide(index)])

        def wide(index: int) -> Any:
            return context.cast(builder, arguments[index], signature.args[index], types.intp)

        cgutils.raw_memcpy(builder, place(2, 3), place(0, 1), wide(4), 1)
        return context.get_dummy_value()

    return types.void(data, begin, out, at, size), generate


def _compiled(function: Callable[..., Any], **flags: bool) -> Any:
    return compile_once(njit(cache=True, nogil=True, error_model="numpy", **flags)(function))
