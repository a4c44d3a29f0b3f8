"""Avro: one datum a payload, plain or in the Confluent wire format, decoded a batch at a time.

A batch is joined, walked once by a compiled kernel and comes out as columns; no Python object an event. Every payload
is read inside its own bounds, so a bad one costs itself only.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.schemas.avro_kernels import DETAILS, GOOD, decode_datums, encode_datums
from headrace.schemas.codec import BadPayload, Decoded
from headrace.schemas.conform import conform
from headrace.schemas.event import EventSpec
from headrace.schemas.kernels import Ints
from headrace.schemas.program import NESTS_MAX, program_of
from headrace.schemas.slots import fill, from_frame, to_frame

_BAD_HEAD = -1
_VARINT_BYTES_MAX = 10
_MAGIC = b"\0"


def join(payloads: Sequence[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """All payloads as one uint8 array, and their bounds int64 (n + 1,)."""
    bounds = np.zeros(len(payloads) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, payloads), np.int64, len(payloads)), out=bounds[1:])
    return np.frombuffer(b"".join(payloads), np.uint8), bounds


def split(data: NDArray[np.uint8], bounds: NDArray[np.int64]) -> list[bytes]:
    """The pieces of `data` between the bounds."""
    whole, cuts = data.tobytes(), bounds.tolist()
    return [whole[start:end] for start, end in itertools.pairwise(cuts)]


class AvroCodec:
    """Plain Avro datums of the event's own schema, without any header."""

    content_type = "avro/binary"

    def __init__(self, spec: EventSpec) -> None:
        self._spec = spec
        self._program = program_of(spec.types.items(), defaults=False)
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
        """Columns of the payloads; a payload that is no datum of this schema is bad, "undecodable"."""
        data, bounds = join(payloads)
        status = np.where(self._bad_heads(data, bounds), _BAD_HEAD, GOOD).astype(np.int64)

        lists, before = np.empty((NESTS_MAX, 2), np.int64), np.empty(len(self._program.in_list), np.int64)

        def run(first: int, out: Ints, bases: Ints, rooms: Ints, counts: Ints) -> int:
            skip, ops = len(self._head), self._program.ops
            return decode_datums(data, bounds, skip, first, ops, out, bases, rooms, counts, status, lists, before)

        slots = fill(self._program, data, len(payloads), run)
        index = np.flatnonzero(status == GOOD)
        bad = [self._bad(i, int(status[i]), payloads[i]) for i in np.flatnonzero(status != GOOD).tolist()]
        return Decoded(to_frame(self._program, slots), index, bad)

    def _bad_heads(self, data: NDArray[np.uint8], bounds: NDArray[np.int64]) -> NDArray[np.bool_]:
        bad = np.diff(bounds) < len(self._head)
        for place, wanted in enumerate(self._head):
            bad[~bad] |= data[bounds[:-1][~bad] + place] != wanted
        return bad

    def _bad(self, index: int, status: int, payload: bytes) -> BadPayload:
        if status == _BAD_HEAD:
            found, wanted = payload[: len(self._head)].hex(" "), self._head.hex(" ")
            return BadPayload(index, "undecodable", f"header {found!r}, wanted {wanted!r} (magic 00, schema id)")
        return BadPayload(index, "undecodable", f"{DETAILS[status]} ({len(payload)} bytes)")


class ConfluentAvroCodec(AvroCodec):
    """The Confluent wire format: byte 0, the schema's id in 4 bytes (big-endian), then the datum.

    Args:
        schema_id: the id that the schema registry gave this schema. A payload with another id is bad: its
            writer had another schema, and guessing at it would shift fields.
    """

    content_type = "application/vnd.confluent.avro"

    def __init__(self, spec: EventSpec, schema_id: int = 1) -> None:
        super().__init__(spec)
        if not 0 <= schema_id < 1 << 32:
            raise DeclarationError(f"event {spec.name}: schema id {schema_id} is not an unsigned 32-bit number")
        self._head = _MAGIC + schema_id.to_bytes(4, "big")
