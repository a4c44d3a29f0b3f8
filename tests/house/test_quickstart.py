"""docs/quickstart.md as a newcomer follows it: every block is run, in one shell, in an empty folder."""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from headrace.local import free_port
from tests.forked import put_command

PAGE = "docs/quickstart.md"
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
_READS = ("headrace get", "headrace models", "curl")
ANSWER_S_MAX = 240.0
"""Seconds until a flow that was started in the background shows in what is read."""


@dataclass(frozen=True)
class Block:
    """One block of the page: shell commands, a file to write, or what the commands before it print."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    """Every fenced block, in order."""
    return [Block(language, title, text) for language, title, text in _BLOCK.findall(page.read_text())]


class Shell:
    """One bash, whose working directory, variables and jobs outlive a block."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._errors = (folder / "stderr").open("w+")
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def run(self, block: str, *, may_fail: bool = False) -> str:
        """What a block prints; it must end with exit code 0, unless it `may_fail`."""
        self._process.stdin.write(f"{block}\nprintf '\\n__rc %s %s\\n' $? $PWD\n")
        self._process.stdin.flush()
        lines = []
        while not (line := self._process.stdout.readline()).startswith("__rc "):
            assert line, f"bash ended in\n{block}\n{self.errors()}"
            lines.append(line)
        _, code, self.folder = line.split()
        assert may_fail or code == "0", f"exit code {code} of\n{block}\n{''.join(lines)}{self.errors()}"
        return "".join(lines)

    def errors(self) -> str:
        """The end of what was written to stderr."""
        self._errors.seek(0)
        return self._errors.read()[-3_000:]

    def close(self) -> None:
        """End the shell."""
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()
        self._errors.close()


def matches(found: object, shown: object) -> bool:
    """Whether an answer holds what the page shows of it; it may hold more fields."""
    if isinstance(shown, dict) and isinstance(found, dict):
        return all(name in found and matches(found[name], value) for name, value in shown.items())
    if isinstance(shown, list) and isinstance(found, list):
        return len(found) >= len(shown) and all(map(matches, found, shown))
    return found == shown


def answers(shell: Shell, command: str, shown: Block) -> None:
    """Run a command until it prints what the page shows; once, unless it only reads."""
    deadline_s = time.monotonic() + ANSWER_S_MAX
    while True:
        printed = shell.run(command, may_fail=command.startswith(_READS))  # an app may not listen yet
        try:
            if shown.language == "text":
                assert shown.text.strip() in printed
            else:
                assert matches(orjson.loads(printed), orjson.loads(shown.text)), (printed, shown.text)
        except (AssertionError, orjson.JSONDecodeError):
            logs = "".join(f"\n== {log.name}\n{log.read_text()[-2_000:]}" for log in Path(shell.folder).glob("*.log"))
            assert command.startswith(_READS), printed + shell.errors()
            assert time.monotonic() < deadline_s, f"{command}\nprints\n{printed}\n{shell.errors()}{logs}"
            time.sleep(1.0)
        else:
            return


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_block_runs_as_written(repo, tmp_path, tmp_path_factory):
    """From `init` to a ranking; what the page shows of an answer is in it, and nothing is left running."""
    port, commands = free_port(), tmp_path_factory.mktemp("commands")
    put_command(commands)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    environment = {
        **plain,
        "PATH": os.pathsep.join([str(commands), str(Path(sys.executable).parent), plain["PATH"]]),
        "PYTHONPATH": str(repo),
        "HEADRACE_LOCAL_REDIS_PORT": "0",
        "HEADRACE_LOCAL_BROKER_PORT": "0",
        "HEADRACE_PORT": str(port),
    }
    page = blocks(repo / PAGE)
    assert {block.title for block in page} > {"schemas/events.py", "features/views.py", "learners/ranking.py"}
    assert sum(block.language == "sh" for block in page) >= 12
    shell = Shell(tmp_path, environment)
    try:
        for index, block in enumerate(page):
            if block.title:
                (Path(shell.folder) / block.title).write_text(block.text)
            elif block.language == "sh":
                command = block.text.replace("localhost:8000", f"localhost:{port}").strip()
                shown = page[index + 1] if index + 1 < len(page) else block
                if shown.language in {"json", "text"}:
                    answers(shell, command, shown)
                else:
                    shell.run(command)
        assert (tmp_path / "podcasts" / "training.parquet").exists()
        assert shell.run("headrace down 2>&1").strip() == "nothing runs"
    finally:
        shell.run("cd / && kill $(jobs -p) 2> /dev/null; true")
        subprocess.run([commands / "headrace", "down"], cwd=tmp_path / "podcasts", env=environment, check=False)
        shell.close()


def test_the_page_is_linked(repo):
    """A newcomer finds it from the README."""
    assert f"]({PAGE})" in (repo / "README.md").read_text()
