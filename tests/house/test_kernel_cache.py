"""Processes that start together compile each kernel once between them."""

import subprocess
import sys

MODULE = """
import sys
import numpy as np
from headrace.kernels.compile import kernel, part

@part
def doubled(value):
    return 2 * value

@kernel
def total(values):
    found = 0
    for value in values:
        found += doubled(value)
    return found

sys.stdin.readline()
assert total(np.arange(5)) == 20
print(sum(total.stats.cache_misses.values()), sum(total.stats.cache_hits.values()))
"""


def start(folder):
    return subprocess.Popen(
        [sys.executable, "work.py"],
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run_together(folder):
    """(compiled, loaded) of each of four processes."""
    (folder / "work.py").write_text(MODULE)
    processes = [start(folder) for _ in range(4)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    return sorted(tuple(map(int, output.split())) for output in outputs)


def test_one_process_compiles_and_the_others_load(tmp_path):
    assert run_together(tmp_path) == [(0, 1)] * 3 + [(1, 0)]


def test_one_that_dies_while_it_compiles_holds_nobody_up(tmp_path):
    """The lock ends with its process."""
    (tmp_path / "work.py").write_text(MODULE)
    dying = start(tmp_path)
    dying.stdin.write("go\n")
    dying.stdin.flush()
    while not list((tmp_path / "__pycache__").glob("*total*.lock")):
        assert dying.poll() is None
    dying.kill()
    dying.communicate()
    assert run_together(tmp_path) == [(0, 1)] * 3 + [(1, 0)]
