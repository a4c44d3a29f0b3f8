"""Run a large batch on several threads. Its operations are sorted by entity, so it can be cut between two entities.

operations   a1 a2 b1 c1 c2 c3 | d1 e1 e2 f1
             thread 1            thread 2      threads access disjoint rows of the slab; kernels hold no lock
"""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from headrace.errors import ConfigError

T = TypeVar("T")
VARIABLE = "HEADRACE_THREADS"
"""Environment variable: number of kernel threads; by default one per core, at most 8."""
PART_MIN = 32_768
"""Minimum operations per part; for smaller parts the hand-over costs more than it saves."""
PARTS_A_THREAD = 3
"""Parts per thread. A thread takes the next part when it is done: with one part per thread, all would wait for the
slowest, since other processes share the cores.
"""
_DEFAULT_MAX = 8
THREADS_MAX = 1_024


@functools.cache
def thread_count() -> int:
    """Number of threads that kernels may use.

    Raises:
        ConfigError: HEADRACE_THREADS is not an integer from 1 to 1024.
    """
    given = os.environ.get(VARIABLE, "")
    if not given:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, _DEFAULT_MAX)
    if not given.isdecimal() or not 1 <= int(given) <= THREADS_MAX:
        raise ConfigError(
            f"{VARIABLE}={given!r}: give a whole number from 1 to {THREADS_MAX}, or leave it unset for one a core"
        )
    return int(given)


def cut_parts(rows: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Cut sorted `rows` (n,) into non-empty parts [begin, end) that share no row, as many as are worthwhile."""
    parts = min(PARTS_A_THREAD * thread_count(), len(rows) // PART_MIN) if thread_count() > 1 else 1
    if parts < 2:
        return [(0, len(rows))]
    cuts = np.searchsorted(rows, rows[[len(rows) * part // parts for part in range(1, parts)]]).tolist()
    return [pair for pair in pairwise([0, *cuts, len(rows)]) if pair[0] < pair[1]]


def run_all(works: Sequence[Callable[[], T]]) -> list[T]:
    """Run `works` in parallel and return their results. No work may wait for another to start."""
    helpers = min(thread_count(), len(works)) - 1
    if helpers < 1:
        return [work() for work in works]
    results: dict[int, T] = {}
    remaining = iter(enumerate(works))

    def carry_out() -> None:
        for number, work in remaining:  # the GIL ensures that each is taken once
            results[number] = work()

    waiting = [_pool().submit(carry_out) for _ in range(helpers)]
    try:
        carry_out()
    finally:  # even after an error, since the caller must not use the arrays while they are being written
        wait([helper for helper in waiting if not helper.cancel()])
    for helper in waiting:
        if not helper.cancelled():
            helper.result()
    return [results[number] for number in range(len(works))]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_count(), thread_name_prefix="headrace-kernel")
