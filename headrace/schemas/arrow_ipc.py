"""Arrow IPC: many events in a message, the stream format with its own schema in front."""

import io
from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from headrace.errors import SchemaError
from headrace.schemas.codec import BadPayload, Decoded
from headrace.schemas.conform import conform, refuse_nulls
from headrace.schemas.event import EventSpec, arrow_schema


class ArrowCodec:
    """One message holds all rows of a frame; a message is good or bad as a whole."""

    content_type = "application/vnd.apache.arrow.stream"

    def __init__(self, spec: EventSpec) -> None:
        self._spec = spec
        self._schema = arrow_schema(spec)
        self._empty = pl.DataFrame(schema=spec.polars)

    def encode(self, frame: pl.DataFrame) -> list[bytes]:
        """One message for the whole frame; none for an empty frame.

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
        """Rows of all messages. A bad one is "undecodable", or of other columns: "missing" or "wrong_type"."""
        frames, counts, bad = [], np.zeros(len(payloads), np.int64), []
        for index, payload in enumerate(payloads):
            found = self._read(payload)
            if isinstance(found, pl.DataFrame):
                frames.append(found)
                counts[index] = found.height
            else:
                bad.append(BadPayload(index, *found))
        frame = pl.concat([self._empty, *frames]).rechunk()
        return Decoded(frame, np.repeat(np.arange(len(payloads)), counts), bad)

    def _read(self, payload: bytes) -> pl.DataFrame | tuple[str, str]:
        try:
            with pa.ipc.open_stream(payload) as stream:
                table = stream.read_all()
            table.validate(full=True)
            frame = pl.from_arrow(table)
            assert isinstance(frame, pl.DataFrame)
        except (pa.ArrowException, ValueError, OSError, pl.exceptions.PolarsError) as exc:
            return "undecodable", f"{exc} ({len(payload)} bytes)"
        try:
            return conform(frame, self._spec)
        except SchemaError as exc:
            return ("missing" if "no such column" in str(exc) else "wrong_type"), str(exc)
