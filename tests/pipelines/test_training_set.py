"""Training sets for other tools: what the trainer learns from, as a frame and as inputs."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

import headrace
from headrace import Categorical, Dense, Event, InputSpec, Label, Learner, replay
from headrace.errors import ConfigError, DeclarationError, SchemaError, SpineError
from headrace.learners import Logistic
from headrace.pipelines.examples import EventExamples
from headrace.pipelines.examples.groups import SKIPPED
from headrace.pipelines.trainer import Cadence, Trainer
from tests.visits import START, GuestVisits, NextPlace, Visit, visits


def assert_same_inputs(one, other):
    assert one.to_bytes() == other.to_bytes()


@pytest.mark.parametrize("memory_rows", [10_000_000, 50])
def test_inputs_are_those_that_the_trainer_learns_from(memory_rows):
    """Equal inputs, labels, log-rates, times and groups, whatever fits into memory; and so are inputs of the frame."""
    options = {"negatives": 3, "capacity": 50}
    expected = EventExamples(NextPlace, **options).add({Visit: visits()})
    shuffled = visits().sample(fraction=1.0, shuffle=True, seed=1)
    made = headrace.training_set(NextPlace, shuffled, as_inputs=True, memory_rows=memory_rows, **options)
    assert_same_inputs(made.inputs, expected.inputs)
    for name in ("labels", "log_rate", "time_us", "source", "starts"):
        np.testing.assert_array_equal(getattr(made, name), getattr(expected, name), err_msg=name)
    frame = headrace.training_set(NextPlace, visits(), **options)
    assert_same_inputs(headrace.inputs_of(NextPlace, frame), expected.inputs)
    np.testing.assert_array_equal(frame["label"].to_numpy(), expected.labels)
    np.testing.assert_array_equal(frame["log_rate"].to_numpy(), expected.log_rate)
    np.testing.assert_array_equal(frame["event_time"].dt.epoch("us").to_numpy(), expected.time_us)
    np.testing.assert_array_equal(np.flatnonzero(np.diff(frame["group"], prepend=-1)), expected.starts[:-1])


def test_the_frame_has_source_columns_and_lists():
    """Names and types of the event and of the replay; a list is a list."""
    frame = headrace.training_set(NextPlace, visits(), negatives=2)
    assert frame.columns[:5] == ["group", "label", "log_rate", "event_time", "guest"]
    assert frame.schema["guest_visits.recent"] == pl.List(pl.Int64)
    assert frame.schema["place"] == visits().schema["place"]
    positives = frame.filter(pl.col("label") == 1)
    expected = replay(GuestVisits, visits(), positives.select("guest", "event_time"))
    assert positives["guest_visits.recent"].to_list() == expected["guest_visits.recent"].to_list()
    assert positives["guest_visits.visits_1h"].to_list() == expected["guest_visits.visits_1h"].to_list()


class Linear(Learner):
    views = (GuestVisits,)
    label = Label(Visit, within="1m", candidate="place")
    inputs = InputSpec(Categorical("place"), Dense("visits", "guest_visits.visits_1h", transform="log1p"))
    model = Logistic()


def test_a_logistic_is_fitted_outside_with_numpy():
    """One weight a place and one of a number, log-rates as offsets: the weights are what places are chosen by."""
    skewed = visits().with_columns(place=pl.col("place") * pl.col("place") // 24)
    frame = headrace.training_set(Linear, skewed, negatives=5)
    places = frame["place"].to_numpy()
    counts = np.bincount(skewed["place"].to_numpy())
    visits_1h = frame["guest_visits.visits_1h"].fill_null(0).to_numpy()
    design = np.column_stack([np.eye(len(counts))[places], np.log1p(visits_1h)])
    label, offset = frame["label"].to_numpy(), frame["log_rate"].to_numpy()
    weights = np.zeros(design.shape[1])
    for _ in range(30):  # Newton steps of a logistic regression with a small ridge
        p = 1 / (1 + np.exp(-(design @ weights + offset)))
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + 0.1 * np.eye(len(weights))
        weights += np.linalg.solve(hessian, design.T @ (label - p) - 0.1 * weights)
    assert p.sum() / label.sum() == pytest.approx(1.0, abs=0.02)
    known = counts > 0
    assert np.corrcoef(weights[: len(counts)][known], np.log(counts[known]))[0, 1] > 0.9


def test_a_spine_is_answered_in_its_order_with_labels_of_what_follows():
    """[t, t + 1 min): a visit at t counts, one at t + 60 s does not."""
    visit = visits().row(100, named=True)
    moments = [0, 1, -59, -60]
    spine = pl.DataFrame(
        {
            "event_time": [visit["at"] + timedelta(seconds=s) for s in moments],
            "guest": visit["guest"],
            "place": 77,
            "weight": [1, 2, 3, 4],
        }
    ).with_columns(pl.col("event_time").dt.cast_time_unit("us"))
    log = visits().with_columns(place=pl.when(pl.col("visit_id") == visit["visit_id"]).then(77).otherwise("place"))
    frame = headrace.training_set(NextPlace, log, spine)
    assert frame["label"].to_list() == [1.0, 0.0, 1.0, 0.0]
    assert frame["weight"].to_list() == [1, 2, 3, 4]
    assert frame["log_rate"].to_list() == [0.0] * 4
    expected = replay(GuestVisits, log, spine)
    assert frame["guest_visits.recent"].to_list() == expected["guest_visits.recent"].to_list()
    made = headrace.training_set(NextPlace, log, spine, as_inputs=True)
    assert_same_inputs(made.inputs, headrace.inputs_of(NextPlace, frame))
    np.testing.assert_array_equal(made.labels, frame["label"].to_numpy())
    np.testing.assert_array_equal(made.starts, np.arange(5))


def test_labels_of_the_spine_itself_are_kept():
    spine = pl.DataFrame({"event_time": [START], "guest": [1], "place": [2], "label": [0.5]})
    assert headrace.training_set(NextPlace, visits(), spine)["label"].to_list() == [0.5]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"events": visits()[:0]}, ConfigError, "no example in this history"),
        ({"spine": 7}, SchemaError, "spine: a int is no table"),
        ({"spine": pl.DataFrame({"guest": [1]})}, SpineError, "no column 'event_time'"),
        ({"spine": pl.DataFrame({"event_time": [START], "guest": [1]})}, ConfigError, "no column place"),
        ({"spine": pl.DataFrame({"event_time": [START], "guest": [1]}), "seed": 1}, ConfigError, "seed draw negatives"),
        ({"negatives": -1}, DeclarationError, "negatives=-1; write a number of at least 0"),
        (
            {"spine": pl.DataFrame({"event_time": [START], "guest": [1], "place": [2], "label": ["yes"]})},
            SpineError,
            "column label is String, not a number",
        ),
    ],
)
def test_bad_input_is_one_clear_error(given, error, message):
    arguments = {"events": visits(), **given}
    with pytest.raises(error, match=message):
        headrace.training_set(NextPlace, arguments.pop("events"), **arguments)


def test_a_frame_without_an_input_is_refused():
    with pytest.raises(SchemaError, match="no column guest_visits.recent"):
        headrace.inputs_of(NextPlace, pl.DataFrame({"place": [1], "guest_visits.visits_1h": [1]}))


def test_inputs_come_from_any_table():
    frame = headrace.training_set(NextPlace, visits(), negatives=3)
    wanted = headrace.inputs_of(NextPlace, frame)
    for table in (frame.lazy(), frame.to_arrow(), frame.to_dict(as_series=False), frame.to_dicts()):
        assert_same_inputs(headrace.inputs_of(NextPlace, table), wanted)
    with pytest.raises(SchemaError, match="frame: a int is no table; give a frame"):
        headrace.inputs_of(NextPlace, 7)


def test_an_id_that_a_float_cannot_hold_is_refused():
    frame = headrace.training_set(NextPlace, visits(), negatives=3)
    single = pl.col("place").cast(pl.Float32)
    assert_same_inputs(headrace.inputs_of(NextPlace, frame.with_columns(single)), headrace.inputs_of(NextPlace, frame))
    with pytest.raises(SchemaError, match=r"column 'place': id 167772..\.0: not a whole number of at most 2\*\*24"):
        headrace.inputs_of(NextPlace, frame.with_columns(single + 2**24 + 2))


def test_a_label_that_the_loss_does_not_allow_costs_its_event_alone():
    """Numbers above 1 for a model of probabilities: counted, and the others are learned."""
    label = Label(Visit, "1m", candidate="place", value=pl.col("place") % 3)
    learner = type("Odd", (Learner,), {"label": label, "inputs": InputSpec(Categorical("place")), "model": Logistic()})
    counter = SKIPPED.labels("labels")
    before, wrong = counter._value.get(), visits().filter(pl.col("place") % 3 == 2).height
    assert headrace.training_set(learner, visits()).height == visits().height  # another tool may take numbers
    trainer = Trainer(learner, cadence=Cadence(publish_s=None), events=EventExamples(learner))
    assert trainer.add_events({Visit: visits()}) == visits().height - wrong < visits().height
    trainer.drain()
    assert trainer.trained == visits().height - wrong
    assert counter._value.get() - before == wrong
    assert headrace.train(learner, visits()).examples > 0


class Ride(Event, topic="rides", key="guest", time="event_time", id="ride_id"):
    """A ride, with columns that have a meaning in a training set too."""

    ride_id: str
    event_time: datetime
    guest: int
    place: str
    group: str
    label: int
    log_rate: float


class Named(Event, topic="named", key="guest", time="at", id="ride_id"):
    """A ride whose column `event_time` is not its time."""

    ride_id: str
    at: datetime
    guest: int
    place: float
    event_time: str


def rides(**columns):
    times = [START + timedelta(seconds=30 * number) for number in range(12)]
    rows = {"ride_id": [f"r{n}" for n in range(12)], "event_time": times, "guest": 1, "place": list("abcd") * 3}
    return pl.DataFrame(rows).with_columns(group=pl.lit("x"), label=0, log_rate=0.5, **columns)


BY_PLACE = Label(Ride, "1m", candidate="place")


def rider(*fields, label=BY_PLACE, **parts):
    body = {"inputs": InputSpec(Categorical("place"), *fields), "model": Logistic(), "label": label, **parts}
    return type("Rider", (Learner,), body)


@pytest.mark.parametrize("column", ["group", "label", "log_rate"])
def test_an_input_with_the_name_of_a_column_of_the_frame_is_refused(column):
    """With a spine it would silently be the number of the row; the inputs alone have no such column."""
    learner = rider(Categorical(column) if column == "group" else Dense(column))
    spine = rides().select("event_time", "guest", "place", "group", "log_rate", label=pl.lit(1.0))
    for given in ({}, {"spine": spine}, {"spine": spine, "as_inputs": True}):
        with pytest.raises(DeclarationError, match=f"inputs read column '{column}', which in a training set is"):
            headrace.training_set(learner, rides(), **given)
    assert len(headrace.training_set(learner, rides(), negatives=1, as_inputs=True)) > 12
    assert headrace.train(learner, rides()).examples > 12


def test_an_input_may_be_the_time_of_the_event():
    learner = rider(Dense("event_time"))
    frame = headrace.training_set(learner, rides(), negatives=0)
    examples = headrace.training_set(learner, rides(), negatives=0, as_inputs=True)
    np.testing.assert_array_equal(examples.inputs.dense[:, 0], frame["event_time"].dt.epoch("us").cast(pl.Float32))
    assert headrace.train(learner, rides()).examples > 12


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"negatives": 2.5}, DeclarationError, "negatives=2.5; write a number of at least 0"),
        ({"reference": float("nan")}, DeclarationError, "reference=nan; write a number above 0"),
        ({"reference": 0}, DeclarationError, "reference=0; write a number above 0"),
        ({"reference": 1e30}, DeclarationError, r"reference=1e\+30; write the negatives per positive"),
        ({"seed": "a"}, DeclarationError, "seed='a'; write a number"),
        ({"negative": 3}, ConfigError, "no argument negative=; there are negatives, reference, capacity, seed"),
    ],
)
def test_options_of_drawn_negatives_are_checked(options, error, message):
    """A NaN or a log-rate beyond its limit would go into the frame as it is."""
    with pytest.raises(error, match=message):
        headrace.training_set(rider(), rides(), **options)


def test_what_is_no_learner_and_labels_that_make_no_examples_are_refused():
    for learner in (None, Learner, Logistic(), "rider"):
        for call in (headrace.training_set, headrace.train, headrace.inputs_of):
            with pytest.raises(DeclarationError, match="learner: .*; give a class declared as"):
                call(learner, rides())
    frame = rides().rename({"event_time": "at"}).with_columns(event_time=pl.lit("noon"), place=0.5)
    by_price = rider(label=Label(Named, "1m", candidate="place"))
    with pytest.raises(DeclarationError, match="column 'place' of Named is Float64; a candidate is an int or a text"):
        headrace.training_set(by_price, frame)
    by_time = rider(Categorical("event_time"), label=Label(Named, "1m", candidate="guest"))
    with pytest.raises(DeclarationError, match="column 'event_time' of Named is not its time, 'at'"):
        headrace.training_set(by_time, frame)


def test_labels_of_a_spine_are_those_that_the_loss_allows_and_nan_is_unknown():
    spine = rides().select("event_time", "guest", "place")[:3]
    known = headrace.training_set(rider(), rides(), spine.with_columns(label=pl.Series([1.0, float("nan"), None])))
    assert known["label"].to_list() == [1.0, None, None]
    assert len(headrace.training_set(rider(), rides(), known.drop("group"), as_inputs=True)) == 1
    with pytest.raises(SpineError, match="spine: label: 7; for learner rider write 0 or 1"):
        headrace.training_set(rider(), rides(), spine.with_columns(label=7), as_inputs=True)


def test_a_learner_without_views_and_label_takes_the_labels_of_the_spine():
    learner, spine = rider(label=None), rides().select("event_time", "guest", "place")
    rows = headrace.training_set(learner, rides(), spine.with_columns(label=1))
    assert rows["label"].to_list() == [1.0] * 12
    with pytest.raises(ConfigError, match="no label; give the spine a column 'label'"):
        headrace.training_set(learner, rides(), spine)
