"""Finding a project, loading from it, and starting a new one."""

import re
import sys
import tomllib
from pathlib import Path

import orjson
import pytest

from headrace import project
from headrace.cli import scaffold
from headrace.errors import ConfigError
from headrace.settings import Settings
from tests.house.commands import headrace


@pytest.fixture
def new_project(tmp_path, monkeypatch):
    monkeypatch.delenv("HEADRACE_PROJECT", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    root = tmp_path / "shop"
    scaffold.init(root)
    return root


def test_root_is_found_from_a_folder_below(new_project, monkeypatch):
    """The nearest folder upward with a [tool.headrace] table is the project."""
    monkeypatch.chdir(new_project / "features")
    assert project.find_root() == new_project.resolve()


def test_environment_names_the_project(new_project, monkeypatch, tmp_path):
    """HEADRACE_PROJECT is for processes that run elsewhere."""
    monkeypatch.setenv("HEADRACE_PROJECT", str(new_project))
    monkeypatch.chdir(tmp_path)
    assert project.find_root() == new_project.resolve()


def test_no_project_is_one_clear_error(tmp_path, monkeypatch):
    """Outside a project the message says what to do."""
    monkeypatch.delenv("HEADRACE_PROJECT", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="not inside a Headrace project.*headrace init"):
        project.find_root()


def test_init_refuses_a_folder_with_content(tmp_path):
    """Nothing of the user's is overwritten."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        scaffold.init(tmp_path)


def test_init_copies_the_five_folders(new_project, repo):
    """The new project has the template's files, and nothing that was compiled."""
    for folder in project.FOLDERS:
        ours = {path.name for path in (repo / folder).glob("*.*") if path.suffix in {".py", ".avsc"}}
        assert {path.name for path in (new_project / folder).glob("*.*")} == ours
    assert not list(new_project.rglob("__pycache__"))
    for name in ("docker-compose.yml", "monitoring/prometheus.yml", "Dockerfile", "pyproject.toml", ".gitignore"):
        assert (new_project / name).read_text() != ""


@pytest.mark.parametrize("bare", [False, True])
def test_init_writes_a_readme_and_every_setting(tmp_path, bare):
    """.env.example names each setting with its default, commented out; copied to .env it changes nothing."""
    root = tmp_path / "My Shop"
    scaffold.init(root, bare=bare)
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
    files = scaffold.init(tmp_path / "mine", bare=True)
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
    assert [event.__name__ for event in project.events(repo)[0]] == ["Engagement", "Impression"]


def test_missing_package_file_is_named(new_project, monkeypatch):
    """A root folder without __init__.py would be shadowed later: it is an error now."""
    monkeypatch.chdir(new_project)
    (new_project / "features" / "__init__.py").unlink()
    with pytest.raises(ConfigError, match=r"features has no __init__\.py"):
        project.activate()


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


PROJECT = {
    "schemas/ev.py": """
from datetime import datetime
from headrace import Event

class Ev(Event, topic="ev", key="user", id="eid", codec="json"):
    eid: str
    event_time: datetime
    user: int
""",
    "features/good.py": """
from headrace import Count, FeatureView
from schemas.ev import Ev

class Base(FeatureView):
    n = Count(windows="1h")

class Good(Base, source=Ev, entity="user"):
    pass
""",
}
BROKEN = {
    "syntax": ("class (", r".*bad\.py:1: invalid syntax"),
    "import": ("\nimport no_such_package_at_all", r".*bad\.py:2: ModuleNotFoundError: .*no_such_package"),
    "declaration": (
        PROJECT["features/good.py"].replace("1h", "1x"),
        r".*bad\.py:8: DeclarationError: view good · feature n .*'1x' is no span",
    ),
    "exit": ("raise SystemExit(3)", r".*bad\.py:1: SystemExit: 3"),
    "name": ("print(undefined_thing)", r".*bad\.py:1: NameError: name 'undefined_thing'"),
    "panic": (
        "import polars as pl\nraise pl.exceptions.PanicException('of a library')",
        r".*bad\.py:2: PanicException: of a library",
    ),
}


def command(root, *words):
    return headrace(*words, cwd=root)


def written(root, files):
    root.mkdir()
    for folder in ("schemas", "features"):
        (root / folder).mkdir()
        (root / folder / "__init__.py").touch()
    (root / "pyproject.toml").write_text('[project]\nname = "p"\nversion = "0"\n[tool.headrace]\n')
    for name, text in files.items():
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_module_does_not_hide_the_others(tmp_path, kind):
    """`features list` shows the good views, then which module failed, why and where; the exit code is 1."""
    text, words = BROKEN[kind]
    root = written(tmp_path / "p", {**PROJECT, "features/bad.py": text})
    done = command(root, "features", "list")
    assert done.code == 1
    assert "features.good:Good" in done.out
    assert re.search(f"error: module features.bad cannot be imported: {words}", done.err), done.err
    assert "Traceback" not in done.err
    done = command(root, "features", "list", "--json")
    assert [row["view"] for row in orjson.loads(done.out)] == ["features.good:Good"]
    assert done.code == 1


def test_a_project_whose_only_views_are_broken_is_not_said_to_have_none(tmp_path):
    root = written(tmp_path / "p", {**PROJECT, "features/good.py": "import no_such_package_at_all"})
    done = command(root, "features", "list")
    assert done.code == 1
    assert "no views" not in done.out + done.err


def test_a_module_that_fails_comes_before_what_it_hides(tmp_path):
    """Whose event is not there since its module fails reads first why it fails."""
    root = written(tmp_path / "p", {**PROJECT, "schemas/ev.py": "import no_such_package_at_all"})
    done = command(root, "produce", "Ev", "--from", "log.jsonl")
    assert done.code == 1
    assert re.match(r"error: module schemas.ev cannot be imported: .*; no event 'Ev' elsewhere in .*", done.err)


def test_a_broken_module_of_events_does_not_hide_the_others(tmp_path):
    """`schemas lock` and `check` do what they can; locks of what is not seen are not called stale."""
    other = PROJECT["schemas/ev.py"].replace("class Ev(", "class Other(")
    root = written(tmp_path / "p", {**PROJECT, "schemas/other.py": other})
    assert command(root, "schemas", "lock").code == 0
    (root / "schemas" / "other.py").write_text("import no_such_package_at_all")
    for words in (("schemas", "check"), ("schemas", "lock")):
        done = command(root, *words)
        assert done.code == 1
        assert re.search(r"module schemas.other cannot be imported: .*other\.py:1: ModuleNotFoundError", done.err)
        assert "stale" not in done.out
    assert "Ev.avsc" in done.err


def test_two_views_of_one_name_in_a_project_are_told(tmp_path):
    root = written(tmp_path / "p", {**PROJECT, "features/second.py": PROJECT["features/good.py"]})
    done = command(root, "features", "list")
    assert done.code == 1
    assert "features.good:Good" in done.out
    assert "features.second:Good" in done.out
    assert "features.good:Good and features.second:Good have one name, 'good'" in done.err


def test_adopt_takes_a_name_over(tmp_path, redis_url):
    """A view that moved and changed at once is refused until then; the message names the command."""
    root = written(tmp_path / "p", PROJECT)
    (root / "log.jsonl").write_text('{"eid": "a", "event_time": "2026-01-01T00:00:00Z", "user": 1}\n')
    words = ("--events", str(root / "log.jsonl"), "--store", redis_url, "--no-handover")
    done = command(root, "backfill", "features.good:Good", *words)
    assert done.code == 0, done.err
    (root / "features" / "moved.py").write_text(PROJECT["features/good.py"].replace('"1h"', '"2h"'))
    done = command(root, "backfill", "features.moved:Good", *words)
    assert done.code == 1
    assert "run `headrace features adopt features.moved:Good`" in done.err
    done = command(root, "features", "adopt", "features.moved:Good", "--store", redis_url)
    assert "good: owned by features.moved:Good, before by features.good:Good" in done.err
    done = command(root, "backfill", "features.moved:Good", *words)
    assert done.code == 0, done.err
