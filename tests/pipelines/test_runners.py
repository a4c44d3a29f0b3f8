"""Project modules under both runners, and a flow where Bytewax is not installed."""

import os
import subprocess
import time

import polars as pl
import pytest

from headrace.errors import ConfigError, SourceError
from headrace.features import Count, FeatureView, OnlineStore
from headrace.pipelines import Archiver, FileSource, Flow, Job, dataflow, on_bytewax, run_flow
from headrace.pipelines.flow import frames_to, join, materialize
from headrace.pipelines.joining.spec import JoinSpec
from headrace.pipelines.loop import STATUS_S
from tests import forked
from tests.pipelines.test_flows import RUNNERS, run_as
from tests.turnstiles import START_US, Followed, Passage, Shelf, Shown, door_use, passages, read_doors, views_of

MODULE = """
import os
from headrace.pipelines import FileSource, Flow, dataflow
from headrace.pipelines.flow import materialize
from tests.turnstiles import Passage, Shelf, views_of

@dataflow
def flow() -> Flow:
    views = materialize(views_of(Passage), os.environ["STORE"])
    return Flow("live", FileSource(os.environ["LOG"], Passage), (Passage,), [views], dead_letters=Shelf())
"""
NO_BYTEWAX = """
import sys
sys.modules["bytewax"] = None  # an import of it fails, as where it is not installed
sys.argv = ["headrace", *sys.argv[1:]]
from headrace.cli import app
app()
"""


@pytest.fixture
def project(tmp_path, redis_url, repo):
    """A project with one flow of one file, and the environment of its processes."""
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "__init__.py").write_text("")
    (tmp_path / "pipelines" / "live.py").write_text(MODULE)
    (tmp_path / "pyproject.toml").write_text("[tool.headrace]\n")
    passages(500).write_parquet(tmp_path / "log.parquet")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    here = {"STORE": redis_url, "LOG": str(tmp_path / "log.parquet"), "PYTHONPATH": f"{repo}", "NO_COLOR": "1"}
    return tmp_path, clean | here


def run_in(project, *words: str) -> subprocess.CompletedProcess[str]:
    folder, environment = project
    return forked.run(words, cwd=folder, env=environment)


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "headrace.cli", "run", "pipelines.live", "--runner", "loop"),
        ("-m", "headrace.cli", "run", "pipelines.live", "--runner", "bytewax"),
        ("-m", "bytewax.run", "pipelines.live:flow"),
        ("-c", NO_BYTEWAX, "run", "pipelines.live"),
    ],
    ids=["loop", "bytewax", "bytewax.run", "bytewax is not installed"],
)
def test_a_project_module_runs_under_both_runners(words, project, redis_url):
    done = run_in(project, *words)
    assert done.returncode == 0, done.stderr
    assert "bytewax.run" in words or "pipelines.live is up: reads Passage from" in done.stderr
    with OnlineStore.open(redis_url) as store:
        log = passages(500)
        assert read_doors(store, Passage, log).equals(door_use(log))


def test_a_runner_that_is_not_installed_is_one_line(project):
    done = run_in(project, "-c", NO_BYTEWAX, "run", "pipelines.live", "--runner", "bytewax")
    assert done.returncode == 1
    assert done.stderr == "error: runner bytewax needs a package: pip install 'headrace[flow]', or use --runner loop\n"


