"""`embedded://DIR` as a store: the Redis of a folder, one that runs there already or one that this process starts.

    headrace materialize ... --store embedded://.headrace/redis      starts it, and ends it at its own end
    headrace get         ... --store embedded://.headrace/redis      joins it; alone, it starts it on the same data

What was written is in the folder (append-only file), so the next command finds it there. Redis ends with the process
that started it. Whoever still uses it then finds no server at its next command, and starts one on the same data and, if
it is free, on the same port: a connection asks the folder where Redis is each time it connects.

    process 1   starts Redis . . . . . . . . ends (Redis too)
    process 2             joins . . commands . .  | starts Redis . . commands      the same client, no command lost

The folder of a project's `headrace up` is different: there Redis is started by `up` alone, and awaited by all others.
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
"""Seconds that a connection waits for a server that is ending, or being started, before it counts as away."""
_LOCK_WAIT_S = 0.2
"""Seconds that a start waits for the folder: others lock it for a moment when they look whether it is used."""

_servers: dict[Path, EmbeddedRedis] = {}
"""Servers that this process has started, by folder. An atexit hook of their own ends them."""
_starting = threading.Lock()


def folder_of(url: str) -> Path:
    """The absolute folder that an `embedded://DIR` names; a relative one is below the working directory.

    Raises:
        ConfigError: it names none.
    """
    name = url.removeprefix(EMBEDDED)
    if not name:
        raise ConfigError("embedded:// names no folder: write embedded://DIR, such as embedded://.headrace/redis")
    return Path(name).absolute()


class EmbeddedConnection(redis.Connection):
    """A connection to the Redis of a folder, wherever it listens when the connection is made; started if it must be.

    For redis-py's `connection_class`, with `folder` as an argument beside. Used by many threads, one at a time.

    Args:
        folder: of the server.
        until_s: the moment, of `time.monotonic`, until which the calling thread may wait for a connection.
    """

    def __init__(self, *, folder: Path, until_s: Callable[[], float] = lambda: math.inf, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._folder = folder
        self._until_s = until_s

    def _connect(self) -> Any:
        """Called by redis-py whenever the connection is made; raises redis-py's errors, which it expects here."""
        deadline_s = min(time.monotonic() + RECONNECT_S_MAX, self._until_s())
        while True:
            try:
                address = _listening(self._folder)
                is_late = time.monotonic() > deadline_s
                if address is not None and (is_late or _answer(address) == "ready"):
                    self.host, self.port = HOST, urlsplit(address).port or 0
                    return super()._connect()  # type: ignore[no-untyped-call]
                error: Exception = ServiceError(_not_served(self._folder))
            except (OSError, HeadraceError) as exc:  # a server that is ending keeps its folder for a moment
                error = exc
            if time.monotonic() > deadline_s:
                raise redis.ConnectionError(str(error)) from error
            time.sleep(0.02)


def client_options(url: str) -> dict[str, Any]:
    """Arguments with which redis-py's `ConnectionPool` is one of `embedded://DIR`; Redis is started if it must be.

    Raises:
        ConfigError: no folder is named.
        ServiceError: the server does not start, or does not answer.
    """
    folder = folder_of(url)
    _await_loaded(folder)
    return {"connection_class": EmbeddedConnection, "folder": folder}


def _await_loaded(folder: Path) -> None:
    """Return once the Redis of `folder`, which is started if it must be, answers and has loaded its data.

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
    """How a server answers a PING: "ready", "loading", or "silent"."""
    try:
        with redis.Redis.from_url(address, socket_timeout=1, socket_connect_timeout=1) as client:
            client.ping()
    except redis.BusyLoadingError:
        return "loading"
    except redis.RedisError:
        return "silent"
    return "ready"


def _listening(folder: Path) -> str | None:
    """Address of the server of `folder`, started if there is none; None while another process is starting it.

    Raises:
        ServiceError: it does not start, or is not ours to start.
    """
    with _starting:  # one thread starts it, the others find it
        address = EmbeddedRedis(folder).served_at()
        if address is not None:
            return address or None
        stack = _stack_of(folder)
        if stack is not None and not stack.is_running:
            raise ServiceError(_not_served(folder))
        return _start(folder) if stack is None else None


def _start(folder: Path) -> str | None:
    """Start the server of `folder`, where it last listened if it can; None where another process was faster."""
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
    """The services of `headrace up` whose Redis has this folder."""
    stack = read_state(folder.parent)
    return stack if stack is not None and stack.redis_folder == folder.resolve() else None


def _not_served(folder: Path) -> str:
    stack = _stack_of(folder)
    if stack is None:
        return f"the Redis of {folder} runs and does not answer: see redis.log there"
    if stack.is_running:
        return f"the Redis of {folder} has ended; `headrace up` (process {stack.pid}) is to start it again: see its log"
    return f"the Redis of {folder} does not run: start it with `headrace up`, or set HEADRACE_REDIS_URL"
