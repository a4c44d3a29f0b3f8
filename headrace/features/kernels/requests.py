"""Commands to Redis as bytes, many keys at a time: a loop in Python costs more than Redis takes to find them."""

from headrace.features.kernels.compile import Bytes, Int, Ints, lean_kernel, part

_DOLLAR, _CR, _LF, _ZERO = 36, 13, 10, 48
LENGTH_MAX = 27
"""Bytes of an argument beside its own."""


@lean_kernel
def put_keys(
    prefixes: Bytes,
    prefix_offsets: Ints,
    prefix: Ints,
    texts: Bytes,
    text_offsets: Ints,
    out: Bytes,
    ends: Ints,
) -> None:
    """Write n keys as arguments of a command into `out`; `ends` (n,) is where each ends.

    Key i is prefix number `prefix[i]`, `prefixes[prefix_offsets[p]:prefix_offsets[p + 1]]`, and the text i, cut the
    same way from `texts`.
    """
    at: Int = 0
    for i in range(prefix.size):
        begin, end = prefix_offsets[prefix[i]], prefix_offsets[prefix[i] + 1]
        first, last = text_offsets[i], text_offsets[i + 1]
        out[at] = _DOLLAR
        at = _put_digits(out, at + 1, end - begin + last - first)
        at = _put_line_end(out, at)
        for b in range(begin, end):
            out[at] = prefixes[b]
            at += 1
        for b in range(first, last):
            out[at] = texts[b]
            at += 1
        at = _put_line_end(out, at)
        ends[i] = at


@part
def _put_digits(out: Bytes, at: Int, number: Int) -> Int:
    """Write a whole number that is not negative; returns the next position."""
    size, rest = 1, number // 10
    while rest > 0:
        size += 1
        rest //= 10
    for place in range(at + size - 1, at - 1, -1):
        out[place] = _ZERO + number % 10
        number //= 10
    return at + size


@part
def _put_line_end(out: Bytes, at: Int) -> Int:
    out[at] = _CR
    out[at + 1] = _LF
    return at + 2
