"""Avro: one datum a payload, plain or in the Confluent wire format, decoded a batch at a time.

A batch is joined, walked once by a compiled kernel and comes out as columns; no Python object an event. Every payload
is read inside its own bounds, so a bad one costs itself only.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import DeclarationError, SchemaError
from headrace.schemas.avro_kernels import DETAILS, GOOD, decode_datums, encode_datums
from headrace.schemas.codec import BadPayload, Decoded
from headrace.schemas.conform import conform
from headrace.schemas.event import EventSpec
from headrace.schemas.field_types import FieldType
from headrace.schemas.kernels import Ints
from headrace.schemas.program import NESTS_MAX, program_of
from headrace.schemas.slots import fill, from_frame, to_frame
from headrace.schemas.writer_schema import resolve, writer_fields

_BAD_HEAD = -1
_VARINT_BYTES_MAX = 10
_MAGIC = b"\0"

Writers = Callable[[int], Mapping[str, Any] | None]


def join(payloads: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All payloads as one uint8 array, and their bounds int64 (n + 1,)."""
    bounds = np.zeros(len(payloads) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, payloads), np.int64, len(payloads)), out=bounds[1:])
    return np.frombuffer(b"".join(payloads), np.uint8), bounds


def split(data: NDArray[np.uint8], bounds: NDArray[np.int64]) -> list[bytes]:
    """The pieces of `data` between the bounds."""
    whole, cuts = data.tobytes(), bounds.tolist()
    return [whole[start:end] for start, end in itertools.pairwise(cuts)]


class _DatumReader:
    """Datums of one writer's fields, anywhere in payloads, as columns."""

    def __init__(self, fields: Mapping[str, FieldType]) -> None:
        self._program = program_of(fields.items(), defaults=False)

    def read(self, payloads: Sequence[bytes], head: bytes = b"") -> Decoded:
        """The datums behind `head`; a payload with another head is bad."""
        data, bounds = join(payloads)
        status = np.where(_other_heads(data, bounds, head), _BAD_HEAD, GOOD).astype(np.int64)
        lists, before = np.empty((NESTS_MAX, 2), np.int64), np.empty(len(self._program.in_list), np.int64)

        def run(first: int, out: Ints, bases: Ints, rooms: Ints, counts: Ints) -> int:
            skip, ops = len(head), self._program.ops
            return decode_datums(data, bounds, skip, first, ops, out, bases, rooms, counts, status, lists, before)

        slots = fill(self._program, data, len(payloads), run)
        bad = [_bad(i, int(status[i]), payloads[i], head) for i in np.flatnonzero(status != GOOD).tolist()]
        return Decoded(to_frame(self._program, slots), np.flatnonzero(status == GOOD), bad)


def _other_heads(data: NDArray[np.uint8], bounds: NDArray[np.int64], head: bytes) -> NDArray[np.bool_]:
    other = np.diff(bounds) < len(head)
    for place, wanted in enumerate(head):
        other[~other] |= data[bounds[:-1][~other] + place] != wanted
    return other


def _bad(index: int, status: int, payload: bytes, head: bytes) -> BadPayload:
    if status == _BAD_HEAD:
        found = payload[: len(head)].hex(" ")
        return BadPayload(index, "undecodable", f"header {found!r}, wanted {head.hex(' ')!r} (magic 00, schema id)")
    return BadPayload(index, "undecodable", f"{DETAILS[status]} ({len(payload)} bytes)")


def _resolved(decoded: Decoded, spec: EventSpec) -> Decoded:
    """Rows of another writer's fields as rows of the event; all are bad where its schema does not fit."""
    try:
        return Decoded(resolve(decoded.frame, spec), decoded.payload_index, decoded.bad)
    except SchemaError as exc:
        lost = [BadPayload(index, "wrong_type", str(exc)) for index in decoded.payload_index.tolist()]
        bad = sorted([*decoded.bad, *lost], key=lambda one: one.index)
        return Decoded(pl.DataFrame(schema=spec.polars), np.empty(0, np.int64), bad)


