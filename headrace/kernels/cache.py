"""Compiled code on disk, which one process of a machine makes at a time.

Processes that start together, workers, replicas or tests, would all find nothing in Numba's cache and compile the same
kernels, some seconds each. Here a process that finds nothing takes the kernel's lock and looks again before it
compiles; the others wait for the lock and load what it made. A kernel that calls kernels takes their locks while it has
its own; calls have no circles, so waits have none.
"""

import contextlib
import fcntl
from pathlib import Path
from typing import IO, Any


def compile_once(dispatcher: Any) -> Any:
    """The same dispatcher of `numba.njit(cache=True)`, which waits for other processes that compile it."""
    dispatcher._cache = _LockedCache(dispatcher._cache)  # noqa: SLF001
    return dispatcher


class _LockedCache:
    """Numba's cache of one function: a load that finds nothing has the lock until the save, or the next load."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache
        self._lock: IO[bytes] | None = None

    def load_overload(self, signature: Any, context: Any) -> Any:
        """What is on disk for the signature, None: it is for the caller to compile."""
        self._release()
        found = self._cache.load_overload(signature, context)
        if found is None and self._acquire():
            found = self._cache.load_overload(signature, context)
            if found is not None:
                self._release()
        return found

    def save_overload(self, signature: Any, compiled: Any) -> None:
        """Write what was compiled, for everybody."""
        try:
            self._cache.save_overload(signature, compiled)
        finally:
            self._release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def _acquire(self) -> bool:
        """Whether the lock is ours; where its file cannot be made, each process compiles for itself."""
        path = Path(self._cache._cache_path, f"{self._cache._impl.filename_base}.lock")  # noqa: SLF001
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = path.open("wb")
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self._lock is not None

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
