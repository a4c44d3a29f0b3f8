"""JSON: one object a payload, decoded a batch at a time into columns.

Times are written as ISO 8601 in UTC with microseconds, and read as that or as whole microseconds since 1970; bytes are
base64. JSON has no word for numbers that are not finite: they are the strings "NaN", "Infinity" and "-Infinity", as in
pydantic's `ser_json_inf_nan="strings"`. Integers are never read from 1.0 or "1", nor text from numbers.
"""

import base64
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from headrace.errors import SchemaError
from headrace.schemas.avro import join
from headrace.schemas.codec import BadPayload, Decoded
from headrace.schemas.conform import conform, refuse_nulls
from headrace.schemas.event import EventSpec
from headrace.schemas.field_types import FieldType
from headrace.schemas.json_kernels import decode_objects
from headrace.schemas.json_tokens import MISSING, NOT_JSON, TOO_DEEP, TWICE, WRONG_TYPE
from headrace.schemas.kernels import Ints
from headrace.schemas.program import (
    BOOL,
    BYTES,
    FLOAT,
    INT,
    LIST,
    NESTS_MAX,
    OP,
    OPTION,
    STRUCT,
    TEXT,
    TIME,
    program_of,
)
from headrace.schemas.slots import fill, gather, to_frame

_ISO = "%Y-%m-%dT%H:%M:%S%.6fZ"
_REASONS = {
    NOT_JSON: ("undecodable", "no JSON object"),
    TOO_DEEP: ("undecodable", "nested more than 64 deep"),
    TWICE: ("undecodable", "the field occurs twice"),
    WRONG_TYPE: ("wrong_type", "the value is no {kind}"),
    MISSING: ("missing", "no value, and the event has no default"),
}
_KINDS = {
    INT: "integer of 64 bits",
    FLOAT: "number",
    BOOL: "boolean",
    TEXT: "string",
    BYTES: "base64 string",
    TIME: "ISO 8601 time or whole microseconds",
    OPTION: "value",
    LIST: "array",
    STRUCT: "object",
}


class JsonCodec:
    """JSON objects; names that the event does not declare are passed over, an optional field may be left out."""

    content_type = "application/json"

    def __init__(self, spec: EventSpec) -> None:
        self._spec = spec
        self._program = program_of(spec.types.items(), defaults=True)

    def encode(self, frame: pl.DataFrame) -> list[bytes]:
        """One object a row.

        Raises:
            SchemaError: the frame does not fit the declaration, or a time lies outside the years 1 to 9999.
        """
        if frame.is_empty():
            return []
        fitted = conform(frame, self._spec)
        refuse_nulls(fitted, self._spec)
        self._refuse_far_times(fitted)
        types = self._spec.types.items()
        wire = fitted.select(_written(pl.col(name), found).alias(name) for name, found in types)
        sink = io.BytesIO()
        wire.write_ndjson(sink)
        lines = sink.getvalue().split(b"\n")[: frame.height]
        odd = fitted.select(
            pl.any_horizontal(pl.lit(value=False), *(_odd(pl.col(n), t) for n, t in types)).alias("odd")
        )
        for row in odd["odd"].fill_null(value=False).arg_true():
            lines[row] = orjson.dumps(_named_floats(wire.row(row, named=True)))
        return lines

    def _refuse_far_times(self, frame: pl.DataFrame) -> None:
        for name, found in self._spec.types.items():
            if found.kind == "time" and not frame[name].drop_nulls().dt.year().is_between(1, 9999).all():
                raise SchemaError(f"event {self._spec.name}.{name}: JSON times are of the years 1 to 9999")

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Columns of the payloads. Bad ones are "undecodable" (no JSON object), "wrong_type" or "missing" (a field)."""
        data, bounds = join(payloads)
        status = np.zeros((len(payloads), 2), np.int64)
        slow = np.empty((len(data) // 4 + 1, 3), np.int64)
        slow_count = np.zeros(1, np.int64)
        ops, names = self._program.ops, self._program.names
        nests, before = np.empty((NESTS_MAX, 3), np.int64), np.empty(len(self._program.in_list), np.int64)
        scratch = np.empty(max(map(len, payloads), default=0), np.uint8)

        def run(first: int, out: Ints, bases: Ints, rooms: Ints, counts: Ints) -> int:
            spaces = (out, bases, rooms, counts)
            scratches = (nests, before, scratch)
            done = decode_objects(data, bounds, first, ops, names, *spaces, slow, slow_count, status, *scratches)
            _read_slow(data, slow[: slow_count[0]], out)
            slow_count[0] = 0
            return done

        slots = fill(self._program, data, len(payloads), run)
        bad = [self._bad(int(i), *status[i].tolist()) for i in np.flatnonzero(status[:, 0])]
        return Decoded(to_frame(self._program, slots, base64=True), np.flatnonzero(status[:, 0] == 0), bad)

    def _bad(self, index: int, status: int, op: int) -> BadPayload:
        reason, detail = _REASONS[status]
        where = f"{self._program.paths[op] or 'payload'}: " if reason != "undecodable" or status == TWICE else ""
        return BadPayload(index, reason, where + detail.format(kind=_KINDS[self._program.ops[op, OP]]))


def _read_slow(data: NDArray[np.uint8], slow: NDArray[np.int64], out: NDArray[np.int64]) -> None:
    """Read the numbers that the kernel left, with Polars' correctly rounding parser."""
    if len(slow):
        offsets, text = gather(data, slow[:, 1].copy(), slow[:, 2] - slow[:, 1], base64=False)
        pieces = pa.LargeStringArray.from_buffers(len(slow), pa.py_buffer(offsets), pa.py_buffer(text))
        out[slow[:, 0]] = pl.Series(pieces).cast(pl.Float64).to_numpy().view(np.int64)


