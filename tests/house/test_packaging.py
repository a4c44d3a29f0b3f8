"""The wheel: what it holds, and that a newcomer's project made from it works."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path
from unittest import mock

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import headrace
from headrace.cli import scaffold


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    repo = Path(__file__).resolve().parents[2]
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, repo],
        check=True,
        capture_output=True,
    )
    return next(folder.glob("*.whl"))


def test_one_top_level_name(wheel):
    """Nothing but `headrace` is put beside other people's packages: no `features`, no `schemas`."""
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"headrace"}


def test_template_is_inside(wheel):
    """The wheel holds the five folders, the compose file, the log, the scaffold's tests and the bare template."""
    names = set(zipfile.ZipFile(wheel).namelist())
    bare = ("templates/README.md", "templates/bare/schemas/events.py", "templates/bare/tests/test_project.py")
    for wanted in (
        "schemas/retail.py",
        "pipelines/materialize.py",
        "serving/app.py",
        "docker-compose.yml",
        "monitoring/prometheus.yml",
        *bare,
    ):
        assert f"headrace/_project/{wanted}" in names
    assert any(name.startswith("headrace/_project/tests/test_") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.endswith((".nbi", ".nbc"))]


@pytest.fixture(scope="module")
def newcomer(wheel, tmp_path_factory) -> Path:
    """`bin` of a clean venv with the wheel, where only that can be imported which a new project's pyproject names.

    The venv sees this environment's packages through a .pth file, so that nothing is downloaded; `headrace` itself
    comes from the wheel, since a venv's own packages come first. What no requirement leads to is hidden.
    """
    environment = tmp_path_factory.mktemp("newcomer") / "venv"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel],
        check=True,
        capture_output=True,
    )
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    copy_compiled_kernels(Path(headrace.__file__).parent, Path(purelib, "headrace"))
    Path(purelib, "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert {"hypothesis", "duckdb", "mypy"} <= unnamed()
    Path(purelib, "hidden.py").write_text(HIDING.format(names=sorted(unnamed())))
    Path(purelib, "hidden.pth").write_text("import hidden\n")
    return environment / "bin"


def copy_compiled_kernels(checkout: Path, installed: Path) -> None:
    """Copy compiled code that this machine has: its key is what a kernel does, so a kernel that differs compiles."""
    for path in checkout.rglob("__pycache__/*.nb[ic]"):
        target = installed / path.relative_to(checkout)
        if target.parent.parent.is_dir():
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)


HIDING = """
import sys
class Hiding:
    names = set({names})
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"{{name}}: no requirement of the project leads to it", name=name)
sys.meta_path.insert(0, Hiding())
"""


def unnamed() -> set[str]:
    """Modules of this environment that neither headrace[all] nor the `dev` extra of a new project brings along."""
    repo = Path(__file__).resolve().parents[2]
    ours = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    theirs = tomllib.loads(scaffold._TEMPLATE_PYPROJECT.format(name="shop"))["project"]
    assert theirs["dependencies"] == ["headrace[all]"]
    extras = [one for name, wants in ours["optional-dependencies"].items() if name != "dev" for one in wants]
    todo = [*ours["dependencies"], *extras, *theirs["optional-dependencies"]["dev"]]
    todo = [requirement for requirement in todo if not requirement.startswith("headrace[")]
    named = {"headrace"}
    while todo:
        requirement = Requirement(todo.pop())
        name = canonicalize_name(requirement.name)
        extras = ["", *requirement.extras]
        if name in named and not requirement.extras:
            continue
        named.add(name)
        try:
            requires = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform, or another Python
        needed = map(Requirement, requires)
        todo += [
            str(one) for one in needed if one.marker is None or any(one.marker.evaluate({"extra": e}) for e in extras)
        ]
    with mock.patch.object(sys, "path", [sysconfig.get_path("purelib")]):  # without what Ray adds for itself
        modules = importlib.metadata.packages_distributions()
    return {module for module, owners in modules.items() if named.isdisjoint(map(canonicalize_name, owners))}


@pytest.mark.slow
@pytest.mark.parametrize("template", ["shop", "bare"])
def test_install_init_and_its_own_tests(newcomer, tmp_path, template):
    """In a clean venv with the wheel: `headrace init`, then the new project's tests with what its pyproject names."""
    outside = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "HEADRACE_PROJECT"}}
    flags = ["--bare"] if template == "bare" else []
    done = subprocess.run(
        [newcomer / "headrace", "init", *flags, "mine"], cwd=tmp_path, env=outside, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    where = subprocess.run(
        [newcomer / "python", "-c", "import headrace; print(headrace.__file__)"],
        cwd=tmp_path,
        env=outside,
        capture_output=True,
        text=True,
    )
    assert where.stdout.startswith(str(newcomer.parent))
    tests = subprocess.run(
        [newcomer / "python", "-m", "pytest", "-q"],
        cwd=tmp_path / "mine",
        env={**outside, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )
    assert tests.returncode == 0, tests.stdout + tests.stderr
    assert " passed" in tests.stdout
