"""Numbers as few bytes: LEB128 varints, zigzag for signs, and floats in the form that takes the least.

    head, a varint     the number is
    2 * zigzag(n)      n
    4 * zigzag(n) + 3  n / 100, the nearest float; n = 0 is no number: a cell that holds nothing
    4 * zigzag(n) + 1  n / 100 and some steps between floats, a zigzag varint that follows: sums of cents, with what
                       their rounding came to; n = 0: the 8 bytes of the float follow

A writer that finds no room in `out` only moves the position: a position past the end tells how much room is needed.
A reader never leaves `data[:end]`: it returns position -1 where bytes run out, and every reader passes a -1 on.
"""

import numpy as np
from numba.cpython.unsafe.numbers import leading_zeros, trailing_zeros

from headrace.features.kernels.compile import Bytes, Int, lean_kernel, load_word, part, store_word

_WHOLE_MAX = 2.0**53
_SCALE, _SCALED_MAX, _STEPS_MAX = 100.0, 2.0**40, 64
_MORE, _MORES, _ALL = np.uint64(0x80), np.uint64(0x8080808080808080), np.uint64(0xFFFFFFFFFFFFFFFF)
_EIGHT_MAX = np.uint64(2**56 - 1)
_RAW, _NOTHING = np.uint8(1), np.uint8(3)


@part
def put_byte(out: Bytes, at: Int, byte: Int) -> Int:
    """Write one byte; returns the next position."""
    if at < out.size:
        out[at] = byte
    return at + 1


@part
def put_varint(out: Bytes, at: Int, value: np.uint64) -> Int:
    """Write an unsigned number, 7 bits a byte, low bits first; where there is room 8 bytes at once, some in vain."""
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
    return put_varint(out, at, _zigzag(value))


@part
def put_word(out: Bytes, at: Int, value: Int) -> Int:
    """Write 8 bytes, little-endian."""
    if at + 8 <= out.size:
        for j in range(8):
            out[at + j] = np.uint8((value >> np.int64(8 * j)) & np.int64(255))
    return at + 8


@part
def put_half(out: Bytes, at: Int, value: Int) -> Int:
    """Write 4 bytes, little-endian: a number of 32 bits with its sign."""
    if at + 4 <= out.size:
        for j in range(4):
            out[at + j] = np.uint8((value >> np.int64(8 * j)) & np.int64(255))
    return at + 4


@part
def put_bits(out: Bytes, at: Int, bits: Int, value: float) -> Int:
    """Write a float64 given with its bits, in the shortest of the forms above."""
    if abs(value) < _WHOLE_MAX:
        whole = np.int64(value)
        if np.float64(whole).view(np.int64) == bits:  # not so of -0.0
            return put_varint(out, at, _zigzag(whole) << np.uint64(1))
    scaled = np.floor(value * _SCALE + 0.5)
    if abs(scaled) < _SCALED_MAX and scaled != 0.0:
        steps = bits - np.float64(scaled / _SCALE).view(np.int64)
        head = _zigzag(np.int64(scaled)) << np.uint64(2)
        if steps == 0:
            return put_varint(out, at, head | _NOTHING)
        if abs(steps) < _STEPS_MAX:
            return put_varint(out, put_varint(out, at, head | np.uint64(_RAW)), _zigzag(steps))
    return put_word(out, put_byte(out, at, _RAW), bits)


@part
def _zigzag(value: Int) -> np.uint64:
    return np.uint64((value << np.int64(1)) ^ (value >> np.int64(63)))


@part
def _unzigzag(value: np.uint64) -> Int:
    return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1))


@part
def put_nothing(out: Bytes, at: Int) -> Int:
    """Write the mark of a cell that holds nothing."""
    return put_byte(out, at, _NOTHING)


@part
def get_varint(data: Bytes, at: Int, end: Int) -> tuple[np.uint64, Int]:
    """Read an unsigned number: (value, next position or -1).

    Up to 8 bytes at once, for a loop over bytes waits for each guess of where the number ends.
    """
    if not 0 <= at < end:
        return np.uint64(0), -1
    if at + 8 <= data.size:
        word = load_word(data, at)
        if word & _MORE == np.uint64(0):  # most are a byte
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
    """The low 7 bits of each byte side by side."""
    word = (word & np.uint64(0x007F007F007F007F)) | ((word & np.uint64(0x7F007F007F007F00)) >> np.uint64(1))
    word = (word & np.uint64(0x00003FFF00003FFF)) | ((word & np.uint64(0x3FFF00003FFF0000)) >> np.uint64(2))
    return (word & np.uint64(0x0FFFFFFF)) | ((word & np.uint64(0x0FFFFFFF00000000)) >> np.uint64(4))


@part
def _apart(value: np.uint64) -> np.uint64:
    """A number of 56 bits as 7 bits in each of 8 bytes: the reverse of `_joined`."""
    word = (value & np.uint64(0x0FFFFFFF)) | ((value << np.uint64(4)) & np.uint64(0x0FFFFFFF00000000))
    word = (word & np.uint64(0x00003FFF00003FFF)) | ((word << np.uint64(2)) & np.uint64(0x3FFF00003FFF0000))
    return (word & np.uint64(0x007F007F007F007F)) | ((word << np.uint64(1)) & np.uint64(0x7F007F007F007F00))


@lean_kernel
def _get_bytes(data: Bytes, at: Int, end: Int) -> tuple[np.uint64, Int]:
    """The same byte by byte: numbers of more than 8 bytes, and the last bytes of all."""
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
    return _unzigzag(value), at


@part
def get_word(data: Bytes, at: Int, end: Int) -> tuple[Int, Int]:
    """Read 8 bytes, little-endian: (value, next position or -1)."""
    if at < 0 or at + 8 > end:
        return np.int64(0), -1
    return np.int64(load_word(data, at)), at + 8


@part
def get_half(data: Bytes, at: Int, end: Int) -> tuple[Int, Int]:
    """Read 4 bytes, little-endian: (value with its sign, next position or -1)."""
    if at < 0 or at + 4 > end:
        return np.int64(0), -1
    if at + 8 <= data.size:
        return np.int64(load_word(data, at) << np.uint64(32)) >> np.int64(32), at + 4
    value = np.uint64(0)
    for j in range(4):
        value |= np.uint64(data[at + j]) << np.uint64(8 * j + 32)
    return np.int64(value) >> np.int64(32), at + 4


@part
def get_number(data: Bytes, at: Int, end: Int, nothing: float) -> tuple[float, Int]:
    """Read what `put_bits` or `put_nothing` wrote: (number, `nothing` where nothing was written; next position or -1).

    The bits of NaNs survive: no arithmetic is done with a float that was written as 8 bytes.
    """
    head, at = get_varint(data, at, end)
    if at < 0:
        return 0.0, -1
    if head & np.uint64(1) == np.uint64(0):
        return np.float64(_unzigzag(head >> np.uint64(1))), at
    if head == np.uint64(_NOTHING):
        return nothing, at
    if head == np.uint64(_RAW):
        word, at = get_word(data, at, end)
        return np.int64(word).view(np.float64), at
    number = np.float64(_unzigzag(head >> np.uint64(2))) / _SCALE
    if head & np.uint64(2) != np.uint64(0):
        return number, at
    steps, at = get_signed(data, at, end)
    return np.int64(np.float64(number).view(np.int64) + steps).view(np.float64), at
