r"""A child process that runs a service: started in its own session, logged to a file, ended with its parent.

A child that outlives its parent would keep the port and the data of the next run. It is ended in three ways: by
`stop()`, by an `atexit` hook, and, if the parent is killed, by a watchdog shell that reads from a pipe which only the
parent keeps open: when the pipe closes, it ends the child. (Linux's parent-death signal is not suitable: it fires when
the *thread* that started the child ends, and macOS does not have it.)

    parent --pipe--> watchdog (sh: read; kill)
       \--Popen--> service (own session: Ctrl-C in a terminal does not reach it before the parent has drained)

Processes in the child's process group are killed after the child has ended, since it had time to end them itself.

The child inherits a lock on the pid file, so the folder is locked for exactly as long as the child lives. The file has
the process id, and a note that other processes need to join it.
"""

import atexit
import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import structlog

from headrace.errors import ServiceError

STOP_S_MAX = 10.0
"""Seconds in which a service may end by itself before it is killed."""

ORPHAN_S_MAX = 15.0
"""Seconds to wait until the service of an earlier run, whose parent was killed, releases its folder."""

LOG_TAIL_BYTES = 2_000

_WATCHDOG = """
read -r _
kill -TERM "$1" 2>/dev/null || exit 0
n=0
while kill -0 "$1" 2>/dev/null && [ "$n" -lt 50 ]; do sleep 0.1; n=$((n + 1)); done
kill -KILL "$1" 2>/dev/null
kill -KILL "-$1" 2>/dev/null
"""

log = structlog.get_logger(__name__)


class ServiceProcess:
    """A service's process, its log file `<folder>/<name>.log` and its pid file `<folder>/<name>.pid`.

    Not thread-safe: one thread starts and stops it. In a forked child `stop` and `kill` do nothing. `start` waits up to
    `orphan_s` seconds (None: `ORPHAN_S_MAX`) until another process releases the folder.
    """

    def __init__(self, name: str, folder: Path, *, orphan_s: float | None = None) -> None:
        self.name = name
        self.folder = folder
        self._orphan_s = orphan_s
        self.log_path = folder / f"{name}.log"
        self.pid_path = folder / f"{name}.pid"
        self._owner_pid = os.getpid()
        self._child: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int | None:
        """Process id, or None before `start` and after `stop`."""
        return None if self._child is None else self._child.pid

    @property
    def exit_code(self) -> int | None:
        """Exit code of a process that has ended by itself, negative for a signal; None if it runs or was stopped."""
        return None if self._child is None else self._child.poll()

    def start(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        check: Callable[[], None] | None = None,
        note: str = "",
    ) -> None:
        """Run `command` with the folder as its working directory.

        `env` is added to this process's environment. `check` is called after locking the folder, before the program
        starts. `note` is returned by `held_by` of other processes.

        Raises:
            ServiceError: a process of an earlier run still uses the folder, or the program cannot be executed.
        """
        assert self._child is None, f"{self.name} is already started"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = self._lock()
        except OSError as exc:
            raise ServiceError(f"{self.name}: cannot use the folder {self.folder}: {exc.strerror}") from exc
        try:
            if check is not None:
                check()
            with self.log_path.open("ab") as output:
                self._child = subprocess.Popen(  # noqa: S603 - the command is ours
                    command,
                    cwd=self.folder,
                    env={**os.environ, **(env or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=[lock],
                )
            os.write(lock, f"{self._child.pid} {note}".encode().rstrip() + b"\n")
        except OSError as exc:
            raise ServiceError(f"{self.name}: cannot run {command[0]}: {exc.strerror}") from exc
        finally:
            os.close(lock)
        self._watchdog = subprocess.Popen(  # noqa: S603
            ["/bin/sh", "-c", _WATCHDOG, "sh", str(self._child.pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._owner_pid = os.getpid()
        atexit.register(self.stop)

    def held_by(self) -> str | None:
        """Note of the process that has locked the folder, from any run; "" while it starts, None if the folder is free.

        Raises:
            ServiceError: the pid file belongs to another user.
        """
        try:
            lock = os.open(self.pid_path, os.O_RDWR)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise ServiceError(f"{self.name}: cannot read {self.pid_path}: {exc.strerror}") from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return self.last_note()
        else:
            return None
        finally:
            os.close(lock)

    def last_note(self) -> str:
        """Note of the last process that locked the folder, which may have ended; "" if there was none."""
        try:
            return self.pid_path.read_text(errors="replace").partition(" ")[2].strip()
        except OSError:
            return ""

    def last_pid(self) -> int | None:
        """Id of the last process that locked the folder; if `held_by` is None, another program may have it by now."""
        try:
            return int(self.pid_path.read_text(errors="replace").split()[0])
        except (OSError, ValueError, IndexError):
            return None

    def stop(self) -> None:
        """End the process: SIGTERM, wait `STOP_S_MAX` seconds, then SIGKILL. Does nothing if it is not running."""
        if self._child is None or os.getpid() != self._owner_pid:
            return
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the process (SIGKILL), as a power cut would, for tests of recovery."""
        if self._child is not None and os.getpid() == self._owner_pid:
            self._end(signal.SIGKILL)

    def log_tail(self) -> str:
        """The last lines of the service's output."""
        if not self.log_path.exists():
            return "(no log)"
        with self.log_path.open("rb") as file:
            file.seek(max(0, self.log_path.stat().st_size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace").strip() or "(the log is empty)"

    def check(self) -> None:
        """Check that the process is running.

        Raises:
            ServiceError: it has ended. The message has its exit code and the end of its log.
        """
        if not self.alive:
            code = None if self._child is None else self._child.returncode
            raise ServiceError(
                f"{self.name} is not running (exit code {code}); the end of {self.log_path}:\n{self.log_tail()}"
            )

    def _end(self, how: signal.Signals) -> None:
        assert self._child is not None
        if self.alive:
            self._child.send_signal(how)
        try:
            self._child.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            log.warning("service_killed", service=self.name, pid=self._child.pid, waited_s=STOP_S_MAX)
            self._child.kill()
            self._child.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        if self._watchdog is not None:
            # Killed before its pipe closes; otherwise it would signal a process id that may have been reused.
            self._watchdog.kill()
            self._watchdog.wait()
            assert self._watchdog.stdin is not None
            self._watchdog.stdin.close()
        self._child = self._watchdog = None
        atexit.unregister(self.stop)

    def _lock(self) -> int:
        """Open, lock and empty the pid file; waits until a service whose parent was killed releases the folder."""
        lock = os.open(self.pid_path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline_s = time.monotonic() + (ORPHAN_S_MAX if self._orphan_s is None else self._orphan_s)
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    pid = os.read(lock, 256).decode().strip().partition(" ")[0]
                    os.close(lock)
                    raise ServiceError(
                        f"{self.name}: process {pid} of another run uses {self.folder}; "
                        f"stop that run, or end the process with `kill {pid}`"
                    ) from None
                time.sleep(0.02)
            else:
                os.ftruncate(lock, 0)
                return lock
