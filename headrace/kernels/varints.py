"""Numbers in few bytes: LEB128 varints, zigzag for signs. For columns of numbers see kernels/bit_columns.py.

A writer without room in `out` only advances the position: a position past the end tells how much room is needed. A
reader never leaves `data[:end]`: it returns position -1 if the bytes end early, and every reader passes on a -1.
"""

import numpy as np
from numba.cpython.unsafe.numbers import leading_zeros, trailing_zeros

from headrace.kernels.bit_columns import unzigzag, zigzag
from headrace.kernels.compile import Bytes, Int, lean_kernel, load_word, part, store_word

_MORE, _MORES, _ALL = np.uint64(0x80), np.uint64(0x8080808080808080), np.uint64(0xFFFFFFFFFFFFFFFF)
_EIGHT_MAX = np.uint64(2**56 - 1)


@part
def put_byte(out: Bytes, at: Int, byte: Int) -> Int:
    """Write one byte; returns the next position."""
    if at < out.size:
        out[at] = byte
    return at + 1


@part
def put_varint(out: Bytes, at: Int, value: np.uint64) -> Int:
    """Write an unsigned number, 7 bits per byte, low bits first.

    With enough room, 8 bytes are stored at once; the next write overwrites those beyond the number.
    """
    if value >= np.uint64(128) and value <= _EIGHT_MAX and at + 8 <= out.size:
        size = (np.uint64(70) - leading_zeros(value)) // np.uint64(7)
        store_word(out, at, _apart(value) | (_MORES & (_ALL >> (np.uint64(72) - (size << np.uint64(3))))))
        return at + np.int64(size)
    while value >= np.uint64(128):
        at = put_byte(out, at, np.uint8((value & np.uint64(127)) | np.uint64(128)))
        value >>= np.uint64(7)
    return put_byte(out, at, np.uint8(value))


@part
def put_signed(out: Bytes, at: Int, value: Int) -> Int:
    """Write a signed number: zigzag, then varint."""
    return put_varint(out, at, zigzag(value))


@part
def put_word(out: Bytes, at: Int, value: Int) -> Int:
    """Write 8 bytes, little-endian."""
    if at + 8 <= out.size:
        store_word(out, at, np.uint64(value))
    return at + 8


@part
def put_half(out: Bytes, at: Int, value: Int) -> Int:
    """Write a signed 32-bit number as 4 bytes, little-endian."""
    if at + 4 <= out.size:
        for j in range(4):
            out[at + j] = np.uint8((value >> np.int64(8 * j)) & np.int64(255))
    return at + 4


@part
def get_varint(data: Bytes, at: Int, end: Int) -> tuple[np.uint64, Int]:
    """Read an unsigned number: (value, next position or -1).

    Up to 8 bytes are read at once, since a loop over bytes would mispredict the branch at the end of a number.
    """
    if not 0 <= at < end:
        return np.uint64(0), -1
    if at + 8 <= data.size:
        word = load_word(data, at)
        if word & _MORE == np.uint64(0):  # most numbers take one byte
            return word & np.uint64(127), at + 1
        stops = ~word & _MORES
        if stops != np.uint64(0):
            last = trailing_zeros(stops)  # the number's last bit is the one below
            at += np.int64(last >> np.uint64(3)) + 1
            if at > end:
                return np.uint64(0), -1
            return _joined(word & (_ALL >> (np.uint64(63) - last))), at
    return _get_bytes(data, at, end)


@part
def _joined(word: np.uint64) -> np.uint64:
    """Join the low 7 bits of each byte."""
    word = (word & np.uint64(0x007F007F007F007F)) | ((word & np.uint64(0x7F007F007F007F00)) >> np.uint64(1))
    word = (word & np.uint64(0x00003FFF00003FFF)) | ((word & np.uint64(0x3FFF00003FFF0000)) >> np.uint64(2))
    return (word & np.uint64(0x0FFFFFFF)) | ((word & np.uint64(0x0FFFFFFF00000000)) >> np.uint64(4))


@part
def _apart(value: np.uint64) -> np.uint64:
    """Spread a number of 56 bits over 8 bytes, 7 bits each: the inverse of `_joined`."""
    word = (value & np.uint64(0x0FFFFFFF)) | ((value << np.uint64(4)) & np.uint64(0x0FFFFFFF00000000))
    word = (word & np.uint64(0x00003FFF00003FFF)) | ((word << np.uint64(2)) & np.uint64(0x3FFF00003FFF0000))
    return (word & np.uint64(0x007F007F007F007F)) | ((word << np.uint64(1)) & np.uint64(0x7F007F007F007F00))


@lean_kernel
def _get_bytes(data: Bytes, at: Int, end: Int) -> tuple[np.uint64, Int]:
    """Read an unsigned number byte by byte, for numbers of more than 8 bytes or at the end of the data."""
    value, shift = np.uint64(0), np.uint64(0)
    while at < end and shift < np.uint64(70):
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
    return unzigzag(value), at


@part
def get_word(data: Bytes, at: Int, end: Int) -> tuple[Int, Int]:
    """Read 8 bytes, little-endian: (value, next position or -1)."""
    if at < 0 or at + 8 > end:
        return np.int64(0), -1
    return np.int64(load_word(data, at)), at + 8


@part
def get_half(data: Bytes, at: Int, end: Int) -> tuple[Int, Int]:
    """Read a signed 32-bit number from 4 bytes, little-endian: (value, next position or -1)."""
    if at < 0 or at + 4 > end:
        return np.int64(0), -1
    if at + 8 <= data.size:
        return np.int64(load_word(data, at) << np.uint64(32)) >> np.int64(32), at + 4
    value = np.uint64(0)
    for j in range(4):
        value |= np.uint64(data[at + j]) << np.uint64(8 * j + 32)
    return np.int64(value) >> np.int64(32), at + 4
