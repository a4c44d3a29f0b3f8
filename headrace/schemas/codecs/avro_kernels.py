# ruff: noqa: C901, PLR0911, PLR0912, PLR0915, PLR1714, SIM109
# Kernels are flat loops over many arrays, and numba compiles `==` chains to jumps but `in` to a tuple search.
# mypy: disable-error-code="assignment,return-value,no-any-return"
# NumPy scalars and Python ints are one type to numba.
"""Kernels that decode a batch of Avro datums into slots, and encode slots as datums, by the program of the event.

Source: Avro 1.12 specification, "Binary Encoding". A datum is read inside its payload's bounds and must fill them, so a
truncated or overlong payload cannot read from, or shift, its neighbour. For a bad datum the slots are reset to their
state before it. Our own unions have null and one type; other writers' may have more. About 10 ns per field.
"""

from typing import NamedTuple

import numpy as np

from headrace.kernels.compile import Bytes, Ints, lean_kernel, part
from headrace.kernels.texts import is_utf8
from headrace.schemas.codecs.avro_skip import (
    BAD_BOOL,
    BAD_BRANCH,
    BAD_LENGTH,
    BAD_SYMBOL,
    BAD_TEXT,
    BAD_TIME,
    GOOD,
    LEFT_OVER,
    LONG_DECIMAL,
    NO_ROOM,
    OTHER_BRANCH,
    SHORT,
    STATUS_MAX,
    read_block,
    read_varint,
    skip_datum,
)
from headrace.schemas.codecs.program import (
    ARGUMENT,
    BOOL,
    BYTES,
    DECIMAL,
    END,
    ENUM,
    FIXED,
    FLOAT,
    FLOAT32,
    INT,
    JUMP,
    LIST,
    NO_TARGET,
    NULL_BRANCH,
    NULL_TARGET,
    OP,
    OPTION,
    PRESENT,
    SCALED,
    SKIP,
    SLOT,
    TEXT,
    TIME,
    UNION,
    SlotArrays,
    fill_null,
    has_capacity,
)

_DECIMAL_BYTES_MAX = 16
_INT_MAX = (1 << 63) - 1


class Tables(NamedTuple):
    """A writer's schema as numbers: `ops` and `branches` of a program, `nodes` and `links` of a skip table."""

    ops: Ints
    branches: Ints
    nodes: Ints
    links: Ints


class Scratch(NamedTuple):
    """Working memory of a decode; its content is not used across payloads.

    `lists` (NESTS_MAX, 2): the open lists, each with its op and its number of remaining items. `open_` (DEPTH_MAX, 2):
    see `skip_datum`. `before` (n_slots,): counts of the slots before the payload, restored if the payload is bad.
    """

    lists: Ints
    open_: Ints
    before: Ints


@part
def decode_datum(
    data: Bytes, at: int, end: int, tables: Tables, slots: SlotArrays, scratch: Scratch
) -> tuple[int, int]:
    """Add the datum `data[at:end]` to the slots; returns (status, op at which it ended)."""
    ops, lists = tables.ops, scratch.lists
    out, bases, counts = slots.out, slots.bases, slots.counts
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
            items, at = read_block(data, at, end, ops[owner, ARGUMENT])
            if at < 0:
                return items, owner
            if items == 0:
                depth -= 1
                continue
            if not has_capacity(ops, owner, items, slots):
                return NO_ROOM, owner
            lists[depth - 1, 1] = items
            out[bases[ops[owner, SLOT]] + counts[ops[owner, SLOT]] - 1] += items
            op = owner + 1
            continue
        if op == last:
            return (GOOD if at == end else LEFT_OVER), 0
        kind = ops[op, OP]
        slot = ops[op, SLOT]
        place = bases[slot] + counts[slot]
        counts[slot] += 1
        if kind == INT or kind == TIME:
            out[place], at = read_varint(data, at, end)
            if at < 0:
                return out[place], op
        elif kind == FLOAT:
            if at + 8 > end:
                return SHORT, op
            out[place] = np.int64(read_bits(data, at, 8))
            at += 8
        elif kind == TEXT or kind == BYTES or kind == DECIMAL:
            length, at = read_varint(data, at, end)
            if at < 0:
                return length, op
            if length < 0 or length > end - at:
                return BAD_LENGTH, op
            if kind == TEXT and not is_utf8(data, at, at + length):
                return BAD_TEXT, op
            if kind == DECIMAL and length > _DECIMAL_BYTES_MAX:
                return LONG_DECIMAL, op
            out[place] = at
            out[bases[slot + 1] + counts[slot + 1]] = length
            counts[slot + 1] += 1
            at += length
        elif kind == BOOL:
            if at >= end:
                return SHORT, op
            if data[at] > 1:
                return BAD_BOOL, op
            out[place] = data[at]
            at += 1
        elif kind == OPTION:
            branch, at = read_varint(data, at, end)
            if at < 0:
                return branch, op
            if branch != 0 and branch != 1:
                return BAD_BRANCH, op
            out[place] = PRESENT if branch != ops[op, NULL_BRANCH] else 0
            if out[place] == 0:
                fill_null(ops, op + 1, slots)
                op = ops[op, END]
                continue
        elif kind == LIST:
            items, at = read_block(data, at, end, ops[op, ARGUMENT])
            if at < 0:
                return items, op
            out[place] = items
            if items == 0:
                op = ops[op, END]
                continue
            if not has_capacity(ops, op, items, slots):
                return NO_ROOM, op
            lists[depth, 0] = op
            lists[depth, 1] = items
            depth += 1
        elif kind == SKIP:
            failed, at = skip_datum(data, at, end, ops[op, ARGUMENT], tables.nodes, tables.links, scratch.open_)
            if at < 0:
                return failed, op
        elif kind == UNION:
            branch, at = read_varint(data, at, end)
            if at < 0:
                return branch, op
            if branch < 0 or branch >= ops[op, NULL_BRANCH]:
                return BAD_BRANCH, op
            out[place] = branch
            target = tables.branches[ops[op, ARGUMENT] + branch]
            if target == NO_TARGET:
                return OTHER_BRANCH, op
            fill_branches(ops, op, target, slots)
            op = ops[op, END] if target == NULL_TARGET else target
            continue
        elif kind == JUMP:
            op = ops[op, END]
            continue
        elif kind >= FLOAT32:
            status, at = read_other(data, at, end, op, ops, slots)
            if at < 0:
                return status, op
        op += 1


