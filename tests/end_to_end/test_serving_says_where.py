"""`headrace serve` says one line once it answers: where, what it reads and logs, without a secret."""

import os
import re
import signal
import subprocess
import sys

import httpx
import pytest

from headrace.local import free_port
from tests.forked import Forked

APP = """
from fastapi import FastAPI

def make_http():
    app = FastAPI()
    app.get("/healthz")(lambda: {"status": "ok"})
    return app
"""


WHERE = (
    r"reads features from redis://me:\*\*\*@10\.1\.2\.3:6379/0 and models from \.headrace/models; "
    r"logs impressions to 10\.1\.2\.3:9092\n"
)


def start(repo, folder, *words, port):
    (folder / "serving").mkdir()
    (folder / "serving" / "__init__.py").write_text("")
    (folder / "serving" / "app.py").write_text(APP)
    (folder / "pyproject.toml").write_text("[tool.headrace]\n")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(repo),
        "HEADRACE_PORT": str(port),
        "HEADRACE_REDIS_URL": "redis://me:TOPSECRET@10.1.2.3:6379/0",
        "HEADRACE_BROKERS": "10.1.2.3:9092",
        "HEADRACE_LOG_LEVEL": "warning",
    }
    arguments = ["-m", "headrace.cli", "serve", *words]
    options = {"cwd": folder, "env": environment, "stderr": subprocess.PIPE, "text": True}
    if "--plain" in words:
        return Forked(arguments, **options)
    return subprocess.Popen([sys.executable, *arguments], **options)  # Ray starts processes of its own from it


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_line_once_it_answers(repo, tmp_path, number):
    """Port 0 takes a free one, which the line names; a signal ends it without another word."""
    process = start(repo, tmp_path, "--plain", port=0)
    line = process.stderr.readline()
    found = re.fullmatch(rf"(http://127\.0\.0\.1:\d+) is up \(uvicorn\): {WHERE}", line)
    assert found, line
    assert httpx.get(f"{found[1]}/healthz").json() == {"status": "ok"}
    process.send_signal(number)
    _, words = process.communicate(timeout=90)
    assert words == ""
    assert process.returncode in {0, -signal.SIGTERM}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_on_ray_it_says_the_same_and_sigterm_ends_it_well(repo, tmp_path):
    """Ray's own handler of SIGTERM ended the process by SIGABRT, with a trace of C++."""
    port = free_port()
    process = start(repo, tmp_path, port=port)
    lines = [process.stderr.readline()]
    while lines[-1] and " is up " not in lines[-1]:
        lines.append(process.stderr.readline())
    assert re.fullmatch(rf"http://127\.0\.0\.1:{port} is up \(Ray Serve, 1 replica\(s\)\): {WHERE}", lines[-1]), lines
    assert httpx.get(f"http://127.0.0.1:{port}/healthz").json() == {"status": "ok"}
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 0
