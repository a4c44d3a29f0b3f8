"""Numbers as few bytes: LEB128 varints, zigzag for signs, and a float form that stores whole numbers as varints.

A writer that finds no room in `out` only moves the position: a position past the end tells how much room is needed.
A reader never leaves `data[:end]`: it returns position -1 where bytes run out, and every reader passes a -1 on.
"""

import numpy as np

from headrace.features.kernels.compile import Bytes, Int, part

_WHOLE_MAX = 2.0**53
_RAW, _NOTHING = np.uint8(1), np.uint8(3)


@part
def put_byte(out: Bytes, at: Int, byte: Int) -> Int:
    """Write one byte; returns the next position."""
    if at < out.size:
        out[at] = byte
    return at + 1


@part
def put_varint(out: Bytes, at: Int, value: np.uint64) -> Int:
    """Write an unsigned number, 7 bits a byte, low bits first."""
    while value >= np.uint64(128):
        at = put_byte(out, at, np.uint8((value & np.uint64(127)) | np.uint64(128)))
        value >>= np.uint64(7)
    return put_byte(out, at, np.uint8(value))


@part
def put_signed(out: Bytes, at: Int, value: Int) -> Int:
    """Write a signed number: zigzag, then varint."""
    return put_varint(out, at, np.uint64((value << np.int64(1)) ^ (value >> np.int64(63))))


@part
def put_word(out: Bytes, at: Int, value: Int) -> Int:
    """Write 8 bytes, little-endian."""
    if at + 8 <= out.size:
        for j in range(8):
            out[at + j] = np.uint8((value >> np.int64(8 * j)) & np.int64(255))
    return at + 8


@part
def put_bits(out: Bytes, at: Int, bits: Int, value: float) -> Int:
    """Write a float64 given with its bits: 2 * zigzag as a varint when it is whole, else byte 1 and the bits."""
    if abs(value) < _WHOLE_MAX and value == np.floor(value) and (value != 0.0 or bits == 0):
        whole = np.int64(value)
        zigzag = np.uint64((whole << np.int64(1)) ^ (whole >> np.int64(63)))
        return put_varint(out, at, zigzag << np.uint64(1))
    return put_word(out, put_byte(out, at, _RAW), bits)


@part
def put_nothing(out: Bytes, at: Int) -> Int:
    """Write the mark of a cell that holds nothing."""
    return put_byte(out, at, _NOTHING)


@part
def get_varint(data: Bytes, at: Int, end: Int) -> tuple[np.uint64, Int]:
    """Read an unsigned number: (value, next position or -1)."""
    value, shift = np.uint64(0), np.uint64(0)
    while 0 <= at < end and shift < np.uint64(70):
        byte = np.uint64(data[at])
        at += 1
        value |= (byte & np.uint64(127)) << shift
        if byte < np.uint64(128):
            return value, at
        shift += np.uint64(7)
    return np.uint64(0), -1


@part
def get_signed(data: Bytes, at: Int, end: Int) -> tuple[Int, Int]:
    """Read a signed number: (value, next position or -1)."""
    value, at = get_varint(data, at, end)
    return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1)), at


@part
def get_word(data: Bytes, at: Int, end: Int) -> tuple[Int, Int]:
    """Read 8 bytes, little-endian: (value, next position or -1)."""
    if at < 0 or at + 8 > end:
        return np.int64(0), -1
    value = np.uint64(0)
    for j in range(8):
        value |= np.uint64(data[at + j]) << np.uint64(8 * j)
    return np.int64(value), at + 8


@part
def get_number(data: Bytes, at: Int, end: Int) -> tuple[Int, float, Int]:
    """Read what `put_bits` or `put_nothing` wrote.

    Returns (form, number, next position or -1): form 0 a whole number in `number`, form 1 the bits are in the 8 bytes
    before the next position, form 2 nothing.
    """
    head, after = get_varint(data, at, end)
    if after < 0:
        return 0, 0.0, -1
    if head == np.uint64(_NOTHING):
        return 2, 0.0, after
    if head == np.uint64(_RAW):
        return 1, 0.0, (after + 8 if after + 8 <= end else -1)
    zigzag = head >> np.uint64(1)
    return 0, np.float64(np.int64(zigzag >> np.uint64(1)) ^ -np.int64(zigzag & np.uint64(1))), after
