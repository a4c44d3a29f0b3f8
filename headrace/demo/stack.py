"""The processes of one machine: Redis, broker, the engine's jobs and serving, started in order and stopped in reverse.

    Redis, broker            embedded, on free ports, data below the stack's folder
    jobs                     `headrace run <module>`, one process each
    serving                  `headrace serve`

All of them share one environment. `check` raises if a service died or Ctrl-C was pressed, even if an exception would
have been lost, for example in a callback of a library or a finalizer.
"""

import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import httpx
import structlog

from headrace.errors import ServiceError
from headrace.local import EmbeddedBroker, EmbeddedRedis, free_port
from headrace.local.process import ServiceProcess

READY_S_MAX = 120.0  # Ray and Serve need about 12 s on two idle cores

log = structlog.get_logger(__name__)


class Stack:
    """Services of one run. A context manager that starts Redis and the broker; `launch` starts the others.

    Args:
        folder: folder of data, logs and pid files; Redis starts empty in it, as the broker does.
        project: root of the project in which the jobs run.
        topics: name -> partition count.
        env: environment of every job, in addition to the addresses.

    Raises:
        ServiceError: a service does not start, or died; the message ends with its log.
    """

    def __init__(self, folder: Path, project: Path, topics: Mapping[str, int], env: Mapping[str, str]) -> None:
        self.folder = folder
        self.redis = EmbeddedRedis(folder / "redis", aof=True)
        self.broker = EmbeddedBroker(folder / "broker", topics=dict(topics))
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._project = project
        self._env = dict(env)
        self._processes: list[ServiceProcess] = []
        self._interrupted = threading.Event()
        self._cleanup = ExitStack()

    def __enter__(self) -> Self:
        with self._cleanup as cleanup:
            if threading.current_thread() is threading.main_thread():
                cleanup.callback(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, self._interrupt))
            cleanup.enter_context(self.redis)
            cleanup.enter_context(self.broker)
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.stop()
        self._cleanup.close()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of the stack's processes."""
        return {
            **self._env,
            "HEADRACE_PROJECT": str(self._project),
            "HEADRACE_REDIS_URL": self.redis.url,
            "HEADRACE_BROKERS": self.broker.bootstrap,
            "HEADRACE_HOST": "127.0.0.1",
            "HEADRACE_PORT": str(self.port),
        }

    def launch(self, name: str, arguments: Sequence[str]) -> None:
        """Start `headrace <arguments>` as the service `name`."""
        process = ServiceProcess(name, self.folder / name)
        process.start([sys.executable, "-m", "headrace.cli", *arguments], self.environment)
        self._processes.append(process)

    def wait_until_served(self) -> None:
        """Wait until `/readyz` answers 200."""
        deadline = time.monotonic() + READY_S_MAX
        while True:
            self.check()
            try:
                if httpx.get(self.url + "/readyz", timeout=2.0).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError as exc:
                log.debug("not_ready", error=str(exc))
            if time.monotonic() > deadline:
                raise ServiceError(f"serving is not ready after {READY_S_MAX:.0f} s; logs are in {self.folder}")
            time.sleep(0.2)

    def check(self) -> None:
        """Check that every service is running.

        Raises:
            ServiceError: a service died; the message ends with its log.
            KeyboardInterrupt: Ctrl-C was pressed.
        """
        if self._interrupted.is_set():
            raise KeyboardInterrupt
        self.redis.check()
        self.broker.check()
        for process in self._processes:
            process.check()

    def _interrupt(self, _number: int, _frame: object) -> None:
        self._interrupted.set()
        raise KeyboardInterrupt

    def stop(self, name: str) -> None:
        """Stop the job `name`, which drains first, before the other services."""
        for process in [process for process in self._processes if process.name == name]:
            process.stop()
            self._processes.remove(process)
