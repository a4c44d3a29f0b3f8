"""Guard: ASGI middleware that names each request, checks its API key and announced size, and adds security headers.

The id of a request is its header `X-Request-Id` if that is safe to log, else a new id; a rank or score body may set its
own. The id is in the response's header and body, and in each log line.

Plain ASGI, because Starlette's `BaseHTTPMiddleware` adds a task and two queues to every request.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.serving.api_keys import ApiKeys
from headrace.serving.contract.openapi import OPEN_PATHS
from headrace.serving.messages import REQUEST_ID_CHARS_MAX
from headrace.serving.refusals import Refusal, refusal_of, send_refusal, too_large
from headrace.serving.report import Report
from headrace.serving.sockets import NAMED_OUTSIDE
from headrace.telemetry import REQUEST_ID, new_request_id

_REQUEST_ID = re.compile(rb"[!-~]{1,%d}" % REQUEST_ID_CHARS_MAX)
_NOT_IN_HEADERS = re.compile(rb"[^!-~]")
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
]
HTTPS_ONLY = (b"strict-transport-security", b"max-age=31536000")


class DirectRoute(Protocol):
    """A route that bypasses the application, and can refuse a request before its body is read."""

    name: str

    def refusal(self, scope: Scope) -> Refusal | None:
        """Return why the request is refused before its body is read; None if it is not."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, with an error if its handling fails."""
        ...


class _Exchange:
    """One request and its answer, whose head the guard completes.

    `received` is what the application receives the body by.
    """

    __slots__ = ("_headers", "_is_asked", "_receive", "_scope", "_send", "has_begun", "is_head", "received")

    def __init__(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send) -> None:
        self.is_head = scope["method"] == "HEAD"
        self.has_begun = False
        self._scope = scope
        self._headers = headers
        self._receive = receive
        self._send = send
        self._is_asked = b"expect" not in headers  # whether the client sends the body without "100 Continue"
        self.received: Receive = receive if self._is_asked else self._ask_and_receive

    async def _ask_and_receive(self) -> Message:
        self._is_asked = True  # the server sends "100 Continue"
        return await self._receive()

    async def send(self, message: Message) -> None:
        """Send a message of the answer."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            message["headers"] = [*message["headers"], *self._more_headers()]
        elif self.is_head:
            message["body"] = b""
        await self._send(message)

    def _more_headers(self) -> Iterator[tuple[bytes, bytes]]:
        # An id from the body may have characters that headers cannot: a server would close the connection.
        name = _NOT_IN_HEADERS.sub(b"?", (REQUEST_ID.get() or "").encode("ascii", "replace"))
        if name != self._headers.get(b"x-request-id") or NAMED_OUTSIDE not in self._scope.get("state", ()):
            yield b"x-request-id", name
        yield from SECURITY_HEADERS
        if self._scope.get("scheme") == "https":
            yield HTTPS_ONLY
        if not self._is_asked:
            yield b"connection", b"close"  # the client may send its next request in place of the body


class Guard:
    """ASGI middleware; see the module's docstring.

    Args:
        api_keys: accepted keys, as `X-API-Key` or `Authorization: Bearer`; without any, the service is open.
        body_bytes_max: a request that announces a longer body is answered 413 unread.
        direct: path -> route that POST requests go to directly: the application's layers and routing cost more than
            such a route's own work.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        report: Report,
        api_keys: ApiKeys,
        body_bytes_max: int,
        direct: Mapping[str, DirectRoute],
    ) -> None:
        self._app = app
        self._report = report
        self._direct = direct
        self._keys = api_keys
        self._body_bytes_max = body_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer refused requests and pass all others on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")
        is_usable = _REQUEST_ID.fullmatch(request_id)
        token = REQUEST_ID.set(request_id.decode() if is_usable else new_request_id())
        exchange = _Exchange(scope, headers, receive, send)
        if exchange.is_head:  # each path that answers GET answers HEAD; the routes know GET alone
            scope = {**scope, "method": "GET"}
        try:
            refusal, route = self._refusal(path, headers), "guard"
            direct = self._direct.get(path) if refusal is None and scope["method"] == "POST" else None
            if direct is not None:
                refusal, route = direct.refusal(scope), direct.name
            if refusal is None:
                try:
                    await (direct or self._app)(scope, exchange.received, exchange.send)
                except Exception as exc:
                    if exchange.has_begun:
                        raise
                    refusal, route = refusal_of(exc, path), "none"
            if refusal is not None:
                self._report.answered(route, refusal.status, 0.0)
                await send_refusal(refusal, exchange.send)
        finally:
            REQUEST_ID.reset(token)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> Refusal | None:
        if self._keys and path not in OPEN_PATHS:
            refusal = self._keys.refusal(path, headers)
            if refusal is not None:
                return refusal
        length = headers.get(b"content-length", b"0")
        # Digits are counted first: Python converts at most 4,300 of them to a number.
        if not length.isdigit() or len(length.lstrip(b"0")) > 18 or int(length[-18:]) > self._body_bytes_max:
            return too_large(self._body_bytes_max)
        return None
