"""Policies that do not wait for the label window: what comes out when, and with which weights.

show t   |-- 15 s --|-- 15 s --|-- 30 s -------------|      `Correct("15s")` of a window of 60 s
"""

from functools import cache

import numpy as np
import polars as pl
import pytest

from headrace.atomic import digests
from headrace.errors import ConfigError, DeclarationError
from headrace.learners import Correct, Importance, Learner
from headrace.pipelines import Joiner, JoinSpec
from headrace.pipelines.examples import LATE, RequestColumns, requests_to_examples
from headrace.pipelines.train_step import TrainStep
from headrace.streams.watermark import END_OF_TIME_US
from tests.parlour import SHOWS, Cakes, Show, Taste, Tasted, batches, events, live, make

AFTER_US = 15_000_000


def declared(policy):
    parts = {"label": Tasted.label, "inputs": Tasted.inputs, "model": Tasted.model, "policy": policy}
    return type("Early", (Learner,), parts)


EARLY, WEIGHED = declared(Correct("15s")), declared(Importance("15s"))


@cache
def joined(learner, step_s=6.0, ends=True):
    """All that comes out, event batches of `step_s` seconds at a time, and the joiner; to be read only."""
    joiner, frames = Joiner(JoinSpec.of_learner(learner, Show, "cakes")), []
    for piece, edge_us in batches(step_s, (Show, Taste)):
        for batch in piece:
            joiner.add(batch)
        frames.append(joiner.advance(edge_us))
    frames.append(joiner.advance(END_OF_TIME_US) if ends else None)
    return pl.concat([frame for frame in frames if frame is not None]), joiner


def delays():
    """Delay in microseconds of the first taste of each cake of each show, null without one; by show and cake."""
    shows = events()[Show].explode("cakes").select("show_id", "guest", "at", cake="cakes")
    pairs = shows.join(events()[Taste], on=["guest", "cake"], how="left", suffix="_taste")
    delay = (pl.col("at_taste") - pl.col("at")).dt.total_microseconds().alias("delay")
    within = pairs.with_columns(delay).with_columns(
        pl.when(pl.col("delay").is_between(0, 60_000_000 - 1)).then("delay")
    )
    return within.group_by("show_id", "cake").agg(pl.col("delay").min())


def cells(frame):
    rows = frame.select("show_id", "is_first", cake="cakes", label="labels").explode("cake", "label")
    return rows.drop_nulls("label").join(delays(), on=["show_id", "cake"])


def test_a_request_comes_out_once_early_and_its_late_positives_once_more():
    """Early labels are those of the first age; each later positive comes once, alone, whatever its age."""
    frame, joiner = joined(EARLY)
    early, late = (cells(frame.filter(pl.col("is_first") == first)) for first in (True, False))
    assert early.height == 4 * SHOWS
    assert early["label"].to_list() == (early["delay"] < AFTER_US).fill_null(value=False).cast(pl.Int8).to_list()
    assert late["label"].to_list() == [1] * late.height
    expected = delays().filter(pl.col("delay") >= AFTER_US)
    assert late.height == joiner.counts["late_labels"] == expected.height > 20
    assert late.select("show_id", "cake").unique().height == late.height
    assert (joiner.counts["requests"], joiner.open_requests) == (SHOWS, 0)
    weighed, _ = joined(WEIGHED)
    assert weighed["is_first"].all()
    assert weighed["show_id"].to_list() == frame.filter("is_first")["show_id"].to_list()
    assert (weighed["positive_weight"] > 1).all()
    assert weighed["positive_weight"].to_list() == pytest.approx((1 / (1 - weighed["late_share"])).to_list(), rel=1e-5)


