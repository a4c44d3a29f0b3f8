"""The threads that carry out a large batch: its operations are sorted by entity, so a cut between two entities is safe.

operations   a1 a2 b1 c1 c2 c3 | d1 e1 e2 f1
             thread 1            thread 2      each touches rows of the slab that are its own; kernels hold no lock
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
"""Environment variable: threads of the kernels; without it one a core, at most 8."""
PART_MIN = 32_768
"""Operations of a part: smaller ones cost more in hand-over than they save."""
PARTS_A_THREAD = 3
"""Parts for each thread, who takes the next when done with one: cores are also others', and halves would be waited for.
"""
_DEFAULT_MAX = 8
THREADS_MAX = 1_024


@functools.cache
def thread_count() -> int:
    """How many threads kernels may use.

    Raises:
        ConfigError: HEADRACE_THREADS is no whole number from 1 to 1024.
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
    """Begin and end of parts of the sorted `rows` (n,) that share no row, as many as pay; none is empty."""
    parts = min(PARTS_A_THREAD * thread_count(), len(rows) // PART_MIN) if thread_count() > 1 else 1
    if parts < 2:
        return [(0, len(rows))]
    cuts = np.searchsorted(rows, rows[[len(rows) * part // parts for part in range(1, parts)]]).tolist()
    return [pair for pair in pairwise([0, *cuts, len(rows)]) if pair[0] < pair[1]]


def run_all(works: Sequence[Callable[[], T]]) -> list[T]:
    """What each of `works` returns, carried out side by side; none may need that another has begun."""
    helpers = min(thread_count(), len(works)) - 1
    if helpers < 1:
        return [work() for work in works]
    results: dict[int, T] = {}
    to_come = iter(enumerate(works))

    def carry_out() -> None:
        for number, work in to_come:  # the interpreter hands each out once
            results[number] = work()

    waiting = [_pool().submit(carry_out) for _ in range(helpers)]
    try:
        carry_out()
    finally:  # whatever happened: what they work on must not be used meanwhile
        wait([helper for helper in waiting if not helper.cancel()])
    for helper in waiting:
        if not helper.cancelled():
            helper.result()
    return [results[number] for number in range(len(works))]


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_count(), thread_name_prefix="headrace-kernel")
