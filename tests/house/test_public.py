"""What a user may touch: one list, and everything on it is there and described."""

import ast
import importlib
import importlib.util
import subprocess
import sys

import pytest

import headrace


@pytest.mark.parametrize("name", headrace.__all__)
def test_every_public_name_is_there(name):
    """The list and the rooms agree, and each name says what it is."""
    value = getattr(headrace, name)
    assert name == "col" or value.__doc__


def test_type_checkers_see_the_same_names(repo):
    """The imports for type checkers are the names that are imported at run time."""
    tree = ast.parse((repo / "headrace" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    names = [(node.module, alias) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    seen = {alias.asname for _, alias in names if alias.name != "*"}
    for module in [module for module, alias in names if alias.name == "*"]:
        seen |= set(importlib.import_module(module).__all__)
    assert seen == set(headrace.__all__)


@pytest.mark.slow
def test_type_checkers_know_the_aggregations(repo, tmp_path):
    """`from headrace import Count` is a class to mypy, with its arguments."""
    program = tmp_path / "program.py"
    program.write_text('from headrace import Count, Range\n\nCount(windows="1h")\nRange("x", window="1h")\n')
    done = subprocess.run(
        [sys.executable, "-m", "mypy", program], cwd=repo, capture_output=True, text=True, env={"MYPYPATH": str(repo)}
    )
    errors = [line for line in done.stdout.splitlines() if "program.py" in line and " error: " in line]
    assert len(errors) == 1, done.stdout
    assert 'program.py:4: error: Unexpected keyword argument "window" for "Range"' in errors[0]


def test_unknown_name_is_an_attribute_error():
    """A misspelt name is answered with the names there are."""
    with pytest.raises(AttributeError, match="no 'Cuont'; it has .*Count"):
        headrace.Cuont  # noqa: B018


@pytest.mark.parametrize("page", ["cli.md", "aggregations.md", "operations.md"])
def test_generated_pages_are_fresh(repo, page):
    """`make docs` has been run since the commands or aggregations changed."""
    spec = importlib.util.spec_from_file_location("generate", repo / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert (repo / "docs" / page).read_text() == generate.PAGES[page]()
