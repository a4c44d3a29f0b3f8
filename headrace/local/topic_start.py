"""Start topics of an in-memory broker at an offset that no earlier life of the broker has used.

A life is one run of the broker. An in-memory broker starts its topics at offset 0 in each life, so a reader that has
stored "next offset 5,000" would take events 0 to 4,999 of the new topic for events it has read. Therefore a new topic
starts with a record batch of one control record, which consumers do not deliver, and whose last offset is 2**31 - 1:
the next event gets 2**31. The n-th life begins at (n - 1) * 2**31, and a reader with an offset in an earlier life
continues at the first event of the current one.

    life 1   0 1 2 ... 5,199                     a reader has stored 5,000; events 5,000 to 5,199 are lost
    life 2   [control record: 0 .. 2**31 - 1]  2**31  2**31 + 1 ...      it continues at 2**31

Source: Kafka protocol guide, Produce request version 3 and record batch format version 2. (Log compaction leaves
batches with gaps in their offsets, so every client reads them. A real Kafka does not accept them from a producer.)
"""

import socket
import struct
import time
from collections.abc import Mapping

from headrace.errors import ServiceError
from headrace.local.ports import HOST

LIFE_OFFSETS = 1 << 31
"""Number of offsets of one life of a broker: the most that one batch can span."""

_TIMEOUT_S = 10.0
_PRODUCE, _VERSION, _CORRELATION = 0, 3, 1
_CONTROL, _TRANSACTIONAL = 1 << 5, 1 << 4
_COMMIT_KEY, _COMMIT_VALUE = b"\0\0\0\1", b"\0\0\0\0\0\0"
"""A commit marker: version 0 and type 1, then version 0 and the coordinator's epoch."""


def begin_at(port: int, topics: Mapping[str, int], first_offset: int) -> None:
    """Make empty topics (name -> partition count) of the broker at `port` begin at `first_offset`.

    `first_offset` is a multiple of `LIFE_OFFSETS`; with 0 topics are unchanged.

    Raises:
        ServiceError: the broker refused, or a producer has already written messages below `first_offset`.
    """
    lives, rest = divmod(first_offset, LIFE_OFFSETS)
    assert rest == 0, f"first offset {first_offset} is no multiple of {LIFE_OFFSETS}"
    if not lives:
        return
    batches = _batch(int(time.time() * 1e3)) * lives
    with socket.create_connection((HOST, port), timeout=_TIMEOUT_S) as connection:
        for topic, partitions in topics.items():
            for number in range(partitions):
                _produce(connection, topic, number, batches)


def _produce(connection: socket.socket, topic: str, number: int, batches: bytes) -> None:
    name = struct.pack(">h", len(topic.encode())) + topic.encode()
    # No transaction, acknowledged by all, one topic with one partition.
    data = struct.pack(">hhii", -1, -1, int(_TIMEOUT_S * 1e3), 1) + name + struct.pack(">iii", 1, number, len(batches))
    client = struct.pack(">h", 8) + b"headrace"
    request = struct.pack(">hhi", _PRODUCE, _VERSION, _CORRELATION) + client + data + batches
    try:
        connection.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", _receive(connection, 4))
        answer = _receive(connection, size)
    except OSError as exc:
        raise ServiceError(f"broker: cannot set the first offset of {topic}/{number}: {exc}") from exc
    # Correlation id, one topic with its name, one partition: number, error code, base offset.
    error, base = struct.unpack_from(">hq", answer, 4 + 4 + len(name) + 4 + 4)
    if error or base:
        fault = f"error {error}" if error else f"{base} messages were sent to it before"
        raise ServiceError(f"broker: cannot set the first offset of {topic}/{number}: {fault}")


def _receive(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise ConnectionError("the broker closed the connection")
        parts += part
    return bytes(parts)


def _batch(now_ms: int) -> bytes:
    """A record batch of one control record that spans all offsets of a life."""
    record = b"\0\0\0" + _varint(len(_COMMIT_KEY)) + _COMMIT_KEY + _varint(len(_COMMIT_VALUE)) + _COMMIT_VALUE + b"\0"
    record = _varint(len(record)) + record
    # Attributes, last offset delta, first and last time, no producer (id, epoch, sequence), one record.
    head = struct.pack(">hiqqqhii", _CONTROL | _TRANSACTIONAL, LIFE_OFFSETS - 1, now_ms, now_ms, -1, -1, -1, 1)
    body = head + record
    # Leader's epoch, magic, checksum; before them the base offset, which the broker sets, and the length.
    tail = struct.pack(">ibI", 0, 2, _crc32c(body)) + body
    return struct.pack(">qi", 0, len(tail)) + tail


def _varint(value: int) -> bytes:
    """Encode a number from 0 to 63 as a zigzag varint of one byte."""
    assert 0 <= value < 64
    return bytes([value << 1])


def _crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), bit by bit: fast enough for about seventy bytes per start."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
