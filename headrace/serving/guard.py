"""Guard: ASGI middleware that checks API keys, the number of requests in flight, and the announced body size.

Plain ASGI, because Starlette's `BaseHTTPMiddleware` adds a task and two queues to every request.
"""

import hmac
from collections.abc import Collection
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.serving.refusals import RETRY_AFTER_S, Refusal, too_large
from headrace.serving.report import IN_FLIGHT, Report

OPEN_PATHS = frozenset({"/healthz", "/readyz"})  # probes carry no key
LIMITED = "/v1/"  # limited paths; probes and metrics must answer while the replica is full


class Guard:
    """ASGI middleware; see the module's docstring.

    Args:
        api_keys: accepted keys, as `X-API-Key` or `Authorization: Bearer`; empty: open.
        max_in_flight: further requests under /v1/ are answered 429 with Retry-After.
        body_bytes_max: a longer announced body is answered 413 unread.
    """

    def __init__(
        self, app: ASGIApp, *, report: Report, api_keys: Collection[str], max_in_flight: int, body_bytes_max: int
    ) -> None:
        self._app = app
        self._report = report
        self._keys = [key.encode() for key in api_keys]
        self._max_in_flight = max_in_flight
        self._body_bytes_max = body_bytes_max
        self._in_flight = 0  # used on the event loop only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer refused requests, pass all others on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        refusal = self._refusal(path, dict(scope["headers"]))
        if refusal is not None:
            self._report.answered("guard", refusal.status, 0.0)
            await _send(refusal, send)
            return
        if not path.startswith(LIMITED):
            await self._app(scope, receive, send)
            return
        self._in_flight += 1
        IN_FLIGHT.inc()
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_flight -= 1
            IN_FLIGHT.dec()

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> Refusal | None:
        if self._keys and path not in OPEN_PATHS and not self._has_known_key(headers):
            return Refusal(
                401,
                "unauthorized",
                "no known API key in the request",
                "send the header X-API-Key: <key> or Authorization: Bearer <key>",
            )
        if path.startswith(LIMITED) and self._in_flight >= self._max_in_flight:
            return Refusal(
                429,
                "too_many_requests",
                f"{self._in_flight} requests in flight, {self._max_in_flight} allowed in this replica",
                f"try again after {RETRY_AFTER_S} s, or add replicas",
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


async def _send(refusal: Refusal, send: Send) -> None:
    extra = [(name.encode(), value.encode()) for name, value in refusal.headers().items()]
    start: dict[str, Any] = {
        "type": "http.response.start",
        "status": refusal.status,
        "headers": [(b"content-type", b"application/json"), *extra],
    }
    await send(start)
    await send({"type": "http.response.body", "body": refusal.to_bytes()})
