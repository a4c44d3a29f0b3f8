import numpy as np
import pytest
from river import compose, linear_model, naive_bayes, optim, preprocessing

from headrace.errors import DeclarationError, ModelError, SchemaError
from headrace.learners import PAD, Categorical, Inputs, InputSpec, RiverLearner, auc
from tests.shelves import SPEC, Stream


def logistic(lr=0.1):
    return RiverLearner(SPEC, linear_model.LogisticRegression(optim.SGD(lr)))


def test_it_learns_behind_the_same_calls():
    online, stream, seen = logistic(), Stream(0, books=30), []
    for _ in range(40):
        inputs, labels, _ = stream.batch(100)
        seen.append((online.predict(inputs), labels))
        loss = online.learn(inputs, labels)
    p, y = (np.concatenate(part) for part in zip(*seen[20:], strict=True))
    assert p.dtype == np.float32
    assert auc(p, y) > 0.7
    assert 0 < loss < 1


def test_log_rates_shift_the_odds_both_ways():
    rng = np.random.default_rng(1)
    online, stream = logistic(0.02), Stream(1, books=5)
    for _ in range(60):
        inputs, _, _ = stream.batch(100)
        labels = (rng.random(100) < 0.5).astype(np.float32)
        online.learn(inputs, labels, log_rate=np.log(3.0))  # reference: one to three
    inputs, _, _ = stream.batch(500)
    assert online.predict(inputs).mean() == pytest.approx(0.25, abs=0.05)
    assert online.predict(inputs, np.log(3.0)).mean() == pytest.approx(0.5, abs=0.05)


def test_missing_ids_give_no_feature():
    inputs, _, _ = Stream(2).batch(2)
    missing = Inputs(
        np.full_like(inputs.ids, PAD), (np.full_like(inputs.bags[0], PAD),), inputs.dense, SPEC.fingerprint
    )
    assert set(logistic()._rows(missing)[0]) == {"age", "price", "seen"}
    row = logistic()._rows(inputs)[0]
    bag = sum(value for name, value in row.items() if name.startswith("recent="))
    assert bag == pytest.approx(1.0 if (inputs.bags[0][0] != PAD).any() else 0.0)


def test_a_model_without_weights_says_so():
    online = RiverLearner(SPEC, naive_bayes.BernoulliNB(), weighted=False)
    inputs, labels, _ = Stream(3).batch(20)
    online.learn(inputs, labels)
    assert np.isfinite(online.predict(inputs)).all()
    with pytest.raises(SchemaError, match="weighted=True"):
        online.learn(inputs, labels, log_rate=1.0)
    assert online.learn(inputs.take(slice(0, 0)), labels[:0]) == 0.0


@pytest.mark.parametrize("scaled", [False, True])
def test_a_missing_number_gives_no_feature_and_poisons_nothing(scaled):
    """A NaN would make a weight NaN, and all later predictions."""
    classifier = linear_model.LogisticRegression()
    model = compose.Pipeline(preprocessing.StandardScaler(), classifier) if scaled else classifier
    online, stream = RiverLearner(SPEC, model), Stream(4)
    for _ in range(3):
        inputs, labels, _ = stream.batch(20)
        inputs.dense[::3] = np.nan
        online.learn(inputs, labels)
    assert np.isfinite(online.predict(inputs)).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": [0.7, 0, 0, 1]}, "learner on River LogisticRegression · labels: 0.7, wanted 0 or 1"),
        ({"labels": [np.nan, 0, 0, 1]}, "labels: nan, wanted 0 or 1"),
        ({"labels": [0, 1]}, r"labels \(2,\): wanted \(4,\)"),
        ({"labels": ["a"] * 4}, "labels of type <U1: give numbers"),
        ({"weights": [-1, 1, 1, 1]}, "weights: -1, wanted a finite number"),
        ({"weights": [1, 1]}, r"weights \(2,\): wanted \(4,\)"),
        ({"log_rate": np.inf}, "log_rate: inf, wanted a finite number"),
        ({"log_rate": np.zeros(3)}, r"log_rate \(3,\): wanted a number, or \(4,\)"),
    ],
)
def test_labels_weights_and_rates_are_checked_as_for_other_learners(given, message):
    inputs, labels, _ = Stream(5).batch(4)
    with pytest.raises(SchemaError, match=message):
        logistic().learn(inputs, **{"labels": labels, **given})


def test_wrong_models_and_inputs_of_another_spec_are_refused():
    for model in (linear_model.LinearRegression(), linear_model.LogisticRegression, None):
        with pytest.raises(DeclarationError, match="RiverLearner: model is .*write a River classifier"):
            RiverLearner(SPEC, model)
    for model in (naive_bayes.GaussianNB(), compose.Pipeline(preprocessing.StandardScaler(), naive_bayes.GaussianNB())):
        with pytest.raises(DeclarationError, match="takes no weight w; set weighted=False"):
            RiverLearner(SPEC, model)
    other = InputSpec(Categorical("u")).assemble({"u": np.arange(3)}, 3)
    for call in (logistic().predict, lambda inputs: logistic().learn(inputs, np.zeros(3))):
        with pytest.raises(SchemaError, match="learner on River LogisticRegression: inputs of spec"):
            call(other)


def test_a_model_that_fails_is_named():
    class Broken(linear_model.LogisticRegression):
        def learn_one(self, x, y, w=1.0):
            raise ZeroDivisionError("float division by zero")

    inputs, labels, _ = Stream(6).batch(4)
    with pytest.raises(ModelError, match="learner on River Broken: learn_one failed: ZeroDivisionError"):
        RiverLearner(SPEC, Broken()).learn(inputs, labels)
