"""Serve until told to stop: under Ray Serve, or under uvicorn in this process."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import structlog
from fastapi import FastAPI

from headrace.settings import Settings

log = structlog.get_logger(__name__)


def serve_on_ray(factory: Callable[[], FastAPI], settings: Settings, root: Path) -> None:
    """Serve `factory`'s application on Ray Serve; `root` is the project that its replicas import from.

    Returns after SIGTERM or SIGINT, once requests in flight are answered.

    Raises:
        PortBusyError: the port is taken.
        ServiceError: Ray, Serve or the application does not start.
    """
    from headrace.local.ports import free_port
    from headrace.serving.on_ray import RayOptions, RayServe, build_app

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    path = os.pathsep.join(part for part in (str(root), os.environ.get("PYTHONPATH")) if part)
    options = RayOptions(
        host=settings.host,
        port=settings.port,
        proxy_ports=(free_port(), free_port()),
        replica_port_first=free_port(),
        env={"PYTHONPATH": path, "HEADRACE_PROJECT": str(root)},
    )
    with RayServe(options) as served:
        url = served.deploy(build_app(factory, num_replicas=settings.replicas))
        log.info("serving", url=url, replicas=settings.replicas)
        stopping.wait()


def serve_plain(factory: Callable[[], FastAPI], settings: Settings) -> None:
    """Serve `factory`'s application under uvicorn in this process, until SIGTERM or SIGINT."""
    import uvicorn

    uvicorn.run(factory(), host=settings.host, port=settings.port, log_level="warning", access_log=False)
