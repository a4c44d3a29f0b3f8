"""A field tree as a table of numbers, so that one compiled kernel decodes every event.

The table has one row an **op**: a leaf, an option (a field that may be null or absent), a list or a struct, in
declared order, a parent before its children. `end` is the op after the subtree, so a struct's children are `op + 1`,
`end` of that, and so on. A `strict` option may be absent but not null; `null_branch` is for Avro, the name for JSON.
What an op has decoded lies in **slots**: flat int64 arrays, one or two an op.

    op       slots                         meaning of the numbers
    INT      1                             the value (time: microseconds)
    FLOAT    1                             the bits of the float64
    BOOL     1                             0 or 1
    TEXT     2                             start in the batch's bytes; length, negative (-length - 1) if escaped
    BYTES    2                             the same
    OPTION   1                             0 null, 1 present, 2 absent (only JSON can tell absent from null)
    LIST     1                             number of items
    STRUCT   1                             nothing; only its count is kept, the number of structs so far

Every op adds one number per slot for each value of its parent, null or not, exactly as Arrow lays columns out.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic_core import PydanticUndefined

from headrace.errors import DeclarationError
from headrace.schemas.field_types import FieldType

INT, FLOAT, BOOL, TEXT, BYTES, OPTION, LIST, STRUCT, TIME = range(9)
OP, SLOT, END, SLOT_END, STRICT, NULL_BRANCH, NAME, NAME_BYTES, ALIASES = range(9)  # the table's columns

PRESENT, ABSENT = 1, 2
NESTS_MAX = 32  # options, lists and structs within each other; kernels keep the open ones in arrays of this length

_ALIAS_BYTES_MAX = 255
_OPS = {"int": INT, "float": FLOAT, "bool": BOOL, "text": TEXT, "bytes": BYTES, "time": TIME}


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One field in the program: its type, its first slot, its option's slot (-1: never null) and its children."""

    type: FieldType
    slot: int
    option: int
    children: tuple["Node", ...]


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """`ops` int64 (n_ops, 9); op 0 is the event's own struct. `in_list` bool (n_slots,): grows with items, not rows.

    `names` uint8 are the field names that ops point into, each followed by its aliases, one byte of length before
    each; `paths` name each op for people.
    """

    ops: NDArray[np.int64]
    names: NDArray[np.uint8]
    in_list: NDArray[np.bool_]
    nodes: dict[str, Node]
    paths: tuple[str, ...]


class _Builder:
    def __init__(self, defaults: bool) -> None:
        self.defaults = defaults
        self.ops: list[list[int]] = []
        self.names = bytearray()
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
        option = -1
        wrapped = field.nullable or (self.defaults and field.default is not PydanticUndefined)
        if wrapped:
            option = self.open(OPTION, path, listed, strict=not field.nullable)
            outer = len(self.ops) - 1
            self.ops[outer][NULL_BRANCH] = field.null_branch
        op = len(self.ops)
        kind = LIST if field.kind == "list" else STRUCT if field.kind == "struct" else _OPS[field.kind]
        slot = self.open(kind, path, listed, strict=False)
        children: tuple[Node, ...] = ()
        if field.item is not None:
            children = (self.value(field.item, f"{path}[]", listed=True),)
        elif field.fields:
            children = tuple(self.field(name, inner, f"{path}.{name}", listed) for name, inner in field.fields)
        for opened in ([outer] if wrapped else []) + [op]:
            self.ops[opened][END], self.ops[opened][SLOT_END] = len(self.ops), len(self.in_list)
        return Node(field, slot, option, children)

    def open(self, op: int, path: str, listed: bool, *, strict: bool) -> int:
        slot = len(self.in_list)
        self.paths.append(path)
        self.in_list += [listed] * (2 if op in (TEXT, BYTES) else 1)
        self.ops.append([op, slot, 0, 0, int(strict), 0, 0, 0, 0])
        return slot


def program_of(fields: Iterable[tuple[str, FieldType]], *, defaults: bool) -> Program:
    """The program of an event's fields.

    Args:
        fields: names and trees, in the order of the wire.
        defaults: make a field with a default an option too; formats that can leave fields out (JSON) want that.
    """
    builder = _Builder(defaults)
    builder.open(STRUCT, "", False, strict=False)
    nodes = {name: builder.field(name, field, name, False) for name, field in fields}
    builder.ops[0][END], builder.ops[0][SLOT_END] = len(builder.ops), len(builder.in_list)
    return Program(
        np.array(builder.ops, np.int64),
        np.frombuffer(bytes(builder.names) or b"\0", np.uint8),
        np.array(builder.in_list),
        nodes,
        tuple(builder.paths),
    )
