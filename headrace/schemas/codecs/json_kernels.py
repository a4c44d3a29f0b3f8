# ruff: noqa: C901, PLR0911, PLR0912, PLR0915, PLR1714, SIM109
# Kernels are flat loops over many arrays, and numba compiles `==` chains to jumps but `in` to a tuple search.
# mypy: disable-error-code="assignment,return-value,no-any-return"
# NumPy scalars and Python ints are one type to numba.
"""Kernels that decode a batch of JSON objects into slots, by the program of the event.

Names may come in any order. Undeclared names are skipped after checking that their values are JSON; a declared name
that occurs twice in one object makes the payload bad. For a bad payload the counts of all slots are reset to their
values before it, so slots hold good payloads only. Open objects and arrays are kept in an explicit stack, since numba
cannot cache recursive functions. Cost: about 2 ns per byte, in one pass; a bad payload may need a second pass to find
the reason.
"""

from typing import NamedTuple

import numpy as np

from headrace.kernels.compile import Bytes, Ints, lean_kernel, part
from headrace.schemas.codecs.json_tokens import (
    FALS,
    FAR_TIME,
    MISSING,
    NO_ROOM,
    NOT_JSON,
    NULL,
    NULL_VALUE,
    OPS_MAX,
    TRUE,
    TWICE,
    WRONG_TYPE,
    failure,
    is_base64,
    is_word,
    named_float,
    read_float,
    read_int,
    read_moment,
    read_name,
    read_number,
    read_string,
    read_time,
    skip_mark,
    skip_space,
    skip_value,
)
from headrace.schemas.codecs.program import (
    ABSENT,
    ALIASES,
    ARGUMENT,
    BOOL,
    BYTES,
    END,
    FLOAT,
    LIST,
    NAME,
    NAME_BYTES,
    OP,
    OPTION,
    PRESENT,
    SLOT,
    STRICT,
    STRUCT,
    TEXT,
    TIME,
    SlotArrays,
    fill_null,
    has_capacity,
)
from headrace.schemas.codecs.slots import unescape


class Tables(NamedTuple):
    """A program's `ops`, and the bytes of its field `names`."""

    ops: Ints
    names: Bytes


class Deferred(NamedTuple):
    """Numbers that the kernel leaves to a slower, exact parser.

    `spans` (m, 3): index in `out`, start and end in `data`; `count` (1,): number of spans. A deferred number takes at
    least three bytes and a separator, so m = bytes // 4 + 1 is enough.
    """

    spans: Ints
    count: Ints


class Scratch(NamedTuple):
    """Working memory of a decode; its content is not used across payloads.

    `nests` (NESTS_MAX, 3): the open objects and arrays. An object has its op, the number of objects of that op before
    it, and the member expected next; an array has its op and the index of its item count. `before` (n_slots,): counts
    of the slots before the payload, restored if the payload is bad. `name` uint8: buffer for unescaping a name, as long
    as the longest payload.
    """

    nests: Ints
    before: Ints
    name: Bytes


@part
def find_field(data: Bytes, at: int, end: int, op: int, hint: int, tables: Tables) -> int:
    """Find the field of the struct at `op` with the name or alias `data[at:end]`; returns its op, or -1.

    `hint` is tried first, since names mostly come in declared order.
    """
    ops, names = tables.ops, tables.names
    for step in range(2):
        field = hint if step == 0 else op + 1
        while field < ops[op, END]:
            name, size = ops[field, NAME], ops[field, NAME_BYTES]
            for alias in range(ops[field, ALIASES] + 1):
                if alias:
                    name += size + 1
                    size = np.int64(names[name - 1])
                same = size == end - at
                i = 0
                while same and i < size:
                    same = data[at + i] == names[name + i]
                    i += 1
                if same:
                    return field
            if step == 0:
                break
            field = ops[field, END]
    return -1


@lean_kernel
def wrong_type(data: Bytes, at: int, end: int, op: int) -> int:
    """The failure for a value that does not fit its field: WRONG_TYPE if it is JSON, else NOT_JSON."""
    return failure(WRONG_TYPE, op) if skip_value(data, at, end) >= 0 else failure(NOT_JSON, op)


