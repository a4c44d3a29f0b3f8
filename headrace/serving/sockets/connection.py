"""uvicorn's connection with limits for request heads, a count of malformed ones, and arrival times of requests."""

import asyncio
import socket
import struct
import time
from collections.abc import Sized
from enum import Enum, auto

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headrace.serving.lanes.lane import SHED
from headrace.serving.refusals import Refusal
from headrace.serving.report import REQUESTS
from headrace.serving.sockets import ARRIVED_S

HEAD_BYTES_MAX = 65_536
"""Longest head of a request, and longest target within it."""
HEAD_PIECE_BYTES = 8_192
"""Bytes of a head that are parsed at once, so that a long one is noticed before it is whole."""
LINGER_S = 1.0
"""Seconds for which bytes after a head that is too long are read and dropped, since a client that is still sending when
the connection closes would not see the answer."""
HEAD_S = 10.0
"""Seconds within which the head of a request must arrive, counted from the connection's start or its last answer; also
the rest of a body whose request was refused before the body was read."""
SEND_S = 60.0
"""Seconds for which a client may leave its answers unread once its socket is full; then the connection is cut."""
PIPELINED_MAX = 1
"""Requests that may wait for earlier ones of their connection while more bytes are read from it."""

_TCP_INFO = getattr(socket, "TCP_INFO", None)  # Linux only
_LAST_DATA_MS = 52
"""Offset of `tcpi_last_data_recv` in `struct tcp_info` (linux/tcp.h): milliseconds since the last segment with data."""
_REASONS = {
    400: "Bad Request",
    408: "Request Timeout",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
}


class _Phase(Enum):
    """What the parser reads next: the start of a request, the rest of a head, or a body."""

    START = auto()
    HEAD = auto()
    BODY = auto()


class _HeadTooLongError(Exception):
    """Ends the parsing of a head; httptools wraps it."""


class _Flow(FlowControl):
    """uvicorn's flow control, which reads no more while requests wait: each answered one would admit a whole piece."""

    def __init__(self, transport: asyncio.Transport, pipeline: Sized) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        """Called when a request is received and when one is answered."""
        if len(self._pipeline) <= PIPELINED_MAX:
            super().resume_reading()


class _SharedSocket(socket.socket):
    """A socket of a descriptor that belongs to a transport, and so is never closed here, not even by the collector."""

    def __del__(self) -> None:
        self.detach()


