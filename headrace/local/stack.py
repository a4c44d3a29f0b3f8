"""The local services of a project: Redis and the broker on fixed ports, restarted when they die.

    .headrace/local/headrace-up.json   addresses, and the lock of the process that keeps the services (stack_state)
                    redis/             append-only file, log, pid file: data survives restarts
                    broker/            log and pid file: topics are in memory, and are lost with each broker
                    topics.json        topics to create whenever the broker starts: name -> partition count
                    up.log             output of `headrace up --detach`

A restarted broker has lost the contents of its topics. They are created again, starting at an offset that no earlier
broker of the project has used (headrace.local.topic_start). So a reader with stored offsets continues at the first new
event, and no event is skipped or counted twice.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

import orjson
import structlog

from headrace.atomic import write_file
from headrace.clock import wall_us
from headrace.errors import HeadraceError, ServiceError
from headrace.local.broker import EmbeddedBroker, create_topics
from headrace.local.process import LOG_TAIL_BYTES, STOP_S_MAX, ServiceProcess
from headrace.local.redis_server import EmbeddedRedis
from headrace.local.server import EmbeddedServer
from headrace.local.topic_start import LIFE_OFFSETS
from headrace.stack_state import StackState, StateFile, read_state

LOG = "up.log"
TOPICS = "topics.json"
WATCH_S = 0.1
"""Interval in seconds of checks that the services are running."""
DEATHS_MAX = 5
"""Deaths of services within `DEATHS_S` after which they are no longer restarted."""
DEATHS_S = 60.0
READY_S_MAX = 60.0
"""Seconds to wait until a detached stack is ready."""
_RETRY_S = 0.5
"""Seconds between two attempts to start a service."""

log = structlog.get_logger(__name__)


class LocalStack:
    """Redis and a broker in `folder`, with `topics` (name -> partition count); a context manager.

    On entry it waits until both answer and the topics exist; `keep_running` then watches them. Port 0 is any free port.

    Raises:
        ServiceError: another process runs the services of the folder, or one of them does not start.
        PortBusyError: a port is in use.
    """

    def __init__(self, folder: Path, topics: Mapping[str, int], *, redis_port: int = 0, broker_port: int = 0) -> None:
        self.folder = folder.absolute()
        self.redis = EmbeddedRedis(self.folder / "redis", redis_port, flag="--redis-port")
        self.broker = EmbeddedBroker(self.folder / "broker", broker_port, topics, flag="--broker-port")
        self._deaths: deque[float] = deque(maxlen=DEATHS_MAX)
        self._cleanup = ExitStack()
        self._state = StackState(self.folder, os.getpid(), redis_port, broker_port, broker_starts=0, started_us=0)

    @property
    def state(self) -> StackState:
        """Addresses and history of the services."""
        return self._state

    def __enter__(self) -> Self:
        with ExitStack() as cleanup:
            self._file = StateFile(self.folder)
            cleanup.callback(self._file.close)
            before = read_state(self.folder)
            if not self._file.acquire():
                raise ServiceError(
                    f"the services of {self.folder} are kept by another process: `headrace down` ends it"
                )
            write_file(self.folder / TOPICS, orjson.dumps(self.broker.topics))
            if before is not None:
                self._state = replace(self._state, failed_starts=before.failed_starts + (before.started_us == 0))
            self._begin_life(0 if before is None else before.broker_starts)
            cleanup.enter_context(self.redis)
            cleanup.enter_context(self.broker)
            self._note(redis_port=self.redis.port, broker_port=self.broker.port, started_us=wall_us())
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def keep_running(self, stopping: threading.Event) -> None:
        """Restart services that die, until `stopping` is set.

        Raises:
            ServiceError: services died `DEATHS_MAX` times within `DEATHS_S` seconds; the message has the end of a log.
        """
        while not stopping.wait(WATCH_S):
            if not self.redis.alive:
                self._start_again("redis", self.redis)
            if not self.broker.alive:
                self._begin_life(self._state.broker_starts)
                self._start_again("broker", self.broker)

    def _start_again(self, name: str, service: EmbeddedServer) -> None:
        log.warning("service_died", service=name, exit_code=service.exit_code, log=str(service.folder / f"{name}.log"))
        self._count_death(service)
        service.stop()
        try:
            service.start()
        except HeadraceError as exc:
            log.warning("service_not_started", service=name, detail=str(exc))
            time.sleep(_RETRY_S)
            return
        self._note(restarts={**self._state.restarts, name: self._state.restarts.get(name, 0) + 1})
        if name == "redis":
            log.warning("redis_started_again", data="kept, but perhaps for what was written in its last second")
        else:
            names, first = sorted(self.broker.topics), self.broker.first_offset
            log.warning("broker_started_again", data="what its topics held is lost", topics=names, first_offset=first)

    def _count_death(self, service: EmbeddedServer) -> None:
        self._deaths.append(time.monotonic())
        if len(self._deaths) < DEATHS_MAX or self._deaths[-1] - self._deaths[0] > DEATHS_S:
            return
        try:
            service.check()
        except ServiceError as exc:
            raise ServiceError(f"given up after {DEATHS_MAX} deaths within {DEATHS_S:.0f} s: {exc}") from exc

    def _begin_life(self, starts_before: int) -> None:
        """Set the first offset of the next broker's topics above all earlier ones; saved before the broker starts."""
        self.broker.topics = orjson.loads((self.folder / TOPICS).read_bytes())
        self.broker.first_offset = starts_before * LIFE_OFFSETS
        self._note(broker_starts=starts_before + 1)

    def _note(self, **changes: object) -> None:
        self._state = replace(self._state, **changes)  # type: ignore[arg-type]
        self._file.write(self._state)


