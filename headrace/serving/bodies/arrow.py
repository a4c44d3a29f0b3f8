"""Requests and answers of rank and score as Arrow IPC streams: candidates in columns, without an object for each.

    request   one column `candidates`, integers or text; metadata of the schema: request = JSON of the other fields
    answer    rank: candidate, score, position; score: score; metadata of the schema: response = JSON of the rest

Streams are untrusted: their buffers are validated before they are read, and compressed streams are refused, because
they could expand to any amount of memory. Layout of a message: Arrow's Message.fbs, a FlatBuffers table.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from headrace.serving.messages import CANDIDATES_MAX, KEY_CHARS_MAX, ScoreRequest
from headrace.serving.refusals import Refusal, parse, refuse_repeated

MEDIA_TYPE = "application/vnd.apache.arrow.stream"
REQUEST, RESPONSE = b"request", b"response"

_HEADER, _COMPRESSION = 2, 3
"""Numbers of these fields in the tables Message and RecordBatch."""

Ask = TypeVar("Ask", bound=ScoreRequest)


def parse_arrow(model: type[Ask], body: bytes) -> Ask:
    """Parse `body` as `model`.

    Raises:
        Refusal: 422, naming the first wrong field.
    """
    table = _table_of(body)
    metadata = (table.schema.metadata or {}).get(REQUEST, b"{}")
    try:
        others = orjson.loads(metadata)
    except orjson.JSONDecodeError as exc:
        raise _refusal(f"the schema's metadata 'request' is no JSON: {exc}", "body") from exc
    if not isinstance(others, dict) or "candidates" in others:
        raise _refusal("the schema's metadata 'request' is no object of the fields beside candidates", "body")
    refuse_repeated(metadata)
    candidates = _candidates(table)
    ask = parse(model, orjson.dumps({**others, "candidates": candidates[:1]}))
    return ask.model_copy(update={"candidates": candidates})


def arrow_answer(
    header: Mapping[str, Any], candidates: Sequence[int | str] | None, scores: NDArray[np.float32]
) -> bytes:
    """Encode an answer: columns, and `header` as JSON in the schema's metadata; `candidates` (k,) for a ranking."""
    columns: dict[str, Any] = {"score": pa.array(scores)}
    if candidates is not None:
        kind = pa.string() if isinstance(candidates[0], str) else pa.int64()
        positions = pa.array(np.arange(len(scores), dtype=np.int32))
        columns = {"candidate": pa.array(candidates, kind), **columns, "position": positions}
    batch = pa.record_batch(columns).replace_schema_metadata({RESPONSE: orjson.dumps(header)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    answer: bytes = sink.getvalue().to_pybytes()
    return answer


def _table_of(body: bytes) -> pa.Table:
    """Read the stream's table and validate its buffers."""
    try:
        messages = pa.ipc.MessageReader.open_stream(body)
        for message in messages:
            if message.type not in {"schema", "record batch"}:
                raise _refusal(f"a {message.type} in the stream", "body")
            if message.type == "record batch" and _is_compressed(message.metadata.to_pybytes()):
                raise _refusal("the stream is compressed", "body")
        source = pa.BufferReader(body)
        table = pa.ipc.open_stream(source).read_all()
        if source.tell() != len(body):
            raise _refusal(f"{len(body) - source.tell()} bytes after the end of the stream", "body")
        table.validate(full=True)
    except (pa.ArrowException, OSError, struct.error, StopIteration, UnicodeDecodeError) as exc:
        raise _refusal(f"the body is no Arrow stream: {exc}", "body") from exc
    return table


def _candidates(table: pa.Table) -> list[Any]:
    if table.column_names != ["candidates"]:
        raise _refusal(f"the stream has the columns {table.column_names}", "candidates")
    column = table.column(0)
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if not (is_text or pa.types.is_integer(column.type)):
        raise _refusal(f"candidates are {column.type}", "candidates")
    if not 1 <= len(column) <= CANDIDATES_MAX:
        raise _refusal(f"{len(column)} candidates; 1 to {CANDIDATES_MAX} are allowed", "candidates")
    if column.null_count:
        raise _refusal(f"{column.null_count} candidates are null", "candidates")
    if is_text:
        lengths = pc.min_max(pc.utf8_length(column)).as_py()
        if lengths["min"] < 1 or lengths["max"] > KEY_CHARS_MAX:
            detail = f"a candidate of {lengths['min']} to {lengths['max']} characters; 1 to {KEY_CHARS_MAX} are allowed"
            raise _refusal(detail, "candidates")
        return list(column.to_pylist())
    try:
        return list(column.cast(pa.int64()).to_pylist())
    except pa.ArrowInvalid as exc:
        raise _refusal(f"candidates: {exc}", "candidates") from exc


def _is_compressed(metadata: bytes) -> bool:
    """Return whether the record batch of a message has the field `compression`."""
    batch = _field(metadata, _at(metadata, 0), _HEADER)
    return batch is None or _field(metadata, batch + _at(metadata, batch), _COMPRESSION) is not None


def _at(metadata: bytes, position: int) -> int:
    (offset,) = struct.unpack_from("<I", metadata, position)
    return int(offset)


def _field(metadata: bytes, table: int, number: int) -> int | None:
    """Return the position of a table's field, None if it is absent."""
    (back,) = struct.unpack_from("<i", metadata, table)
    vtable = table - back
    (size,) = struct.unpack_from("<H", metadata, vtable)
    if 4 + 2 * number >= size:
        return None
    (offset,) = struct.unpack_from("<H", metadata, vtable + 4 + 2 * number)
    return table + offset if offset else None


def _refusal(detail: str, field: str) -> Refusal:
    fix = "send one column `candidates` of integers or text, uncompressed, and the other fields as metadata `request`"
    return Refusal(422, "invalid_request", detail, fix, field)
