"""Addresses of a project's local services: the file that `headrace up` writes, and other commands read.

`.headrace/local/headrace-up.json` in the project has the addresses. Its lock tells whether the services are running:
the process that runs them holds the lock until it ends, so a file left by a killed process, or from before a reboot, is
never taken for running services.
"""

import fcntl
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson

from headrace.errors import ConfigError

FOLDER = Path(".headrace/local")
"""Folder of the services in the project, with data, logs and pid files."""
FILE = "headrace-up.json"
_SIZE = 1_024
"""Size of the file in bytes, padded, so that a new text replaces a longer one completely."""
_ACQUIRE_S = 0.5
"""Seconds that `acquire` waits, since readers briefly take the lock."""
EMBEDDED = "embedded://"
"""Scheme of a store URL with the folder of an embedded Redis instead of an address."""


@dataclass(frozen=True, slots=True)
class StackState:
    """The services of one project.

    `folder` is absolute. `pid` is the process that runs the services, `is_running` whether it is alive. `broker_starts`
    counts the starts of the broker in this folder, each of which begins with empty topics. `started_us`: wall time at
    which both services were ready, 0 before. `restarts`: service -> number of restarts since then after a crash.
    `failed_starts`: earlier starts of the services that ended before both were ready.
    """

    folder: Path
    pid: int
    redis_port: int
    broker_port: int
    broker_starts: int
    started_us: int
    restarts: dict[str, int] = field(default_factory=dict)
    is_running: bool = True
    failed_starts: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether the services are running, and both became ready after the last start."""
        return self.is_running and self.started_us > 0

    @property
    def has_lost_topics(self) -> bool:
        """Whether an earlier broker of this folder was ready, so that events in its topics are lost."""
        return self.broker_starts - self.failed_starts > 1

    @property
    def redis_folder(self) -> Path:
        """Folder with the data and log of Redis."""
        return self.folder / "redis"

    @property
    def store_url(self) -> str:
        """URL of the store for Headrace's own clients, which find Redis by its folder, on any port."""
        return f"{EMBEDDED}{self.redis_folder}"

    @property
    def redis_url(self) -> str:
        """URL of Redis for any client."""
        return f"redis://127.0.0.1:{self.redis_port}/0"

    @property
    def brokers(self) -> str:
        """Bootstrap address of the broker."""
        return f"127.0.0.1:{self.broker_port}"


def read_state(folder: Path) -> StackState | None:
    """Read the state of the services in `folder`, a project's `FOLDER`; None if `headrace up` has never been run there.

    Raises:
        ConfigError: the file is damaged, or was written by another version of Headrace.
    """
    folder = folder.resolve()
    try:
        file = os.open(folder / FILE, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        is_running = _is_locked(file)
        text = os.read(file, _SIZE)
    finally:
        os.close(file)
    if not text:
        return None  # `up` has just begun, or was killed before it knew its ports
    try:
        return StackState(folder, **orjson.loads(text), is_running=is_running)
    except (orjson.JSONDecodeError, TypeError) as exc:
        raise ConfigError(
            f"{folder / FILE} is damaged, or of another version of Headrace ({exc}): stop `headrace up` if it runs, "
            "and delete the file"
        ) from exc


class StateFile:
    """The state file of a running stack; the lock is held until `close`. Child processes do not inherit it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def acquire(self) -> bool:
        """Take the lock; returns False if another process holds it."""
        deadline_s = time.monotonic() + _ACQUIRE_S
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    return False
                time.sleep(0.02)
            else:
                return True

    def write(self, state: StackState) -> None:
        """Replace the content in a single write, so that a reader sees the old text or the new one."""
        fields = asdict(state)
        del fields["folder"], fields["is_running"]
        text = orjson.dumps(fields).ljust(_SIZE - 1) + b"\n"
        assert len(text) == _SIZE, f"{len(text)} bytes of state"
        os.pwrite(self._file, text, 0)

    def close(self) -> None:
        """Release the lock; the content stays, with the ports and the number of broker starts."""
        os.close(self._file)


def _is_locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
