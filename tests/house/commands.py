"""Many runs of the `headrace` command, each a process of its own: forked from one that has imported everything.

A plain start costs seconds of imports; a fork of a process that has only imported, and started no thread, costs none.
"""

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import orjson

_DRIVER = """
import atexit, json, os, resource, signal, sys, traceback
import headrace.cli, headrace.cli.doctor, headrace.features, headrace.learners.publishing.directory
import headrace.cli.materialize, headrace.cli.replay, headrace.serving.server
from numba.core.registry import cpu_target

cpu_target.target_context.refresh()  # what the first kernel of a process loads, a second's work

for line in sys.stdin:
    words, environment, cwd, limit_s, bytes_max, stdin, out, err = json.loads(line)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)
        continue
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
    os.dup2(os.open(stdin, os.O_RDONLY), 0)
    signal.alarm(limit_s)
    if bytes_max is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_max, bytes_max))
    os.chdir(cwd)
    os.environ.update(environment)
    sys.argv = ["headrace", *words]
    code = 1
    try:
        headrace.cli.app()
    except SystemExit as exc:
        code = exc.code if isinstance(exc.code, int) else 0 if exc.code is None else 1
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
"""


@dataclass(frozen=True, slots=True)
class Ask:
    """One command: its words, and what its environment has besides.

    `limit_s`: seconds after which it is ended. `file_bytes_max`: no file may get longer, as on a disk that is full.
    `text`: what it reads from stdin.
    """

    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    limit_s: int = 60
    file_bytes_max: int | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended. A code below 0 is the number of the signal that ended it."""

    words: Sequence[str]
    code: int
    out: str
    err: str


class Commands:
    """Runs commands; what they read and print goes through three files in `folder`. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._files = [folder / name for name in ("in", "out", "err")]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**clean, "NO_COLOR": "1", "COLUMNS": "200"},
        )

    def run(self, ask: Ask, cwd: Path, **environment: str) -> Ran:
        """Run one command in `cwd`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        more = {**environment, **ask.environment}
        stdin, *outputs = self._files
        stdin.write_text(ask.text)
        paths = map(str, self._files)
        line = orjson.dumps([list(ask.words), more, str(cwd), ask.limit_s, ask.file_bytes_max, *paths])
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()
        code = orjson.loads(self._process.stdout.readline())
        out, err = (path.read_text(errors="replace") for path in outputs)
        return Ran(ask.words, code, out, err)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate()


def headrace(*words: str, cwd: Path, text: str = "", **environment: str) -> Ran:
    """Run one command in `cwd`, forked from a process that this one starts at the first call."""
    return _shared().run(Ask(words, environment, limit_s=120, text=text), cwd)


@functools.cache
def _shared() -> Commands:
    folder = Path(tempfile.mkdtemp(prefix="headrace-commands-"))
    commands = Commands(folder)

    def end() -> None:
        commands.__exit__()
        shutil.rmtree(folder)

    atexit.register(end)
    return commands
