"""`embedded://DIR` as a store: the Redis of a folder, which either runs already or is started by this process.

    headrace materialize ... --store embedded://.headrace/redis      starts it, and stops it when the command ends
    headrace get         ... --store embedded://.headrace/redis      joins it, or starts it on the same data

Data is in the folder (append-only file), so the next command finds it there. Redis ends with the process that started
it. Another process that still uses it finds no server at its next command, and starts one on the same data and, if it
is free, on the same port: a connection looks up the server in the folder each time it connects.

    process 1   starts Redis . . . . . . . . ends (Redis too)
    process 2             joins . . commands . .  | starts Redis . . commands      the same client, no command lost

The folder of a project's `headrace up` is different: there only `up` starts Redis, and all other processes wait for it.
"""

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis

from headrace.errors import ConfigError, HeadraceError, PortBusyError, ServiceError
from headrace.local.ports import HOST, is_free
from headrace.local.redis_server import START_S_MAX, EmbeddedRedis
from headrace.stack_state import EMBEDDED, StackState, read_state

RECONNECT_S_MAX = 2.0
"""Seconds that a connection waits for a server that is ending or starting before it fails."""
_LOCK_WAIT_S = 0.2
"""Seconds that a start waits for the folder, which other processes lock briefly to check whether it is in use."""

_servers: dict[Path, EmbeddedRedis] = {}
"""Servers that this process has started, by folder. Each has an atexit hook that ends it."""
_starting = threading.Lock()


def folder_of(url: str) -> Path:
    """The absolute folder of an `embedded://DIR` URL; a relative DIR is below the working directory.

    Raises:
        ConfigError: the URL names no folder.
    """
    name = url.removeprefix(EMBEDDED)
    if not name:
        raise ConfigError("embedded:// names no folder: write embedded://DIR, such as embedded://.headrace/redis")
    return Path(name).absolute()


class EmbeddedConnection(redis.Connection):
    """A connection to the Redis of a folder, whose address is looked up on connecting; Redis is started if necessary.

    For redis-py's `connection_class`, with `folder` as an additional argument. Used by many threads, one at a time.

    Args:
        folder: folder of the server.
        until_s: function that returns the time, of `time.monotonic`, until which the calling thread may wait.
    """

    def __init__(self, *, folder: Path, until_s: Callable[[], float] = lambda: math.inf, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._folder = folder
        self._until_s = until_s

    def _connect(self) -> Any:
        """Called by redis-py to connect; raises redis-py's errors, as redis-py expects."""
        deadline_s = min(time.monotonic() + RECONNECT_S_MAX, self._until_s())
        while True:
            try:
                address = _listening(self._folder)
                is_late = time.monotonic() > deadline_s
                if address is not None and (is_late or _answer(address) == "ready"):
                    self.host, self.port = HOST, urlsplit(address).port or 0
                    return super()._connect()  # type: ignore[no-untyped-call]
                error: Exception = ServiceError(_not_served(self._folder))
            except (OSError, HeadraceError) as exc:  # a server that is ending keeps its folder for a short time
                error = exc
            if time.monotonic() > deadline_s:
                raise redis.ConnectionError(str(error)) from error
            time.sleep(0.02)


def client_options(url: str) -> dict[str, Any]:
    """Arguments of redis-py's `ConnectionPool` for `embedded://DIR`; starts Redis if necessary.

    Raises:
        ConfigError: the URL names no folder.
        ServiceError: the server does not start, or does not answer.
    """
    folder = folder_of(url)
    _await_loaded(folder)
    return {"connection_class": EmbeddedConnection, "folder": folder}


def _await_loaded(folder: Path) -> None:
    """Wait until the Redis of `folder`, which is started if necessary, answers and has loaded its data.

    Raises:
        ServiceError: it does not start, or does not answer.
    """
    deadline_s = time.monotonic() + START_S_MAX
    while True:
        address = _listening(folder)
        answer = "silent" if address is None else _answer(address)
        if answer == "ready":
            return
        if answer == "loading":
            deadline_s = time.monotonic() + START_S_MAX
        elif time.monotonic() > deadline_s:
            raise ServiceError(_not_served(folder))
        time.sleep(0.02)


def _answer(address: str) -> str:
    """Send a PING to a server; returns "ready", "loading", or "silent"."""
    try:
        with redis.Redis.from_url(address, socket_timeout=1, socket_connect_timeout=1) as client:
            client.ping()
    except redis.BusyLoadingError:
        return "loading"
    except redis.RedisError:
        return "silent"
    return "ready"


def _listening(folder: Path) -> str | None:
    """Address of the server of `folder`, which is started if there is none; None while another process starts it.

    Raises:
        ServiceError: it does not start, or only `headrace up` may start it.
    """
    with _starting:  # one thread starts it, other threads find it running
        address = EmbeddedRedis(folder).served_at()
        if address is not None:
            return address or None
        stack = _stack_of(folder)
        if stack is not None and not stack.is_running:
            raise ServiceError(_not_served(folder))
        return _start(folder) if stack is None else None


def _start(folder: Path) -> str | None:
    """Start the server of `folder`, on its last port if it is free; returns None if another process was faster."""
    ended = _servers.pop(folder, None)
    if ended is not None:
        ended.stop()
    server = EmbeddedRedis(folder, orphan_s=_LOCK_WAIT_S)
    port = server.last_port()
    if port is not None and is_free(port):
        server = EmbeddedRedis(folder, port, orphan_s=_LOCK_WAIT_S)
    try:
        _servers[folder] = server.start(loaded=False)
    except (ServiceError, PortBusyError):
        if server.served_at() is None:
            raise
        return None
    return server.url


def _stack_of(folder: Path) -> StackState | None:
    """The services of `headrace up` whose Redis has this folder; None if it is not such a folder."""
    stack = read_state(folder.parent)
    return stack if stack is not None and stack.redis_folder == folder.resolve() else None


def _not_served(folder: Path) -> str:
    stack = _stack_of(folder)
    if stack is None:
        return f"the Redis of {folder} runs and does not answer: see redis.log there"
    if stack.is_running:
        return f"the Redis of {folder} has ended; `headrace up` (process {stack.pid}) is to start it again: see its log"
    return f"the Redis of {folder} does not run: start it with `headrace up`, or set HEADRACE_REDIS_URL"
