"""Imports run one way, heavy packages stay in the rooms that need them, and the engine knows no domain word."""

import ast
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOMS = {
    "kernels": set(),
    "schemas": {"kernels"},
    "streams": {"kernels", "schemas"},
    "features": {"kernels", "schemas", "local"},
    "history": {"kernels", "schemas", "streams", "features"},
    "learners": {"kernels", "schemas", "features"},
    "pipelines": {"kernels", "schemas", "streams", "features", "history", "learners"},
    "serving": {"kernels", "schemas", "streams", "features", "learners", "local"},
    "local": set(),
    "client": {"schemas", "streams"},
}
"""What each room may import beside itself and the modules at the root."""
SHARED = {"atomic", "errors", "clock", "extras", "pictures", "redaction", "settings", "stack_state", "telemetry"}
DOMAIN = re.compile(r"(users?|items?)_ids?|(customer|purchase|click|shop|basket)s?(_\w+)?", re.IGNORECASE)


def modules_of(repo: Path, room: str) -> list[Path]:
    return sorted((repo / "headrace" / room).rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Dotted names of `headrace` modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "headrace" else {node.module}
            )
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "headrace"}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(repo, room):
    """schemas <- features <- learners <- {pipelines, serving}: a room imports only what lies before it."""
    paths = modules_of(repo, room)
    assert paths
    for path in paths:
        for name in imports_of(path):
            target = [*name.split("."), ""][1]
            assert target in {room} | ROOMS[room] | SHARED, f"{path.relative_to(repo)} imports {name}"


@pytest.mark.parametrize("module", ["headrace", "headrace.client", "headrace.cli", "headrace.features.store.store"])
def test_light_modules_load_no_heavy_package(module):
    """Reading features needs neither torch nor Ray, Bytewax or a Kafka client."""
    program = (
        f"import sys, {module}; print(*{{'torch', 'ray', 'bytewax', 'confluent_kafka', 'river'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_engine_knows_no_domain_word(repo):
    """What names a thing of the domain belongs in the project's folders: no such name in the engine's code."""
    offences = []
    for path in sorted((repo / "headrace").rglob("*.py")):
        with path.open("rb") as file:
            offences += [
                f"{path.relative_to(repo)}:{token.start[0]}: {token.string}"
                for token in tokenize.tokenize(file.readline)
                if token.type == tokenize.NAME and DOMAIN.fullmatch(token.string)
            ]
    assert offences == []


def test_root_folders_are_packages(repo):
    """Without __init__.py, `python -m bytewax.run pipelines/x.py:flow` would hide the package of the same name."""
    for folder in ("schemas", "features", "pipelines", "learners", "serving"):
        assert (repo / folder / "__init__.py").is_file()


def test_no_file_name_on_both_levels(repo):
    """Engine files are mechanisms, project files are domains or jobs: a name says which level it is of."""
    for folder in ("schemas", "features", "pipelines", "learners", "serving"):
        ours = {path.name for path in (repo / folder).glob("*.py")} - {"__init__.py"}
        engine = {path.name for path in (repo / "headrace" / folder).glob("*.py")}
        assert ours & engine == set()
