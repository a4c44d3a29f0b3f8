"""Operations put in the order of their entities: a stable radix sort by slab row, and the columns that follow it."""

import numpy as np

from headrace.kernels.compile import Bytes, Int, Ints, lean_kernel

DIGIT_BITS = 11
"""2,048 counters of a pass stay in the first-level cache."""
_INDEX = np.int64(0xFFFFFFFF)


@lean_kernel
def sort_by_row(rows: Ints, first: Ints, order: Ints, to_rows: Ints, other: Ints, counts: Ints) -> None:
    """`order` (n,) becomes the indexes that sort rows (n,), -1 <= row < 2**31, stably, to_rows (n,) the rows so sorted.

    n < 2**32. What is equal keeps the order `first` (n,), or with none of it the one it has. `other` (n,) and `counts`
    (2**DIGIT_BITS,) are scratch. Knuth, The Art of Computer Programming 3, 5.2.5: least significant digit first. Row
    and index travel in one word, so each pass reads and writes 8 bytes a row.
    """
    highest: Int = 0
    for i in range(rows.size):
        index = first[i] if first.size > 0 else i
        order[i] = ((rows[index] + 1) << np.int64(32)) | index
        highest = max(highest, rows[i] + 1)
    bits = 1
    while highest >> bits:
        bits += 1
    passes = (bits + DIGIT_BITS - 1) // DIGIT_BITS
    width = (bits + passes - 1) // passes
    mask = np.int64((1 << width) - 1)
    source, target = order, other
    for digit in range(passes):
        shift = np.int64(32 + digit * width)
        counts[: 1 << width] = 0
        for i in range(rows.size):
            counts[(source[i] >> shift) & mask] += 1
        start: Int = 0
        for value in range(1 << width):
            count = counts[value]
            counts[value] = start
            start += count
        for i in range(rows.size):
            value = (source[i] >> shift) & mask
            target[counts[value]] = source[i]
            counts[value] += 1
        source, target = target, source
    for i in range(rows.size):
        to_rows[i] = (source[i] >> np.int64(32)) - 1
        order[i] = source[i] & _INDEX


@lean_kernel
def gather_operations(order: Ints, ops: Ints, to_ops: Ints, source: Ints) -> None:
    """Write the operations ops (n,) in `order` (n,), their events numbered anew as they come; reads keep their numbers.

    `source` (e + 1,) is which events they were; its last is scratch, so that none need be jumped over.
    """
    event: Int = np.int64(0)
    for i in range(order.size):
        op = ops[order[i]]
        source[event] = ~op
        to_ops[i] = ~event if op < 0 else op
        event += np.int64(op < 0)


@lean_kernel
def gather_words(order: Ints, words: Ints, out: Ints) -> None:
    """`out[i] = words[order[i]]`: rows of words (n, c). One column at a time keeps the reads of one loop in flight."""
    for c in range(words.shape[1]):
        for i in range(order.size):
            out[i, c] = words[order[i], c]


@lean_kernel
def gather_bytes(order: Ints, source: Bytes, out: Bytes) -> None:
    """`out[i] = source[order[i]]`: rows of source (n, c)."""
    for i in range(order.size):
        for c in range(source.shape[1]):
            out[i, c] = source[order[i], c]


@lean_kernel
def scatter_late(source: Ints, found: Bytes, late: Bytes) -> None:
    """`late[source[i]] = found[i]` where it is set."""
    for i in range(source.size):
        if found[i] != 0:
            late[source[i]] = found[i]
