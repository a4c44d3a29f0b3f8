"""Avro: one datum per payload, plain or in the Confluent wire format, decoded in batches.

The payloads of a batch are joined and decoded by one kernel call into columns, without a Python object per event. Each
payload is read within its own bounds, so a bad one affects no other.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import DeclarationError, SchemaError
from headrace.schemas.codecs.avro_kernels import Scratch, Tables, decode_datums, encode_datums
from headrace.schemas.codecs.avro_skip import DEPTH_MAX, DETAILS, GOOD, STATUS_MAX
from headrace.schemas.codecs.codec import Decoded
from headrace.schemas.codecs.looks_like import with_hints
from headrace.schemas.codecs.program import NESTS_MAX, SlotArrays, program_of
from headrace.schemas.codecs.registry import UnusableAnswerError
from headrace.schemas.codecs.slots import fill, from_frame, join, split, to_frame
from headrace.schemas.codecs.writer_schema import OtherTypeError, plan_reading
from headrace.schemas.conform import MissingColumnError, conform, conform_rows
from headrace.schemas.event import EventSpec
from headrace.schemas.rejects import BadPayload, Rejects

_HEAD_BYTES = 5
_NO_ID = -1
_OTHER_HEAD = -1  # status of a payload with another header, which the kernel skips
_VARINT_BYTES_MAX = 10
_MAGIC = b"\0"
MISSES_MAX = 32
"""Maximum lookups of unknown schema ids per `MISS_SPAN_S`: in damaged payloads the id may be any number."""
MISS_SPAN_S = 10.0

Writers = Callable[[int], Any]
"""Function from an id to its Avro schema, parsed as JSON, or None; raises SchemaError if the schema is unusable."""


class _DatumReader:
    """A reader of datums with one writer's schema, preceded by a given header, as rows of the event.

    `writer` is the schema, parsed as JSON; None: the event's own.

    Raises:
        SchemaError: the event cannot be read with the schema.
    """

    def __init__(self, spec: EventSpec, writer: Any = None) -> None:
        self._spec = spec
        self._is_own = writer is None
        if self._is_own:
            self.program = program_of(spec.types.items(), defaults=False)
            nodes, links = np.zeros((1, 4), np.int64), np.zeros(1, np.int64)
        else:
            plan = plan_reading(writer, spec)
            self.program = program_of(plan.fields, defaults=False)
            nodes, links = plan.nodes, plan.links
        self._tables = Tables(self.program.ops, self.program.branches, nodes, links)

    def read(self, payloads: Sequence[bytes], head: bytes = b"") -> tuple[Decoded, NDArray[np.int64]]:
        """The rows of the payloads that begin with `head`, and the indexes of the other payloads."""
        data, bounds = join(payloads)
        status = np.where(_other_heads(data, bounds, head), _OTHER_HEAD, GOOD).astype(np.int64)
        scratch = Scratch(
            np.empty((NESTS_MAX, 2), np.int64),
            np.empty((DEPTH_MAX, 2), np.int64),
            np.empty(len(self.program.in_list), np.int64),
        )

        def run(first: int, slots: SlotArrays) -> int:
            return decode_datums(data, bounds, len(head), first, self._tables, slots, status, scratch)

        slots = fill(self.program, data, len(payloads), run)
        frame = to_frame(self.program, slots)
        rows = np.flatnonzero(status == GOOD)
        bad = self._bad(np.flatnonzero(status > GOOD), status, payloads)
        decoded = Decoded(frame, rows, bad) if self._is_own else self._fitted(frame, rows, bad)
        return decoded, np.flatnonzero(status == _OTHER_HEAD)

    def _bad(
        self, index: NDArray[np.int64], status: NDArray[np.int64], payloads: Sequence[bytes]
    ) -> Rejects[BadPayload]:
        if not len(index):
            return Rejects.none(BadPayload)
        kinds, where = np.unique(status[index], return_inverse=True)
        texts = pl.Series([self._detail(int(kind)) for kind in kinds], dtype=pl.String)[where]
        sizes = pl.Series([len(payloads[place]) for place in index.tolist()], dtype=pl.Int64)
        detail = pl.select(pl.format("{} ({} bytes)", texts, sizes)).to_series()
        return Rejects.same(BadPayload, index, "undecodable", detail)

    def _detail(self, status: int) -> str:
        path = self.program.paths[status // STATUS_MAX]
        return f"{path}: {DETAILS[status % STATUS_MAX]}" if path else DETAILS[status % STATUS_MAX]

    def _fitted(self, frame: pl.DataFrame, rows: NDArray[np.int64], bad: Rejects[BadPayload]) -> Decoded:
        """Cast rows with another writer's field types to rows of the event; rows that do not fit are bad."""
        try:
            fitted, lost = conform_rows(frame, self._spec)
        except SchemaError as exc:
            reason = "missing" if isinstance(exc, MissingColumnError) else "wrong_type"
            all_lost = Rejects.same(BadPayload, rows, reason, str(exc))
            none = pl.DataFrame(schema=self._spec.polars)
            return Decoded(none, rows[:0], Rejects.merged(BadPayload, [bad, all_lost]))
        if not lost:
            return Decoded(fitted, rows, bad)
        unfit = Rejects(BadPayload, rows[lost.indexes], lost.reasons, lost.details)
        return Decoded(fitted, np.delete(rows, lost.indexes), Rejects.merged(BadPayload, [bad, unfit]))


