"""The packed form of inputs, written by kernels for many requests at once into one buffer.

    head     magic 4 | fingerprint u64 | rows u32 | id fields u16 | dense fields u16 | bags u16
    fields   code u8 per id column: bytes of an id, or 0 if all rows are equal | flag u8 per dense column: 1 if it
             varies | ids that are equal in all rows, i64 | ids of 1, 2, 4 and 8 bytes, a block each, row by row
             | numbers that are equal in all rows, f32 | numbers that vary, row by row
    bag      declared width u16 | stored width u16 | 1 if one row applies to all | bytes of an id | its rows

All little-endian. The smallest number of a width encodes a missing id. In Python and NumPy a request of some rows costs
60 us, mostly call overhead; here it costs 1 us plus the time for its bytes.
"""

import struct

import numpy as np
from numpy.typing import NDArray

from headrace.features.state.record import join_sections
from headrace.kernels.compile import Bytes, Int, Ints, lean_kernel, part
from headrace.kernels.spans import Spans

MAGIC = b"HRI1"
MISSING_ID = -(2**63)
SHARED = 0
"""Code of an id or dense column whose rows are all equal, so that it is stored once."""

HEAD = struct.Struct("<4sQIHHH")
BAG_HEAD = struct.Struct("<HHBB")
"""The fixed part of the head and of a bag, as in the module docstring."""

_BITS_A_BYTE = 8
_MAGIC_WORD = np.int64(int.from_bytes(MAGIC, "little"))
_PAD = np.int64(MISSING_ID)


def pack_requests(
    ids: NDArray[np.int64],
    dense: NDArray[np.float32],
    bags: tuple[NDArray[np.int64], ...],
    fingerprint: str,
    picked: NDArray[np.int64],
    edges: NDArray[np.int64],
) -> Spans:
    """Pack n requests; request i has the rows `picked[edges[i]:edges[i + 1]]`.

    ids (B, F), dense (B, D), bags (B, L) each, fingerprint of 16 hex characters, picked (k,), edges (n + 1,).
    """
    count, fields, numbers = len(edges) - 1, ids.shape[1], dense.shape[1]
    bits = np.require(dense, np.float32, ["C", "W"]).view(np.int32)  # by bits: -0.0 and 0.0 differ
    shape = np.array([np.uint64(int(fingerprint, 16)).view(np.int64), fields, numbers, len(bags)])
    room = count * (HEAD.size + 9 * fields + 5 * numbers) + len(picked) * (8 * fields + 4 * numbers)
    codes = np.empty(max(fields, numbers), np.int64)
    sections = [(np.empty(room, np.uint8), np.zeros(count + 1, np.int64))]
    out, ends = sections[0]
    pack_fields(np.require(ids, np.int64, ["C", "W"]), bits, picked, edges, shape, codes, out, ends[1:])
    for bag in bags:
        is_one = len(bag) > 0 and bag.strides[0] == 0
        rows = np.require(bag[:1] if is_one else bag, np.int64, ["C", "W"])
        out = np.empty(count * BAG_HEAD.size + 8 * bag.shape[1] * len(picked), np.uint8)
        sections.append((out, np.zeros(count + 1, np.int64)))
        pack_bag(rows, np.zeros_like(picked) if is_one else picked, edges, out, sections[-1][1][1:])
    offsets = sum((ends for _, ends in sections), np.zeros(count + 1, np.int64))
    packed, at = np.empty(int(offsets[-1]), np.uint8), offsets[:-1].copy()
    for section, ends in sections:
        join_sections(section, ends[:-1], ends[1:], packed, at)
    return Spans(packed, offsets)


@lean_kernel
def pack_fields(
    ids: Ints, bits: NDArray[np.int32], picked: Ints, edges: Ints, shape: Ints, codes: Ints, out: Bytes, ends: Ints
) -> None:
    """Write head, ids and numbers of n requests into `out`, and where each ends into `ends` (n,).

    ids (B, F), bits (B, D) of float32, picked (k,), edges (n + 1,). `shape`: fingerprint, F, D and the count of bags.
    `codes` (at least F and D) is scratch.
    """
    at: Int = np.int64(0)
    for i in range(ends.size):
        first, last = edges[i], edges[i + 1]
        at = _put_number(out, at, _MAGIC_WORD, 4)
        at = _put_number(out, at, shape[0], 8)
        at = _put_number(out, at, last - first, 4)
        for j in range(1, 4):
            at = _put_number(out, at, shape[j], 2)
        for f in range(ids.shape[1]):
            codes[f] = _id_code(ids, f, picked, first, last)
            at = _put_number(out, at, codes[f], 1)
        flags = at
        at += bits.shape[1]
        for f in range(ids.shape[1]):
            if codes[f] == SHARED and last > first:
                at = _put_number(out, at, ids[picked[first], f], 8)
        width = 1
        while width <= 8:
            at = _put_ids(ids, codes, width, picked, first, last, out, at)
            width *= 2
        at = _put_floats(bits, codes, picked, first, last, flags, out, at)
        ends[i] = at


