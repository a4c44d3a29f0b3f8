"""Import the rooms before pytest collects their doctests: it would run a module with metrics a second time."""

import contextlib
import importlib

from headrace.errors import MissingExtraError

for room in ("schemas", "features", "pipelines", "learners", "serving"):
    with contextlib.suppress(MissingExtraError):  # the quick run on the newest Python has no torch
        importlib.import_module(f"headrace.{room}")
