"""`make test` runs the fast tier, and CI every test with its whole counts."""

import os
import shlex
import subprocess

from tests import tiers
from tests.tiers import by_tier

VARIABLES = {"MAKEFLAGS", "MAKEOVERRIDES", "ARGS", "PROCESSES"}


def pytest_commands(repo, target: str) -> list[list[str]]:
    """Calls of pytest that a target of the Makefile makes."""
    environment = {name: text for name, text in os.environ.items() if name not in VARIABLES}  # of a make around us
    shown = subprocess.run(
        ["make", "-n", target], cwd=repo, env=environment, capture_output=True, text=True, check=True
    ).stdout
    return [words for words in map(shlex.split, shown.splitlines()) if words[1:3] == ["-m", "pytest"]]


def test_make_test_leaves_out_slow_tests_and_ci_nothing(repo):
    [fast], [whole] = pytest_commands(repo, "test"), pytest_commands(repo, "test-all")
    assert fast == [*whole, "-m", tiers.FAST]
    commands = [line for line in (repo / ".ci" / "run").read_text().splitlines() if line.startswith("make ")]
    assert commands == ["make lint", "make test-all"]


def test_counts_are_those_of_the_tier(request, monkeypatch):
    assert tiers.is_fast == (request.config.option.markexpr == tiers.FAST)
    for is_fast, count in ((True, 2), (False, 5)):
        monkeypatch.setattr(tiers, "is_fast", is_fast)
        assert by_tier(fast=2, whole=5) == count
