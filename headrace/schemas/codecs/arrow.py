"""Arrow IPC stream format: many events in one message, preceded by its schema.

Only the columns that the event declares are read; other columns may have unsupported types.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from headrace.errors import SchemaError
from headrace.schemas.codecs.codec import Decoded
from headrace.schemas.codecs.looks_like import with_hints
from headrace.schemas.conform import MissingColumnError, conform, refuse_nulls
from headrace.schemas.event import EventSpec, arrow_schema
from headrace.schemas.rejects import BadPayload, Rejects

_BITS_A_BYTE = 8


class ArrowCodec:
    """A codec for messages that each hold all rows of a frame; a message is good or bad as a whole."""

    def __init__(self, spec: EventSpec) -> None:
        self._spec = spec
        self._schema = arrow_schema(spec)
        self._names = frozenset(each for name, field in spec.types.items() for each in (name, *field.aliases))
        self._empty = pl.DataFrame(schema=spec.polars)

    def encode(self, frame: pl.DataFrame) -> list[bytes]:
        """Encode the whole frame as one message; an empty frame gives none.

        Raises:
            SchemaError: the frame does not fit the declaration.
        """
        if frame.is_empty():
            return []
        fitted = conform(frame, self._spec)
        refuse_nulls(fitted, self._spec)
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, self._schema) as stream:
            stream.write_table(
                fitted.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(self._schema).combine_chunks()
            )
        return [sink.getvalue()]

    def decode(self, payloads: Sequence[bytes]) -> Decoded:
        """Rows of all messages. A bad one is "undecodable", or its columns do not fit: "missing" or "wrong_type"."""
        frames, counts, bad = [], np.zeros(len(payloads), np.int64), []
        for index, payload in enumerate(payloads):
            rows_or_reason = self._read(payload)
            if isinstance(rows_or_reason, pl.DataFrame):
                frames.append(rows_or_reason)
                counts[index] = rows_or_reason.height
            else:
                bad.append(BadPayload(index, *rows_or_reason))
        frame = pl.concat([self._empty, *frames]).rechunk()
        rejects = with_hints(Rejects.of(BadPayload, bad), payloads, "arrow", self._spec)
        return Decoded(frame, np.repeat(np.arange(len(payloads)), counts), rejects)

    def _read(self, payload: bytes) -> pl.DataFrame | tuple[str, str]:
        """The rows of a message, or (reason, detail) if it is bad."""
        try:
            frame = pl.from_arrow(_in_utc(self._table(payload)))
            assert isinstance(frame, pl.DataFrame)
            return conform(frame, self._spec)
        except MissingColumnError as exc:
            return "missing", str(exc)
        except SchemaError as exc:
            return "wrong_type", str(exc)
        except (Exception, pl.exceptions.PanicException) as exc:  # noqa: BLE001  (whatever a library raises on bytes)
            return "undecodable", f"{str(exc) or type(exc).__name__} ({len(payload)} bytes)"

    def _table(self, payload: bytes) -> pa.Table:
        """The declared columns of a message, after validating it."""
        with pa.ipc.open_stream(payload) as stream:
            schema = stream.schema
        wanted = [index for index, name in enumerate(schema.names) if name in self._names]
        twice = {name for name in schema.names if name in self._names and schema.names.count(name) > 1}
        if twice:
            raise ValueError(f"the column {min(twice)} occurs twice")
        if not wanted:
            return pa.table(
                {name: pa.nulls(0) for name in schema.names[:20]}
            )  # for the error of `conform`, which lists the names
        source = pa.BufferReader(payload)
        with pa.ipc.open_stream(source, options=pa.ipc.IpcReadOptions(included_fields=wanted)) as stream:
            table = stream.read_all()
        if source.tell() < len(payload):
            raise ValueError(f"{len(payload) - source.tell():,} bytes follow the end of its stream")
        # Columns of nulls take no bytes, so a message of a few hundred bytes can claim any number of rows.
        if table.num_rows > _BITS_A_BYTE * (table.get_total_buffer_size() + 1):
            raise ValueError(f"{table.num_rows:,} rows in {table.get_total_buffer_size():,} bytes")
        table.validate(full=True)
        return table


def _in_utc(table: pa.Table) -> pa.Table:
    """Cast times to microseconds or nanoseconds in UTC: Polars may not know other zones, and overflows on seconds.

    Raises:
        SchemaError: a time exceeds the range of microseconds; names the column.
    """
    columns = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        wanted = _utc(column.type)
        try:
            columns[name] = column if wanted == column.type else column.cast(wanted)
        except pa.ArrowInvalid as exc:
            raise SchemaError(f"{name}: {exc}") from exc
    return pa.table(columns)


def _utc(dtype: pa.DataType) -> pa.DataType:
    """The type with all times, nested ones included, in microseconds or nanoseconds of UTC."""
    if pa.types.is_timestamp(dtype):
        return pa.timestamp("ns" if dtype.unit == "ns" else "us", "UTC")
    if pa.types.is_struct(dtype):
        return pa.struct([_utc_field(dtype.field(index)) for index in range(dtype.num_fields)])
    if pa.types.is_fixed_size_list(dtype):
        return pa.list_(_utc_field(dtype.value_field), dtype.list_size)
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return (pa.list_ if pa.types.is_list(dtype) else pa.large_list)(_utc_field(dtype.value_field))
    return dtype


def _utc_field(field: Any) -> Any:
    return field.with_type(_utc(field.type))
