"""Where the services of one machine are: the file that `headrace up` writes, and every other command reads.

`.headrace/local/headrace-up.json` of a project holds the addresses. Its lock says whether they are served: the process
that keeps the services running holds it for as long as it lives, so a file that a killed process left behind, or that
is of before a reboot, is never taken for a running one.
"""

import fcntl
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson

from headrace.errors import ConfigError

FOLDER = Path(".headrace/local")
"""Folder of the services, below the project's root: data, logs and pid files."""
FILE = "headrace-up.json"
_SIZE = 1_024
"""Bytes of the file, padded: a text that replaces a longer one leaves nothing behind."""
_ACQUIRE_S = 0.5
"""Seconds that a reader, who takes the lock for a moment, may hold up the one who wants to keep it."""
EMBEDDED = "embedded://"
"""Scheme of a store URL that names the folder of an embedded Redis in place of an address."""


@dataclass(frozen=True, slots=True)
class StackState:
    """The services of one project.

    `folder` is absolute. `pid` is the process that keeps the services running, and `is_running` whether it does.
    `broker_starts` counts the starts of the broker in this folder, each of which begins with empty topics.
    `started_us`: wall time at which both services were ready, 0 before. `restarts`: service -> how often it has died
    and been started again since.
    """

    folder: Path
    pid: int
    redis_port: int
    broker_port: int
    broker_starts: int
    started_us: int
    restarts: dict[str, int] = field(default_factory=dict)
    is_running: bool = True

    @property
    def is_ready(self) -> bool:
        """Whether the services are running, and were ready when they were last started as a whole."""
        return self.is_running and self.started_us > 0

    @property
    def redis_folder(self) -> Path:
        """Data and log of Redis."""
        return self.folder / "redis"

    @property
    def store_url(self) -> str:
        """URL of the store for our own clients, who find Redis by its folder, wherever it listens."""
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
    """The services that `folder`, a project's `FOLDER`, belongs to; None where `headrace up` has never been run there.

    Raises:
        ConfigError: the file is damaged, or of another version of Headrace.
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
        return None  # `up` has only begun, or was killed before it knew its ports
    try:
        return StackState(folder, **orjson.loads(text), is_running=is_running)
    except (orjson.JSONDecodeError, TypeError) as exc:
        raise ConfigError(
            f"{folder / FILE} is damaged, or of another version of Headrace ({exc}): stop `headrace up` if it runs, "
            "and delete the file"
        ) from exc


class StateFile:
    """The file of a stack that is being run, locked for as long as this object is open. Not inherited by children."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def acquire(self) -> bool:
        """Take the lock; False where another process keeps it."""
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
        """Replace what the file holds. It is written whole: a reader sees the old text or the new one."""
        fields = asdict(state)
        del fields["folder"], fields["is_running"]
        text = orjson.dumps(fields).ljust(_SIZE - 1) + b"\n"
        assert len(text) == _SIZE, f"{len(text)} bytes of state"
        os.pwrite(self._file, text, 0)

    def close(self) -> None:
        """Release the lock; the content stays: the ports, and how often the broker was started."""
        os.close(self._file)


def _is_locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
