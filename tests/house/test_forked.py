"""Processes that are forked for tests behave as those that Python starts."""

import os
import signal
import subprocess

import pytest

from tests.forked import Forked, put_command, run


@pytest.mark.parametrize(
    ("code", "returncode", "err"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('why')", 1, "why\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt\n"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("import atexit, sys; atexit.register(sys.stderr.write, 'end'); sys.exit(2)", 2, "end"),
        ("import threading, sys; threading.Timer(0.1, sys.stderr.write, ['late']).start()", 0, "late"),
    ],
)
def test_a_process_ends_as_any_other(code, returncode, err):
    done = run(["-c", code])
    assert (done.returncode, done.stdout) == (returncode, "")
    assert done.stderr.endswith(err)
    assert err or not done.stderr


def test_a_process_has_its_own_files_folder_environment_and_arguments(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import os, sys\nprint(__name__, os.getcwd(), *sys.argv[1:], os.environ, input())"
    )
    done = run(["-m", "mine", "a", 1], cwd=tmp_path, env={"NAME": "value"}, input="text\n")
    assert done.stdout == f"__main__ {tmp_path} a 1 environ({{'NAME': 'value'}}) text\n"
    assert run(["mine.py"], cwd=tmp_path, input="x").stdout.startswith(f"__main__ {tmp_path} environ(")
    files = {
        path.split(":")[0] for path in run(["-c", "import os; print(*os.listdir('/proc/self/fd'))"]).stdout.split()
    }
    assert files <= {"0", "1", "2", "3", "4"}


def test_signals_reach_a_process_and_a_shell_has_the_command(tmp_path):
    with Forked(["-c", "import time; print(flush=True); time.sleep(60)"], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\n"
        assert process.poll() is None
        process.terminate()
        assert process.wait(30) == -signal.SIGTERM
    put_command(tmp_path)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", "-c", "headrace --version && headrace nothing"], env={**os.environ, "PATH": path}, capture_output=True
    )
    assert done.returncode == 2
    assert done.stdout.startswith(b"headrace ")
    assert b"Usage: headrace" in done.stderr
