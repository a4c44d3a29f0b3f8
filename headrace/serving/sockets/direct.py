"""Sends the requests of a Ray Serve replica directly to its application, bypassing Serve's own wrapper.

    HAProxy -> the replica's uvicorn -> Direct -> application
                                           |---> Serve: /-/healthz, /-/routes
    Serve's Python proxy -> Serve -> ByServe -> application

Serve starts an HTTP server in each replica for HAProxy and wraps every request in two tasks, a queue between them, a
request context, a log line and counters. This costs 1 ms of CPU, as much as a small ranking. The application has the
same features: deadlines, detection of clients that hang up, a limit of requests in flight, metrics. Draining does not
depend on the wrapper: a stopping replica closes its listener and waits until its server has answered all requests.

Serve calls `middlewares` in a replica before it starts that server, because HOOK_VARIABLE names it. `middlewares` also
makes the server use `GuardedConnection`, so that deadlines count from the arrival at the socket, as without Ray.
"""

import structlog
import uvicorn.config
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.serving.sockets import NAMED_OUTSIDE

HOOK_VARIABLE = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
"""Environment variable that tells Serve which function returns the middleware of its HTTP servers."""
HOOK = "headrace.serving.sockets.direct:middlewares"
CONNECTION = "headrace.serving.sockets.connection:GuardedConnection"
SERVE_PATHS = "/-/"
"""Prefix of the paths that Serve itself answers."""

_applications: list[ASGIApp] = []  # that of this process, once it is built

log = structlog.get_logger(__name__)


class ByServe:
    """ASGI application for requests from Serve, which itself adds the header `X-Request-Id` to every response."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or the messages of the application's lifespan."""
        if scope["type"] == "http":
            scope.setdefault("state", {})[NAMED_OUTSIDE] = True
        await self._application(scope, receive, send)


class Direct:
    """ASGI middleware that passes only Serve's own paths to Serve's wrapper, and the rest to the application."""

    def __init__(self, by_serve: ASGIApp, application: ASGIApp) -> None:
        self._by_serve = by_serve
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http" or scope["path"].startswith(SERVE_PATHS):
            await self._by_serve(scope, receive, send)
            return
        try:
            await self._application(scope, receive, send)
        except Exception:
            log.exception("request_failed", path=scope["path"])  # Serve silences the server's own log line
            raise


def served(application: ASGIApp) -> ByServe:
    """Register `application` as the one of this process that requests go to directly; return it as Serve calls it."""
    _applications[:] = [application]
    return ByServe(application)


def middlewares() -> list[Middleware]:
    """Called by Serve before it starts an HTTP server; empty in a process without an application, such as a proxy."""
    if not _applications:
        return []
    uvicorn.config.HTTP_PROTOCOLS["auto"] = CONNECTION
    return [Middleware(Direct, application=_applications[0])]