def _other_heads(data: NDArray[np.uint8], bounds: NDArray[np.int64], head: bytes) -> NDArray[np.bool_]:
    other = np.diff(bounds) < len(head)
    for place, wanted in enumerate(head):
        other[~other] |= data[bounds[:-1][~other] + place] != wanted
    return other


class AvroCodec:
    """A codec for plain Avro datums without a header.

    Args:
        spec: of the event.
        writer: the Avro schema with which the payloads were written, for a stream with events of an older declaration,
            since a plain datum does not name its schema. None: the event's own. Encoding always uses the event's own.

    Raises:
        SchemaError: the event cannot be read with the writer's schema.
    """

    def __init__(self, spec: EventSpec, *, writer: Mapping[str, Any] | None = None) -> None:
        self._spec = spec
        self._own = _DatumReader(spec)
        self._program = self._own.program
        self._reader = self._own if writer is None else _DatumReader(spec, writer)
        self._head = b""

    def encode(self, frame: pl.DataFrame) -> list[bytes]:
        """Encode each row as one datum.

        Raises:
            SchemaError: the frame does not fit the declaration.
        """
        if frame.is_empty():
            return []
        slots = from_frame(self._program, conform(frame, self._spec))
        # Every number in a slot is written as at most one varint, and every list ends with one more byte.
        size_max = (_VARINT_BYTES_MAX + 1) * len(slots.out) + len(slots.data) + len(self._head) * frame.height
        out = np.empty(size_max, np.uint8)
        bounds = np.empty(frame.height + 1, np.int64)
        nests = np.empty((NESTS_MAX, 3), np.int64)
        head = np.frombuffer(self._head, np.uint8)
        size = encode_datums(slots.data, head, self._program.ops, slots.out, slots.bases.copy(), nests, out, bounds)
        return split(out[:size], bounds)

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Decode payloads to columns; a payload that is not a datum of the writer's schema is bad, "undecodable".

        A payload whose values do not fit the event is also bad: "wrong_type", or "missing" if a field is missing.
        """
        decoded, _ = self._reader.read(payloads)
        return Decoded(decoded.frame, decoded.payload_index, with_hints(decoded.rejects, payloads, "avro", self._spec))


class ConfluentAvroCodec(AvroCodec):
    """A codec for the Confluent wire format: byte 0, the schema's id in 4 bytes (big-endian), then the datum.

    Args:
        spec: of the event.
        schema_id: the registry's id of the event's own schema.
        writers: function that returns the schema of any other id, or None if there is none, such as
            `SchemaRegistry.schema`. Without it a payload with another id is bad: its writer used another schema, and
            reading it with the event's own would shift fields. An id without a schema is looked up again after
            `MISS_SPAN_S`.
    """

    def __init__(self, spec: EventSpec, schema_id: int = 1, *, writers: Writers | None = None) -> None:
        super().__init__(spec)
        if not 0 <= schema_id < 1 << 32:
            raise DeclarationError(f"event {spec.name}: schema id {schema_id} is not an unsigned 32-bit number")
        self._head = _head(schema_id)
        self._writers = writers
        self._readers: dict[int, _DatumReader | _Unreadable] = {}  # results that will not change
        self._misses: dict[int, _Unreadable] = {}  # at most MISSES_MAX

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Decode payloads to columns, each with the schema that its id names.

        A payload is bad if its schema is unknown, is not an Avro record, or has an incompatible type for a field.

        Raises:
            ServiceError: `writers` cannot reach the registry; the batch can be decoded again later.
        """
        own, others = self._own.read(payloads, self._head)
        parts = [own]
        if len(others):
            ids = np.array([_schema_id(payloads[index]) for index in others.tolist()], np.int64)
            unique_ids, where, counts = np.unique(ids, return_inverse=True, return_counts=True)
            # The most frequent ids are looked up first.
            readers = {place: self._reader_of(int(unique_ids[place])) for place in np.argsort(-counts).tolist()}
            for place, reader in readers.items():
                if isinstance(reader, _DatumReader):
                    parts.append(_read(reader, int(unique_ids[place]), others[where == place], payloads))
            unread = [readers[place] for place in range(len(unique_ids))]
            parts.append(self._unreadable(unread, where, others, payloads))
        return self._merged(parts, payloads)

    def _unreadable(
        self,
        readers: Sequence["_DatumReader | _Unreadable"],
        where: NDArray[np.int64],
        index: NDArray[np.int64],
        payloads: Sequence[bytes],
    ) -> Decoded:
        """Rejects for the payloads whose id has no reader; `where` is the index into `readers` of each of `index`."""
        is_lost = np.array([isinstance(reader, _Unreadable) for reader in readers])[where]
        index, where = index[is_lost], where[is_lost]
        reasons = [reader.reason if isinstance(reader, _Unreadable) else "" for reader in readers]
        details = [reader.detail if isinstance(reader, _Unreadable) else "" for reader in readers]
        heads = [payload[:_HEAD_BYTES] for payload in map(payloads.__getitem__, index.tolist())]
        shown = [f": {head.hex(' ')}" if _schema_id(head) == _NO_ID else "" for head in heads]
        detail = pl.Series(details, dtype=pl.String)[where] + pl.Series(shown, dtype=pl.String)
        bad = Rejects(BadPayload, index, pl.Series(reasons, dtype=pl.String)[where], detail)
        return Decoded(pl.DataFrame(schema=self._spec.polars), index[:0], bad)

    def _merged(self, parts: Sequence[Decoded], payloads: Sequence[bytes]) -> Decoded:
        """The rows and rejects of all parts, in the order of the payloads."""
        bad = Rejects.merged(BadPayload, [part.rejects for part in parts])
        bad = with_hints(bad, payloads, "confluent-avro", self._spec)
        filled = [part for part in parts if part.frame.height] or parts[:1]
        if len(filled) == 1:
            return Decoded(filled[0].frame, filled[0].payload_index, bad)
        index = np.concatenate([part.payload_index for part in filled])
        order = np.argsort(index)
        return Decoded(pl.concat([part.frame for part in filled])[order], index[order], bad)

    def _reader_of(self, schema_id: int) -> "_DatumReader | _Unreadable":
        """The reader for a schema id, or the reason why there is none."""
        if schema_id == _NO_ID:
            return _Unreadable("undecodable", "no Confluent header (byte 00 and a schema id)")
        if self._writers is None:
            own_id = int.from_bytes(self._head[1:], "big")
            detail = (
                f"schema id {schema_id}, wanted {own_id}, the event's own; set HEADRACE_REGISTRY_URL to read others"
            )
            return _Unreadable("undecodable", detail)
        if schema_id in self._readers:
            return self._readers[schema_id]
        now_s = time.monotonic()
        self._misses = {each: miss for each, miss in self._misses.items() if miss.until_s > now_s}
        if schema_id in self._misses:
            return self._misses[schema_id]
        if len(self._misses) >= MISSES_MAX:
            detail = f"schema id {schema_id}: not asked for, after {MISSES_MAX} unknown ids in {MISS_SPAN_S:g} s"
            return _Unreadable("undecodable", detail)
        reader = self._ask(schema_id, now_s)
        known = self._misses if isinstance(reader, _Unreadable) and reader.until_s else self._readers
        known[schema_id] = reader  # type: ignore[assignment]
        return reader

    def _ask(self, schema_id: int, now_s: float) -> "_DatumReader | _Unreadable":
        assert self._writers is not None
        until_s = now_s + MISS_SPAN_S
        try:
            schema = self._writers(schema_id)
            if schema is None:
                return _Unreadable("undecodable", f"schema id {schema_id}: the registry has none", until_s)
            return _DatumReader(self._spec, schema)
        except UnusableAnswerError as exc:
            return _Unreadable("undecodable", f"schema id {schema_id}: {exc}", until_s)
        except SchemaError as exc:
            reason = "wrong_type" if isinstance(exc, OtherTypeError) else "undecodable"
            return _Unreadable(reason, f"schema id {schema_id}: {exc}")


def _read(reader: _DatumReader, schema_id: int, index: NDArray[np.int64], payloads: Sequence[bytes]) -> Decoded:
    """Decode the payloads of one id; `index` are their indexes in the batch."""
    decoded, _ = reader.read([payloads[place] for place in index.tolist()], _head(schema_id))
    bad = decoded.rejects
    return Decoded(decoded.frame, index[decoded.payload_index], bad.at(index[bad.indexes]))


@dataclass(frozen=True, slots=True)
class _Unreadable:
    """Why the payloads of a schema id are bad; until `until_s` on the monotonic clock, or forever if it is 0."""

    reason: str
    detail: str
    until_s: float = 0.0


def _head(schema_id: int) -> bytes:
    return _MAGIC + schema_id.to_bytes(4, "big")


def _schema_id(payload: bytes) -> int:
    has_head = len(payload) >= _HEAD_BYTES and payload[:1] == _MAGIC
    return int.from_bytes(payload[1:_HEAD_BYTES], "big") if has_head else _NO_ID
