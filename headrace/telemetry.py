"""Logs, and the status board through which processes of one installation show how they are doing.

Metrics proper are `prometheus_client` objects declared at the head of the module that counts; a name carries its unit.
"""

import logging
import os
import sys
from collections.abc import Mapping
from typing import Any, cast

import orjson
import structlog

from headrace.clock import wall_us


def configure_logs(level: str = "info", *, as_json: bool = False) -> None:
    """Send structlog events to stderr, as text for people or as JSON lines for collectors."""
    renderer = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )


class StatusBoard:
    """Small JSON documents in Redis, one a process, that expire when their process falls silent.

    `headrace doctor` and the demo's view read them; nothing depends on them.
    """

    def __init__(self, redis_url: str, namespace: str = "hr", *, expire_s: float = 60.0) -> None:
        import redis

        self._redis = redis.Redis.from_url(redis_url, socket_timeout=2.0, socket_connect_timeout=2.0)
        self._prefix = f"{namespace}:status:"
        self._expire_ms = int(expire_s * 1_000)

    def post(self, role: str, document: Mapping[str, Any]) -> bool:
        """Show `document` as the state of `role`; False when Redis is away (a status is never worth a crash)."""
        import redis

        body = orjson.dumps(
            {"role": role, "pid": os.getpid(), "posted_us": wall_us(), **document}, option=orjson.OPT_SERIALIZE_NUMPY
        )
        try:
            self._redis.set(self._prefix + role, body, px=self._expire_ms)
        except redis.RedisError as exc:
            structlog.get_logger(__name__).debug("status_not_posted", role=role, error=str(exc))
            return False
        return True

    def read(self) -> dict[str, dict[str, Any]]:
        """The newest document of every role."""
        names = list(self._redis.scan_iter(self._prefix + "*", count=1_000))
        bodies = cast("list[bytes | None]", self._redis.mget(names)) if names else []
        documents = [cast("dict[str, Any]", orjson.loads(body)) for body in bodies if body is not None]
        return {document["role"]: document for document in documents}
