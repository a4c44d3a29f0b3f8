"""What a user may touch: one list, and everything on it is there and described."""

import ast
import importlib.util

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
    seen = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(headrace.__all__)


def test_unknown_name_is_an_attribute_error():
    """A misspelt name is answered with the names there are."""
    with pytest.raises(AttributeError, match="no 'Cuont'; it has .*Count"):
        headrace.Cuont  # noqa: B018


@pytest.mark.parametrize("page", ["cli.md", "aggregations.md"])
def test_generated_pages_are_fresh(repo, page):
    """`make docs` has been run since the commands or aggregations changed."""
    spec = importlib.util.spec_from_file_location("generate", repo / "docs" / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert (repo / "docs" / page).read_text() == generate.PAGES[page]()
