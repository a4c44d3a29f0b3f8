"""Python processes that cost no imports: `Forked` is a `subprocess.Popen` whose process `tests.fork_server` forks.

A plain start costs 2 to 6 s of a core for imports alone. A forked process has its own id, files, environment and
working directory, is killed as any other, and runs `-m module`, `-c code` or a script as `python` would.
"""

import atexit
import contextlib
import fcntl
import functools
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
START_S_MAX = 120.0


class Forked(subprocess.Popen):
    """`Popen([sys.executable, *arguments], ...)` without the imports.

    Takes Popen's stdin, stdout, stderr, text, errors, cwd and env. `file_bytes_max`: no file may get longer, as on a
    disk that is full.
    """

    def __init__(self, arguments: Sequence[object], *, file_bytes_max: int | None = None, **options: Any) -> None:
        self._file_bytes_max = file_bytes_max
        super().__init__([sys.executable, *map(str, arguments)], **options)

    def _execute_child(self, args: list[str], *given: Any) -> None:
        """Called by Popen with its pipes; -1: the process has the file of this one."""
        _executable, _preexec_fn, _close_fds, _pass_fds, cwd, env, *given = given
        _startupinfo, _creationflags, _shell, stdin, to_stdin, from_stdout, stdout, from_stderr, stderr, *_ = given
        request = {
            "arguments": args[1:],
            "environment": dict(os.environ if env is None else env),
            "cwd": str(cwd or Path.cwd()),
            "file_bytes_max": self._file_bytes_max,
        }
        files = [number if file == -1 else file for number, file in enumerate((stdin, stdout, stderr))]
        self._link = _connected(_server())
        body = json.dumps(request).encode()
        socket.send_fds(self._link, [len(body).to_bytes(4)], files)
        self._link.sendall(body)
        self._close_pipe_fds(stdin, to_stdin, from_stdout, stdout, from_stderr, stderr)
        self.pid = int.from_bytes(self._link.recv(4))
        self._child_created = True

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        """Called by Popen: (id, status) of the process, as of os.waitpid, or (0, 0) while it runs."""
        if wait_flags and not select.select([self._link], [], [], 0)[0]:
            return 0, 0
        status = int.from_bytes(self._link.recv(4))
        self._link.close()
        return self.pid, status

    def _internal_poll(self, **_: Any) -> int | None:
        """Called by Popen: the return code, or None while the process runs."""
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            with contextlib.ExitStack() as release:
                release.callback(self._waitpid_lock.release)
                if self.returncode is None:
                    pid, status = self._try_wait(os.WNOHANG)
                    if pid:
                        self._handle_exitstatus(status)
        return self.returncode


def run(
    arguments: Sequence[object],
    *,
    input: str = "",  # noqa: A002 - as subprocess.run
    timeout: float = 120.0,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run` of a forked process, whose stdout and stderr are captured as text."""
    options = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | options
    with Forked(arguments, text=True, errors="replace", **options) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def put_command(folder: Path) -> None:
    """Write a `headrace` that shells run: it has its process forked, hands signals on to it, and ends as it does."""
    script = folder / "headrace"
    path = Path(sys.executable).with_name("headrace")
    script.write_text(COMMAND.format(python=sys.executable, path=str(path), server=_server()))
    script.chmod(0o755)


COMMAND = """\
#!{python} -IS
import json, os, signal, socket, sys

link = socket.socket(socket.AF_UNIX)
link.connect({server!r})
arguments = [{path!r}, *sys.argv[1:]]
body = json.dumps(
    dict(arguments=arguments, environment=dict(os.environ), cwd=os.getcwd(), file_bytes_max=None)
).encode()
socket.send_fds(link, [len(body).to_bytes(4)], [0, 1, 2])
link.sendall(body)
pid = int.from_bytes(link.recv(4))
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: os.kill(pid, number))
code = os.waitstatus_to_exitcode(int.from_bytes(link.recv(4)))
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


def _connected(address: str) -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(address)
    except OSError:
        link.close()
        raise
    return link


@functools.cache
def _server() -> str:
    """Address of the server that the processes of this test run share; it ends after the last of them."""
    run_id = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    address = Path(tempfile.gettempdir(), f"headrace-forks-{run_id}")
    with address.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            link = _connected(str(address))
        except OSError:
            server = subprocess.Popen(
                [sys.executable, "-m", "tests.fork_server", str(address)],
                env={**os.environ, "PYTHONPATH": str(REPO)},
                cwd="/",
                start_new_session=True,
            )
            server.returncode = 0  # nobody waits for it: it outlives this process where others go on
            deadline_s = time.monotonic() + START_S_MAX
            while not address.exists():
                assert time.monotonic() < deadline_s, "the fork server does not start"
                time.sleep(0.02)
            link = _connected(str(address))
    atexit.register(link.close)
    return str(address)
