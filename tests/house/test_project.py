"""Finding a project, loading from it, and starting a new one."""

import sys
from pathlib import Path

import pytest

from headrace import project
from headrace.errors import ConfigError


@pytest.fixture
def new_project(tmp_path, monkeypatch):
    monkeypatch.delenv("HEADRACE_PROJECT", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    root = tmp_path / "shop"
    project.init(root)
    return root


def test_root_is_found_from_a_folder_below(new_project):
    """The nearest folder upward with a [tool.headrace] table is the project."""
    assert project.find_root(new_project / "features") == new_project.resolve()


def test_environment_names_the_project(new_project, monkeypatch, tmp_path):
    """HEADRACE_PROJECT is for processes that run elsewhere."""
    monkeypatch.setenv("HEADRACE_PROJECT", str(new_project))
    monkeypatch.chdir(tmp_path)
    assert project.find_root() == new_project.resolve()


def test_no_project_is_one_clear_error(tmp_path, monkeypatch):
    """Outside a project the message says what to do."""
    monkeypatch.delenv("HEADRACE_PROJECT", raising=False)
    with pytest.raises(ConfigError, match="not inside a Headrace project.*headrace init"):
        project.find_root(tmp_path)


def test_init_refuses_a_folder_with_content(tmp_path):
    """Nothing of the user's is overwritten."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        project.init(tmp_path)


def test_init_copies_the_five_folders(new_project, repo):
    """The new project has the template's files, and nothing that was compiled."""
    for folder in project.FOLDERS:
        ours = {path.name for path in (repo / folder).glob("*.*") if path.suffix in {".py", ".avsc"}}
        assert {path.name for path in (new_project / folder).glob("*.*")} == ours
    assert not list(new_project.rglob("__pycache__"))
    for name in ("docker-compose.yml", "Dockerfile", "pyproject.toml", ".gitignore"):
        assert (new_project / name).read_text() != ""


def test_missing_package_file_is_named(new_project):
    """A root folder without __init__.py would be shadowed later: it is an error now."""
    (new_project / "features" / "__init__.py").unlink()
    with pytest.raises(ConfigError, match=r"features has no __init__\.py"):
        project.activate(new_project)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("features.customer", "write module:name"),
        ("features.nothing:X", "no module 'features.nothing'"),
        ("features.customer:Nothing", "has no 'Nothing'; it has .*CustomerActivity"),
    ],
)
def test_wrong_reference_is_one_clear_error(reference, message):
    """The message says what was found and what to write."""
    with pytest.raises(ConfigError, match=message):
        project.load_object(reference)


def test_errors_inside_a_module_are_not_hidden(new_project, monkeypatch):
    """A module that imports something missing is told with its own error and line, which is also the cause."""
    (Path(new_project) / "features" / "broken_view.py").write_text("import no_such_package_at_all\n")
    monkeypatch.syspath_prepend(str(new_project))
    for name in [name for name in sys.modules if name.split(".")[0] == "features"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ConfigError, match=r"broken_view\.py:1: ModuleNotFoundError: .*no_such_package_at_all"
    ) as caught:
        project.load_module("features.broken_view")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
