import numpy as np
import pytest

from headrace.errors import GateRefusedError
from headrace.learners import Calibration, Finite, Gate, NotWorse, OnlineLearner, Scorer, Snapshot
from tests.shelves import Shelf, Stream


@pytest.fixture(scope="module")
def online():
    trained = OnlineLearner(Shelf, seed=1)
    stream = Stream(1)
    for _ in range(60):
        trained.learn(*stream.batch()[:2])
    return trained


@pytest.fixture
def gate():
    kept = Gate(window=1_000)
    stream = Stream(2)
    for _ in range(8):
        inputs, labels, _ = stream.batch()
        kept.remember(inputs, labels, np.zeros(256, np.float32))
    return kept


def scorer(online, change=None):
    """A frozen model of `online`, its arrays changed by `change`."""
    snapshot = Snapshot.of(online, probe=Stream(3).batch(16)[0])
    if change:
        change(snapshot.arrays)
    return Scorer(snapshot, Shelf)


def test_a_sound_model_passes_with_figures(online, gate):
    verdict = gate.require(scorer(online), scorer(online))
    assert verdict.passed
    assert verdict.reasons == ()
    assert verdict.figures["norm_jump"] == pytest.approx(1.0)
    assert verdict.figures["logloss"] == verdict.figures["live_logloss"]
    assert 0.5 < verdict.figures["calibration"] < 2
    assert verdict.figures["probe_off"] <= 1e-5


def test_a_first_model_passes_without_a_live_one(online, gate):
    assert gate.check(scorer(online)).passed
    assert Gate().check(scorer(online)).passed


def poison(name, value):
    def change(arrays):
        arrays[name].reshape(-1)[3] = value

    return change


@pytest.mark.parametrize("name", ["dense.mlp.0.weight", "table.book.weights", "numbers.mean"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(online, gate, name, value):
    change = poison(name, value) if "numbers" not in name else lambda arrays: arrays[name].fill(value)
    verdict = gate.check(scorer(online, change), scorer(online))
    assert not verdict.passed
    assert "not finite" in verdict.reasons[0]
    assert verdict.figures["not_finite"] >= 1


def test_a_norm_jump_is_refused_and_named(online, gate):
    def grow(arrays):
        arrays["table.book.weights"] *= 50

    verdict = gate.check(scorer(online, grow), scorer(online))
    assert any("norm of table book is" in reason for reason in verdict.reasons)


def test_a_worse_model_is_refused(online, gate):
    fresh = scorer(OnlineLearner(Shelf, seed=5))
    verdict = gate.check(fresh, scorer(online))
    assert any("of the live model" in reason for reason in verdict.reasons)
    assert verdict.figures["logloss"] > verdict.figures["live_logloss"]
    assert gate.check(scorer(online), fresh).passed


def test_a_miscalibrated_model_is_refused(online, gate):
    def shift(arrays):
        arrays["dense.first_order.bias"] += 3

    verdict = gate.check(scorer(online, shift))
    assert any("calibration" in reason for reason in verdict.reasons)


def test_a_model_that_does_not_reproduce_its_probe_is_refused(online, gate):
    def tamper(arrays):
        arrays["probe.scores"] += 1e-4

    verdict = gate.check(scorer(online, tamper), scorer(online))
    assert [reason[:19] for reason in verdict.reasons] == ["probe scores differ"]
    with pytest.raises(GateRefusedError, match="probe scores differ by"):
        gate.require(scorer(online, tamper))


def test_few_examples_prove_nothing(online):
    gate = Gate([Finite(), NotWorse(rows_min=500), Calibration(positives_min=500)])
    inputs, labels, _ = Stream(4).batch(100)
    gate.remember(inputs, labels, np.zeros(100, np.float32))
    assert gate.check(scorer(OnlineLearner(Shelf)), scorer(online)).passed


def test_the_window_is_bounded(gate):
    assert 1_000 <= len(gate.recent().labels) < 1_000 + 256
    assert Gate().recent() is None
