# ruff: noqa: C901, PLR0911, PLR0912, PLR0915, PLR1714, SIM109
# Kernels are flat loops over many arrays, and numba compiles `==` chains to jumps but `in` to a tuple search.
# mypy: disable-error-code="assignment,return-value,no-any-return"
# NumPy scalars and Python ints are one type to numba.
"""Avro's binary encoding, walked by a program over many datums at once.

Source: Avro 1.12 specification, "Binary Encoding". A datum is read inside its own payload's bounds and must use all of
them, so a truncated or overlong payload can never borrow from, or shift, its neighbour. A bad datum takes back what it
had added to the slots. Unions are of null and one type. Cost: about 10 ns a field.
"""

import numpy as np

from headrace.schemas.kernels import Bytes, Ints, fill_null, has_room, is_utf8, kernel, part
from headrace.schemas.program import (
    BOOL,
    BYTES,
    END,
    FLOAT,
    INT,
    LIST,
    NULL_BRANCH,
    OP,
    OPTION,
    PRESENT,
    SLOT,
    TEXT,
    TIME,
)

GOOD, SHORT, LEFT_OVER, BAD_VARINT, BAD_BRANCH, BAD_BOOL, BAD_LENGTH, BAD_TEXT, NO_ROOM = range(9)
DETAILS = {
    SHORT: "the datum ends before its last field",
    LEFT_OVER: "bytes are left over after the last field",
    BAD_VARINT: "a number has more than 64 bits",
    BAD_BRANCH: "a union has another branch than null and the value",
    BAD_BOOL: "a boolean is neither 0 nor 1",
    BAD_LENGTH: "a length is negative or beyond the payload",
    BAD_TEXT: "a string is not UTF-8",
}


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
def decode_datum(
    data: Bytes, at: int, end: int, ops: Ints, out: Ints, bases: Ints, rooms: Ints, counts: Ints, lists: Ints
) -> int:
    """Add the datum `data[at:end]` to the slots; returns a status. `lists` (NESTS_MAX, 2): open lists, scratch."""
    depth = 0
    op = 1
    last = ops[0, END]
    while True:
        if depth and op == ops[lists[depth - 1, 0], END]:  # an item is done
            owner = lists[depth - 1, 0]
            lists[depth - 1, 1] -= 1
            if lists[depth - 1, 1] > 0:
                op = owner + 1
                continue
            items, at = read_block(data, at, end)
            if at < 0:
                return items
            if items == 0:
                depth -= 1
                continue
            if not has_room(ops, owner, items, rooms, counts):
                return NO_ROOM
            lists[depth - 1, 1] = items
            out[bases[ops[owner, SLOT]] + counts[ops[owner, SLOT]] - 1] += items
            op = owner + 1
            continue
        if op == last:
            return GOOD if at == end else LEFT_OVER
        kind = ops[op, OP]
        slot = ops[op, SLOT]
        place = bases[slot] + counts[slot]
        counts[slot] += 1
        if kind == INT or kind == TIME:
            out[place], at = read_varint(data, at, end)
            if at < 0:
                return out[place]
        elif kind == FLOAT:
            if at + 8 > end:
                return SHORT
            bits = np.uint64(0)
            for i in range(8):
                bits |= np.uint64(data[at + i]) << np.uint64(8 * i)
            out[place] = np.int64(bits)
            at += 8
        elif kind == TEXT or kind == BYTES:
            length, at = read_varint(data, at, end)
            if at < 0:
                return length
            if length < 0 or length > end - at:
                return BAD_LENGTH
            if kind == TEXT and not is_utf8(data, at, at + length):
                return BAD_TEXT
            out[place] = at
            out[bases[slot + 1] + counts[slot + 1]] = length
            counts[slot + 1] += 1
            at += length
        elif kind == BOOL:
            if at >= end:
                return SHORT
            if data[at] > 1:
                return BAD_BOOL
            out[place] = data[at]
            at += 1
        elif kind == OPTION:
            branch, at = read_varint(data, at, end)
            if at < 0:
                return branch
            if branch != 0 and branch != 1:
                return BAD_BRANCH
            out[place] = PRESENT if branch != ops[op, NULL_BRANCH] else 0
            if out[place] == 0:
                fill_null(ops, op + 1, out, bases, counts)
                op = ops[op, END]
                continue
        elif kind == LIST:
            items, at = read_block(data, at, end)
            if at < 0:
                return items
            out[place] = items
            if items == 0:
                op = ops[op, END]
                continue
            if not has_room(ops, op, items, rooms, counts):
                return NO_ROOM
            lists[depth, 0] = op
            lists[depth, 1] = items
            depth += 1
        op += 1


