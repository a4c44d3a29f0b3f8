"""`headrace serve --plain` says one line once it answers: where, what it reads and logs, without a secret."""

import re
import signal
import subprocess
import sys

import httpx
import pytest

APP = """
from fastapi import FastAPI

def make_http():
    app = FastAPI()
    app.get("/healthz")(lambda: {"status": "ok"})
    return app
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_line_once_it_answers(repo, tmp_path, number):
    """Port 0 takes a free one, which the line names; a signal ends it without another word."""
    (tmp_path / "serving").mkdir()
    (tmp_path / "serving" / "__init__.py").write_text("")
    (tmp_path / "serving" / "app.py").write_text(APP)
    (tmp_path / "pyproject.toml").write_text("[tool.headrace]\n")
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(repo),
        "HEADRACE_PORT": "0",
        "HEADRACE_REDIS_URL": "redis://me:TOPSECRET@10.1.2.3:6379/0",
        "HEADRACE_BROKERS": "10.1.2.3:9092",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace.cli", "serve", "--plain"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stderr.readline()
    found = re.fullmatch(
        r"(http://127\.0\.0\.1:\d+) is up \(uvicorn\): reads features from redis://me:\*\*\*@10\.1\.2\.3:6379/0 and "
        r"models from \.headrace/models; logs impressions to 10\.1\.2\.3:9092\n",
        line,
    )
    assert found, line
    assert httpx.get(f"{found[1]}/healthz").json() == {"status": "ok"}
    process.send_signal(number)
    _, words = process.communicate(timeout=30)
    assert words == ""
    assert process.returncode in {0, -signal.SIGTERM}