class AvroCodec:
    """Plain Avro datums without any header.

    Args:
        spec: of the event.
        writer: the Avro schema that the payloads to decode were written with, for a stream that an older declaration
            wrote: a plain datum does not tell. None: the event's own. Encoding always uses the event's own.
    """

    content_type = "avro/binary"

    def __init__(self, spec: EventSpec, *, writer: Mapping[str, Any] | None = None) -> None:
        self._spec = spec
        self._program = program_of(spec.types.items(), defaults=False)
        self._own = _DatumReader(spec.types)
        self._reader = _DatumReader(writer_fields(writer)) if writer is not None else self._own
        self._head = b""

    def encode(self, frame: pl.DataFrame) -> list[bytes]:
        """One datum a row.

        Raises:
            SchemaError: the frame does not fit the declaration.
        """
        if frame.is_empty():
            return []
        slots = from_frame(self._program, conform(frame, self._spec))
        # Every number in a slot is written as at most one varint, and every list ends with one more byte.
        room = (_VARINT_BYTES_MAX + 1) * len(slots.out) + len(slots.data) + len(self._head) * frame.height
        out = np.empty(room, np.uint8)
        bounds = np.empty(frame.height + 1, np.int64)
        nests = np.empty((NESTS_MAX, 3), np.int64)
        head = np.frombuffer(self._head, np.uint8)
        size = encode_datums(slots.data, head, self._program.ops, slots.out, slots.bases.copy(), nests, out, bounds)
        return split(out[:size], bounds)

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Columns of the payloads; a payload that is no datum of the writer's schema is bad, "undecodable"."""
        decoded = self._reader.read(payloads)
        return decoded if self._reader is self._own else _resolved(decoded, self._spec)


class ConfluentAvroCodec(AvroCodec):
    """The Confluent wire format: byte 0, the schema's id in 4 bytes (big-endian), then the datum.

    Args:
        spec: of the event.
        schema_id: the id that the schema registry gave the event's own schema.
        writers: the schema of any other id, or None where there is none; `SchemaRegistry.schema` is one. Without it
            a payload with another id is bad: its writer had another schema, and guessing at it would shift fields.
    """

    content_type = "application/vnd.confluent.avro"

    def __init__(self, spec: EventSpec, schema_id: int = 1, *, writers: Writers | None = None) -> None:
        super().__init__(spec)
        if not 0 <= schema_id < 1 << 32:
            raise DeclarationError(f"event {spec.name}: schema id {schema_id} is not an unsigned 32-bit number")
        self._head = _head(schema_id)
        self._writers = writers
        self._readers: dict[bytes, _DatumReader | None] = {}

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Columns of the payloads, each read by the schema that its id names.

        Raises:
            ServiceError: `writers` asked a registry that does not answer; the batch can be decoded again later.
            DeclarationError: a writer's schema has a type that no column here has.
        """
        own = self._own.read(payloads, self._head)
        heads = {payloads[bad.index][: len(self._head)] for bad in own.bad} - {self._head}
        parts, told = [(own.payload_index, own.frame)], {bad.index: bad for bad in own.bad}
        for head in sorted(heads):
            reader = self._reader_of(head)
            if reader is None:
                continue
            places = np.array([bad.index for bad in own.bad if payloads[bad.index].startswith(head)])
            found = _resolved(reader.read([payloads[place] for place in places], head), self._spec)
            parts.append((places[found.payload_index], found.frame))
            told = {index: bad for index, bad in told.items() if index not in set(places.tolist())}
            told |= {int(places[bad.index]): replace(bad, index=int(places[bad.index])) for bad in found.bad}
        if len(parts) == 1:
            return own
        index = np.concatenate([places for places, _ in parts])
        order = np.argsort(index)
        frame = pl.concat([frame for _, frame in parts])[order]
        return Decoded(frame, index[order], [told[place] for place in sorted(told)])

    def _reader_of(self, head: bytes) -> _DatumReader | None:
        """The reader of the schema that a header names; None where it names none."""
        if self._writers is None or len(head) != len(self._head) or head[:1] != _MAGIC:
            return None
        if head not in self._readers:
            schema = self._writers(int.from_bytes(head[1:], "big"))
            self._readers[head] = None if schema is None else _DatumReader(writer_fields(schema))
        return self._readers[head]


def _head(schema_id: int) -> bytes:
    return _MAGIC + schema_id.to_bytes(4, "big")
