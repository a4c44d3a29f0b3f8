"""Programs: a field tree as a table of numbers, so that one compiled kernel decodes every event, and its slots.

The table has one row per **op**: a leaf, an option (a field that may be null or absent), a list or a struct, in
declared order, a parent before its children. `end` is the op after the subtree, so a struct's children are `op + 1`,
the `end` of that child, and so on. A `strict` option may be absent but not null; `null_branch` is used for Avro, the
name for JSON. Decoded values are stored in **slots**: flat int64 arrays, one or two per op.

    op       slots                         meaning of the numbers               argument
    INT      1                             the value
    FLOAT    1                             the bits of the float64
    BOOL     1                             0 or 1
    TEXT     2                             start in the batch's bytes; length, negative (-length - 1) if escaped
    BYTES    2                             as TEXT
    OPTION   1                             0 null, 1 present, 2 absent (only JSON can tell absent from null)
    LIST     1                             number of items                      Avro: minimum bytes of an item
    STRUCT   1                             unused; only the slot's count matters, the number of structs so far
    TIME     1                             microseconds                         JSON: power of ten to multiply with

Other writers' Avro schemas need more:

    FLOAT32  1                             the bits of the float64
    ENUM     1                             index of the symbol                  number of symbols
    FIXED    2                             as BYTES                             size in bytes
    SCALED   1                             microseconds                         µs per unit, or -(units per µs)
    DECIMAL  2                             as BYTES, at most 16 bytes
    SKIP     1                             unused                               node of the skip table
    UNION    1                             the branch                           first of its branches in `branches`
    JUMP     1                             unused; ends a branch, `end` is the op after the union

Every op adds one number per slot for each value of its parent, null or not, which is Arrow's column layout.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic_core import PydanticUndefined

from headrace.errors import DeclarationError
from headrace.kernels.compile import Ints, part
from headrace.schemas.fields import FieldType
from headrace.schemas.time_units import TimeUnit

INT, FLOAT, BOOL, TEXT, BYTES, OPTION, LIST, STRUCT, TIME = range(9)
FLOAT32, ENUM, FIXED, SCALED, DECIMAL, SKIP, UNION, JUMP = range(9, 17)
OP, SLOT, END, SLOT_END, STRICT, NULL_BRANCH, NAME, NAME_BYTES, ALIASES, ARGUMENT = range(10)  # the table's columns

PRESENT, ABSENT = 1, 2
NULL_TARGET, NO_TARGET = 0, -1  # entries of `branches`: the null of the union; a branch that the event cannot hold
NESTS_MAX = 32  # maximum nesting of options, lists and structs; the length of the kernels' stacks

_ALIAS_BYTES_MAX = 255
_OPS = {"int": INT, "float": FLOAT, "bool": BOOL, "text": TEXT, "bytes": BYTES, "time": TIME}
_WIRE_OPS = {
    "float32": FLOAT32,
    "long": INT,
    "enum": ENUM,
    "fixed": FIXED,
    "scaled": SCALED,
    "decimal": DECIMAL,
    "skip": SKIP,
    "null": SKIP,
}
_LEAST_BYTES = {FLOAT: 8, FLOAT32: 4}  # minimum bytes of a value on the Avro wire; 1 for all others
_TWO_SLOTS = (TEXT, BYTES, FIXED, DECIMAL)
_POWERS = {"s": 6, "ms": 3, "us": 0, "ns": -3}


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A field in the program: its type, its first slot, the slot of its option (-1: never null) and its children.

    `branches` are the branches of a union; None is a branch that is null or cannot be read.
    """

    type: FieldType
    slot: int
    option: int = -1
    children: tuple["Node", ...] = ()
    branches: tuple["Node | None", ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """The compiled form of an event's field tree.

    `ops` int64 (n_ops, 10); op 0 is the struct of the event itself. `in_list` bool (n_slots,): whether a slot grows
    with list items instead of rows. `names` uint8: the field names to which ops point, each followed by its aliases,
    each alias preceded by its length in one byte. `branches` int64: the first op of each branch of the unions. `paths`:
    the name of each op for messages.
    """

    ops: NDArray[np.int64]
    names: NDArray[np.uint8]
    branches: NDArray[np.int64]
    in_list: NDArray[np.bool_]
    nodes: dict[str, Node]
    paths: tuple[str, ...]


class _Builder:
    def __init__(self, defaults: bool, unit: TimeUnit | None) -> None:
        self.defaults = defaults
        self.unit = unit
        self.ops: list[list[int]] = []
        self.names = bytearray()
        self.branches: list[int] = []
        self.in_list: list[bool] = []
        self.paths: list[str] = []

    def field(self, name: str, field: FieldType, path: str, listed: bool) -> Node:
        op = len(self.ops)
        node = self.value(field, path, listed)
        self.ops[op][NAME], self.ops[op][NAME_BYTES] = len(self.names), len(name.encode())
        self.names += name.encode()
        self.ops[op][ALIASES] = len(field.aliases)
        for alias in field.aliases:
            if len(alias.encode()) > _ALIAS_BYTES_MAX:
                raise DeclarationError(f"{path}: the alias {alias!r} is longer than {_ALIAS_BYTES_MAX} bytes")
            self.names += bytes([len(alias.encode())]) + alias.encode()
        return node

    def value(self, field: FieldType, path: str, listed: bool) -> Node:
        if path.count(".") + path.count("[]") > NESTS_MAX // 2 - 2:
            raise DeclarationError(f"{path}: nested more than {NESTS_MAX // 2 - 2} deep; flatten the event")
        if field.wire is not None and field.wire.kind == "union":
            return self.union(field, path, listed)
        option = -1
        wrapped = field.nullable or (self.defaults and field.default is not PydanticUndefined)
        if wrapped:
            option = self.open(OPTION, path, listed, strict=not field.nullable)
            outer = len(self.ops) - 1
            self.ops[outer][NULL_BRANCH] = field.null_branch
        op = len(self.ops)
        slot = self.open(_op_of(field), path, listed)
        children: tuple[Node, ...] = ()
        if field.item is not None:
            children = (self.value(field.item, f"{path}[]", listed=True),)
        elif field.fields:
            children = tuple(self.field(name, inner, f"{path}.{name}", listed) for name, inner in field.fields)
        for opened in ([outer] if wrapped else []) + [op]:
            self.close(opened)
        self.ops[op][ARGUMENT] = self.argument(op, field)
        return Node(field, slot, option, children)

    def argument(self, op: int, field: FieldType) -> int:
        if field.wire is not None:
            return field.wire.argument
        if self.ops[op][OP] == LIST:
            return max(1, self.least_bytes(op + 1, self.ops[op][END]))
        return _POWERS[self.unit or "us"] if field.kind == "time" else 0

    def least_bytes(self, op: int, end: int) -> int:
        """Minimum bytes of the values of ops `op` to `end` on the Avro wire."""
        least = 0
        while op < end:
            kind, argument = self.ops[op][OP], self.ops[op][ARGUMENT]
            if kind == STRUCT:
                op += 1
                continue
            least += argument if kind == FIXED else 0 if kind == SKIP else _LEAST_BYTES.get(kind, 1)
            op = self.ops[op][END]
        return least

    def union(self, field: FieldType, path: str, listed: bool) -> Node:
        """Add a union with several readable branches: the branches follow one another, each closed by a jump."""
        assert field.wire is not None
        op = len(self.ops)
        slot = self.open(UNION, path, listed)
        targets: list[int] = []
        nodes: list[Node | None] = []
        jumps: list[int] = []
        for branch in field.wire.branches:
            if not isinstance(branch, FieldType):
                targets.append(NULL_TARGET if branch == "null" else NO_TARGET)
                nodes.append(None)
                continue
            targets.append(len(self.ops))
            nodes.append(self.value(branch, path, listed))
            jumps.append(len(self.ops))
            self.open(JUMP, path, listed)
        for opened in (op, *jumps):
            self.close(opened)
        self.ops[op][ARGUMENT], self.ops[op][NULL_BRANCH] = len(self.branches), len(targets)
        self.branches += targets
        return Node(field, slot, branches=tuple(nodes))

    def open(self, op: int, path: str, listed: bool, *, strict: bool = False) -> int:
        slot = len(self.in_list)
        self.paths.append(path)
        self.in_list += [listed] * (2 if op in _TWO_SLOTS else 1)
        self.ops.append([op, slot, 0, 0, int(strict), 0, 0, 0, 0, 0])
        return slot

    def close(self, op: int) -> None:
        self.ops[op][END], self.ops[op][SLOT_END] = len(self.ops), len(self.in_list)


def _op_of(field: FieldType) -> int:
    if field.wire is not None:
        return _WIRE_OPS[field.wire.kind]
    return LIST if field.kind == "list" else STRUCT if field.kind == "struct" else _OPS[field.kind]


def program_of(fields: Iterable[tuple[str, FieldType]], *, defaults: bool, unit: TimeUnit | None = None) -> Program:
    """Compile the program of an event's fields.

    Args:
        fields: names and trees, in the order of the wire.
        defaults: make a field with a default an option, for formats in which fields may be missing (JSON).
        unit: unit of numbers that represent times, in JSON.
    """
    builder = _Builder(defaults, unit)
    builder.open(STRUCT, "", False)
    nodes = {name: builder.field(name, field, name, False) for name, field in fields}
    builder.close(0)
    return Program(
        np.array(builder.ops, np.int64),
        np.frombuffer(bytes(builder.names) or b"\0", np.uint8),
        np.array(builder.branches or [NO_TARGET], np.int64),
        np.array(builder.in_list),
        nodes,
        tuple(builder.paths),
    )


class SlotArrays(NamedTuple):
    """The slots that a kernel fills: slot s is `out[bases[s] : bases[s] + counts[s]]`, with capacity `capacities[s]`.

    A field has one or two slots, see the module docstring; `counts` grow as values are added.
    """

    out: Ints
    bases: Ints
    capacities: Ints
    counts: Ints


@part
def fill_null(ops: Ints, op: int, slots: SlotArrays) -> None:
    """Add the placeholder 0 to every slot of the subtree at `op`: in Arrow, a null's children have values, too."""
    out, bases, counts = slots.out, slots.bases, slots.counts
    i = op
    last = ops[op, END]
    while i < last:
        slot = ops[i, SLOT]
        out[bases[slot] + counts[slot]] = 0
        counts[slot] += 1
        # Numba compiles `==` chains to jumps but `in` to a tuple search.
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
