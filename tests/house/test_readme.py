"""What the README and the docs show is so: code blocks run, commands and files exist."""

import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headrace.cli import app
from headrace.features import plan_of
from headrace.schemas import spec_of
from headrace.schemas.event import _DECLARED, CODECS

PAGES = (
    *("README.md", "CONTRIBUTING.md", "docs/ARCHITECTURE.md", "docs/events.md", "docs/quickstart.md", "docs/replay.md"),
    "docs/learning.md",
    "docs/views.md",
    "docs/delivery.md",
    "docs/operations.md",
    *("docs/serving.md", "docs/cli.md", "docs/aggregations.md", "docs/benchmarks.md", "data/README.md"),
    "CHANGELOG.md",
)


def blocks(repo: Path, language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (repo / page).read_text(), re.DOTALL)


def test_python_blocks_run(repo):
    """The view and the learner of the README are declared as they stand, one after the other."""
    found = blocks(repo, "python")
    assert len(found) == 2
    names: dict = {"__name__": "readme"}
    for block in found:
        exec(block, names)
    features = {feature.name for feature in plan_of(names["CustomerActivity"]).features}
    assert {"bought_30d", "cancel_rate_360d", "recent"} <= features
    assert names["NextItem"].name == "next_item"


def test_the_page_on_views_runs(repo):
    """Its blocks one after the other, and what they say of names and values is so."""
    found = blocks(repo, "python", "docs/views.md")
    assert len(found) == 7
    names: dict = {"__name__": "views"}
    for block in found:
        exec(block, names)
    features = {
        name: [feature.name for feature in plan_of(names[name]).features]
        for name in ("UserActivity", "UserOffer", "Users", "Countries")
    }
    said = {"clicks_10m", "clicks_1h", "clicks_24h", "orders_item_id", "orders_price", "bought", "minutes_lifetime"}
    assert said <= set(features["UserActivity"])
    assert {"rate_1h", "rate_7d"} <= set(features["UserOffer"])
    assert (features["Users"], features["Countries"]) == (["clicks_24h", "seen"], ["clicks_1h", "clicks_24h"])
    assert plan_of(names["Recent"]).name == "recent_clicks"
    answer = names["found"]
    assert answer["user_offer.mean_price"].to_list() == [3.0, None]
    assert answer["user_offer.is_dear"].to_list() == [1, None]
    assert answer["user_offer.rate_7d"].to_list() == [3 / 21, 1 / 21]


def test_the_archive_of_the_page_on_replay_is_that_of_this_project(repo):
    """But for the names of the events."""
    [shown] = [block for block in blocks(repo, "python", "docs/replay.md") if "Archiver" in block]
    ours = (repo / "pipelines" / "archive.py").read_text().partition('"""\n\n')[2]
    ours = ours.replace("schemas.retail import Engagement, Impression", "schemas.events import Action, Impression")
    assert shown == ours.replace("(Impression, Engagement)", "(Action, Impression)")


def test_the_page_on_events_runs(repo):
    """Its blocks one after the other, and its tables name every class argument, codec and reason."""
    found = blocks(repo, "python", "docs/events.md")
    assert len(found) == 2
    names: dict = {"__name__": "events"}
    for block in found:
        exec(block, names)
    assert spec_of(names["Reading"]).time_unit == "ms"
    page = (repo / "docs" / "events.md").read_text()
    named = set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE))
    assert {*_DECLARED, *CODECS} <= named


def test_generated_pages_are_whole(repo):
    """Arguments as Python takes them, whole summaries, nothing that Markdown would take for HTML."""
    page = (repo / "docs" / "aggregations.md").read_text()
    assert {
        "Ratio(part, whole, prior=(0.0, 0.0))",
        "Sequence(*values, n, within=None, where=None, source=None)",
    } <= set(page.splitlines())
    assert "Quantile(value, *, windows=(), where=None, hop=None, source=None, q=(0.5, 0.9, 0.99)" in page
    assert "<" not in re.sub(r"```.*?```|`[^`]*`", "", page, flags=re.DOTALL)
    page = (repo / "docs" / "cli.md").read_text()
    assert re.findall(r"&#?\w+;", page) == []
    assert [line for line in page.splitlines() if line.startswith("* `") and line.endswith("...")] == []


def test_shell_blocks_name_real_commands(repo):
    """Every `make` target and every `headrace` command of the README exists."""
    lines = "\n".join(blocks(repo, "sh")).splitlines()
    assert len(lines) >= 8
    targets = {line.split()[1] for line in lines if line.startswith("make ")}
    assert targets == {"demo", "test"}
    for target in targets:
        assert subprocess.run(["make", "-n", target], cwd=repo, capture_output=True).returncode == 0
    commands = {line.split()[1] for line in lines if line.startswith("headrace ")}
    assert commands == {"init", "up", "produce", "train", "run", "serve", "get", "replay", "backfill", "verify"}
    for command in commands:
        assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(repo, page):
    """Relative links of the pages point at files."""
    for target in re.findall(r"\]\(([^)#]+)\)", (repo / page).read_text()):
        if "://" not in target:
            assert ((repo / page).parent / target).exists(), target


def test_make_help_lists_every_target(repo):
    """`make` alone explains itself from the targets' own comments."""
    listed = subprocess.run(["make"], cwd=repo, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^\.PHONY: (.*)$", (repo / "Makefile").read_text(), re.MULTILINE)[0].split()
    assert [target for target in targets if f"make {target}" not in listed] == []