def add_topics(state: StackState, topics: Mapping[str, int]) -> list[str]:
    """Create the topics (name -> partition count) that the running broker lacks, and return their names.

    Raises:
        ServiceError: the broker refused a topic.
    """
    path = state.folder / TOPICS
    write_file(path, orjson.dumps({**topics, **orjson.loads(path.read_bytes())}))
    return create_topics(state.broker_port, topics, (state.broker_starts - 1) * LIFE_OFFSETS)


def start_detached(folder: Path, topics: Mapping[str, int], redis_port: int, broker_port: int) -> StackState:
    """Run the services of `folder` in a separate process, and wait until they are ready.

    Raises:
        ServiceError: the process ended, or is not ready in time; the message has the end of its log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [str(folder.absolute()), str(redis_port), str(broker_port), orjson.dumps(topics).decode()]
    with (folder / LOG).open("wb") as output:
        child = subprocess.Popen(  # noqa: S603 - the command is ours
            [sys.executable, "-m", "headrace.local.keep", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline_s = time.monotonic() + READY_S_MAX
    while True:
        state = read_state(folder)
        if state is not None and state.is_running and state.pid == child.pid and state.started_us:
            return state
        if child.poll() is not None or time.monotonic() > deadline_s:
            tail = (folder / LOG).read_text(errors="replace").strip()[-LOG_TAIL_BYTES:]
            child.terminate()
            raise ServiceError(f"the services did not start; the end of {folder / LOG}:\n{tail}")
        time.sleep(0.05)


def stop_stack(folder: Path) -> bool:
    """Stop the services of `folder`, which any process may run; returns whether any were running.

    Raises:
        ServiceError: a process belongs to another user, or does not end.
    """
    was_running = False
    state = read_state(folder)
    if state is not None and state.is_running:
        was_running = True
        _end(state.pid, partial(_is_kept, folder), 3 * STOP_S_MAX)
    # If the process that ran them was killed, the services end by themselves; any that do not are ended here.
    for name in ("broker", "redis"):
        process = ServiceProcess(name, folder / name)
        pid = process.last_pid()
        if process.held_by() is not None and pid is not None:
            was_running = True
            _end(pid, partial(_is_held, process), STOP_S_MAX)
    return was_running


def _is_kept(folder: Path) -> bool:
    state = read_state(folder)
    return state is not None and state.is_running


def _is_held(process: ServiceProcess) -> bool:
    return process.held_by() is not None


def _end(pid: int, is_there: Callable[[], bool], seconds: float) -> None:
    """Send SIGTERM to a process, and SIGKILL if it does not end within `seconds`."""
    for number, patience_s in ((signal.SIGTERM, seconds), (signal.SIGKILL, STOP_S_MAX)):
        deadline_s = time.monotonic() + patience_s
        try:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        except PermissionError as exc:
            raise ServiceError(f"process {pid} is another user's, and cannot be stopped from here") from exc
        while is_there():
            if time.monotonic() > deadline_s:
                break
            time.sleep(0.05)
        else:
            return
    raise ServiceError(f"process {pid} does not end, even when it is killed")