@pytest.mark.parametrize("runner", RUNNERS)
def test_jobs_of_one_flow_see_the_same_events(runner, tmp_path, redis_url):
    """Views and archive side by side: each keeps positions of its own, and a second run adds nothing."""
    log = passages(300)
    log.write_parquet(tmp_path / "log.parquet")
    figures = []

    def flow() -> Flow:
        source = FileSource(tmp_path / "log.parquet", Passage, rows_max=100)
        views = materialize(views_of(Passage), redis_url, on_status=figures.append)
        archive = Job("archive", lambda _place: Archiver(tmp_path / "archive"))
        return Flow("both", source, (Passage,), [views, archive], dead_letters=Shelf())

    for _ in range(2):
        run_as(runner, flow())
    with OnlineStore.open(redis_url) as store:
        assert read_doors(store, Passage, log).equals(door_use(log))
    archived = pl.concat([pl.read_parquet(path) for path in (tmp_path / "archive").glob("*/*/*.parquet")])
    assert sorted(archived["passage_id"]) == sorted(log["passage_id"])
    assert {len(each["steps"]) for each in figures} <= {1, 2}
    assert figures[-1]["steps"][0]["records"] >= 0


@pytest.mark.parametrize("runner", RUNNERS)
def test_frames_of_a_join_become_files(runner, tmp_path):
    shown = pl.DataFrame(
        {
            "request_id": ["a", "b"],
            "at": pl.Series([START_US, START_US + 1]).cast(pl.Datetime("us", "UTC")),
            "visitor": [1, 2],
            "signs": [[7, 8], [9]],
            "features": [b"", b""],
        }
    )
    shown.write_parquet(tmp_path / "shown.parquet")
    spec = JoinSpec(Shown, Followed, "signs", "sign", within_us=10)
    job = join(spec, idle_s=None, out=frames_to(tmp_path / "examples"))
    source = FileSource(tmp_path / "shown.parquet", Shown)
    run_as(runner, Flow("join", source, (Shown, Followed), [job], dead_letters=Shelf()))
    assert pl.read_parquet(tmp_path / "examples" / "*.parquet")["request_id"].to_list() == ["a", "b"]


@pytest.mark.parametrize("runner", RUNNERS)
def test_an_error_of_an_output_ends_the_flow(runner, tmp_path, redis_url):
    passages(10).write_parquet(tmp_path / "log.parquet")
    source = FileSource(tmp_path / "log.parquet", Passage)
    job = materialize(views_of(Passage), redis_url, out=lambda summary: summary.records // 0)
    with pytest.raises(ZeroDivisionError):
        run_as(runner, Flow("broken", source, (Passage,), [job], dead_letters=Shelf()))


class Door(FeatureView, source=Passage, entity="door"):
    n = Count(windows="lifetime")


def test_the_loop_is_one_worker_and_takes_no_dataflow(tmp_path):
    @dataflow
    def flow() -> Flow:
        source = FileSource(tmp_path, Passage)
        return Flow("live", source, (Passage,), [materialize([Door], "redis://127.0.0.1:1")], dead_letters=Shelf())

    with pytest.raises(ConfigError, match="2 workers: the plain loop is one; use --runner bytewax"):
        run_flow(flow, runner="loop", workers=2)
    with pytest.raises(ConfigError, match="of type Dataflow: the plain loop runs a function under @dataflow"):
        run_flow(on_bytewax.dataflow_of(flow.declare()), runner="loop")
    with pytest.raises(ConfigError, match="of type int"):
        run_flow(1, runner="loop")


class Unreadable(FileSource):
    """A file whose first read takes a while and then fails."""

    def poll(self):
        time.sleep(2 * STATUS_S)
        raise SourceError("the file cannot be read")


@pytest.mark.parametrize("runner", ["loop", "bytewax"])
def test_a_flow_whose_source_cannot_be_read_is_never_up(runner, tmp_path, redis_url):
    """However long the first read takes: on a busy machine "is up" came before the error."""
    passages(10).write_parquet(tmp_path / "log.parquet")
    flow = Flow(
        "live",
        Unreadable(tmp_path / "log.parquet", Passage),
        (Passage,),
        [materialize(views_of(Passage), redis_url)],
        dead_letters=Shelf(),
    )
    lines: list[str] = []
    with pytest.raises(SourceError, match="the file cannot be read"):
        run_flow(flow, runner=runner, say=lines.append)
    assert lines == []
