"""JSON: one object per payload, decoded in batches into columns.

Times are written as ISO 8601 in UTC with microseconds, and read in that form or as numbers since 1970, in the event's
`time_unit` (microseconds if it declares none); bytes are base64. JSON cannot express non-finite numbers, so they are
the strings "NaN", "Infinity" and "-Infinity", as in pydantic's `ser_json_inf_nan="strings"`. 1.0 and "1" are not read
as integers, nor numbers as text. A UTF-8 byte order mark before an object is skipped.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from headrace.schemas.codecs.codec import Decoded
from headrace.schemas.codecs.json_kernels import Deferred, Scratch, Tables, decode_objects
from headrace.schemas.codecs.json_tokens import (
    FAR_TIME,
    MISSING,
    NOT_JSON,
    NULL_VALUE,
    OPS_MAX,
    TOO_DEEP,
    TWICE,
    WRONG_TYPE,
)
from headrace.schemas.codecs.looks_like import with_hints
from headrace.schemas.codecs.program import (
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
    SlotArrays,
    program_of,
)
from headrace.schemas.codecs.slots import fill, gather, join, to_frame
from headrace.schemas.conform import conform, refuse_far_times, refuse_nulls
from headrace.schemas.event import EventSpec
from headrace.schemas.rejects import BadPayload, Rejects
from headrace.schemas.row_json import rows_as_json
from headrace.schemas.time_units import UNIT_NAMES

_REASONS = {
    NOT_JSON: ("undecodable", "no JSON object"),
    TOO_DEEP: ("undecodable", "nested more than 64 deep"),
    TWICE: ("undecodable", "the field occurs twice"),
    WRONG_TYPE: ("wrong_type", "the value is no {kind}"),
    MISSING: ("missing", "no value, and the event has no default"),
    NULL_VALUE: ("missing", "null, which the event does not allow; {remedy}"),
    FAR_TIME: ("wrong_type", "the number is beyond the range of times in {unit}; declare the unit that it is in"),
}
_KINDS = {
    INT: "integer of 64 bits",
    FLOAT: "number",
    BOOL: "boolean",
    TEXT: "string",
    BYTES: "base64 string",
    TIME: "ISO 8601 time or {number} since 1970",
    OPTION: "value",
    LIST: "array",
    STRUCT: "object",
}


class JsonCodec:
    """A codec for JSON objects; undeclared names are skipped, and optional fields may be missing."""

    def __init__(self, spec: EventSpec) -> None:
        self._spec = spec
        self._program = program_of(spec.types.items(), defaults=True, unit=spec.time_unit)

    def encode(self, frame: pl.DataFrame) -> list[bytes]:
        """Encode each row as one object.

        Raises:
            SchemaError: the frame does not fit the declaration, or a time lies outside the years 1 to 9999.
        """
        if frame.is_empty():
            return []
        fitted = conform(frame, self._spec)
        refuse_nulls(fitted, self._spec)
        refuse_far_times(fitted, self._spec)
        return rows_as_json(fitted)

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Decode payloads; bad ones are "undecodable" (no JSON object), "wrong_type" or "missing" (a field)."""
        data, bounds = join(payloads)
        status = np.zeros((len(payloads), 2), np.int64)
        tables = Tables(self._program.ops, self._program.names)
        deferred = Deferred(np.empty((len(data) // 4 + 1, 3), np.int64), np.zeros(1, np.int64))
        scratch = Scratch(
            np.empty((NESTS_MAX, 3), np.int64),
            np.empty(len(self._program.in_list), np.int64),
            np.empty(int(np.diff(bounds).max(initial=0)), np.uint8),
        )

        def run(first: int, slots: SlotArrays) -> int:
            done = decode_objects(data, bounds, first, tables, slots, deferred, status, scratch)
            _read_deferred(data, deferred.spans[: deferred.count[0]], slots.out)
            deferred.count[0] = 0
            return done

        slots = fill(self._program, data, len(payloads), run)
        rows = np.flatnonzero(status[:, 0] == 0)
        return Decoded(to_frame(self._program, slots, base64=True), rows, self._bad(status, payloads))

    def _bad(self, status: NDArray[np.int64], payloads: Sequence[bytes]) -> Rejects[BadPayload]:
        index = np.flatnonzero(status[:, 0])
        if not len(index):
            return Rejects.none(BadPayload)
        kinds, where = np.unique(status[index, 0] * OPS_MAX + status[index, 1], return_inverse=True)
        described = [self._describe(*divmod(kind, OPS_MAX)) for kind in kinds.tolist()]
        reason, detail = (pl.Series([pair[i] for pair in described], dtype=pl.String)[where] for i in (0, 1))
        return with_hints(Rejects(BadPayload, index, reason, detail), payloads, "json", self._spec)

    def _describe(self, status: int, op: int) -> tuple[str, str]:
        """(Reason, detail) for a status and the op at which it was found."""
        if status == NULL_VALUE and op == 0:
            status = WRONG_TYPE
        reason, detail = _REASONS[status]
        path = self._program.paths[op]
        where = f"{path or 'payload'}: " if reason != "undecodable" or status == TWICE else ""
        unit = self._spec.time_unit or "us"
        number = f"{'number of' if unit in ('s', 'ms') else 'whole'} {UNIT_NAMES[unit]}"
        kind = _KINDS[int(self._program.ops[op, OP])].format(number=number)
        return reason, where + detail.format(kind=kind, unit=UNIT_NAMES[unit], remedy=self._remedy(op))

    def _remedy(self, op: int) -> str:
        has_default = self._program.ops[op, OP] == OPTION
        return "leave the field out for its default, or declare `| None`" if has_default else "declare `| None`"


def _read_deferred(data: NDArray[np.uint8], spans: NDArray[np.int64], out: NDArray[np.int64]) -> None:
    """Read the numbers that the kernel deferred, with Polars' correctly rounding parser."""
    if len(spans):
        offsets, text = gather(data, spans[:, 1].copy(), spans[:, 2] - spans[:, 1], base64=False)
        pieces = pa.LargeStringArray.from_buffers(len(spans), pa.py_buffer(offsets), pa.py_buffer(text))
        out[spans[:, 0]] = pl.Series(pieces).cast(pl.Float64).to_numpy().view(np.int64)
