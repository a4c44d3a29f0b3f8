"""Guesses of the format of an undecodable payload: another codec's bytes, a file, or compressed data.

Formats are recognised by their first bytes. Protobuf and plain Avro datums have no fixed first bytes.
"""

import codecs
from collections.abc import Sequence

import numpy as np
import polars as pl

from headrace.schemas.event import EventSpec
from headrace.schemas.rejects import One, Rejects

_SIGNATURES = (
    (b"Obj\x01", "an Avro container file", "avro file"),
    (b"\xc3\x01", "Avro's single-object encoding", "avro single object"),
    (b"ARROW1", "an Arrow IPC file", "arrow file"),
    (b"\xff\xff\xff\xff", "an Arrow IPC stream", "arrow"),
    (b"PAR1", "a Parquet file", "parquet"),
    (b"\x1f\x8b", "gzip", "gzip"),
    (b"\x28\xb5\x2f\xfd", "Zstandard", "zstd"),
    (b"\xff\x06\x00\x00sNaPpY", "Snappy", "snappy"),
    (b"\x82SNAPPY\x00", "Snappy", "snappy"),
    (b"\x04\x22\x4d\x18", "LZ4", "lz4"),
    (b"BZh", "bzip2", "bzip2"),
    (b"\xfd7zXZ\x00", "xz", "xz"),
    (codecs.BOM_UTF16_LE, "UTF-16 text", "utf-16"),
    (codecs.BOM_UTF16_BE, "UTF-16 text", "utf-16"),
)
_IDS_MAX = 1 << 24  # registries count from 1: a larger number is rarely a schema id
_SPACE = b" \t\r\n"
_JSON_STARTS = b"{[" + _SPACE + codecs.BOM_UTF8[:1]
_JSON_FIRSTS = frozenset(bytes([byte]) for byte in _JSON_STARTS)
_TELLING = _JSON_FIRSTS | {b"", b"\0"} | {start[:1] for start, _, _ in _SIGNATURES}
"""First bytes of payloads for which there may be a hint; b"" for an empty payload."""
_NO_HINT = ""


def looks_like(payload: bytes, codec: str) -> str:
    r"""Name the likely format of a payload; empty if it is unknown, or the format of the `codec` that rejected it.

    >>> looks_like(b'{"door": 1}', "avro"), looks_like(b"\x1f\x8b...", "avro"), looks_like(b"door", "avro")
    ('JSON', 'gzip', '')
    """
    if not payload:
        return "an empty payload (a tombstone)"
    first = payload[0]
    if payload[:1] not in _TELLING:
        return _NO_HINT
    if first in _JSON_STARTS:
        return "JSON" if codec != "json" and _is_like_json(payload) else _NO_HINT
    if first == 0:
        schema_id = int.from_bytes(payload[1:5], "big")
        is_framed = len(payload) >= 5 and 0 < schema_id < _IDS_MAX and codec != "confluent-avro"
        return f"the Confluent wire format (schema id {schema_id})" if is_framed else _NO_HINT
    matches = ((words, name) for start, words, name in _SIGNATURES if payload.startswith(start))
    words, name = next(matches, (_NO_HINT, ""))
    return words if name != codec else _NO_HINT


def _is_like_json(payload: bytes) -> bool:
    text = payload.removeprefix(codecs.BOM_UTF8).strip(_SPACE)
    return text[:1] + text[-1:] in (b"{}", b"[]")


def with_hints(bad: Rejects[One], payloads: Sequence[bytes], codec: str, spec: EventSpec) -> Rejects[One]:
    """Add the likely format to the details of undecodable payloads; `codec` is the codec that rejected them."""
    if not len(bad):
        return bad
    # In a flood of bad payloads most have no telling first byte, so only the others are examined one by one.
    telling = _TELLING - _JSON_FIRSTS if codec == "json" else _TELLING
    lost = np.flatnonzero((bad.reasons == "undecodable").to_numpy())
    firsts = [payloads[index][:1] for index in bad.indexes[lost].tolist()]
    lost = lost[[first in telling for first in firsts]]
    likenesses = [looks_like(payloads[index], codec) for index in bad.indexes[lost].tolist()]
    if not any(likenesses):
        return bad
    read_as = f"this event is declared codec={codec!r}" if codec == spec.codec else f"it was read as codec={codec!r}"
    hints = pl.Series([f"; looks like {words}; {read_as}" if words else "" for words in likenesses], dtype=pl.String)
    return Rejects(bad.make, bad.indexes, bad.reasons, bad.details.scatter(lost, bad.details[lost] + hints))
