"""A disk cache of compiled code: one process at a time compiles a kernel, and only if its behaviour has changed.

Numba keys its cache on the file of a function. That is too much, since a changed comment recompiles a whole file, and
too little, since code inlined from another file is not recompiled. Here the key is a fingerprint of the function's
bytecode, of the constants it reads and of the functions it calls, wherever they are defined.

Processes that start together, such as workers, replicas or tests, would all miss the cache and compile the same
kernels, some seconds each. So a process that misses takes the kernel's lock and checks the cache again before it
compiles; the others wait for the lock and load the result. A kernel that calls other kernels takes their locks while it
holds its own. There are no call cycles, so there is no deadlock.
"""

import contextlib
import fcntl
import hashlib
import inspect
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import IO, Any

from numba import types
from numba.core.dispatcher import Dispatcher
from numba.core.runtime import rtsys
from numba.extending import _Intrinsic as Intrinsic

_LIBRARIES = ("math", "numba", "numpy")
"""Libraries whose functions change only with their version, which Numba's own key covers."""
_MOVED = (ImportError, AttributeError)
"""Raised by pickle for a missing module, or for a class missing in its module."""


def compile_once(dispatcher: Any) -> Any:
    """Make a dispatcher of `numba.njit(cache=True)` share its compiled code with other processes; returns it.

    A kernel that calls it with a literal integer uses the code for any integer, whereas Numba would compile one version
    for each literal. LLVM still sees the literal if the callee is inlined.
    """
    dispatcher._cache = _SharedCache(dispatcher._cache, dispatcher)  # noqa: SLF001
    typed_call = dispatcher.get_call_template

    def untied_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return typed_call(
            tuple(map(types.unliteral, args)), {key: types.unliteral(kind) for key, kind in kwargs.items()}
        )

    dispatcher.get_call_template = untied_call
    return dispatcher


def fingerprint(function: Any) -> str:
    """SHA-256 of what determines compiled code: bytecode and flags, the constants it reads, the functions it calls.

    Names of variables, line numbers, comments and docstrings do not affect it. An intrinsic counts by its source text.
    """
    digest = hashlib.sha256()
    for line in _facts(function, set()):
        digest.update(line.encode() + b"\n")
    return digest.hexdigest()


class _SharedCache:
    """Numba's cache of one function, with a lock: a load that misses holds it until the save or the next load."""

    def __init__(self, cache: Any, dispatcher: Any) -> None:
        self._cache, self._dispatcher = cache, dispatcher
        self._lock: IO[bytes] | None = None
        self._is_stamped = False

    def load_overload(self, signature: Any, context: Any) -> Any:
        """The compiled code on disk for the signature; None if the caller must compile it."""
        self._release()
        self._stamp()
        compiled = self._load(signature, context)
        if compiled is None and self._acquire():
            compiled = self._load(signature, context)
            if compiled is not None:
                self._release()
        return compiled

    def _load(self, signature: Any, context: Any) -> Any:
        """The compiled code, None if there is none or if it refers to a module or class that has moved.

        Code may refer to a moved class although the fingerprint is unchanged. Numba's own `load_overload` first imports
        everything its compiler may need, which takes a second or more at the start of a process; compiled code needs
        only the runtime's reference counting.
        """
        rtsys.initialize(context)
        try:
            with self._cache._guard_against_spurious_io_errors():  # noqa: SLF001
                return self._cache._load_overload(signature, context)  # noqa: SLF001
        except _MOVED:
            return None

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Write compiled code for all processes."""
        try:
            self._cache.save_overload(signature, compiled)
        except _MOVED:  # the cache's index refers to a moved class, so all code listed in it is outdated
            self._cache.flush()
            self._cache.save_overload(signature, compiled)
        finally:
            self._release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def _stamp(self) -> None:
        """Key the files on the fingerprint. Not before the first load, since a kernel may call one defined below it."""
        if self._is_stamped:
            return
        function = self._dispatcher.py_func
        name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}".replace("<", "").replace(">", "")
        files = self._cache._cache_file  # noqa: SLF001
        files._source_stamp = fingerprint(self._dispatcher)  # noqa: SLF001
        base = f"{name}.{self._cache._impl.filename_base.rpartition('.')[2]}"  # noqa: SLF001 - its end names the Python
        files._index_name, files._data_name_pattern = f"{base}.nbi", f"{base}.{{number:d}}.nbc"  # noqa: SLF001
        files._index_path = str(Path(files._cache_path, files._index_name))  # noqa: SLF001
        self._lock_path = Path(files._cache_path, f"{base}.lock")  # noqa: SLF001
        self._is_stamped = True

    def _acquire(self) -> bool:
        """Take the lock; False if its file cannot be created, in which case each process compiles for itself."""
        with contextlib.suppress(OSError):
            self._lock_path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._lock_path.open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self._lock is not None

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _facts(value: Any, seen: set[int]) -> list[str]:
    """Lines that describe a value used by compiled code; a function in `seen` is described by its name only."""
    if isinstance(value, Dispatcher):
        return [repr(sorted(value.targetoptions.items(), key=str)), *_facts(value.py_func, seen)]
    if isinstance(value, Intrinsic):
        return [inspect.getsource(value._defn)]  # noqa: SLF001
    if isinstance(value, type) and hasattr(value, "_fields"):
        return _field_facts(value)
    if not isinstance(value, FunctionType):
        return [repr(value) if not hasattr(value, "tobytes") else f"{value.dtype} {value.tobytes().hex()}"]
    if id(value) in seen:
        return [value.__qualname__]
    seen.add(id(value))
    lines = [repr(value.__defaults__)]
    lines += [line for hint in value.__annotations__.values() for line in _field_facts(hint)]
    lines += [line for cell in value.__closure__ or () for line in _facts(cell.cell_contents, seen)]
    for code in _codes(value.__code__):
        constants = [constant for constant in code.co_consts if not isinstance(constant, CodeType)]
        if constants and constants[0] == value.__doc__:
            constants = constants[1:]
        lines += [code.co_code.hex(), repr(constants), repr(code.co_names)]
        for name in code.co_names:
            if name in value.__globals__:
                lines += _global_facts(value.__globals__[name], code, seen)
    return lines


def _field_facts(hint: Any) -> list[str]:
    """A line about a named tuple class, whose fields compiled code reads by position; no line for other hints."""
    return [f"{hint.__qualname__}{hint._fields}"] if hasattr(hint, "_fields") else []


def _global_facts(value: Any, code: CodeType, seen: set[int]) -> list[str]:
    """Lines about a global; for a module of ours, about the members that the code names."""
    if not isinstance(value, ModuleType):
        return _facts(value, seen)
    if value.__name__.partition(".")[0] in _LIBRARIES:
        return [value.__name__]
    return [line for name in code.co_names if hasattr(value, name) for line in _facts(getattr(value, name), seen)]


def _codes(code: CodeType) -> list[CodeType]:
    """The code of a function and of its nested functions."""
    return [code, *(inner for const in code.co_consts if isinstance(const, CodeType) for inner in _codes(const))]
