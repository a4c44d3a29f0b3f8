"""The wheel: what it holds, and that a newcomer's project made from it works."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest


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
    """The wheel holds the five folders, the compose file, the log and the scaffold's tests."""
    names = set(zipfile.ZipFile(wheel).namelist())
    for wanted in ("schemas/retail.py", "pipelines/materialize.py", "serving/app.py", "docker-compose.yml"):
        assert f"headrace/_project/{wanted}" in names
    assert any(name.startswith("headrace/_project/tests/test_") for name in names)
    assert not [name for name in names if "__pycache__" in name or name.endswith((".nbi", ".nbc"))]


def test_install_init_and_its_own_tests(wheel, tmp_path):
    """In a clean venv: install the wheel, `headrace init`, run the new project's tests.

    The venv sees this environment's packages through a .pth file, so that nothing is downloaded; `headrace` itself
    comes from the wheel, since a venv's own packages come first.
    """
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True, capture_output=True
    )
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    Path(purelib, "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    outside = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "HEADRACE_PROJECT"}}
    done = subprocess.run(
        [environment / "bin" / "headrace", "init", "shop"], cwd=tmp_path, env=outside, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    where = subprocess.run(
        [python, "-c", "import headrace; print(headrace.__file__)"],
        cwd=tmp_path,
        env=outside,
        capture_output=True,
        text=True,
    )
    assert where.stdout.startswith(str(environment))
    tests = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:randomly"],
        cwd=tmp_path / "shop",
        env=outside,
        capture_output=True,
        text=True,
    )
    assert tests.returncode == 0, tests.stdout + tests.stderr
    assert " passed" in tests.stdout
