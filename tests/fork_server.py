"""A process that has imported the heavy packages, and nothing else, and forks itself for whoever asks (`tests.forked`).

    test or shell --socket: arguments, environment, cwd + stdin, stdout, stderr--> server --fork--> the process
        ^------------------------ its id, then how it ended --------------------------'

It has no declaration of a project and no thread but those that libraries start when they are imported, and ends once
nobody is connected. What it forks ends without Python's taking its modules apart, which would copy most of their pages.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import sys
import threading
import types
from pathlib import Path
from typing import Any

IMPORTS = (
    "headrace.cli",
    "headrace.cli.doctor",
    "headrace.cli.materialize",
    "headrace.cli.replay",
    "headrace.cli.train",
    "headrace.learners",
    "headrace.serving.server",
    "headrace.pipelines.on_bytewax",
    "bytewax.run",
    "psutil",
)
THREADS = {"python", "jemalloc_bg_thd", "polars-ooc-clea"}
"""Of OpenBLAS, jemalloc and Polars once they are imported: each expects a fork. A pool, such as Polars', would not."""


class Server:
    """Forks a process a request."""

    def __init__(self, address: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._idle: set[socket.socket] = set()
        self._running: dict[int, socket.socket] = {}
        self._woken, waking = socket.socketpair()
        waking.setblocking(False)
        self._waking = waking
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(waking.fileno())
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{address}.new")
        self._listener.listen(64)
        Path(f"{address}.new").rename(address)
        self._address = address

    def serve(self) -> dict[str, Any]:
        """Return in each forked process: its request. In the server itself never: it exits."""
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                link = key.fileobj
                if link is self._listener:
                    client, _ = self._listener.accept()
                    self._idle.add(client)
                    self._selector.register(client, selectors.EVENT_READ)
                elif link is self._woken:
                    self._woken.recv(4_096)
                    self._report()
                else:
                    request = self._answer(link)
                    if request is not None:
                        return request

    def _answer(self, link: socket.socket) -> dict[str, Any] | None:
        """Fork for a client, or let go of one that has left; returns the request in the forked process."""
        self._selector.unregister(link)
        self._idle.remove(link)
        head, files, _, _ = socket.recv_fds(link, 4, 3)
        if not head:
            link.close()
            if not self._idle:
                Path(self._address).unlink()
                Path(f"{self._address}.lock").unlink(missing_ok=True)
                os._exit(0)
            return None
        body = b""
        while len(body) < int.from_bytes(head):
            body += link.recv(int.from_bytes(head) - len(body))
        pid = os.fork()
        if not pid:
            self._close(link)
            return {**json.loads(body), "files": files}
        for file in files:
            os.close(file)
        self._running[pid] = link
        link.sendall(pid.to_bytes(4))
        return None

    def _report(self) -> None:
        """Tell each client whose process has ended how it ended."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                with self._running.pop(ended[0]) as link, contextlib.suppress(OSError):
                    link.sendall(ended[1].to_bytes(4))

    def _close(self, link: socket.socket) -> None:
        """Let go of everything of the server, in a forked process."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for each in (link, self._listener, self._woken, self._waking, *self._idle, *self._running.values()):
            each.close()


def become(request: dict[str, Any]) -> None:
    """Be the process that was asked for, to its end."""
    for number, file in enumerate(request["files"]):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    if (most := request["file_bytes_max"]) is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    code = 1
    try:
        execute(request["arguments"])
        code = 0
    except SystemExit as exc:
        if exc.code is None or isinstance(exc.code, int):
            code = exc.code or 0
        else:
            sys.stderr.write(f"{exc.code}\n")
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        code = -signal.SIGINT
    except BaseException:  # noqa: BLE001 - it is shown, and the process ends with 1
        sys.excepthook(*sys.exc_info())
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(code & 0xFF)


def execute(arguments: list[str]) -> None:
    """Run what `python *arguments` would, in a module `__main__` of its own."""
    kind, *rest = arguments
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    first = {"-m": str(Path.cwd()), "-c": ""}.get(kind, str(Path(kind).resolve().parent))
    sys.path[:] = [first, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *sys.path[2:]]
    importlib.invalidate_caches()
    if kind == "-m":
        sys.argv = rest
        runpy._run_module_as_main(rest[0])
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = arguments
        main.__file__ = kind
        exec(compile(Path(kind).read_bytes(), kind, "exec"), main.__dict__)


def thread_names() -> set[str]:
    """Of this process's threads, those of libraries too; none where there is no /proc."""
    return {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}


if __name__ == "__main__":
    for name in IMPORTS:
        with contextlib.suppress(ImportError):  # an extra is not installed
            importlib.import_module(name)
    importlib.import_module("numba.core.registry").cpu_target.target_context.refresh()
    assert thread_names() <= THREADS, f"a forked process would lack a thread that an import starts: {thread_names()}"
    gc.freeze()
    become(Server(sys.argv[1]).serve())
