"""Joined requests that cannot be learned from cost themselves alone, and stop no flow."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from headrace import Event
from headrace.errors import SchemaError
from headrace.learners import Categorical, InputSpec, Label, Learner, Logistic, SharedBottom
from headrace.pipelines.examples import RequestColumns
from headrace.pipelines.trainer import Cadence, Trainer


class Order(Event, topic="orders", key="guest", time="at", id="order_id"):
    """A guest ordered a dish."""

    order_id: str
    at: datetime
    guest: int
    dish: int


class NextDish(Learner):
    inputs = InputSpec(Categorical("dish"), Categorical("guest"))
    label = Label(Order, "10m", candidate="dish")
    model = Logistic()


class TwoLabels(NextDish):
    label = {  # noqa: RUF012
        "soon": Label(Order, "10m", candidate="dish", absent="unknown"),
        "late": Label(Order, "1h", candidate="dish", absent="unknown"),
    }
    model = SharedBottom(hidden=(4,))


def trainer(learner):
    return Trainer(learner, cadence=Cadence(rows_min=1, publish_s=None), columns=RequestColumns(time="at"))


def requests(**columns):
    """Three requests of two dishes each; `columns` replace or add columns."""
    features = NextDish.inputs.assemble({"dish": np.array([3, 4]), "guest": np.array([1])}, 2).to_bytes()
    rows = {
        "at": [datetime(2026, 1, 1, 0, minute, tzinfo=UTC) for minute in range(3)],
        "features": pl.Series([features] * 3, dtype=pl.Binary),
        "scores": [[0.5, 0.25]] * 3,
        "labels": pl.Series([[1, 0]] * 3, dtype=pl.List(pl.Int8)),
    }
    return pl.DataFrame(rows).with_columns(**columns)


@pytest.mark.parametrize("packed", [None, b"", b"torn"])
def test_a_request_without_its_features_is_skipped(packed):
    """As one that was answered before there was a model."""
    one, whole = trainer(NextDish), requests()
    features = pl.Series([whole["features"][0], packed, whole["features"][2]], dtype=pl.Binary)
    assert one.add_requests(whole.with_columns(features=features)) == 4
    assert one.add_requests(whole.with_columns(features=features)[1:2]) == 0
    one.poll()
    assert one.trained == 4


@pytest.mark.parametrize(
    ("soon", "late", "examples"),
    [
        (
            [[1, None], [None, None], [0, 1]],
            [[None, None], [None, None], [1, None]],
            3,
        ),  # of the second nothing is known
        ([[None, None]] * 3, [[None, None]] * 3, 0),
        ([[1, 0], [1], [1, 0]], [[1, 0], [1, 0], [0, 1]], 4),  # the second has too few labels
        ([[1, 0], None, [1, 0]], [[1, 0], [1, 0], [0, 1]], 4),
    ],
)
def test_of_several_labels_what_is_unknown_or_of_another_length_is_left_out(soon, late, examples):
    one = trainer(TwoLabels)
    columns = {"labels_soon": soon, "labels_late": late}
    series = {name: pl.Series(lists, dtype=pl.List(pl.Int8)) for name, lists in columns.items()}
    assert one.add_requests(requests(**series)) == examples
    one.poll()
    assert one.trained == examples


@pytest.mark.parametrize("column", ["at", "features", "labels"])
def test_a_missing_column_is_named(column):
    with pytest.raises(SchemaError, match=f"requests of learner next_dish: no column {column}; there are"):
        trainer(NextDish).add_requests(requests().drop(column))
