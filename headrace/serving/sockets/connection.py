"""uvicorn's connection with limits for request heads, a count of malformed ones, and arrival times of requests."""

import asyncio
import socket
import struct
import time

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headrace.serving.refusals import Refusal
from headrace.serving.report import REQUESTS
from headrace.serving.sockets import ARRIVED_S

HEAD_BYTES_MAX = 65_536
"""Longest head of a request, not counting bytes that arrive in one piece with its end."""
LINGER_S = 1.0
"""Seconds for which bytes after a head that is too long are read and dropped, since a client that is still sending when
the connection closes would not see the answer."""
HEAD_S = 10.0
"""Seconds within which the head of a request must arrive, counted from the connection's start or its last answer."""

_TCP_INFO = getattr(socket, "TCP_INFO", None)  # Linux only
_LAST_DATA_MS = 52
"""Offset of `tcpi_last_data_recv` in `struct tcp_info` (linux/tcp.h): milliseconds since the last segment with data."""


class GuardedConnection(HttpToolsProtocol):
    """uvicorn's connection, which also ends slow and long request heads and counts malformed ones.

    uvicorn itself waits forever for the first request of a connection and for the rest of a head, of any length. It
    answers malformed bytes before the requests that precede them, which then get no answer. It loses the body of a
    request that offers another protocol, as Java's client does (`Upgrade: h2c`); here the offer is ignored (RFC 9110,
    section 7.8).
    """

    _head_timer: asyncio.TimerHandle | None = None
    _malformed: str | None = None
    """Error message once malformed bytes followed the requests in progress; no more bytes are read then."""
    _socket: socket.socket | None = None
    _is_ended = False
    _head_bytes = 0
    """Bytes received of an incomplete head, without the piece in which it begins."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio when a client connects."""
        super().connection_made(transport)
        given = transport.get_extra_info("socket")
        if _TCP_INFO is not None and given is not None:
            # uvloop's object makes a socket for every call. Ours shares the descriptor; connection_lost detaches it.
            self._socket = socket.socket(given.family, given.type, given.proto, given.fileno())
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with received bytes."""
        if self._malformed is not None or self._is_ended:
            return
        self._unset_keepalive_if_required()
        if self._head_timer is not None:
            self._head_bytes += len(data)
        while data:
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as exc:
                data = self._not_upgraded() + data[exc.args[0] :]
            except httptools.HttpParserError:
                message = "Invalid HTTP request received."
                self.logger.warning(message)
                self.send_400_response(message)
                return
        if self._head_bytes > HEAD_BYTES_MAX and self._head_timer is not None:
            words = f"the head of the request is longer than {HEAD_BYTES_MAX} bytes"
            self._end(Refusal(431, "head_too_large", words, "send fewer and shorter headers"))
            return
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()  # the bytes begin a request that is not whole yet

    def on_message_begin(self) -> None:
        """Called by the parser at the first byte of a request."""
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Called by the parser at the end of a head."""
        self._stop_waiting()
        self._head_bytes = 0
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called by the parser at the end of a request's body."""
        if self.parser.should_upgrade():
            return  # the parser stops here, before the body: the request is parsed again
        self.scope["state"][ARRIVED_S] = time.monotonic() - self._unread_s()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio once, at the end."""
        self._stop_waiting()
        if self._socket is not None:
            self._socket.detach()
            self._socket = None
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Called by uvicorn after each answer is sent."""
        is_last = not self.pipeline
        super().on_response_complete()
        if self._malformed is not None and is_last:
            self._end(Refusal(400, "bad_request", self._malformed, "send HTTP/1.1"))

    def _not_upgraded(self) -> bytes:
        """Start a new parser, and return the head of the last request without its offer of another protocol."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            method = b"OPTIONS"  # the rest of a CONNECT is for another host; it is refused like any unknown method
        version = self.parser.get_http_version().encode()
        self.parser = httptools.HttpRequestParser(self)
        offers = {b"upgrade", b"http2-settings"}
        kept = [b"%s: %s\r\n" % pair for pair in self.headers if pair[0] not in offers]
        return b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(kept))

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not an HTTP request, after the whole requests that precede them."""
        is_behind = bool(self.pipeline)
        if is_behind and self.cycle.more_body:
            self.pipeline.popleft()  # its body is malformed; the requests before it are whole
        if is_behind or (self.cycle and not self.cycle.response_complete and not self.cycle.more_body):
            self._malformed = msg
            return
        self._end(Refusal(400, "bad_request", msg, "send HTTP/1.1"))

    def _unread_s(self) -> float:
        """Return the seconds since the newest bytes arrived, in which they waited for this turn of the event loop.

        Counted by the kernel, in steps of its clock (1 to 10 ms); 0.0 if it has no count. Costs 2 µs.
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
        """Answer without the application, and close the connection."""
        self._stop_waiting()
        if self.transport.is_closing() or self._is_ended:
            return
        REQUESTS.labels(route="none", status=str(refusal.status)).inc()
        body = refusal.to_bytes()
        reason = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}[refusal.status]
        head = (
            f"HTTP/1.1 {refusal.status} {reason}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._is_ended = True
        if refusal.status == 431:
            self.loop.call_later(LINGER_S, self.transport.close)
        else:
            self.transport.close()
