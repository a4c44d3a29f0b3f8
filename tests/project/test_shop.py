"""The project's own tests: its views, learner and flows fit together. `headrace init` copies them with the project."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from features.customer import CustomerActivity
from features.item import ItemActivity
from headrace import project, replay
from headrace.pipelines.runner import described_flow
from headrace.schemas.evolution import check_lock
from learners.baseline import LinearNextItem
from learners.next_item import NextItem
from schemas.retail import Engagement, Impression

NOON = datetime(2011, 10, 1, 12, tzinfo=UTC)


def engagement(minutes: int, customer: int | None, item: str, action: str = "purchase", **more) -> dict:
    plain = {"quantity": 2, "unit_price": 1.5, "country": "Norway", "request_id": None}
    time = NOON + timedelta(minutes=minutes)
    return {
        "event_id": f"{minutes}-{customer}-{item}",
        "event_time": time,
        "customer_id": customer,
        "item_id": item,
        "action": action,
        **plain,
        **more,
    }


@pytest.fixture
def log() -> pl.DataFrame:
    rows = [
        engagement(0, 7, "LAMP"),
        engagement(1, 7, "BUNTING", quantity=4),
        engagement(2, None, "LAMP"),
        engagement(3, 7, "LAMP", "cancel"),
        engagement(4, 8, "LAMP"),
    ]
    return pl.DataFrame([Engagement(**row).model_dump() for row in rows], infer_schema_length=None)


def test_customer_is_read_as_of_the_moment(log):
    """A read sees what came strictly before it; a guest's purchase is nobody's."""
    spine = pl.DataFrame({"customer_id": [7, 7, 8], "event_time": [NOON + timedelta(minutes=m) for m in (0, 10, 10)]})
    found = replay([CustomerActivity], log, spine)
    assert found["customer_activity.bought_1d"].to_list() == [0, 2, 1]
    assert found["customer_activity.cancelled_30d"].to_list() == [0, 1, 0]
    assert found["customer_activity.spend_30d"].to_list() == [0.0, 9.0, 3.0]
    assert found["customer_activity.recent"].to_list() == [[], ["BUNTING", "LAMP"], ["LAMP"]]


def test_item_counts_guests_too(log):
    """Items sell to everybody."""
    spine = pl.DataFrame({"item_id": ["LAMP"], "event_time": [NOON + timedelta(minutes=10)]})
    found = replay([ItemActivity], log, spine)
    assert found["item_activity.bought_7d"].to_list() == [3]
    assert found["item_activity.cancelled_30d"].to_list() == [1]


@pytest.mark.parametrize("event", [Engagement, Impression])
def test_lock_files_are_those_of_the_events(event):
    """A changed event fails here until `headrace schemas lock` has accepted it."""
    assert check_lock(event, project.find_root() / "schemas") == []


@pytest.mark.parametrize("learner", [NextItem, LinearNextItem])
def test_learner_reads_features_that_exist(learner):
    """Every column with a dot is a feature of one of the learner's views."""
    views = {"customer_activity", "item_activity"}
    assert {column.split(".")[0] for column in learner.inputs.columns if "." in column} == views
    assert learner.label.candidate == "item_id"


@pytest.mark.parametrize("module", ["pipelines.materialize", "pipelines.join", "pipelines.train"])
def test_dataflows_are_built_without_services(module):
    """Each module exposes `flow`; nothing connects before it runs."""
    assert described_flow(project.load_object(f"{module}:flow")).name == module.rpartition(".")[2]


def test_serve_app_is_declared():
    """`serve run serving.app:app` finds a Serve application."""
    assert project.load_object("serving.app:app") is not None


def test_demo_log_fits_the_event():
    """The log that `headrace demo` plays is in order and has the event's columns."""
    demo = project.load_object("pipelines.demo:demo")
    frame = demo.load()
    assert frame.columns == list(Engagement.model_fields)
    assert frame["event_time"].is_sorted()
    assert frame.select(demo.asks).to_series().sum() > 700_000
