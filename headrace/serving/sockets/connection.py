"""A connection of uvicorn that ends slow heads, counts malformed ones, and knows when a request reached the machine."""

import asyncio
import socket
import struct
import time

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headrace.serving.refusals import Refusal
from headrace.serving.report import REQUESTS
from headrace.serving.sockets import ARRIVED_S

HEAD_S = 10.0
"""Seconds within which the head of a request must have arrived, counted from the connection or its last answer."""

_TCP_INFO = getattr(socket, "TCP_INFO", None)  # of Linux alone
_LAST_DATA_MS = 52
"""Offset of `tcpi_last_data_recv` in `struct tcp_info` (linux/tcp.h): milliseconds since the last segment with data."""


class GuardedConnection(HttpToolsProtocol):
    """uvicorn's connection, of which heads that come slowly are given up and malformed ones counted.

    uvicorn itself waits for ever for the first request of a connection, and for the rest of a head.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _socket: socket.socket | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio when a client connects."""
        super().connection_made(transport)
        given = transport.get_extra_info("socket")
        if _TCP_INFO is not None and given is not None:
            # uvloop's object makes a socket for every call. Ours shares the descriptor, and lets go of it in time.
            self._socket = socket.socket(given.family, given.type, given.proto, given.fileno())
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with what arrived."""
        super().data_received(data)
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()  # what arrived begins a request that is not whole yet

    def on_headers_complete(self) -> None:
        """Called by the parser at the end of a head."""
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called by the parser at the end of a request's body."""
        self.scope["state"][ARRIVED_S] = time.monotonic() - self._unread_s()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio once, at the end."""
        self._stop_waiting()
        if self._socket is not None:
            self._socket.detach()
            self._socket = None
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP request."""
        self._end(Refusal(400, "bad_request", msg, "send HTTP/1.1"))

    def _unread_s(self) -> float:
        """Seconds from the arrival of the newest bytes until now: the turn of the event loop that they waited for.

        The kernel's own count, in steps of its clock (1 to 10 ms); 0.0 where it has none. Costs 2 µs.
        """
        if self._socket is None or _TCP_INFO is None:
            return 0.0
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _LAST_DATA_MS + 4)
        except OSError:  # closed meanwhile
            return 0.0
        return float(struct.unpack_from("I", info, _LAST_DATA_MS)[0]) / 1e3 if len(info) == _LAST_DATA_MS + 4 else 0.0

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        self._end(Refusal(408, "head_too_slow", f"no whole head came within {HEAD_S:g} s", "send it at once"))

    def _end(self, refusal: Refusal) -> None:
        """Answer outside the application, and close."""
        self._stop_waiting()
        if self.transport.is_closing():
            return
        REQUESTS.labels(route="none", status=str(refusal.status)).inc()
        body = refusal.to_bytes()
        reason = {400: "Bad Request", 408: "Request Timeout"}[refusal.status]
        head = (
            f"HTTP/1.1 {refusal.status} {reason}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
