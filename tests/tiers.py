"""Two tiers of tests: `make test` runs the fast one, `pytest -m "not slow"`; `make test-all`, CI and `pytest` all.

Tests marked `slow` cost many seconds and belong to the whole alone. Of a test that costs the more the more it tries,
`by_tier` gives the counts of both.
"""

from typing import TypeVar

FAST = "not slow"

T = TypeVar("T")

is_fast = False
"""Whether this run is of the fast tier; `tests/conftest.py` sets it before any test module is imported."""


def by_tier(*, fast: T, whole: T) -> T:
    """Return what a test of this run takes: examples, rows or rounds."""
    return fast if is_fast else whole