@part
def read_bits(data: Bytes, at: int, size: int) -> int:
    """Read `size` bytes, little-endian."""
    bits = np.uint64(0)
    for i in range(size):
        bits |= np.uint64(data[at + i]) << np.uint64(8 * i)
    return bits


@lean_kernel
def read_other(data: Bytes, at: int, end: int, op: int, ops: Ints, slots: SlotArrays) -> tuple[int, int]:
    """Read a leaf that occurs only in other writers' schemas into the last counted element of its slot.

    Returns (GOOD, position after it), or (status, -1) if it is bad.
    """
    out, bases, counts = slots.out, slots.bases, slots.counts
    kind, slot, argument = ops[op, OP], ops[op, SLOT], ops[op, ARGUMENT]
    place = bases[slot] + counts[slot] - 1
    if kind == FLOAT32:
        if at + 4 > end:
            return SHORT, -1
        out[place] = np.float64(np.uint32(read_bits(data, at, 4)).view(np.float32)).view(np.int64)
        return GOOD, at + 4
    if kind == FIXED:
        if argument > end - at:
            return SHORT, -1
        out[place] = at
        out[bases[slot + 1] + counts[slot + 1]] = argument
        counts[slot + 1] += 1
        return GOOD, at + argument
    number, at = read_varint(data, at, end)
    if at < 0:
        return number, -1
    if kind == ENUM:
        if number < 0 or number >= argument:
            return BAD_SYMBOL, -1
        out[place] = number
        return GOOD, at
    assert kind == SCALED
    if argument < 0:
        out[place] = number // -argument
        return GOOD, at
    most = _INT_MAX // argument
    if number < -most or number > most:
        return BAD_TIME, -1
    out[place] = number * argument
    return GOOD, at


@part
def fill_branches(ops: Ints, op: int, target: int, slots: SlotArrays) -> None:
    """Add placeholders for the branches of a union other than `target`."""
    branch = op + 1
    while branch < ops[op, END]:
        if branch != target:
            fill_null(ops, branch, slots)
        branch = ops[branch, END] + 1  # after its jump


@lean_kernel
def decode_datums(
    data: Bytes,
    bounds: Ints,
    skip: int,
    first: int,
    tables: Tables,
    slots: SlotArrays,
    status: Ints,
    scratch: Scratch,
) -> int:
    """Add datums `first`.. to the slots; payload i is `data[bounds[i] + skip : bounds[i + 1]]`.

    `status` int64 (n,): a payload whose status is not GOOD on entry is skipped; on exit the status is the kind of fault
    plus STATUS_MAX times the op. Returns the number of payloads, or the index of the payload that exceeded the slots'
    capacity, with the slots reset to their state before it.
    """
    counts, before = slots.counts, scratch.before
    for i in range(first, len(status)):
        if status[i] != GOOD:
            continue
        for slot in range(len(counts)):
            before[slot] = counts[slot]
        failure, op = decode_datum(data, bounds[i] + skip, bounds[i + 1], tables, slots, scratch)
        if failure != GOOD:
            for slot in range(len(counts)):
                counts[slot] = before[slot]
            if failure == NO_ROOM:
                return i
            status[i] = failure + STATUS_MAX * op
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


@lean_kernel
def encode_datums(
    data: Bytes, head: Bytes, ops: Ints, slots: Ints, cursors: Ints, nests: Ints, out: Bytes, bounds: Ints
) -> int:
    """Write `head` and a datum for each row to `out`, and their bounds to `bounds` (n + 1,); returns the size.

    Below a null the slots hold placeholders: they are encoded, so that the cursors advance, and then overwritten.
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
    """Write the datum at the cursors; returns the position after it."""
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
