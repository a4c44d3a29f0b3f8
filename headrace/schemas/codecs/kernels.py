# ruff: noqa: PLR1714
# Numba compiles `==` chains to jumps but `in` to a tuple search.
"""Compiled parts that every wire format shares: nulls, capacity checks and gathering text.

All arrays are int64 unless said; `data` is uint8, the payloads of a batch one after another. Cost: 1-2 ns a byte.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compile import lean_kernel, part
from headrace.schemas.codecs.program import BYTES, DECIMAL, END, FIXED, LIST, OP, SLOT, SLOT_END, TEXT

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_BACKSLASH = 0x5C


class SlotArrays(NamedTuple):
    """The slots that a kernel fills: slot s is `out[bases[s] : bases[s] + counts[s]]`, with room for `capacities[s]`.

    A field has one slot or two, see `program`; `counts` grow as values are added.
    """

    out: Ints
    bases: Ints
    capacities: Ints
    counts: Ints


@part
def fill_null(ops: Ints, op: int, slots: SlotArrays) -> None:
    """Add the placeholder 0 to every slot of the subtree at `op`: Arrow's children have a value below a null, too."""
    out, bases, counts = slots.out, slots.bases, slots.counts
    i = op
    last = ops[op, END]
    while i < last:
        slot = ops[i, SLOT]
        out[bases[slot] + counts[slot]] = 0
        counts[slot] += 1
        if ops[i, OP] == TEXT or ops[i, OP] == BYTES or ops[i, OP] == FIXED or ops[i, OP] == DECIMAL:
            out[bases[slot + 1] + counts[slot + 1]] = 0
            counts[slot + 1] += 1
        i = ops[i, END] if ops[i, OP] == LIST else i + 1


@part
def has_capacity(ops: Ints, op: int, items: int, slots: SlotArrays) -> bool:
    """Whether `items` more items fit into the slots below the list at `op`."""
    for slot in range(ops[op, SLOT] + 1, ops[op, SLOT_END]):
        if slots.counts[slot] + items > slots.capacities[slot]:
            return False
    return True


@part
def hex_value(data: Bytes, start: int) -> int:
    """The number that four hex digits write, or -1."""
    value = 0
    for i in range(start, start + 4):
        c = data[i]
        if 0x30 <= c <= 0x39:
            digit = c - 0x30
        elif 0x41 <= (c & 0xDF) <= 0x46:
            digit = (c & 0xDF) - 0x37
        else:
            return -1
        value = value * 16 + int(digit)
    return value


@lean_kernel
def unescape(data: Bytes, start: int, end: int, out: Bytes, at: int) -> int:
    """Write the JSON text `data[start:end]`, known to be well-formed, to `out[at:]`; returns the end there."""
    i = start
    while i < end:
        c = data[i]
        if c != _BACKSLASH:
            out[at] = c
            at += 1
            i += 1
            continue
        c = data[i + 1]
        i += 2
        if c == 0x75:
            point = hex_value(data, i)
            i += 4
            if 0xD800 <= point <= 0xDBFF:
                point = 0x10000 + ((point - 0xD800) << 10) + (hex_value(data, i + 2) - 0xDC00)
                i += 6
            at = write_point(point, out, at)
            continue
        if c == 0x62:
            c = 0x08
        elif c == 0x66:
            c = 0x0C
        elif c == 0x6E:
            c = 0x0A
        elif c == 0x72:
            c = 0x0D
        elif c == 0x74:
            c = 0x09
        out[at] = c
        at += 1
    return at


@lean_kernel
def write_point(point: int, out: Bytes, at: int) -> int:
    """One code point as UTF-8 at `out[at:]`; returns its end."""
    if point < 0x80:
        out[at] = point
        return at + 1
    if point < 0x800:
        out[at] = 0xC0 | (point >> 6)
        out[at + 1] = 0x80 | (point & 0x3F)
        return at + 2
    if point < 0x10000:
        out[at] = 0xE0 | (point >> 12)
        out[at + 1] = 0x80 | ((point >> 6) & 0x3F)
        out[at + 2] = 0x80 | (point & 0x3F)
        return at + 3
    out[at] = 0xF0 | (point >> 18)
    out[at + 1] = 0x80 | ((point >> 12) & 0x3F)
    out[at + 2] = 0x80 | ((point >> 6) & 0x3F)
    out[at + 3] = 0x80 | (point & 0x3F)
    return at + 4


@part
def base64_value(c: int) -> int:
    """The six bits of a base64 letter (RFC 4648, sections 4 and 5: either alphabet), or -1."""
    if 0x41 <= c <= 0x5A:
        return c - 0x41
    if 0x61 <= c <= 0x7A:
        return c - 0x61 + 26
    if 0x30 <= c <= 0x39:
        return c - 0x30 + 52
    if c == 0x2B or c == 0x2D:
        return 62
    return 63 if c == 0x2F or c == 0x5F else -1


@lean_kernel
def decode_base64(out: Bytes, start: int, end: int) -> int:
    """Decode the base64 text `out[start:end]`, known to be well-formed, where it lies; returns the end of the bytes."""
    at = start
    bits = 0
    bit_count = 0
    for i in range(start, end):
        value = base64_value(int(out[i]))
        if value < 0:
            break
        bits = ((bits << 6) | value) & 0xFFFFFF
        bit_count += 6
        if bit_count >= 8:
            bit_count -= 8
            out[at] = (bits >> bit_count) & 0xFF
            at += 1
    return at


@lean_kernel
def gather_bytes(data: Bytes, starts: Ints, lengths: Ints, base64: bool, offsets: Ints, out: Bytes) -> int:
    """Copy the pieces of `data` to `out`, one after another; `offsets` (n + 1,) gets their bounds. Returns the size.

    A negative length -n - 1 is a piece of n bytes with JSON escapes. `base64`: the pieces are base64 text.
    """
    at = 0
    offsets[0] = 0
    for i in range(len(starts)):
        start, length = starts[i], lengths[i]
        piece = at
        if length < 0:
            at = unescape(data, start, start - length - 1, out, at)
        else:
            for j in range(length):
                out[at + j] = data[start + j]
            at += length
        if base64:
            at = decode_base64(out, piece, at)
        offsets[i + 1] = at
    return at
