"""The training step: events in any batching train the same model, each once, across a restart."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import SnapshotError
from headrace.learners import Logistic
from tests import visits
from tests.tiers import by_tier
from tests.visits import ASKED, ROWS, batches, make, run, weights


def test_every_visit_is_learned_once():
    """A visit that was asked for is learned with its request, any other on its own; marks are of what was served."""
    step = run(make(), batches([5]))
    status = step.status()
    assert status["positives"] == len(ASKED)
    assert status["joined"] == 4 * len(ASKED)
    step.trainer.drain()
    slices = step.trainer.prequential.snapshot()["slices"]
    assert slices["requests"]["positives"] == len(ASKED)
    assert slices["events"]["positives"] == ROWS - len(ASKED)
    assert status["served"]["rows"] == status["shadow"]["rows"] == 4 * len(ASKED)
    assert status["served"]["auc"] != status["shadow"]["auc"]
    assert step.trainer.trained_positions["visits/0"] == ROWS


@functools.cache
def one_by_one():
    """The step after batches of one event."""
    return run(make(), batches([1]))


@settings(max_examples=by_tier(fast=2, whole=5))
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_weights_are_a_function_of_the_events(sizes):
    """However the streams are cut, and however far the watermark moves at once, examples, marks and weights agree."""
    one, other = one_by_one(), run(make(), batches(sizes))
    expected, got = weights(one), weights(other)
    assert all(array.tobytes() == got[name].tobytes() for name, array in expected.items())
    assert one.trainer.trained == other.trainer.trained
    for name in ("rows", "positives", "auc", "logloss", "calibration"):
        assert one.status()["served"][name] == pytest.approx(other.status()["served"][name])


@functools.cache
def uninterrupted():
    """The step after all batches of four events, and what they have left to learn."""
    step = run(make(), batches([4]))
    step.trainer.drain()
    return step


@pytest.mark.parametrize("cut", [61, *(pytest.param(cut, marks=pytest.mark.slow) for cut in (20, 90))])
def test_restart_goes_on_exactly(tmp_path, cut):
    """Stopped after any batch and started again, the step ends with bitwise equal weights."""
    found = batches([4])
    whole = uninterrupted()
    first = run(make(tmp_path), found[:cut])
    first.finish()
    second = run(make(tmp_path), found)
    second.trainer.drain()
    expected, got = weights(whole), weights(second)
    assert expected.keys() == got.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(array, got[name], err_msg=name)
    assert whole.status()["positives"] == second.status()["positives"]


def test_the_state_of_a_learner_that_was_changed_names_the_ways_on(tmp_path, monkeypatch):
    run(make(tmp_path), batches([40])).finish()
    changed = type("NextPlace", (visits.NextPlace,), {"model": Logistic()})
    monkeypatch.setattr(visits, "NextPlace", changed)
    with pytest.raises(SnapshotError, match=r"learner next_place has Logistic.*delete that folder") as caught:
        make(tmp_path)
    assert str(tmp_path) in str(caught.value)
