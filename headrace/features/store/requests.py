"""Commands to Redis as bytes, many keys at a time: a loop in Python costs more than Redis takes to find them."""

from headrace.kernels.compile import Bytes, Int, Ints, copy_bytes, lean_kernel, part

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
        at = _put_key(prefixes, begin, end, texts, text_offsets[i], text_offsets[i + 1], out, at)
        ends[i] = at


@lean_kernel
def put_records(
    prefix: Bytes,
    texts: Bytes,
    text_offsets: Ints,
    blobs: Bytes,
    blob_offsets: Ints,
    head: Bytes,
    tail: Bytes,
    out: Bytes,
) -> Int:
    """Write n keys, each followed by its record, as arguments into `out`; returns where they end.

    Key i is `prefix` and `texts[text_offsets[i]:text_offsets[i + 1]]`, records are cut from `blobs` in the same way.
    `head` is put before each pair and `tail` behind.
    """
    at: Int = 0
    for i in range(text_offsets.size - 1):
        at = _put(head, 0, head.size, out, at)
        at = _put_key(prefix, 0, prefix.size, texts, text_offsets[i], text_offsets[i + 1], out, at)
        at = _put_size(out, at, blob_offsets[i + 1] - blob_offsets[i])
        at = _put_line_end(out, _put(blobs, blob_offsets[i], blob_offsets[i + 1], out, at))
        at = _put(tail, 0, tail.size, out, at)
    return at


@part
def _put_key(prefixes: Bytes, begin: Int, end: Int, texts: Bytes, first: Int, last: Int, out: Bytes, at: Int) -> Int:
    at = _put(prefixes, begin, end, out, _put_size(out, at, end - begin + last - first))
    return _put_line_end(out, _put(texts, first, last, out, at))


@part
def _put(data: Bytes, begin: Int, end: Int, out: Bytes, at: Int) -> Int:
    copy_bytes(data, begin, out, at, end - begin)
    return at + end - begin


@part
def _put_size(out: Bytes, at: Int, size: Int) -> Int:
    """Write the line before an argument."""
    out[at] = _DOLLAR
    return _put_line_end(out, _put_digits(out, at + 1, size))


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