@part
def read_leaf(data: Bytes, at: int, end: int, op: int, ops: Ints, out: Ints, place: int, deferred: Deferred) -> int:
    """Read a number, a boolean, or a time written as text or number, into `out[place]`."""
    kind = ops[op, OP]
    if kind == BOOL:
        if is_word(data, at, end, TRUE):
            out[place] = 1
            return at + 4
        if is_word(data, at, end, FALS) and at + 4 < end and data[at + 4] == 0x65:
            out[place] = 0
            return at + 5
        return wrong_type(data, at, end, op)
    if data[at] == 0x22:
        last, escaped = read_string(data, at, end)
        if last < 0:
            return failure(NOT_JSON, op)
        good = False
        if kind == TIME and not escaped:
            out[place], good = read_time(data, at + 1, last - 1)
        elif kind == FLOAT:
            out[place] = named_float(data, at + 1, last - 1)
            good = out[place] != 0
        return last if good else failure(WRONG_TYPE, op)
    last, whole = read_number(data, at, end)
    if last < 0:
        return wrong_type(data, at, end, op)
    if kind == TIME and (ops[op, ARGUMENT] != 0 or not whole):
        if not whole and ops[op, ARGUMENT] <= 0:
            return failure(WRONG_TYPE, op)
        out[place], good = read_moment(data, at, last, ops[op, ARGUMENT])
        return last if good else failure(FAR_TIME, op)
    if kind != FLOAT:
        out[place], good = read_int(data, at, last)
        return last if whole and good else failure(WRONG_TYPE, op)
    number, good = read_float(data, at, last)
    if good:
        out[place] = np.float64(number).view(np.int64)
    else:
        i = deferred.count[0]
        deferred.spans[i, 0], deferred.spans[i, 1], deferred.spans[i, 2] = place, at, last
        deferred.count[0] += 1
    return last


@part
def read_text(data: Bytes, at: int, end: int, op: int, ops: Ints, slots: SlotArrays) -> int:
    """Read a string, or base64 for bytes, into the two slots of `op`."""
    out, bases, counts = slots.out, slots.bases, slots.counts
    if data[at] != 0x22:
        return wrong_type(data, at, end, op)
    last, escaped = read_string(data, at, end)
    if last < 0:
        return failure(NOT_JSON, op)
    if ops[op, OP] == BYTES and not is_base64(data, at + 1, last - 1):
        return failure(WRONG_TYPE, op)
    slot = ops[op, SLOT]
    length = last - at - 2
    out[bases[slot] + counts[slot]] = at + 1
    out[bases[slot + 1] + counts[slot + 1]] = -length - 1 if escaped else length
    counts[slot] += 1
    counts[slot + 1] += 1
    return last


@part
def next_member(
    data: Bytes,
    at: int,
    end: int,
    fresh: bool,
    op: int,
    instance: int,
    hint: int,
    tables: Tables,
    counts: Ints,
    scratch: Bytes,
) -> tuple[int, int]:
    """Advance to the next declared member of the open object of `op`: (its op, position of its value).

    Returns (-1, position after the object) at its end, and (-1, failure) on an error. `fresh`: directly after the {.
    """
    while True:
        at = skip_space(data, at, end)
        if at >= end:
            return -1, failure(NOT_JSON, op)
        if data[at] == 0x7D:
            return -1, at + 1
        if not fresh:
            if data[at] != 0x2C:
                return -1, failure(NOT_JSON, op)
            at = skip_space(data, at + 1, end)
        fresh = False
        value, last, escaped = read_name(data, at, end)
        if value < 0:
            return -1, value
        if escaped:
            field = find_field(scratch, 0, unescape(data, at + 1, last, scratch, 0), op, hint, tables)
        else:
            field = find_field(data, at + 1, last, op, hint, tables)
        if field >= 0:
            twice = counts[tables.ops[field, SLOT]] > instance
            return (-1, failure(TWICE, field)) if twice else (field, value)
        at = skip_value(data, value, end)
        if at < 0:
            return -1, at


@part
def close_object(op: int, instance: int, ops: Ints, slots: SlotArrays) -> int:
    """Add a default or null for each field missing from the object of `op`; returns 0, or a failure."""
    out, bases, counts = slots.out, slots.bases, slots.counts
    counts[ops[op, SLOT]] += 1
    field = op + 1
    while field < ops[op, END]:
        slot = ops[field, SLOT]
        if counts[slot] == instance:
            if ops[field, OP] != OPTION:
                return failure(MISSING, field)
            out[bases[slot] + counts[slot]] = ABSENT
            counts[slot] += 1
            fill_null(ops, field + 1, slots)
        field = ops[field, END]
    return 0