@lean_kernel
def pack_bag(bag: Ints, picked: Ints, edges: Ints, out: Bytes, ends: Ints) -> None:
    """Write one bag (B, L) of n requests into `out`, and where each ends into `ends` (n,)."""
    at: Int = np.int64(0)
    for i in range(ends.size):
        first, last = edges[i], edges[i + 1]
        is_shared = last > first and _are_equal(bag, picked, first, last)
        kept = first + 1 if is_shared else last
        used: Int = np.int64(0)
        width: Int = np.int64(1)
        for row in range(first, kept):
            for j in range(bag.shape[1]):
                number = bag[picked[row], j]
                if number != _PAD:
                    used, width = max(used, j + 1), max(width, _bytes_needed(number))
        at = _put_number(out, at, bag.shape[1], 2)
        at = _put_number(out, at, used, 2)
        at = _put_number(out, at, np.int64(is_shared), 1)
        at = _put_number(out, at, width, 1)
        for row in range(first, kept):
            for j in range(used):
                at = _put_id(out, at, bag[picked[row], j], width)
        ends[i] = at


@part
def _id_code(ids: Ints, field: Int, picked: Ints, first: Int, last: Int) -> Int:
    """SHARED if all rows of a column are equal, otherwise the bytes that an id needs."""
    needed: Int = np.int64(1)
    varies = False
    for row in range(first, last):
        number = ids[picked[row], field]
        varies |= number != ids[picked[first], field]
        if number != _PAD:
            needed = max(needed, _bytes_needed(number))
    return needed if varies else np.int64(SHARED)


@part
def _put_ids(ids: Ints, codes: Ints, width: Int, picked: Ints, first: Int, last: Int, out: Bytes, at: Int) -> Int:
    for row in range(first, last):
        for f in range(ids.shape[1]):
            if codes[f] == width:
                at = _put_id(out, at, ids[picked[row], f], width)
    return at


@part
def _put_floats(
    bits: NDArray[np.int32], codes: Ints, picked: Ints, first: Int, last: Int, flags: Int, out: Bytes, at: Int
) -> Int:
    """Write the numbers of one request, and at `flags` whether each column varies."""
    for d in range(bits.shape[1]):
        codes[d] = 0
        for row in range(first + 1, last):
            if bits[picked[row], d] != bits[picked[first], d]:
                codes[d] = 1
                break
        out[flags + d] = codes[d]
        if codes[d] == 0 and last > first:
            at = _put_number(out, at, np.int64(bits[picked[first], d]), 4)
    for row in range(first, last):
        for d in range(bits.shape[1]):
            if codes[d] == 1:
                at = _put_number(out, at, np.int64(bits[picked[row], d]), 4)
    return at


@part
def _are_equal(bag: Ints, picked: Ints, first: Int, last: Int) -> bool:
    for row in range(first + 1, last):
        if picked[row] != picked[first]:  # rows of a broadcast bag are all at one index
            for j in range(bag.shape[1]):
                if bag[picked[row], j] != bag[picked[first], j]:
                    return False
    return True


@part
def _bytes_needed(number: Int) -> Int:
    """1, 2, 4 or 8; the smallest number of each width is reserved for a missing id."""
    if -(1 << 7) < number < 1 << 7:
        return np.int64(1)
    if -(1 << 15) < number < 1 << 15:
        return np.int64(2)
    return np.int64(4) if -(1 << 31) < number < 1 << 31 else np.int64(8)


@part
def _put_id(out: Bytes, at: Int, number: Int, width: Int) -> Int:
    missing = -(np.int64(1) << np.int64(_BITS_A_BYTE * width - 1))
    return _put_number(out, at, missing if number == _PAD else number, width)


@part
def _put_number(out: Bytes, at: Int, number: Int, width: Int) -> Int:
    """Write the low `width` bytes, little-endian; returns the next position."""
    for i in range(width):
        out[at + i] = (number >> np.int64(_BITS_A_BYTE * i)) & 0xFF
    return at + width
