r"""Redis's protocol (RESP2) for many keys at a time: packed requests, and replies as spans of one buffer.

    request    $<length>\r\n<key>\r\n ...                  written by kernels: a loop in Python takes longer than Redis
                                                           needs to look up the keys
    reply      *<n>\r\n$<length>\r\n<value>\r\n$-1\r\n ...      values stay in the buffer that the socket filled

redis-py would create 5,000 objects of half a kilobyte that are then joined again, which takes a tenth of a large read
(measured). A reply that is not an array of values, such as an error, is left to redis-py: `NotValuesError`.
"""

import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.features.keys import FEW, shard_of
from headrace.features.store.client import receive_into
from headrace.kernels.compile import Bytes, Int, Ints, copy_bytes, lean_kernel, part
from headrace.kernels.spans import Values, spans_of

LENGTH_MAX = 27
"""Maximum protocol bytes of an argument besides its own."""
PART_KEYS = 500
"""Keys in one MGET of a large read: Redis looks up the next part while one is decoded."""
FIRST_KEYS = 100, 200
"""Keys in the first MGETs of a large read, small so that decoding starts soon."""
NOT_VALUES = -2
_NOT_WHOLE, _WRONG = -3, -2
_STAR, _DOLLAR, _MINUS, _CR, _LF, _ZERO = b"*$-\r\n0"

_BUFFER_BYTES = 1 << 20
"""Initial bytes of the buffer: the values of one MGET and the bytes received after them."""
_READ_BYTES = 1 << 18
"""Maximum bytes per socket read."""

_BUFFERS = threading.local()


class NotValuesError(Exception):
    """The reply is not an array of values."""


def read_values(connection: Any, counts: Sequence[int]) -> Iterator[Values]:
    """Read the replies to MGETs of `counts` keys sent over a redis-py connection; a reply is valid until the next one.

    Raises:
        NotValuesError: a reply is something else; the connection must not be used any more, as after any error.
    """
    socket = connection._sock  # noqa: SLF001 - redis-py reads replies into objects only
    buffer, filled = _buffer(_BUFFER_BYTES), 0
    begin: Int = 0
    for count in counts:
        if len(buffer) - filled < _READ_BYTES:
            buffer[: filled - begin] = buffer[begin:filled].copy()
            begin, filled = 0, filled - begin
        starts, ends = np.empty(count, np.int64), np.empty(count, np.int64)
        count_read: Int = -1  # the head of the reply comes first
        while True:
            count_read, begin = scan_values(buffer, begin, filled, count_read, starts, ends)
            if count_read == NOT_VALUES:
                raise NotValuesError
            if count_read == count:
                break
            if filled == len(buffer):
                grown = _buffer(2 * len(buffer))
                grown[:filled] = buffer
                buffer = grown
            filled += receive_into(socket, buffer[filled : filled + _READ_BYTES].data)
        yield Values(buffer, starts, ends)


def _buffer(size: int) -> NDArray[np.uint8]:
    """This thread's buffer of at least `size` bytes, reused by the next reader on the thread."""
    buffer: NDArray[np.uint8] | None = getattr(_BUFFERS, "buffer", None)
    if buffer is None or len(buffer) < size:
        buffer = _BUFFERS.buffer = np.empty(size, np.uint8)
    return buffer


# Requests


def packed_mgets(
    prefixes: Sequence[bytes], ids: NDArray[np.int64], texts: Sequence[bytes]
) -> tuple[list[bytes], list[int]]:
    """Packed MGETs of up to `PART_KEYS` keys each, and the number of keys in each; prefixes are by shard."""
    shards = shard_of(ids, len(prefixes))
    if 0 < len(texts) <= FEW:  # a kernel call costs as much as a few keys
        keys_of_few = [prefixes[shard] + text for shard, text in zip(shards.tolist(), texts, strict=True)]
        packed_keys = b"".join([b"$%d\r\n%b\r\n" % (len(key), key) for key in keys_of_few])
        return [b"*%d\r\n$4\r\nMGET\r\n%b" % (len(keys_of_few) + 1, packed_keys)], [len(keys_of_few)]
    keys, heads = spans_of(texts), spans_of(prefixes)
    out = np.empty(len(keys.data) + (len(prefixes[-1]) + LENGTH_MAX) * len(texts), np.uint8)
    ends = np.zeros(len(texts) + 1, np.int64)
    put_keys(heads.data, heads.offsets, shards, keys.data, keys.offsets, out, ends[1:])
    packed = out[: ends[-1]].tobytes()
    starts = [0, *accumulate(FIRST_KEYS)] if len(texts) > PART_KEYS else [0]
    cuts = [*starts[:-1], *range(starts[-1], len(texts), PART_KEYS), len(texts)]
    counts = [end - start for start, end in pairwise(cuts)]
    names = {count: b"*%d\r\n$4\r\nMGET\r\n" % (count + 1) for count in set(counts)}
    parts = [packed[begin:end] for begin, end in pairwise(ends[cuts].tolist())]
    return [names[count] + part for count, part in zip(counts, parts, strict=True)], counts


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

    Key i is the prefix p = `prefix[i]`, `prefixes[prefix_offsets[p]:prefix_offsets[p + 1]]`, followed by text i of
    `texts`, delimited in the same way by `text_offsets`.
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

    Key i is `prefix` followed by `texts[text_offsets[i]:text_offsets[i + 1]]`; records are delimited in the same way in
    `blobs`. `head` is written before each pair and `tail` after it.
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
    """Write the line before an argument, which holds its size; returns the next position."""
    out[at] = _DOLLAR
    return _put_line_end(out, _put_digits(out, at + 1, size))


@part
def _put_digits(out: Bytes, at: Int, number: Int) -> Int:
    """Write a non-negative integer; returns the next position."""
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


# Replies


@lean_kernel
def scan_values(data: Bytes, at: Int, end: Int, count_read: Int, starts: Ints, ends: Ints) -> tuple[Int, Int]:
    """Find the values in `data[at:end]`, a reply of n values, or the rest of it after `count_read` values.

    `count_read` is -1 before the reply's head. Writes `starts[i]`, -1 for a missing value, and `ends[i]` (n,). Returns
    the number of values read so far, or NOT_VALUES if the bytes are not such a reply, and where the next value begins.
    """
    if count_read < 0:
        number, after = _number(data, at, end, _STAR)
        if number == _NOT_WHOLE:
            return np.int64(-1), at
        if number != starts.size:
            return np.int64(NOT_VALUES), at
        count_read, at = np.int64(0), after
    while count_read < starts.size:
        size, after = _number(data, at, end, _DOLLAR)
        if size == _NOT_WHOLE or (size >= 0 and after + size + 2 > end):
            break
        if size == _WRONG:
            return np.int64(NOT_VALUES), at
        starts[count_read] = after if size >= 0 else -1
        ends[count_read] = after + max(size, 0)
        at = after + size + 2 if size >= 0 else after
        count_read += 1
    return count_read, at


@part
def _number(data: Bytes, at: Int, end: Int, mark: Int) -> tuple[Int, Int]:
    """The number in the line at `at`, which starts with `mark`, and where the next line begins.

    A negative number is returned as -1. The number is _NOT_WHOLE if the line is incomplete, _WRONG if it is not such a
    line.
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
