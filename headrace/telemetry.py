"""Logs, metrics, and a status board on which the processes of an installation publish their state.

Metrics are `prometheus_client` objects, declared at the top of the module that updates them; a name contains its unit.
The serving process exposes them on its own port, all others with `serve_metrics`; docs/operations.md lists them.
"""

import contextlib
import logging
import os
import random
import secrets
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextvars import ContextVar
from typing import Any

import orjson
import structlog
from prometheus_client import Histogram, start_http_server

from headrace.clock import wall_us
from headrace.errors import PortBusyError, StoreError

TIMEOUT_S = 2.0
"""Timeout of Redis in seconds, after which a status is not posted or read."""
EXPIRE_S = 60
"""Seconds after which the status of a silent process expires."""
REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the current HTTP request, added to every log line during the request."""

_random = random.Random(secrets.randbits(256))  # a separate generator: a user's seed must not repeat ids
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _random.seed(secrets.randbits(256)))


def new_request_id() -> str:
    """A unique random id of 32 hexadecimal digits.

    `uuid4` is not used, since it makes a system call each time: in a busy process, releasing the GIL for it costs far
    more than the id.
    """
    return f"{_random.getrandbits(128):032x}"


STAGE_SECONDS = Histogram(
    "headrace_stage_seconds",
    "Time of one piece of work of a flow, by stage: read, decode, prepare, apply, tick",
    ["stage"],
    buckets=(0.0001, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
)


def configure_logs(level: str = "info", *, as_json: bool = False) -> None:
    """Write structlog events to stderr, as text for people or as JSON lines for collectors.

    As JSON, warnings and the messages of libraries that use Python's `logging` are converted as well.
    """
    if as_json:
        _log_libraries_as_json()
    renderer = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _add_request_id,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


@contextlib.contextmanager
def serve_metrics(host: str, port: int) -> Iterator[int]:
    """Serve `GET /metrics` on `host`:`port` in a thread during the block; yields the port, assigned for port 0.

    Raises:
        PortBusyError: listening on the address fails.
    """
    try:
        server, thread = start_http_server(port, addr=host)
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or str(exc)
        raise PortBusyError(
            f"metrics: {host}:{port} cannot be used ({reason}); choose another with HEADRACE_HOST and "
            "HEADRACE_METRICS_PORT"
        ) from exc
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _log_libraries_as_json() -> None:
    shared: list[Any] = [
        _add_request_id,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    handler.name = "headrace-json"
    logging.root.handlers = [each for each in logging.root.handlers if each.name != handler.name] + [handler]
    logging.captureWarnings(capture=True)


def _add_request_id(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    request_id = REQUEST_ID.get()
    if request_id is not None:
        event.setdefault("request_id", request_id)
    return event


class StatusBoard:
    """Small JSON documents in Redis, one per role, which expire when their process stops posting.

    `headrace doctor` and the demo's screen read them; nothing depends on them. Connects on first use.

    Raises:
        StoreError: `redis_url` is not a valid URL of a Redis.
    """

    def __init__(self, redis_url: str, namespace: str = "hr") -> None:
        from headrace.features.store.link import RedisLink

        self._link = RedisLink(redis_url, timeout_s=TIMEOUT_S)
        self._prefix = f"{namespace}:status:"

    def post(self, role: str, document: Mapping[str, Any]) -> bool:
        """Publish `document` as the state of `role`; returns False if Redis fails, which must not crash the process."""
        body = orjson.dumps(
            {"role": role, "pid": os.getpid(), "posted_us": wall_us(), **document}, option=orjson.OPT_SERIALIZE_NUMPY
        )
        try:
            with self._link.errors("posting a status"):
                self._link.client.set(self._prefix + role, body, ex=EXPIRE_S)
        except StoreError as exc:
            structlog.get_logger(__name__).debug("status_not_posted", role=role, error=str(exc))
            return False
        return True

    def read(self) -> dict[str, dict[str, Any]]:
        """Read the newest document of every role.

        Raises:
            StoreUnavailableError: Redis does not answer.
        """
        with self._link.errors("reading statuses"):
            names = list(self._link.client.scan_iter(match=self._prefix + "*", count=1_000))
        bodies = self._link.mget(names) if names else []
        documents: list[dict[str, Any]] = [orjson.loads(body) for body in bodies if body is not None]
        return {document["role"]: document for document in documents}

    def close(self) -> None:
        """Close all connections."""
        self._link.close()