@part
def read_block(data: Bytes, at: int, end: int) -> tuple[int, int]:
    """The item count that opens a block of an array: (count, position after it), or (status, -1)."""
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
    if items < 0 or items > end - at:  # every item takes a byte at least
        return BAD_LENGTH, -1
    return items, at


@kernel
def decode_datums(
    data: Bytes,
    bounds: Ints,
    skip: int,
    first: int,
    ops: Ints,
    out: Ints,
    bases: Ints,
    rooms: Ints,
    counts: Ints,
    status: Ints,
    lists: Ints,
    before: Ints,
) -> int:
    """Add datums `first`.. to the slots; payload i is `data[bounds[i] + skip : bounds[i + 1]]`.

    `status` int64 (n,): a payload whose status is not GOOD on entry is passed over; on exit it tells what was wrong.
    Returns the number of payloads, or the one that the slots had no room for, with the slots as before it.
    """
    for i in range(first, len(status)):
        if status[i] != GOOD:
            continue
        for slot in range(len(counts)):
            before[slot] = counts[slot]
        found = decode_datum(data, bounds[i] + skip, bounds[i + 1], ops, out, bases, rooms, counts, lists)
        if found != GOOD:
            for slot in range(len(counts)):
                counts[slot] = before[slot]
            if found == NO_ROOM:
                return i
            status[i] = found
    return len(status)


@part
def write_varint(value: int, out: Bytes, at: int) -> int:
    """Write a zigzag varint; returns the position after it."""
    rest = (np.uint64(value) << np.uint64(1)) ^ np.uint64(value >> 63)
    while rest >= 0x80:
        out[at] = (rest & np.uint64(0x7F)) | np.uint64(0x80)
        at += 1
        rest >>= np.uint64(7)
    out[at] = rest
    return at + 1


@part
def write_bits(bits: int, out: Bytes, at: int) -> int:
    """Write 8 bytes, little-endian; returns the position after them."""
    for i in range(8):
        out[at + i] = (np.uint64(bits) >> np.uint64(8 * i)) & np.uint64(0xFF)
    return at + 8


@kernel
def encode_datums(
    data: Bytes, head: Bytes, ops: Ints, slots: Ints, cursors: Ints, nests: Ints, out: Bytes, bounds: Ints
) -> int:
    """Write `head` and one datum a row to `out`; `bounds` (n + 1,) gets their ends. Returns the size.

    Below a null the slots hold placeholders: they are walked, so that the cursors move on, and then overwritten.
    """
    at = 0
    for row in range(len(bounds) - 1):
        bounds[row] = at
        for i in range(len(head)):
            out[at + i] = head[i]
        at = encode_datum(data, ops, slots, cursors, nests, out, at + len(head))
    bounds[-1] = at
    return at


@part
def encode_datum(data: Bytes, ops: Ints, slots: Ints, cursors: Ints, nests: Ints, out: Bytes, at: int) -> int:
    """Write the datum that the cursors stand on; returns the position after it."""
    depth = 0
    op = 1
    while True:
        if depth and op == ops[nests[depth - 1, 0], END]:  # the subtree of a null, or an item of a list, is done
            nests[depth - 1, 1] -= 1
            if nests[depth - 1, 1] > 0:
                op = nests[depth - 1, 0] + 1
                continue
            if nests[depth - 1, 1] < 0:
                at = nests[depth - 1, 2]
            else:
                out[at] = 0
                at += 1
            depth -= 1
            continue
        if op == ops[0, END]:
            return at
        kind = ops[op, OP]
        slot = ops[op, SLOT]
        value = slots[cursors[slot]]
        cursors[slot] += 1
        if kind == INT or kind == TIME:
            at = write_varint(value, out, at)
        elif kind == FLOAT:
            at = write_bits(value, out, at)
        elif kind == BOOL:
            out[at] = value
            at += 1
        elif kind == TEXT or kind == BYTES:
            length = slots[cursors[slot + 1]]
            cursors[slot + 1] += 1
            at = write_varint(length, out, at)
            for i in range(length):
                out[at + i] = data[value + i]
            at += length
        elif kind == OPTION:
            out[at] = 2 * value
            at += 1
            if value == 0:
                nests[depth, 0], nests[depth, 1], nests[depth, 2] = op, -1, at
                depth += 1
        elif kind == LIST:
            if value == 0:
                out[at] = 0
                at += 1
                op = ops[op, END]
                continue
            at = write_varint(value, out, at)
            nests[depth, 0], nests[depth, 1], nests[depth, 2] = op, value, at
            depth += 1
        op += 1