class GuardedConnection(HttpToolsProtocol):
    """uvicorn's connection, which also ends slow and long request heads and counts malformed ones.

    uvicorn itself waits forever for the first request of a connection and for the rest of a head, of any length, and
    for a client that reads no answer. It answers malformed bytes before the requests that precede them, which then get
    no answer. It takes the trailers of a chunked body for headers. It loses the body of a request that offers another
    protocol, as Java's client does (`Upgrade: h2c`); here the offer is ignored (RFC 9110, section 7.8).
    """

    _timer: asyncio.TimerHandle | None = None
    """Ends a connection whose head, or the rest of a refused body, does not come."""
    _send_timer: asyncio.TimerHandle | None = None
    _last_words: Refusal | None = None
    """Answer after the requests in progress, once what follows them cannot be answered; no more bytes are read then."""
    _long: Refusal | None = None
    """Why the present head is too long."""
    _socket: socket.socket | None = None
    _is_ended = False
    _phase = _Phase.START
    _head_bytes = 0
    """Bytes received of the present head, without those of the piece in which it begins."""
    _field_bytes = 0
    """Bytes of the target and of the headers of the present head that are parsed."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio when a client connects."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        given = transport.get_extra_info("socket")
        if _TCP_INFO is not None and given is not None:
            # uvloop's object makes a socket for every call. Ours shares the descriptor.
            self._socket = _SharedSocket(given.family, given.type, given.proto, given.fileno())
        self._await_rest()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with received bytes."""
        if self._last_words is not None or self._is_ended:
            return
        self._unset_keepalive_if_required()
        while data:
            size = len(data) if self._phase is _Phase.BODY else HEAD_PIECE_BYTES
            piece, data = data[:size], data[size:]
            if self._phase is _Phase.HEAD:
                self._head_bytes += len(piece)
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as exc:
                data = self._not_upgraded() + piece[exc.args[0] :] + data
            except httptools.HttpParserError:
                self._refuse_unparsed()
                return
            if self._phase is _Phase.HEAD and self._head_bytes > HEAD_BYTES_MAX:
                self._long = _head_too_large()
                self._refuse_unparsed()
                return
        is_free = self.cycle is None or self.cycle.response_complete
        if is_free and self._timer is None and self.timeout_keep_alive_task is None:
            self._await_rest()  # the bytes begin a request that is not whole yet

    def on_message_begin(self) -> None:
        """Called by the parser at the first byte of a request."""
        self._phase = _Phase.HEAD
        self._head_bytes = self._field_bytes = 0
        self._unset_keepalive_if_required()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Called by the parser with a piece of the target."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser with a header, or with a trailer of a chunked body, which is dropped."""
        if self._phase is _Phase.HEAD:
            self._count(len(name) + len(value) + len(b": \r\n"))
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Called by the parser at the end of a head."""
        self._stop_waiting()
        self._phase = _Phase.BODY
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called by the parser at the end of a request's body."""
        self._phase = _Phase.START
        if self.parser.should_upgrade():
            return  # the parser stops here, before the body: the request is parsed again
        if self.cycle.response_complete:  # refused before its body was read
            self._stop_waiting()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        self.scope["state"][ARRIVED_S] = time.monotonic() - self._unread_s()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio once, at the end."""
        self._stop_waiting()
        self.resume_writing()
        if self._socket is not None:
            self._socket.detach()
            self._socket = None
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Called by uvicorn after each answer is sent."""
        is_last = not self.pipeline
        super().on_response_complete()
        if self._last_words is not None and is_last:
            self._end(self._last_words)

    def pause_writing(self) -> None:
        """Called by asyncio when the client does not read."""
        super().pause_writing()
        self._send_timer = self._send_timer or self.loop.call_later(SEND_S, self._cut)

    def resume_writing(self) -> None:
        """Called by asyncio when the client reads again."""
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _not_upgraded(self) -> bytes:
        """Start a new parser, and return the head of the last request without its offer of another protocol."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            method = b"OPTIONS"  # the rest of a CONNECT is for another host; it is refused like any unknown method
        version = self.parser.get_http_version().encode()
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        offers = {b"upgrade", b"http2-settings"}
        kept = [b"%s: %s\r\n" % pair for pair in self.headers if pair[0] not in offers]
        return b"%s %s HTTP/%s\r\n%s\r\n" % (method, self.url, version, b"".join(kept))

    def _count(self, size: int) -> None:
        """Count bytes of the present head.

        Raises:
            _HeadTooLongError: there are too many.
        """
        self._field_bytes += size
        if self._field_bytes >= HEAD_BYTES_MAX:
            self._long = _head_too_large()
            if not self.headers and self._field_bytes == len(self.url):
                words = f"the target of the request is longer than {HEAD_BYTES_MAX} bytes"
                self._long = Refusal(414, "target_too_long", words, "send a shorter path and query")
            raise _HeadTooLongError

    def _refuse_unparsed(self) -> None:
        """Answer a long head, or bytes that are not an HTTP request, after the whole requests that precede them."""
        refusal = self._long
        if refusal is None:
            message = "Invalid HTTP request received."
            self.logger.warning(message)
            refusal = Refusal(400, "bad_request", message, "send HTTP/1.1")
        is_behind = bool(self.pipeline)
        if is_behind and self.cycle.more_body:
            self.pipeline.popleft()  # its body is malformed; the requests before it are whole
        if is_behind or (self.cycle and not self.cycle.response_complete and not self.cycle.more_body):
            self._last_words = refusal
            return
        self._end(refusal)

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

    def _await_rest(self) -> None:
        self._timer = self.loop.call_later(HEAD_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self._phase is _Phase.BODY:  # its request is answered
            self._is_ended = True
            self.transport.close()
            return
        self._end(Refusal(408, "head_too_slow", f"no whole head came within {HEAD_S:g} s", "send it at once"))

    def _cut(self) -> None:
        """Drop the connection and the answers that its client does not read."""
        self._send_timer = None
        SHED.labels(reason="client_stalled").inc()
        self.transport.abort()

    def _end(self, refusal: Refusal) -> None:
        """Answer without the application, and close the connection."""
        self._stop_waiting()
        if self.transport.is_closing() or self._is_ended:
            return
        REQUESTS.labels(route="none", status=str(refusal.status)).inc()
        body = refusal.to_bytes()
        head = (
            f"HTTP/1.1 {refusal.status} {_REASONS[refusal.status]}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self._is_ended = True
        if refusal is self._long:
            self.loop.call_later(LINGER_S, self.transport.close)
        else:
            self.transport.close()


def _head_too_large() -> Refusal:
    words = f"the head of the request is longer than {HEAD_BYTES_MAX} bytes"
    return Refusal(431, "head_too_large", words, "send fewer and shorter headers")
