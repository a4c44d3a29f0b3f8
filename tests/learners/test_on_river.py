import numpy as np
import pytest
from river import linear_model, naive_bayes, optim

from headrace.errors import SchemaError
from headrace.learners import PAD, Inputs, RiverLearner, auc
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
