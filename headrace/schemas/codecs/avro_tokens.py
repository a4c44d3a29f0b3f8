# mypy: disable-error-code="assignment,return-value,no-any-return"
# NumPy scalars and Python ints are one type to numba.
"""What Avro's binary encoding is written with: numbers of variable length, blocks of items; and what may be wrong.

Source: Avro 1.12 specification, "Binary Encoding". `at` is where a piece begins and `end` (exclusive) where the payload
ends.
"""

import numpy as np

from headrace.kernels.compile import part
from headrace.schemas.codecs.kernels import Bytes

GOOD, SHORT, LEFT_OVER, BAD_VARINT, BAD_BRANCH, BAD_BOOL, BAD_LENGTH, BAD_TEXT, NO_ROOM = range(9)
BAD_SYMBOL, BAD_TIME, LONG_DECIMAL, OTHER_BRANCH, TOO_DEEP = range(9, 14)
DETAILS = {
    SHORT: "the datum ends before its last field",
    LEFT_OVER: "bytes are left over after the last field",
    BAD_VARINT: "a number has more than 64 bits",
    BAD_BRANCH: "a union has a branch that its schema does not have",
    BAD_BOOL: "a boolean is neither 0 nor 1",
    BAD_LENGTH: "a length is negative or beyond the payload",
    BAD_TEXT: "a string is not UTF-8",
    BAD_SYMBOL: "an enum has a symbol that its schema does not have",
    BAD_TIME: "a time is beyond the range of microseconds",
    LONG_DECIMAL: "a decimal has more than 16 bytes",
    OTHER_BRANCH: "the union holds a type that the field cannot",
    TOO_DEEP: "values are nested more than 512 deep",
}
STATUS_MAX = 1 << 8
"""A status of a datum is its kind plus this times the op that it was found at."""


@part
def read_varint(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """A zigzag varint: (value, position after it), or (status, -1)."""
    value = np.uint64(0)
    shift = np.uint64(0)
    while at < end:
        byte = np.uint64(data[at])
        at += 1
        value |= (byte & np.uint64(0x7F)) << shift
        if byte < 0x80:
            if shift == 63 and byte > 1:
                return BAD_VARINT, -1
            return np.int64(value >> np.uint64(1)) ^ -np.int64(value & np.uint64(1)), at
        shift += np.uint64(7)
        if shift > 63:
            return BAD_VARINT, -1
    return SHORT, -1


@part
def read_block(data: Bytes, at: int, end: int, least: int) -> tuple[int, int]:
    """The item count that opens a block of an array: (count, position after it), or (status, -1).

    `least` is how many bytes an item takes at least, 1 or more: a count that the payload cannot hold is refused before
    anybody makes room for it.
    """
    items, at = read_varint(data, at, end)
    if at < 0:
        return items, at
    if items < 0:  # a negative count is followed by the block's size in bytes, which we do not need
        size, at = read_varint(data, at, end)
        if at < 0:
            return size, at
        items = -items
        if size < 0 or size > end - at:
            return BAD_LENGTH, -1
    if items < 0 or items > (end - at) // least:
        return BAD_LENGTH, -1
    return items, at