def test_what_comes_out_is_a_function_of_the_events(tmp_path):
    """Order, labels and shares, in any pieces; and an early request does not wait for its window."""
    for learner in (EARLY, WEIGHED):
        one, other = joined(learner)[0], joined(learner, 60.0)[0]
        assert one.equals(other)
    open_ended, _ = joined(EARLY, ends=False)
    last_us = max(frame["at"].dt.epoch("us").max() for frame in (events()[Show], events()[Taste]))
    due = events()[Show].filter(pl.col("at").dt.epoch("us") < last_us - AFTER_US - 10_000_000).height
    assert open_ended["is_first"].sum() >= due
    for learner in (Tasted, WEIGHED):
        Joiner(JoinSpec.of_learner(learner, Show, "cakes")).save(tmp_path)
        with pytest.raises(ConfigError, match="belongs to"):
            Joiner(JoinSpec.of_learner(EARLY, Show, "cakes")).load(tmp_path)


@pytest.mark.parametrize("learner", [EARLY, WEIGHED])
def test_the_expected_sums_are_those_of_final_labels(learner):
    """With p that is the truth, weighted positives and negatives add up to those of the whole window."""
    frame, _ = joined(learner)
    made = requests_to_examples(frame, learner, RequestColumns(time="at"))
    rate = delays()["delay"].is_not_null().mean()
    weights = made.weights(lambda inputs, _: np.full(len(inputs), rate, np.float32))
    positives = float(weights[made.labels == 1].sum())
    negatives = float(weights[made.labels == 0].sum())
    assert positives == pytest.approx(4 * SHOWS * rate, rel=0.001 if learner is EARLY else 0.2)
    assert negatives == pytest.approx(4 * SHOWS * (1 - rate), rel=0.05)
    assert ((made.source == LATE).sum() > 0) == (learner is EARLY)


@pytest.mark.slow
@pytest.mark.parametrize("learner", [EARLY, WEIGHED])
def test_weights_of_the_model_are_a_function_of_the_events(tmp_path, learner):
    """Bitwise equal from a stream in any pieces, and from one that was saved and resumed."""
    whole, cut = live(make(learner), 5.0), make(learner, state=tmp_path)
    for piece, edge_us in batches(11.0, (Show, Taste))[:20]:
        for batch in piece:
            cut.add(batch)
        cut.advance(edge_us - 20_000_000)
    cut.save()
    for other in (live(make(learner), 45.0), live(make(learner, state=tmp_path), 11.0)):
        for step in (whole, other):
            step.trainer.drain()
        expected, got = whole.trainer.online.state_dict(), other.trainer.online.state_dict()
        for name, array in expected.items():
            np.testing.assert_array_equal(array, got[name], err_msg=name)
    figures = whole.trainer.prequential.snapshot()
    assert figures["rows"] == whole.trainer.trained > 300
    assert 0.6 < figures["calibration"] < 1.6


def test_a_join_without_the_learners_policy_is_refused():
    """A join of the label alone would wait, and nobody would see why."""
    waiting = Joiner(JoinSpec.of_label(Tasted.label, Show, "cakes"))
    step = make(EARLY)
    with pytest.raises(DeclarationError, match=r"declares \[''\] and Correct\(after='15s'\); make"):
        TrainStep(step.trainer, waiting, [])
    with pytest.raises(DeclarationError, match="make the join with JoinSpec.of_learner"):
        TrainStep(make(Cakes).trainer, waiting, [])


@pytest.mark.parametrize("learner", [Tasted, EARLY, WEIGHED])
def test_what_is_captured_is_the_state_of_its_moment_whenever_it_is_written(tmp_path, learner):
    """A thread writes a checkpoint while requests go on coming out, and shares of late positives with them."""
    joiner, pieces = Joiner(JoinSpec.of_learner(learner, Show, "cakes")), batches(6.0, (Show, Taste))
    for number, (piece, edge_us) in enumerate(pieces):
        for batch in piece:
            joiner.add(batch)
        joiner.advance(edge_us)
        if number == len(pieces) // 2:
            joiner.save(tmp_path / "at_once")
            write = joiner.capture()
    write(tmp_path / "later")
    assert digests(tmp_path / "later") == digests(tmp_path / "at_once")
