"""Several labels of one request, each with its window: joined, trained on, and replayed alike."""

import numpy as np
import polars as pl
import pytest

import headrace
from headrace import Label, Learner
from headrace.errors import ConfigError, DeclarationError
from headrace.learners import Correct, Importance
from headrace.pipelines import Joiner, JoinSpec
from headrace.pipelines.examples import EventExamples
from headrace.pipelines.train_step import TrainStep
from headrace.streams.watermark import END_OF_TIME_US
from tests.parlour import SHOWS, Bill, Cakes, Return, Show, Taste, Tasted, batches, events, live, make, naive

NAMES = ("taste", "bill", "sent")


def weights(step):
    step.trainer.drain()
    return step.trainer.online.state_dict()


def assert_same_weights(one, other):
    expected, got = weights(one), weights(other)
    assert expected.keys() == got.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(array, got[name], err_msg=name)
    assert one.trainer.trained == other.trainer.trained > 0


@pytest.mark.parametrize("step_s", [7.0, 1_000.0])
def test_each_label_has_its_window(tmp_path, step_s):
    """However the events come, and across a save and a load, labels are those of the definition."""
    spec = JoinSpec.of_learner(Cakes, Show, "cakes")
    joiner, frames = Joiner(spec), []
    joiner.keep_in(tmp_path)
    for number, (piece, edge_us) in enumerate(batches(step_s)):
        for batch in piece:
            joiner.add(batch)
        frames.append(joiner.advance(edge_us))
        if number == 20:
            joiner.save(tmp_path / "state")
            joiner = Joiner(spec)
            joiner.keep_in(tmp_path)
            joiner.load(tmp_path / "state")
    frames.append(joiner.advance(END_OF_TIME_US))
    joined = pl.concat([frame for frame in frames if frame is not None])
    assert joined["show_id"].to_list() == events()[Show]["show_id"].to_list()
    for name in NAMES:
        assert joined[f"labels_{name}"].to_list() == naive(name), name
    assert joined.schema["labels_bill"] == pl.List(pl.Float32)
    assert joiner.counts["requests"] == SHOWS
    assert 0 < joiner.counts["unjoined_requests"] < SHOWS


def test_a_spine_has_a_column_for_each_label():
    """The labels of a replayed table are those of the joiner, unknown ones null."""
    rows = events()[Show].explode("cakes").select("guest", event_time="at", cake="cakes")
    frame = headrace.training_set(Cakes, {event: events()[event] for event in (Taste, Bill, Return)}, rows)
    for name in NAMES:
        expected = [value for row in naive(name) for value in row]
        assert frame[f"label_{name}"].to_list() == expected, name
    made = headrace.training_set(
        Cakes, {event: events()[event] for event in (Taste, Bill, Return)}, rows, as_inputs=True
    )
    assert made.labels.shape == (4 * SHOWS, 3)
    np.testing.assert_array_equal(np.isnan(made.labels[:, 2]), frame["label_sent"].is_null().to_numpy())


def test_history_live_and_a_restart_learn_the_same(tmp_path):
    """Bitwise equal weights from files, from a stream in any pieces, and from a stream that was resumed."""
    history = make()
    engagements = {event: events()[event] for event in (Taste, Bill, Return)}
    headrace.train(history, engagements, impressions=events()[Show])
    whole = live(make(), 3.0)
    assert_same_weights(live(make(), 50.0), whole)
    assert history.trainer.trained == pytest.approx(whole.trainer.trained, abs=60)  # the last step may be open
    first = make(state=tmp_path)
    for piece, edge_us in batches(9.0, (Show, *first.classes))[:40]:
        for batch in piece:
            first.add(batch)
        first.advance(edge_us - 20_000_000)
    first.save()
    second = make(state=tmp_path)
    assert second.joiner.open_requests == first.joiner.open_requests > 0
    assert second.joiner.requests_in_memory == 0
    assert_same_weights(live(second, 9.0), whole)
    figures = whole.trainer.prequential.snapshot()["labels"]
    known = [[value for row in naive(name) for value in row if value is not None] for name in NAMES]
    assert figures["0"]["rows"] == figures["1"]["rows"] == whole.trainer.trained
    assert figures["2"]["rows"] <= len(known[2]) < len(known[0])
    assert figures["0"]["auc"] > 0.4
    assert "squared_error" in figures["1"]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"label": {"taste": Cakes.label["taste"]}}, "1 labels, taste, and a model of 3"),
        ({"label": {}}, r"label is \{\}; write a Label\(...\), or several as"),
        ({"label": {"a taste": Cakes.label["taste"]}}, "label is .*; write a Label"),
        ({"policy": Correct("1s")}, "policy .*Correct.* is for one label of 0 and 1; write Wait"),
        ({"label": Cakes.label["taste"]}, "1 labels, .* and a model of 3"),
    ],
)
def test_labels_that_do_not_fit_are_refused(parts, words):
    attributes = {"label": Cakes.label, "inputs": Cakes.inputs, "model": Cakes.model}
    with pytest.raises(DeclarationError, match=words):
        type("Wrong", (Learner,), {**attributes, **parts})


def test_a_policy_must_be_shorter_than_its_window():
    with pytest.raises(DeclarationError, match="the label's window is 60 s; write a shorter `after`"):
        type("Long", (Learner,), {"label": Tasted.label, "inputs": Tasted.inputs, "model": Tasted.model,
                                  "policy": Importance("1m")})  # fmt: skip


def test_events_alone_are_no_examples_of_several_labels():
    with pytest.raises(DeclarationError, match="has 3: several are learned from requests"):
        EventExamples(Cakes)
    trainer = make().trainer
    with pytest.raises(DeclarationError, match="3 labels, so no event is an example"):
        TrainStep(trainer, None, [])


def test_a_changed_label_is_another_state(tmp_path):
    Joiner(JoinSpec.of_learner(Cakes, Show, "cakes")).save(tmp_path)
    labels = {**Cakes.label, "sent": Label(Return, "31s", candidate="cake", absent="unknown")}
    other = type("Other", (Learner,), {"label": labels, "inputs": Cakes.inputs, "model": Cakes.model})
    with pytest.raises(ConfigError, match="belongs to"):
        Joiner(JoinSpec.of_learner(other, Show, "cakes")).load(tmp_path)
