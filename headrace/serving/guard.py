"""Guard: ASGI middleware that checks API keys and the announced body size.

Plain ASGI, because Starlette's `BaseHTTPMiddleware` adds a task and two queues to every request.
"""

import hmac
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.serving.refusals import Refusal, send_refusal, too_large
from headrace.serving.report import Report

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
        refusal = self._refusal(path, dict(scope["headers"]))
        if refusal is not None:
            self._report.answered("guard", refusal.status, 0.0)
            await send_refusal(refusal, send)
            return
        await self._app(scope, receive, send)

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
