"""Compiled code on disk: each kernel is compiled once a machine, and again only when what it does has changed."""

import itertools
import os
import subprocess

import pytest

from tests import forked

moments = itertools.count(1_700_000_000)

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
    return forked.Forked(["work.py"], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


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
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        (folder / "work.py").write_text(MODULE)
        dying = start(folder)
        dying.stdin.write("go\n")
        dying.stdin.flush()
        while not list((folder / "__pycache__").glob("*total*.lock")):
            assert dying.poll() is None
        dying.kill()
        dying.communicate()
        if not list((folder / "__pycache__").glob("*total*.nbi")):
            break  # else it was through before the kill, as this process had to wait for its turn
    assert run_together(folder) == [(0, 1)] * 3 + [(1, 0)]


CALLER = """
import numpy as np
import sizes
from headrace.kernels.compile import kernel
from parts import STEP, scaled

@kernel
def total(values):
    '''Sum.'''
    result = 0
    for value in values:
        result += later(value) * STEP + sizes.EXTRA
    return result

@kernel
def later(value):
    return scaled(value)

total(np.arange(5))
print(sum(total.stats.cache_misses.values()), total(np.arange(5)))
"""
PARTS = """
from headrace.kernels.compile import part

STEP = 1

@part
def scaled(value):
    return 2 * value
"""
FILES = {"work.py": CALLER, "parts.py": PARTS, "sizes.py": "EXTRA = 0"}


def run(folder, files):
    """(kernels compiled anew, answer) of a process that runs `files`."""
    for name, text in files.items():
        (folder / name).write_text(text)
        moment_s = next(moments)
        os.utime(folder / name, (moment_s, moment_s))  # Python takes a file of the same second and size for the same
    done = forked.run(["work.py"], cwd=folder, check=True)
    return tuple(map(int, done.stdout.split()))


@pytest.mark.parametrize(
    ("name", "old", "new", "answer"),
    [
        ("parts.py", "2 * value", "3 * value", 30),  # called through a kernel that is defined below its caller
        ("parts.py", "STEP = 1", "STEP = 2", 40),
        ("sizes.py", "EXTRA = 0", "EXTRA = 1", 25),
        ("work.py", "* STEP", "* (STEP + 1)", 40),
    ],
)
def test_a_change_of_what_a_kernel_does_compiles_it_again(tmp_path, name, old, new, answer):
    """The change may be in another file: a function it calls, a constant it reads."""
    assert run(tmp_path, FILES) == (1, 20)
    assert run(tmp_path, FILES) == (0, 20)
    assert run(tmp_path, {**FILES, name: FILES[name].replace(old, new)}) == (1, answer)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("'''Sum.'''", "'''Add up.'''"),
        ("\n@kernel\ndef later", "\n\n# below\n\n@kernel\ndef later"),
        ("result", "amount"),
    ],
)
def test_a_change_of_words_compiles_nothing(tmp_path, old, new):
    assert run(tmp_path, FILES) == (1, 20)
    assert run(tmp_path, {**FILES, "work.py": "# moved\n" + CALLER.replace(old, new)}) == (0, 20)


def test_code_of_a_callee_that_moved_to_another_module_is_compiled_again(tmp_path):
    """Compiled code names the modules of its callees, and one of them is gone."""
    assert run(tmp_path, FILES) == (1, 20)
    (tmp_path / "parts.py").unlink()
    moved = {**FILES, "work.py": CALLER.replace("from parts", "from pieces"), "pieces.py": PARTS}
    del moved["parts.py"]
    assert run(tmp_path, moved) == (1, 20)


FIELDS = """
from typing import NamedTuple

from headrace.kernels.compile import kernel, part

class Pair(NamedTuple):
    low: int
    high: int

@part
def low_of(pair: Pair):
    return pair.low

@kernel
def low(pair: Pair):
    pair = Pair(*pair)
    return low_of(pair)

value = low((1, 2))
print(sum(low.stats.cache_misses.values()), value)
"""


def test_other_fields_of_a_named_tuple_compile_again(tmp_path):
    """Compiled code reads fields by their position, also in a part that only an annotation ties to the class."""
    swapped = FIELDS.replace("    low: int\n    high: int\n", "    high: int\n    low: int\n")
    assert run(tmp_path, {"work.py": FIELDS}) == (1, 1)
    assert run(tmp_path, {"work.py": FIELDS}) == (0, 1)
    assert run(tmp_path, {"work.py": swapped}) == (1, 2)


@pytest.mark.parametrize("stays", [False, True])
def test_code_that_takes_a_named_tuple_is_compiled_again_when_its_class_moves(tmp_path, stays):
    """The list of what is compiled names the class by its module, which is gone or no longer has it."""
    head, body = FIELDS.split("@part", 1)
    pair = head.replace("from headrace.kernels.compile import kernel, part\n", "")
    work = "from headrace.kernels.compile import kernel, part\nfrom pairs import Pair\n\n@part" + body.replace(
        "(1, 2)", "Pair(1, 2)"
    )
    assert run(tmp_path, {"work.py": work, "pairs.py": pair}) == (1, 1)
    moved = {"work.py": work.replace("from pairs", "from twins"), "twins.py": pair}
    if stays:
        moved["pairs.py"] = ""
    else:
        (tmp_path / "pairs.py").unlink()
    assert run(tmp_path, moved) == (1, 1)
    assert run(tmp_path, moved) == (0, 1)
