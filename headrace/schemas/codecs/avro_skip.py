# ruff: noqa: C901, PLR0911, PLR0912, PLR0915
# Kernels are flat loops over many arrays.
# mypy: disable-error-code="assignment,return-value,no-any-return"
# NumPy scalars and Python ints are one type to numba.
"""Avro's binary primitives, and kernels that skip values of undeclared fields, of any type.

A schema is a table of nodes, `nodes` int64 (n, 4); a node refers to others by number, so a record may contain itself.

    kind     argument               first, count: its slice of `links`
    FIXED    bytes
    VARINT
    SIZED
    RECORD                          its fields
    ARRAY    1: items take 0 bytes  its item
    MAP                             its value
    UNION                           its branches

Skipped values are not kept, and their text is not validated; only positions are checked.
"""

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compile import Bytes, Ints, lean_kernel, part

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
"""The status of a datum is the kind of fault plus STATUS_MAX times the op at which it was found."""

FIXED_SIZE, VARINT, SIZED, RECORD, ARRAY, MAP, ANY_OF = range(7)
KIND, ARGUMENT, FIRST, COUNT = range(4)  # the table's columns

DEPTH_MAX = 512
"""Maximum nesting of records, arrays and maps in a skipped value."""


class SkipTable:
    """A builder for the table of nodes; call `arrays` after adding all of them."""

    def __init__(self) -> None:
        self._nodes: list[list[int]] = []
        self._links: list[list[int]] = []
        self._least: dict[int, int] = {}

    def add(self, kind: int, argument: int = 0) -> int:
        """Add a node without links; returns its number."""
        self._nodes.append([kind, argument, 0, 0])
        self._links.append([])
        return len(self._nodes) - 1

    def link(self, node: int, links: list[int]) -> None:
        """Set the nodes to which a node refers."""
        self._links[node] = links

    def _least_bytes(self, node: int) -> int:
        """Minimum bytes of a value; a record inside itself counts as 0."""
        kind, argument = self._nodes[node][: ARGUMENT + 1]
        if kind != RECORD:
            return argument if kind == FIXED_SIZE else 1
        if node not in self._least:
            self._least[node] = 0
            self._least[node] = sum(self._least_bytes(link) for link in self._links[node])
        return self._least[node]

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`nodes` int64 (n, 4) and `links` int64 (m,)."""
        links: list[int] = []
        for node, parts in zip(self._nodes, self._links, strict=True):
            node[FIRST], node[COUNT] = len(links), len(parts)
            if node[KIND] == ARRAY:
                node[ARGUMENT] = int(not self._least_bytes(parts[0]))
            links += parts
        return np.array(self._nodes or [[0] * 4], np.int64), np.array(links or [0], np.int64)


@part
def read_varint(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """Read a zigzag varint: (value, position after it), or (status, -1)."""
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
    """Read the item count at the start of an array block: (count, position after it), or (status, -1).

    `least` is the minimum size of an item in bytes, 1 or more: a count that the payload cannot hold is rejected before
    memory is reserved for it.
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


@lean_kernel
def skip_datum(data: Bytes, at: int, end: int, node: int, nodes: Ints, links: Ints, open_: Ints) -> tuple[int, int]:
    """Skip a value of a node's type: (GOOD, position after it), or (status, -1).

    `open_` int64 (DEPTH_MAX, 2) is scratch: the open records, arrays and maps, each with its number of fields read or
    of items remaining. Every iteration consumes a byte, or opens or closes a value, so the loop ends.
    """
    depth = 0
    while True:
        kind, first = nodes[node, KIND], nodes[node, FIRST]
        items = 0
        if kind == VARINT:
            number, at = read_varint(data, at, end)
            if at < 0:
                return number, -1
        elif kind == FIXED_SIZE:
            at += nodes[node, ARGUMENT]
            if at > end:
                return SHORT, -1
        elif kind == SIZED:
            number, at = skip_sized(data, at, end)
            if at < 0:
                return number, -1
        elif kind == ANY_OF:
            number, at = read_varint(data, at, end)
            if at < 0:
                return number, -1
            if number < 0 or number >= nodes[node, COUNT]:
                return BAD_BRANCH, -1
            node = links[first + number]
            continue
        elif kind == RECORD:
            items = nodes[node, COUNT]
        else:
            items, at = skip_blocks(data, at, end, nodes[node, ARGUMENT])
            if at < 0:
                return items, -1
        if items > 0:
            if depth == DEPTH_MAX:
                return TOO_DEEP, -1
            open_[depth, 0], open_[depth, 1] = node, 0 if kind == RECORD else items
            depth += 1
        is_opened = items > 0
        while True:  # a value is done, or a record, array or map has just been opened
            if depth == 0:
                return GOOD, at
            node = open_[depth - 1, 0]
            kind, first = nodes[node, KIND], nodes[node, FIRST]
            if kind == RECORD:
                done = open_[depth - 1, 1]
                if done < nodes[node, COUNT]:
                    open_[depth - 1, 1] = done + 1
                    node = links[first + done]
                    break
                depth -= 1
                continue
            if not is_opened:
                open_[depth - 1, 1] -= 1
                if open_[depth - 1, 1] == 0:
                    items, at = skip_blocks(data, at, end, nodes[node, ARGUMENT])
                    if at < 0:
                        return items, -1
                    if items == 0:
                        depth -= 1
                        continue
                    open_[depth - 1, 1] = items
            is_opened = False
            if kind == MAP:
                number, at = skip_sized(data, at, end)
                if at < 0:
                    return number, -1
            node = links[first]
            break


@lean_kernel
def skip_sized(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """Skip a length and that many bytes: (0, position after them), or (status, -1)."""
    length, at = read_varint(data, at, end)
    if at < 0:
        return length, -1
    if length < 0 or length > end - at:
        return BAD_LENGTH, -1
    return 0, at + length


@lean_kernel
def skip_blocks(data: Bytes, at: int, end: int, is_empty: int) -> tuple[int, int]:
    """Skip blocks that state their size, and blocks of items that take 0 bytes.

    Returns (item count of the next block, or 0 at the end of the array; position after the count), or (status, -1).
    """
    while True:
        items, at = read_varint(data, at, end)
        if at < 0:
            return items, -1
        if items == 0:
            return 0, at
        if items < 0:
            size, at = read_varint(data, at, end)
            if at < 0:
                return size, -1
            if size < 0 or size > end - at:
                return BAD_LENGTH, -1
            at += size
        elif is_empty == 0:
            return (items, at) if items <= end - at else (BAD_LENGTH, -1)
