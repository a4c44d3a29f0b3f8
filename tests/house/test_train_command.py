"""`headrace train`: a new project learns from a file, then goes on with its topic, in real processes."""

import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime

import numpy as np
import orjson
import polars as pl
import pytest

from headrace.cli.scaffold import init
from headrace.learners import ModelDirectory
from headrace.local import EmbeddedBroker
from headrace.pipelines import TopicWriter, create_topics
from headrace.pipelines.checkpoints import Checkpoints
from headrace.pipelines.from_history.train import CURVE_ROWS
from headrace.schemas import Event
from tests import forked
from tests.house.test_view_commands import headrace, start

ROWS = 1_500
INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "headrace.cli.commands":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
import headrace.cli
"""
"""Ctrl-C while the command imports its modules."""


class Action(Event, topic="actions", key="user_id", time="event_time", id="action_id", codec="json"):
    """The event of a bare project."""

    action_id: str
    event_time: datetime
    user_id: int
    item_id: str
    request_id: str | None = None


def actions() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    user = rng.integers(0, 20, ROWS)
    times = pl.Series(1_760_000_000_000_000 + np.arange(ROWS) * 5_000_000).cast(pl.Datetime("us", "UTC"))
    items = [f"i{(u * 7 + int(k)) % 50}" for u, k in zip(user, rng.geometric(0.3, ROWS), strict=True)]
    columns = {"action_id": [f"a{i}" for i in range(ROWS)], "event_time": times, "user_id": user, "item_id": items}
    return pl.DataFrame(columns, schema_overrides={"user_id": pl.Int64}).with_columns(
        request_id=pl.lit(None, pl.String)
    )


@pytest.fixture
def project(tmp_path):
    """A new project with a log of actions."""
    init(tmp_path / "shop", bare=True)
    actions()[:1_000].write_parquet(tmp_path / "shop" / "log.parquet")
    return tmp_path / "shop"


def test_a_project_is_warmed_from_a_file(project):
    """One pass, the figures as JSON, a first model, and a state that is not trained twice."""
    code, out, words = headrace(project, "train", "Ranking", "--events", "log.parquet", "--json")
    assert code == 0, words
    [row] = orjson.loads(out)
    assert (row["learner"], row["version"], row["events"]) == ("ranking", 1, 1_000)
    assert 9_000 < row["examples"] < min(10_000, CURVE_ROWS)
    assert row["waiting"] == pytest.approx(1_000 - row["examples"] / 10, abs=2)
    assert 0.5 < row["auc"] < 1
    assert row["left_out"] == 0
    assert row["base_logloss"] == pytest.approx(0.325, abs=0.001)  # of one positive in ten
    assert 0 < row["hit@1"] < 1
    assert ModelDirectory(project / ".headrace" / "models").latest() == 1
    assert "model_notice_failed" not in words
    code, out, words = headrace(project, "train", "ranking", "--events", "log.parquet")
    assert (code, out) == (1, "")
    assert "has learned from" in words
    assert "delete the folder .headrace/state/train to begin anew" in " ".join(words.split())


def test_ctrl_c_during_imports_prints_no_traceback():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_the_page_on_learning_runs(project, repo):
    """The Python blocks of docs/learning.md, one after the other, in a new project with a log."""
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (repo / "docs" / "learning.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert len(blocks) == 5
    checks = (
        "assert done.version == 1 and done.examples > 9_000 and 0.5 < done.figures['auc'] < 1",
        "assert len(frame) == len(examples) == len(rows) == len(inputs) > 9_000",
        "assert frame['label'].sum() <= rows['label'].sum()",
    )
    environment = {**os.environ, "PYTHONPATH": f"{project}{os.pathsep}{repo}"}
    done = forked.run(["-c", "\n".join((*blocks, *checks))], cwd=project, env=environment)
    assert done.returncode == 0, done.stderr[-3_000:]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("Rankin", "--events", "log.parquet"), "no learner 'Rankin'.*did you mean Ranking"),
        (("features.views:UserActivity", "--events", "log.parquet"), "is no learner"),
        (("Ranking", "--events", "nope.parquet"), "nope.parquet does not exist"),
        (("Ranking", "--events", "log.parquet", "--from", "2030-01-01"), "no events of Action from 2030-01-01"),
        (("Ranking", "--events", "log.parquet", "--from", "2030-01-01T00:00:00-02:00"), "from 2030-01-01T02:00:00Z"),
        (("Ranking", "--events", "log.parquet", "--from", "2025-01-02", "--until", "2025-01-01"), "swap the times"),
        (("Ranking", "--events", "log.parquet", "--then-live"), "--topic-follows"),
        (("Ranking", "--events", "log.parquet", "--then-live", "--until", "2030-01-01"), "would be lost"),
        (("Ranking", "--events", "log.parquet", "--module", "pipelines.materialize"), "no 'make_step'"),
        (("Ranking", "--events", "log.parquet", "--plot", "figures.pdf"), "ends in .png or .svg"),
    ],
)
def test_bad_arguments_are_one_clear_error(project, words, message):
    code, out, said = headrace(project, "train", *words)
    assert (code, out) == (1, "")
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert pl.Series([line]).str.contains(message).item(), line


def test_a_learner_without_a_flow_is_trained_on_events_alone(project):
    (project / "learners" / "other.py").write_text(
        "from headrace import Categorical, InputSpec, Label, Learner\nfrom headrace.learners import Logistic\n"
        "from schemas.events import Action\n\n\nclass Other(Learner):\n"
        "    label = Label(Action, '5m', candidate='item_id')\n"
        "    inputs = InputSpec(Categorical('item_id'))\n    model = Logistic()\n"
    )
    code, out, words = headrace(project, "train", "Other", "--events", "log.parquet", "--json")
    assert code == 0, words
    assert "is trained on events alone" in words
    assert orjson.loads(out)[0]["version"] == 1
    assert ModelDirectory(project / ".headrace" / "models" / "other").latest() == 1
    code, _, words = headrace(project, "train", "Other", "--events", "log.parquet", "--then-live", "--topic-follows")
    assert code == 1
    assert "--then-live needs a flow of Other" in words


def test_then_live_goes_on_with_the_topic(project, redis_url, tmp_path):
    """1,000 actions from the file, 500 from the topic: all of them are in the state at the end, each once."""
    with EmbeddedBroker(tmp_path / "broker") as server:
        create_topics(server.bootstrap, {"actions": 1, "impressions": 1, "dead-letters": 1})
        environment = {
            "HEADRACE_REDIS_URL": redis_url,
            "HEADRACE_BROKERS": server.bootstrap,
            "HEADRACE_LATENESS_S": "0",
        }
        words = ("train", "Ranking", "--events", "log.parquet", "--topic-follows", "--then-live", "--json")
        process = start(project, *words, **environment)
        line = process.stdout.readline()
        assert line, process.communicate()
        assert orjson.loads(line)[0]["version"] == 1
        writer = TopicWriter(server.bootstrap, Action)
        writer.write(actions()[1_000:])
        writer.flush()
        models, deadline = ModelDirectory(project / ".headrace" / "models"), time.monotonic() + 60
        while models.latest() < 2 and time.monotonic() < deadline:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert models.latest() >= 2
    folder, facts = Checkpoints(project / ".headrace" / "state" / "train").newest()
    assert facts["positions"] == {"history/actions": 1_000, "actions/0": 500}
    waiting = sum(
        file[2] for file in orjson.loads((folder / "held" / "waiting.json").read_bytes())["stores"]["Action"]["files"]
    )
    trained = facts["trainer"]["trained"]
    assert trained == pytest.approx(10 * (ROWS - waiting), abs=20)
