"""Values of many keys, read off the socket into one buffer: no object a value, and they stay in the processor's cache.

redis-py would make 5,000 objects of half a kilobyte, which then are joined again: a tenth of the time of a large read
(measured). Whatever is not an array of values, an error for instance, is left to redis-py: `NotValuesError`.
"""

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import redis.exceptions as theirs
from numpy.typing import NDArray

from headrace.features.store.replies import NOT_VALUES, scan_values
from headrace.kernels.compile import Int
from headrace.kernels.spans import Values

_ROOM_BYTES = 1 << 20
"""Bytes of the buffer at first: the values of a part, and what comes behind them."""
_READ_BYTES = 1 << 18
"""Bytes asked of the socket at a time."""

_ROOMS = threading.local()


class NotValuesError(Exception):
    """The reply is no array of values."""


def read_values(connection: Any, counts: Sequence[int]) -> Iterator[Values]:
    """The replies to MGETs of `counts` keys that were sent over a connection of redis-py; each is good until the next.

    Raises:
        NotValuesError: a reply is something else; the connection can be used no more, as after any error.
    """
    socket = connection._sock  # noqa: SLF001 - redis-py reads replies into objects only
    room, filled = _room(_ROOM_BYTES), 0
    begin: Int = 0
    for count in counts:
        if len(room) - filled < _READ_BYTES:
            room[: filled - begin] = room[begin:filled].copy()
            begin, filled = 0, filled - begin
        starts, ends = np.empty(count, np.int64), np.empty(count, np.int64)
        found: Int = -1  # the head of the reply comes first
        while True:
            found, begin = scan_values(room, begin, filled, found, starts, ends)
            if found == NOT_VALUES:
                raise NotValuesError
            if found == count:
                break
            if filled == len(room):
                grown = _room(2 * len(room))
                grown[:filled] = room
                room = grown
            filled += _received(socket, room[filled : filled + _READ_BYTES])
        yield Values(room, starts, ends)


def _received(socket: Any, room: NDArray[np.uint8]) -> int:
    """How many bytes came."""
    try:
        count: int = socket.recv_into(room.data)
    except TimeoutError as exc:
        raise theirs.TimeoutError("Timeout reading from the socket") from exc
    except OSError as exc:
        raise theirs.ConnectionError(f"Error while reading from the socket: {exc}") from exc
    if not count:
        raise theirs.ConnectionError("Connection closed by server")
    return count


def _room(size: int) -> NDArray[np.uint8]:
    """This thread's buffer, which the next reader uses again."""
    held: NDArray[np.uint8] | None = getattr(_ROOMS, "held", None)
    if held is None or len(held) < size:
        held = _ROOMS.held = np.empty(size, np.uint8)
    return held
