"""Guard: ASGI middleware that names each request, and checks API keys and the announced body size.

The id of a request is its header `X-Request-Id`, if that can be written into a log, else a new one; a ranking may bring
its own in the body. It is in the response's header, in the body, and in each line of the log.

Plain ASGI, because Starlette's `BaseHTTPMiddleware` adds a task and two queues to every request.
"""

import hmac
import re
import uuid
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.serving.messages import REQUEST_ID_CHARS_MAX
from headrace.serving.refusals import Refusal, send_refusal, too_large
from headrace.serving.report import Report
from headrace.telemetry import REQUEST_ID

_REQUEST_ID = re.compile(rb"[!-~]{1,%d}" % REQUEST_ID_CHARS_MAX)
OPEN_PATHS = frozenset({"/healthz", "/readyz"})  # probes carry no key


class Guard:
    """ASGI middleware; see the module's docstring.

    Args:
        api_keys: accepted keys, as `X-API-Key` or `Authorization: Bearer`; empty: open.
        body_bytes_max: a longer announced body is answered 413 unread.
    """

    def __init__(self, app: ASGIApp, *, report: Report, api_keys: Collection[str], body_bytes_max: int) -> None:
        self._app = app
        self._report = report
        self._keys = [key.encode() for key in api_keys]
        self._body_bytes_max = body_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer refused requests, pass all others on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        headers = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")
        is_usable = _REQUEST_ID.fullmatch(request_id)
        token = REQUEST_ID.set(request_id.decode() if is_usable else uuid.uuid4().hex)

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                name = (REQUEST_ID.get() or "").encode("ascii", "replace")
                message["headers"] = [*message["headers"], (b"x-request-id", name)]
            await send(message)

        try:
            refusal = self._refusal(path, headers)
            if refusal is None:
                await self._app(scope, receive, send_named)
            else:
                self._report.answered("guard", refusal.status, 0.0)
                await send_refusal(refusal, send_named)
        finally:
            REQUEST_ID.reset(token)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> Refusal | None:
        if self._keys and path not in OPEN_PATHS and not self._has_known_key(headers):
            return Refusal(
                401,
                "unauthorized",
                "no known API key in the request",
                "send the header X-API-Key: <key> or Authorization: Bearer <key>",
            )
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._body_bytes_max:
            return too_large(self._body_bytes_max)
        return None

    def _has_known_key(self, headers: dict[bytes, bytes]) -> bool:
        given = headers.get(b"x-api-key")
        if given is None:
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            given = token.strip() if scheme.lower() == b"bearer" else b""
        # Every key is compared, each in constant time, so that timing reveals nothing about the keys.
        return sum(hmac.compare_digest(given, key) for key in self._keys) > 0
