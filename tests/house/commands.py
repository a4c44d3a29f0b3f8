"""Runs of the `headrace` command, each a process of its own that costs no imports (see `tests.forked`)."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import forked


@dataclass(frozen=True, slots=True)
class Ask:
    """One command: its words, and what its environment has besides.

    `file_bytes_max`: no file may get longer, as on a disk that is full. `text`: what it reads from stdin.
    """

    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    file_bytes_max: int | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended. A code below 0 is the number of the signal that ended it."""

    words: Sequence[str]
    code: int
    out: str
    err: str


def run(ask: Ask, cwd: Path, **environment: str) -> Ran:
    """Run one command in `cwd`."""
    more = {**environment, **ask.environment}
    done = forked.run(
        words_of(*ask.words), cwd=cwd, env=environment_of(**more), input=ask.text, file_bytes_max=ask.file_bytes_max
    )
    return Ran(ask.words, done.returncode, done.stdout, done.stderr)


def headrace(*words: str, cwd: Path, text: str = "", **environment: str) -> Ran:
    """Run one command in `cwd`; `text` is what it reads from stdin."""
    return run(Ask(words, environment, text=text), cwd)


def start(cwd: Path, *words: str, **environment: str) -> forked.Forked:
    """Start one command in `cwd`, whose stdout and stderr are pipes."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return forked.Forked(words_of(*words), cwd=cwd, env=environment_of(**environment), **pipes)


def words_of(*words: str) -> list[str]:
    """Arguments of a Python that runs the installed command."""
    return [str(Path(sys.executable).with_name("headrace")), *words]


def environment_of(**more: str) -> dict[str, str]:
    """This process's environment without settings, for words on a wide screen without colours; and `more`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return {**clean, "NO_COLOR": "1", "COLUMNS": "200", **more}
