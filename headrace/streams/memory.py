"""The allocator of a process that handles batch after batch of the same size.

glibc gives large freed blocks back to the system at once, so every batch would pay for its pages anew: a third of a
flow's time (measured). With these settings freed blocks up to 32 MiB, its limit, are kept and used again.
"""

import ctypes
import functools
import sys

import structlog

log = structlog.get_logger(__name__)

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_MIB = 1 << 20


@functools.cache
def keep_freed_memory() -> None:
    """Let this process keep freed blocks; nothing where the C library is not glibc. Asked again, it does nothing."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        log.debug("allocator_left_alone", reason="not glibc")
        return
    for parameter, value in ((_MMAP_THRESHOLD, 32 * _MIB), (_TRIM_THRESHOLD, 1024 * _MIB), (_TOP_PAD, 64 * _MIB)):
        libc.mallopt(parameter, value)