def _written(values: pl.Expr, found: FieldType) -> pl.Expr:
    """The column as JSON holds it: times and bytes as text."""
    match found.kind:
        case "time":
            return values.dt.strftime(_ISO)
        case "bytes":
            return values.bin.encode("base64")
        case "list" if found.item is not None:
            return values.list.eval(_written(pl.element(), found.item))
        case "struct":
            fields = [_written(values.struct.field(name), inner).alias(name) for name, inner in found.fields]
            return pl.when(values.is_not_null()).then(pl.struct(fields))
    return values


def _odd(values: pl.Expr, found: FieldType) -> pl.Expr:
    """Where a float below is not finite."""
    match found.kind:
        case "float":
            return ~values.is_finite()
        case "list" if found.item is not None:
            return values.list.eval(_odd(pl.element(), found.item)).list.any()
        case "struct":
            return pl.any_horizontal([_odd(values.struct.field(name), inner) for name, inner in found.fields])
    return pl.lit(value=False)


def _named_floats(value: Any) -> Any:
    match value:
        case dict():
            return {name: _named_floats(inner) for name, inner in value.items()}
        case list():
            return [_named_floats(inner) for inner in value]
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def rows_as_json(frame: pl.DataFrame) -> list[bytes]:
    """Every row of any frame as a JSON object, for rows that came without payload bytes and cannot be used.

    Times become whole microseconds, bytes base64: whatever a column may hold can be written.
    """
    micros = frame.cast({name: _in_micros(found) for name, found in frame.schema.items()}, strict=False)
    plain = micros.cast({name: _as_numbers(found) for name, found in micros.schema.items()}, strict=False)
    return [orjson.dumps(_named_floats(row), default=_as_text) for row in plain.iter_rows(named=True)]


def _in_micros(found: pl.DataType) -> pl.DataType:
    return _mapped(found, lambda leaf: pl.Datetime("us", leaf.time_zone) if isinstance(leaf, pl.Datetime) else leaf)


def _as_numbers(found: pl.DataType) -> pl.DataType:
    return _mapped(found, lambda leaf: pl.Int64() if isinstance(leaf, pl.Datetime) else leaf)


def _mapped(found: Any, leaf: Callable[[pl.DataType], pl.DataType]) -> pl.DataType:
    if isinstance(found, pl.List):
        return pl.List(_mapped(found.inner, leaf))
    if isinstance(found, pl.Struct):
        return pl.Struct({field.name: _mapped(field.dtype, leaf) for field in found.fields})
    return leaf(found)


def _as_text(value: object) -> str:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
