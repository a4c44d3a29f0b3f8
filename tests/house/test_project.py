"""Finding a project, loading from it, and starting a new one."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from headrace import project
from headrace.errors import ConfigError
from headrace.settings import Settings


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


@pytest.mark.parametrize("bare", [False, True])
def test_init_writes_a_readme_and_every_setting(tmp_path, bare):
    """.env.example names each setting with its default, commented out; copied to .env it changes nothing."""
    root = tmp_path / "My Shop"
    project.init(root, bare=bare)
    assert (root / "README.md").read_text().startswith("# My Shop\n")
    assert tomllib.loads((root / "pyproject.toml").read_text())["project"]["name"] == "My-Shop"
    lines = (root / ".env.example").read_text().splitlines()
    values = dict(line[1:].split("=", 1) for line in lines if line.startswith("#HEADRACE_"))
    assert {name.removeprefix("HEADRACE_").lower() for name in values} == set(Settings.model_fields)
    assert not [line for line in lines if line and not line.startswith("#")]
    given = tmp_path / ".env"
    given.write_text("\n".join(f"{name}={value}" for name, value in values.items() if value))
    assert Settings(_env_file=given) == Settings(_env_file=None)


def test_bare_has_nothing_of_the_shop(tmp_path):
    """The five folders, tests and no log; every file is small enough to fill in."""
    files = project.init(tmp_path / "mine", bare=True)
    assert {path.relative_to(tmp_path / "mine").parts[0] for path in files} >= {*project.FOLDERS, "tests"}
    assert not [path for path in files if path.suffix in {".parquet", ".avsc"}]
    words = " ".join(path.read_text() for path in files if path.suffix == ".py")
    assert not re.search("shop|customer|purchase|basket", words, re.IGNORECASE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "Engagment",
            r"no event 'Engagment' in .*schemas; there are Engagement, Impression; did you mean Engagement\?",
        ),
        ("engagement", r"did you mean Engagement\?"),
        ("xyz", r"no event 'xyz' in .*there are Engagement, Impression$"),
        ("features.customer:CustomerActivity", "CustomerActivity is no event; name a class"),
        ("schemas.retail:Nothing", "has no 'Nothing'"),
    ],
)
def test_an_event_that_is_not_there_is_one_clear_error(repo, name, message):
    """By class name or by module, with the nearest name."""
    with pytest.raises(ConfigError, match=message):
        project.event_named(name, repo)


def test_an_event_is_found_by_its_name(repo):
    """Or by its module and name; bases without a topic are no events."""
    found = project.event_named("Engagement", repo)
    assert found is project.event_named("schemas.retail:Engagement", repo)
    assert [event.__name__ for event in project.events(repo)] == ["Engagement", "Impression"]


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
