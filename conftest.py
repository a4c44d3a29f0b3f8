"""Import the rooms before pytest collects their doctests: it would run a module with metrics a second time."""

import contextlib
import importlib

import pytest

from headrace.errors import MissingExtraError


def pytest_configure(config: pytest.Config) -> None:
    """Called before anything is collected, also where xdist has other processes do that."""
    if config.getoption("tx", None) and not hasattr(config, "workerinput"):
        return
    for room in ("schemas", "features", "pipelines", "learners", "serving"):
        with contextlib.suppress(MissingExtraError):  # the quick run on the newest Python has no torch
            importlib.import_module(f"headrace.{room}")
