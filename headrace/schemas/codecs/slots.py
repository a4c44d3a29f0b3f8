# ruff: noqa: PLR1714
# Numba compiles `==` chains to jumps but `in` to a tuple search.
"""Slots of a batch: int64 arrays that decode kernels fill, and their conversion to and from Arrow columns.

Rows are not copied one by one: slots of integers, floats and times are the column buffers, and text is gathered once.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray
from pydantic_core import PydanticUndefined

from headrace.errors import SchemaError
from headrace.kernels.compile import Bytes, Ints, lean_kernel, part
from headrace.schemas.codecs.program import ABSENT, PRESENT, Node, Program, SlotArrays
from headrace.schemas.fields import Wire, default_column

_BACKSLASH = 0x5C
_ITEMS_PER_ROW = 4  # initial capacity for list items; doubled when exceeded

Run = Callable[[int, SlotArrays], int]
"""run(first payload, slots) -> the payload that exceeded the slots' capacity, or the number of payloads."""


@dataclass(frozen=True, slots=True)
class Slots:
    """The slots of a batch: `data` uint8 are the bytes of text; slot s is `out[bases[s] : bases[s] + counts[s]]`."""

    data: NDArray[np.uint8]
    out: NDArray[np.int64]
    bases: NDArray[np.int64]
    counts: NDArray[np.int64]

    def __getitem__(self, slot: int) -> NDArray[np.int64]:
        start = self.bases[slot]
        return self.out[start : start + self.counts[slot]]


