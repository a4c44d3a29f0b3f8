"""Tests that the declarations of this project fit together. They need no running service: `python -m pytest`."""

import pytest

from features.views import VIEWS
from headrace import project
from headrace.features import plan_of
from headrace.pipelines.runner import described_flow
from headrace.schemas import spec_of
from learners.ranking import ENTITY, Ranking
from schemas.events import Impression


def test_views_have_features():
    """Every view has a plan, and the columns that it reads are fields of its events."""
    assert all(plan_of(view).features for view in VIEWS)


def test_the_learner_reads_features_that_exist():
    """Every input with a dot is a feature of one of the learner's views."""
    features = {feature.full_name for view in Ranking.views for feature in plan_of(view).features}
    assert {column for column in Ranking.inputs.columns if "." in column} <= features


def test_the_impression_has_what_serving_logs():
    """The impression has the columns that `headrace serve` fills in, and the keys of a request."""
    wanted = {"request_id", "candidates", "scores", "model_version", "features", *ENTITY}
    assert wanted <= set(spec_of(Impression).polars)


@pytest.mark.parametrize("module", ["pipelines.archive", "pipelines.materialize", "pipelines.train"])
def test_dataflows_are_built_without_services(module):
    """Each module exposes `flow`; nothing connects before it runs."""
    assert described_flow(project.load_object(f"{module}:flow")).name == module.rpartition(".")[2]


def test_the_app_is_declared():
    """The module has the factory for `headrace serve` and the application for `serve run serving.app:app`."""
    assert callable(project.load_object("serving.app:make_http"))
    assert project.load_object("serving.app:app") is not None
