"""Serves until SIGTERM or SIGINT: under Ray Serve, or under uvicorn in this process."""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import structlog
import uvicorn
from fastapi import FastAPI

from headrace.errors import ConfigError
from headrace.local.listening import require_free
from headrace.redaction import shown_url
from headrace.settings import Settings

log = structlog.get_logger(__name__)

Say = Callable[[str], object]
"""Called with one line of text once the application answers."""


def serve_on_ray(factory: Callable[[], FastAPI], settings: Settings, root: Path, *, say: Say) -> None:
    """Serve `factory`'s application on Ray Serve; `root` is the project that its replicas import from.

    Returns after SIGTERM or SIGINT, once requests in flight are answered.

    Raises:
        PortBusyError: the port is taken.
        ServiceError: Ray, Serve or the application does not start.
    """
    from headrace.local.ports import free_port
    from headrace.serving.on_ray import RayOptions, RayServe, build_app

    stopping = threading.Event()
    _on_signals(stopping)
    path = os.pathsep.join(part for part in (str(root), os.environ.get("PYTHONPATH")) if part)
    options = RayOptions(
        host=settings.host,
        port=settings.port,
        proxy_ports=(free_port(), free_port()),
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
        ConfigError: `factory` makes no application.
    """
    require_free(settings.host, settings.port)
    app = factory()
    if not isinstance(app, FastAPI):
        raise ConfigError(f"make_http returns {type(app).__name__}, not an application: return build_replica(...)")
    config = uvicorn.Config(app, host=settings.host, port=settings.port, log_level="warning", access_log=False)
    with contextlib.suppress(KeyboardInterrupt):
        _Announced(config, lambda port: say(_up(settings.serving_url_of(port), "uvicorn", settings))).run()


def _up(url: str, runner: str, settings: Settings) -> str:
    return (
        f"{url} is up ({runner}): reads features from {shown_url(settings.redis_url)} and models from "
        f"{settings.model_dir}; logs impressions to {settings.brokers}"
    )


class _Announced(uvicorn.Server):
    """A server that calls `on_up` with its port once it answers requests."""

    def __init__(self, config: uvicorn.Config, on_up: Callable[[int], object]) -> None:
        super().__init__(config)
        self._on_up = on_up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn once, before its loop; returns without having started if the application fails."""
        await super().startup(sockets)
        if self.started:
            self._on_up(self.servers[0].sockets[0].getsockname()[1])
