"""Import the rooms before pytest collects their doctests: it would run a module with metrics a second time."""

import headrace.features
import headrace.learners
import headrace.pipelines
import headrace.schemas
import headrace.serving  # noqa: F401