@part
def next_item(
    data: Bytes, at: int, end: int, fresh: bool, op: int, place: int, ops: Ints, slots: SlotArrays
) -> tuple[bool, int]:
    """Advance in the open array of `op`: (True, position of the next item), or (False, array's end or a failure)."""
    at = skip_space(data, at, end)
    if at >= end:
        return False, failure(NOT_JSON, op)
    if data[at] == 0x5D:
        return False, at + 1
    if not fresh:
        if data[at] != 0x2C:
            return False, failure(NOT_JSON, op)
        at = skip_space(data, at + 1, end)
    if not has_capacity(ops, op, 1, slots):
        return False, failure(NO_ROOM, op)
    slots.out[place] += 1
    return True, at


@part
def read_object(
    data: Bytes, at: int, end: int, tables: Tables, slots: SlotArrays, deferred: Deferred, scratch: Scratch
) -> int:
    """Add the event at `at` to the slots; returns the position after it, or a failure."""
    ops, nests = tables.ops, scratch.nests
    out, bases, counts = slots.out, slots.bases, slots.counts
    depth = 0
    op = 0
    while True:
        if at >= end:
            return failure(NOT_JSON, op)
        kind, slot = ops[op, OP], ops[op, SLOT]
        place = bases[slot] + counts[slot]
        opened = False
        if is_word(data, at, end, NULL):
            if kind != OPTION or ops[op, STRICT]:
                return failure(NULL_VALUE, op)
            out[place] = 0
            counts[slot] += 1
            fill_null(ops, op + 1, slots)
            at += 4
        elif kind == OPTION:
            out[place] = PRESENT
            counts[slot] += 1
            op += 1
            continue
        elif kind == STRUCT or kind == LIST:
            if data[at] != (0x7B if kind == STRUCT else 0x5B):
                return wrong_type(data, at, end, op)
            nests[depth, 0] = op
            nests[depth, 1] = counts[slot] if kind == STRUCT else place
            nests[depth, 2] = op + 1
            if kind == LIST:
                out[place] = 0
                counts[slot] += 1
            depth += 1
            at += 1
            opened = True
        elif kind == TEXT or kind == BYTES:
            at = read_text(data, at, end, op, ops, slots)
        else:
            at = read_leaf(data, at, end, op, ops, out, place, deferred)
            counts[slot] += 1
        if at < 0:
            return at
        while True:  # a value is done, or an object or array has just been opened
            if depth == 0:
                return at
            owner, mark = nests[depth - 1, 0], nests[depth - 1, 1]
            if ops[owner, OP] == LIST:
                more, at = next_item(data, at, end, opened, owner, mark, ops, slots)
                op = owner + 1
            else:
                op, at = next_member(
                    data, at, end, opened, owner, mark, nests[depth - 1, 2], tables, counts, scratch.name
                )
                more = op >= 0
                if more:
                    nests[depth - 1, 2] = ops[op, END]
                elif at >= 0:
                    closed = close_object(owner, mark, ops, slots)
                    at = at if closed == 0 else closed
            if at < 0:
                return at
            if more:
                break
            depth -= 1
            opened = False


@lean_kernel
def decode_objects(
    data: Bytes,
    bounds: Ints,
    first: int,
    tables: Tables,
    slots: SlotArrays,
    deferred: Deferred,
    status: Ints,
    scratch: Scratch,
) -> int:
    """Add payloads `first`.. to the slots; payload i is `data[bounds[i] : bounds[i + 1]]`, one JSON object.

    `status` int64 (n, 2) is filled with the fault (0: none) and its op. Returns the number of payloads, or the index of
    the payload that exceeded the slots' capacity, with the slots reset to their state before it.
    """
    counts, before = slots.counts, scratch.before
    for i in range(first, len(status)):
        for slot in range(len(counts)):
            before[slot] = counts[slot]
        deferred_before = deferred.count[0]
        end = bounds[i + 1]
        start = skip_space(data, skip_mark(data, bounds[i], end), end)
        at = read_object(data, start, end, tables, slots, deferred, scratch)
        if at >= 0 and skip_space(data, at, end) != end:
            at = failure(NOT_JSON, 0)
        if at >= 0:
            continue
        for slot in range(len(counts)):
            counts[slot] = before[slot]
        deferred.count[0] = deferred_before
        status[i, 0], status[i, 1] = (-at - 1) // OPS_MAX, (-at - 1) % OPS_MAX
        if status[i, 0] == NO_ROOM:
            status[i, 0] = 0
            return i
        if status[i, 0] == NOT_JSON:
            continue
        # A payload that is not JSON is reported as such, whatever else is wrong with it.
        whole = skip_value(data, start, end)
        broken = whole < 0 and (-whole - 1) // OPS_MAX == NOT_JSON
        if broken or (whole >= 0 and skip_space(data, whole, end) != end):
            status[i, 0] = NOT_JSON
    return len(status)
