"""Redis's replies as bytes: where the values of an MGET are."""

import numpy as np

from headrace.kernels.compile import Bytes, Int, Ints, lean_kernel, part

NOT_VALUES = -2
_STAR, _DOLLAR, _MINUS, _CR, _ZERO = 42, 36, 45, 13, 48
_NOT_WHOLE, _WRONG = -3, -2


@lean_kernel
def scan_values(data: Bytes, at: Int, end: Int, found: Int, starts: Ints, ends: Ints) -> tuple[Int, Int]:
    """Find values in `data[at:end]`, a reply of n values or the rest of one of which `found` were found before.

    -1 were found where the reply has not begun. Writes `starts[i]`, -1 for a missing value, and `ends[i]` (n,). Returns
    how many are found by now, NOT_VALUES where the bytes are no such reply, and where the next one begins.
    """
    if found < 0:
        number, after = _number(data, at, end, _STAR)
        if number == _NOT_WHOLE:
            return np.int64(-1), at
        if number != starts.size:
            return np.int64(NOT_VALUES), at
        found, at = np.int64(0), after
    while found < starts.size:
        size, after = _number(data, at, end, _DOLLAR)
        if size == _NOT_WHOLE or (size >= 0 and after + size + 2 > end):
            break
        if size == _WRONG:
            return np.int64(NOT_VALUES), at
        starts[found] = after if size >= 0 else -1
        ends[found] = after + max(size, 0)
        at = after + size + 2 if size >= 0 else after
        found += 1
    return found, at


@part
def _number(data: Bytes, at: Int, end: Int, mark: Int) -> tuple[Int, Int]:
    """The number in the line at `at`, which begins with `mark`, -1 for any negative; and where the next line begins.

    _NOT_WHOLE where the line has no end yet, _WRONG where it is another.
    """
    if at >= end:
        return np.int64(_NOT_WHOLE), at
    if data[at] != mark:
        return np.int64(_WRONG), at
    number, negative = np.int64(0), False
    for place in range(at + 1, end - 1):
        byte = np.int64(data[place])
        if byte == _CR:
            return np.int64(-1) if negative else number, place + 2
        if byte == _MINUS:
            negative = True
        elif _ZERO <= byte < _ZERO + 10:
            number = 10 * number + byte - _ZERO
        else:
            return np.int64(_WRONG), at
    return np.int64(_NOT_WHOLE), at