def join(payloads: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Concatenate payloads to one uint8 array, and return it with their bounds int64 (n + 1,)."""
    bounds = np.zeros(len(payloads) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, payloads), np.int64, len(payloads)), out=bounds[1:])
    return np.frombuffer(b"".join(payloads), np.uint8), bounds


def split(data: NDArray[np.uint8], bounds: NDArray[np.int64]) -> list[bytes]:
    """The pieces of `data` between the bounds."""
    whole, cuts = data.tobytes(), bounds.tolist()
    return [whole[start:end] for start, end in itertools.pairwise(cuts)]


def fill(program: Program, data: NDArray[np.uint8], payload_count: int, run: Run) -> Slots:
    """Decode all payloads with `run`, doubling the capacity of list items whenever it is exceeded."""
    capacities = np.where(program.in_list, max(16, _ITEMS_PER_ROW * payload_count), payload_count).astype(np.int64)
    slots = _empty_slots(capacities, np.zeros(len(capacities), np.int64))
    done = run(0, slots)
    while done < payload_count:
        # The number of list items is bounded by the number of bytes, so doubling ends.
        wider = _empty_slots(np.where(program.in_list, 2 * slots.capacities, slots.capacities), slots.counts)
        for count, old, new in zip(slots.counts, slots.bases, wider.bases, strict=True):
            wider.out[new : new + count] = slots.out[old : old + count]
        slots = wider
        done = run(done, slots)
    return Slots(data, slots.out, slots.bases, slots.counts)


def _empty_slots(capacities: NDArray[np.int64], counts: NDArray[np.int64]) -> SlotArrays:
    bases = np.concatenate([[0], np.cumsum(capacities)[:-1]]).astype(np.int64)
    return SlotArrays(np.empty(int(capacities.sum()), np.int64), bases, capacities, counts)


def to_frame(program: Program, slots: Slots, *, base64: bool = False) -> pl.DataFrame:
    """Convert slots to columns. `base64`: the slots of bytes fields hold base64 text."""
    columns = {name: _column(node, slots, base64) for name, node in program.nodes.items() if not node.type.is_skipped}
    frame = pl.from_arrow(pa.table(columns))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _column(node: Node, slots: Slots, base64: bool) -> pa.Array:
    if node.type.wire is not None and node.type.wire.kind == "union":
        return _union(node, slots)
    marks = slots[node.option] if node.option >= 0 else None
    validity = None if marks is None else pa.py_buffer(np.packbits(marks == PRESENT, bitorder="little"))
    column = _values(node, slots, validity, base64)
    if marks is None or node.type.default in (None, PydanticUndefined) or not (marks == ABSENT).any():
        return column
    return pa.compute.if_else(pa.array(marks == ABSENT), default_column(node.type)[0], column)


def _union(node: Node, slots: Slots) -> pa.Array:
    """The branches of a union as one column, null where the value's branch is not read."""
    chosen = slots[node.slot]
    columns = []
    for index, child in enumerate(node.branches):
        if child is not None:
            validity = pa.py_buffer(np.packbits(chosen == index, bitorder="little"))
            columns.append(_values(child, slots, validity, base64=False))
    return columns[0] if len(columns) == 1 else pa.compute.coalesce(*columns)


def _values(node: Node, slots: Slots, validity: pa.Buffer | None, base64: bool) -> pa.Array:
    if node.type.wire is not None and (column := _wire_values(node, node.type.wire, slots, validity)) is not None:
        return column
    kind, arrow = node.type.kind, node.type.arrow()
    values = slots[node.slot]
    count = len(values)
    match kind:
        case "int" | "time" | "float":
            return pa.Array.from_buffers(arrow, count, [validity, pa.py_buffer(values)])
        case "bool":
            bits = np.packbits(values.astype(np.bool_), bitorder="little")
            return pa.Array.from_buffers(arrow, count, [validity, pa.py_buffer(bits)])
        case "text" | "bytes":
            offsets, gathered = gather(slots.data, values, slots[node.slot + 1], base64=base64 and kind == "bytes")
            return pa.Array.from_buffers(arrow, count, [validity, pa.py_buffer(offsets), pa.py_buffer(gathered)])
        case "list":
            offsets = np.concatenate([[0], np.cumsum(values)])
            child = _column(node.children[0], slots, base64)
            return pa.Array.from_buffers(arrow, count, [validity, pa.py_buffer(offsets)], children=[child])
        case "struct":
            children = [_column(child, slots, base64) for child in node.children if not child.type.is_skipped]
            return pa.Array.from_buffers(arrow, count, [validity], children=children)


def _wire_values(node: Node, wire: Wire, slots: Slots, validity: pa.Buffer | None) -> pa.Array | None:
    """The column of a field whose slots differ from those of our own schemas; None if they do not differ."""
    values, arrow = slots[node.slot], node.type.arrow()
    if wire.kind == "null":
        return pa.nulls(len(values))
    if wire.kind == "enum":
        names = pa.array(wire.symbols, pa.large_string()).take(pa.array(values))
        return pa.Array.from_buffers(arrow, len(values), [validity, *names.buffers()[1:]])
    if wire.scale is not None:
        digits = decimals(slots.data, values, slots[node.slot + 1])
        return pa.Array.from_buffers(arrow, len(values), [validity, pa.py_buffer(digits)])
    if wire.kind == "long":
        return pa.Array.from_buffers(arrow, len(values), [validity, pa.py_buffer(values.astype(np.float64))])
    return None


def decimals(data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Convert big-endian two's complement numbers of 0 to 16 bytes to Arrow decimals: uint8 (n, 16), little-endian."""
    out = np.zeros((len(starts), 16), np.uint8)
    some = lengths > 0
    out[some & (data[np.where(some, starts, 0)] >= 0x80)] = 0xFF  # the sign fills up
    for place in range(int(lengths.max(initial=0))):
        has = lengths > place
        out[has, place] = data[starts[has] + lengths[has] - 1 - place]
    return out


def gather(
    data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64], *, base64: bool
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Concatenate pieces of `data`, unescaped: their Arrow offsets (n + 1,) and bytes."""
    offsets = np.empty(len(starts) + 1, np.int64)
    out = np.empty(int(np.where(lengths < 0, -lengths - 1, lengths).sum()), np.uint8)
    size = gather_bytes(data, starts, lengths, base64, offsets, out)
    return offsets, out[:size]


def from_frame(program: Program, frame: pl.DataFrame) -> Slots:
    """Convert a frame that `conform` returned to slots for an encoder.

    Raises:
        SchemaError: a column that is not optional contains null.
    """
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    columns: dict[int, NDArray[np.int64]] = {}
    pieces: list[NDArray[np.uint8]] = []
    for name, node in program.nodes.items():
        chunked = table.column(name)
        array = (
            chunked.chunk(0)
            if chunked.num_chunks == 1
            else pa.concat_arrays(chunked.chunks or [pa.array([], chunked.type)])
        )
        _unpack(node, array, name, np.ones(len(array), np.bool_), columns, pieces)
    empty = np.empty(0, np.int64)
    ordered = [columns.get(slot, empty) for slot in range(len(program.in_list))]
    counts = np.array([len(values) for values in ordered], np.int64)
    bases = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    data = np.concatenate(pieces) if pieces else np.empty(0, np.uint8)
    return Slots(data, np.concatenate(ordered), bases, counts)


def _unpack(
    node: Node,
    array: Any,
    path: str,
    live: NDArray[np.bool_],
    columns: dict[int, NDArray[np.int64]],
    pieces: list[NDArray[np.uint8]],
) -> None:
    """Add the slots of one column; `live` bool (n,): rows in which no parent is null."""
    valid = array.is_valid().to_numpy(zero_copy_only=False)
    if node.option >= 0:
        columns[node.option] = valid.astype(np.int64)
    elif (live & ~valid).any():
        nulls = int((live & ~valid).sum())
        raise SchemaError(f"column {path}: {nulls} nulls where the event declares none; allow `| None` or fill them")
    match node.type.kind:
        case "int" | "bool" | "float" | "time":
            columns[node.slot] = _to_int64(array)
        case "text" | "bytes":
            ends, data = _offsets(array), array.buffers()[2]
            shift = sum(len(piece) for piece in pieces) - int(ends[0])
            columns[node.slot], columns[node.slot + 1] = ends[:-1] + shift, np.diff(ends)
            pieces.append(np.frombuffer(data or b"", np.uint8)[int(ends[0]) : int(ends[-1])])
        case "list":
            ends = _offsets(array)
            columns[node.slot] = np.diff(ends)
            items = array.values.slice(ends[0], ends[-1] - ends[0])
            _unpack(node.children[0], items, f"{path}[]", np.repeat(live & valid, np.diff(ends)), columns, pieces)
        case "struct":
            columns[node.slot] = np.zeros(len(array), np.int64)
            for index, (child, (name, _)) in enumerate(zip(node.children, node.type.fields, strict=True)):
                _unpack(child, array.field(index), f"{path}.{name}", live & valid, columns, pieces)


def _offsets(array: Any) -> NDArray[np.int64]:
    if not len(array):
        return np.zeros(1, np.int64)
    return np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]


def _to_int64(array: Any) -> NDArray[np.int64]:
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.int64())
    values = (array.fill_null(0) if array.null_count else array).to_numpy(zero_copy_only=False)
    return np.ascontiguousarray(values).view(np.int64) if values.dtype == np.float64 else values.astype(np.int64)


# Text: pieces of the payloads, gathered and unescaped. Cost: 1-2 ns per byte.


@part
def hex_value(data: Bytes, start: int) -> int:
    """The value of four hex digits, or -1."""
    value = 0
    for i in range(start, start + 4):
        c = data[i]
        if 0x30 <= c <= 0x39:
            digit = c - 0x30
        elif 0x41 <= (c & 0xDF) <= 0x46:
            digit = (c & 0xDF) - 0x37
        else:
            return -1
        value = value * 16 + int(digit)
    return value


@lean_kernel
def unescape(data: Bytes, start: int, end: int, out: Bytes, at: int) -> int:
    """Unescape the well-formed JSON text `data[start:end]` to `out[at:]`; returns the end position in `out`."""
    i = start
    while i < end:
        c = data[i]
        if c != _BACKSLASH:
            out[at] = c
            at += 1
            i += 1
            continue
        c = data[i + 1]
        i += 2
        if c == 0x75:
            point = hex_value(data, i)
            i += 4
            if 0xD800 <= point <= 0xDBFF:
                point = 0x10000 + ((point - 0xD800) << 10) + (hex_value(data, i + 2) - 0xDC00)
                i += 6
            at = write_point(point, out, at)
            continue
        if c == 0x62:
            c = 0x08
        elif c == 0x66:
            c = 0x0C
        elif c == 0x6E:
            c = 0x0A
        elif c == 0x72:
            c = 0x0D
        elif c == 0x74:
            c = 0x09
        out[at] = c
        at += 1
    return at


@lean_kernel
def write_point(point: int, out: Bytes, at: int) -> int:
    """Write a code point as UTF-8 to `out[at:]`; returns the position after it."""
    if point < 0x80:
        out[at] = point
        return at + 1
    if point < 0x800:
        out[at] = 0xC0 | (point >> 6)
        out[at + 1] = 0x80 | (point & 0x3F)
        return at + 2
    if point < 0x10000:
        out[at] = 0xE0 | (point >> 12)
        out[at + 1] = 0x80 | ((point >> 6) & 0x3F)
        out[at + 2] = 0x80 | (point & 0x3F)
        return at + 3
    out[at] = 0xF0 | (point >> 18)
    out[at + 1] = 0x80 | ((point >> 12) & 0x3F)
    out[at + 2] = 0x80 | ((point >> 6) & 0x3F)
    out[at + 3] = 0x80 | (point & 0x3F)
    return at + 4


@part
def base64_value(c: int) -> int:
    """The six bits of a base64 letter (RFC 4648, sections 4 and 5: either alphabet), or -1."""
    if 0x41 <= c <= 0x5A:
        return c - 0x41
    if 0x61 <= c <= 0x7A:
        return c - 0x61 + 26
    if 0x30 <= c <= 0x39:
        return c - 0x30 + 52
    if c == 0x2B or c == 0x2D:
        return 62
    return 63 if c == 0x2F or c == 0x5F else -1


@lean_kernel
def decode_base64(out: Bytes, start: int, end: int) -> int:
    """Decode the well-formed base64 text `out[start:end]` in place; returns the end of the bytes."""
    at = start
    bits = 0
    bit_count = 0
    for i in range(start, end):
        value = base64_value(int(out[i]))
        if value < 0:
            break
        bits = ((bits << 6) | value) & 0xFFFFFF
        bit_count += 6
        if bit_count >= 8:
            bit_count -= 8
            out[at] = (bits >> bit_count) & 0xFF
            at += 1
    return at


@lean_kernel
def gather_bytes(data: Bytes, starts: Ints, lengths: Ints, base64: bool, offsets: Ints, out: Bytes) -> int:
    """Concatenate pieces of `data` in `out`, and write their bounds to `offsets` (n + 1,); returns the size.

    A negative length -n - 1 is a piece of n bytes with JSON escapes. `base64`: the pieces are base64 text.
    """
    at = 0
    offsets[0] = 0
    for i in range(len(starts)):
        start, length = starts[i], lengths[i]
        piece = at
        if length < 0:
            at = unescape(data, start, start - length - 1, out, at)
        else:
            for j in range(length):
                out[at + j] = data[start + j]
            at += length
        if base64:
            at = decode_base64(out, piece, at)
        offsets[i + 1] = at
    return at
