"""Runs the HTTP application until SIGTERM or SIGINT, under Ray Serve or under uvicorn in this process."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from headrace.errors import ConfigError
from headrace.local.ports import free_port, require_address
from headrace.redaction import shown_url
from headrace.serving.sockets.accepting import Acceptor
from headrace.serving.sockets.connection import GuardedConnection
from headrace.serving.sockets.tls import TlsFiles
from headrace.settings import Settings

Say = Callable[[str], object]
"""Called with one line of text once the application answers."""


def serve_on_ray(factory: Callable[[], FastAPI], settings: Settings, root: Path, *, say: Say) -> None:
    """Serve `factory`'s application on Ray Serve; `root` is the project that its replicas import from.

    Returns after SIGTERM or SIGINT, once requests in flight are answered.

    Raises:
        PortBusyError: the port is taken.
        ServiceError: Ray, Serve or the application does not start.
        ConfigError: TLS is set, which needs `--plain`, or a separate proxy that ends TLS.
    """
    if settings.tls_cert is not None or settings.tls_key is not None:
        raise ConfigError(
            "HEADRACE_TLS_CERT: TLS is served with --plain only; put a proxy that ends TLS before Ray Serve"
        )
    from headrace.serving.on_ray import RayOptions, RayServe, build_app

    stopping = threading.Event()
    _on_signals(stopping)
    path = os.pathsep.join(part for part in (str(root), os.environ.get("PYTHONPATH")) if part)
    options = RayOptions(
        host=settings.host,
        port=settings.port,
        replica_port_first=free_port(),
        env={"PYTHONPATH": path, "HEADRACE_PROJECT": str(root)},
    )
    with RayServe(options) as served:
        url = served.deploy(build_app(factory, num_replicas=settings.replicas, metrics_folder=served.metrics_folder))
        _on_signals(stopping)  # again: Ray installs a handler that ends the process by SIGABRT
        say(_up(url, f"Ray Serve, {settings.replicas} replica(s)", settings))
        stopping.wait()


def _on_signals(stopping: threading.Event) -> None:
    """Set `stopping` on SIGTERM and SIGINT."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())


def serve_plain(factory: Callable[[], FastAPI], settings: Settings, *, say: Say) -> None:
    """Serve `factory`'s application under uvicorn in this process, until SIGTERM or SIGINT.

    Raises:
        PortBusyError: the port is taken.
        ConfigError: `factory` does not return an application, or a TLS file is missing.
    """
    tls = _tls_files(settings)
    require_address(settings.host, settings.port)
    app = factory()
    if not isinstance(app, FastAPI):
        raise ConfigError(f"make_http returns {type(app).__name__}, not an application: return build_replica(...)")
    options: dict[str, Any] = {"log_config": None} if settings.log_json else {}  # configure_logs has its own then
    if tls is not None:
        options |= {"ssl_certfile": str(settings.tls_cert), "ssl_keyfile": str(settings.tls_key)}
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=GuardedConnection,
        log_level="warning",
        access_log=False,
        server_header=False,
        **options,
    )
    with contextlib.suppress(KeyboardInterrupt):
        say_up = lambda port: say(_up(settings.serving_url_of(port), "uvicorn", settings))  # noqa: E731
        _Announced(config, say_up, app, settings.drain_s, tls).run()


def _tls_files(settings: Settings) -> TlsFiles | None:
    """Load the TLS files, None if TLS is not set.

    Raises:
        ConfigError: the certificate or the key is not set, does not exist, or cannot be used.
    """
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None and key is None:
        return None
    for name, path in (("HEADRACE_TLS_CERT", cert), ("HEADRACE_TLS_KEY", key)):
        if path is None:
            raise ConfigError(f"{name}: not set: TLS needs the files of a certificate and of its key (PEM)")
    assert cert is not None
    assert key is not None
    return TlsFiles(cert, key)


def _up(url: str, runner: str, settings: Settings) -> str:
    return (
        f"{url} is up ({runner}): reads features from {shown_url(settings.redis_url)} and models from "
        f"{settings.model_dir}; logs impressions to {settings.brokers}"
    )


class _Announced(uvicorn.Server):
    """A server that calls `on_up` with its port once it answers requests, and drains before it ends.

    `drain_s`: seconds between a signal, at which `app` stops being ready, and the end of accepting connections. A
    second signal ends this wait.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        on_up: Callable[[int], object],
        app: FastAPI,
        drain_s: float,
        tls: TlsFiles | None,
    ) -> None:
        super().__init__(config)
        self._on_up = on_up
        self._application = app
        self._drain_s = drain_s
        self._tls = tls
        self._is_draining = False
        self._acceptor: Acceptor | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called in the main thread at SIGTERM and SIGINT."""
        if self._is_draining or not self._drain_s:
            super().handle_exit(sig, frame)
            return
        self._is_draining = self._application.state.is_draining = True
        timer = threading.Timer(self._drain_s, super().handle_exit, (sig, frame))
        timer.daemon = True
        timer.start()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn once, before its loop; `started` stays False if the application fails."""
        await super().startup(sockets)
        if self.started:
            listeners = [each for server in self.servers for each in server.sockets]
            self._acceptor = Acceptor(listeners, self._connection, self.config.ssl)
            if self._tls is not None and self.config.ssl is not None:
                self._tls.follow(self.config.ssl)
            self._on_up(listeners[0].getsockname()[1])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn once, after its loop."""
        if self._acceptor is not None:
            self._acceptor.close()
        await super().shutdown(sockets)

    def _connection(self) -> GuardedConnection:
        """Create the protocol of a connection with uvicorn's arguments."""
        return GuardedConnection(self.config, self.server_state, self.lifespan.state, asyncio.get_running_loop())
