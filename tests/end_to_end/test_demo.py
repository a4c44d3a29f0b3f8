"""The main job for a short time, with real Redis, broker, Ray Serve and processes: the whole loop holds together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import psutil
import pytest

pytestmark = pytest.mark.slow

SECONDS = 15
ARGUMENTS = ["--seconds", str(SECONDS), "--speed", "40000", "--requests-per-s", "10", "--warm-rows", "20000"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The demo's folder, one for all runs: the first keeps the warm start's model there, and the others copy it."""
    return tmp_path_factory.mktemp("demo")


def start(repo: Path, folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "headrace.cli", "demo", "--folder", str(folder), *ARGUMENTS, *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    with (folder / "out.txt").open("wb") as out:
        return subprocess.Popen(command, cwd=repo, env=clean, stdout=out, stderr=subprocess.STDOUT)


def left_over(folder: Path) -> list[str]:
    """Processes that still work below the demo's folder."""
    return [
        " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["cmdline", "cwd"])
        if str(folder) in " ".join(process.info["cmdline"] or []) or str(process.info["cwd"]).startswith(str(folder))
    ]


@pytest.mark.timeout(600)
def test_demo_runs_the_whole_loop(repo, folder):
    """No failed request, mixed version or parity mismatch; examples joined, models swapped in, nothing left running."""
    report_path = folder / "report.json"
    process = start(repo, folder, "--json", str(report_path))
    code = process.wait(timeout=570)
    output = (folder / "out.txt").read_text()
    assert report_path.is_file(), output
    report = orjson.loads(report_path.read_bytes())
    assert report["requests"]["failed"] == 0, output
    assert report["requests"]["mixed_version"] == 0
    assert report["requests"]["ok"] > 5 * SECONDS
    assert report["parity"]["checked"] > 1_000
    assert report["parity"]["mismatches"] == 0, report["parity"]
    assert report["events_in"] > 500 * SECONDS
    assert report["examples"]["positives"] > SECONDS
    assert report["examples"]["joined"] == 100 * report["examples"]["positives"]
    assert report["examples"]["trained"] > report["examples"]["joined"]
    assert report["swaps"] >= 2
    assert report["swap_ms"]["p99"] > 0
    assert report["event_to_served_model_s"]["events"] > 1_000
    assert report["prequential"]["live"]["auc"] > 0.5
    assert report["prequential"]["frozen"]["auc"] > 0.5
    assert report["feature_freshness_ms"]["p50"] > 0
    assert code in {0, 1}  # 1: a figure that depends on how busy this machine is was missed, and said so
    assert left_over(folder) == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", ["backfill", "are ready"])
def test_interrupt_stops_everything(repo, folder, stage):
    """Ctrl-C while services start, or while the log is played, ends every process of the demo."""
    process = start(repo, folder)
    deadline = time.monotonic() + 120
    while stage not in (folder / "out.txt").read_text() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(2.0)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) != 0
    assert "Traceback" not in (folder / "out.txt").read_text()
    assert left_over(folder) == []
