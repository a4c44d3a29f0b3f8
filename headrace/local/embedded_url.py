"""`embedded://DIR` as a store: the Redis of a folder, one that runs there already or one for this process's life.

    headrace materialize ... --store embedded://.headrace/redis      starts it, and ends it at its own end
    headrace get         ... --store embedded://.headrace/redis      joins it; alone, it starts it on the same data

What was written is in the folder (append-only file), so the next command finds it there.
"""

import contextlib
import time
from pathlib import Path

import redis

from headrace.errors import ConfigError, ServiceError
from headrace.local.redis_server import START_S_MAX, EmbeddedRedis

EMBEDDED = "embedded://"

_started: dict[Path, EmbeddedRedis] = {}


def service_url(url: str) -> str:
    """`url` as clients can connect to it: that of a running Redis for `embedded://DIR`, any other as it is.

    >>> service_url("redis://127.0.0.1:6379/0")
    'redis://127.0.0.1:6379/0'

    Raises:
        ConfigError: no folder is named.
        ServiceError: the server does not start, or does not answer.
    """
    if not url.startswith(EMBEDDED):
        return url
    if url == EMBEDDED:
        raise ConfigError("embedded:// names no folder: write embedded://DIR, such as embedded://.headrace/redis")
    server = EmbeddedRedis(url.removeprefix(EMBEDDED), orphan_s=0.0)
    deadline_s = time.monotonic() + START_S_MAX
    while True:
        found = server.held_by()
        if found is not None and _answers(found):
            return found
        if found is None:
            try:
                _started[server.folder] = server.start()  # an atexit hook of its own ends it
            except ServiceError:
                if server.held_by() is None or time.monotonic() > deadline_s:
                    raise  # else another process was faster
            else:
                return server.url
        elif time.monotonic() > deadline_s:
            raise ServiceError(f"the Redis of {server.folder} runs and does not answer: see redis.log there")
        time.sleep(0.02)


def _answers(url: str) -> bool:
    with contextlib.suppress(redis.RedisError, ValueError), redis.Redis.from_url(url, socket_timeout=1) as client:
        return bool(client.ping())
    return False
