"""Several labels with their own losses; unknown ones are masked out of loss, gradient, intercept and figures."""

import numpy as np
import pytest
import torch
from torch import nn

from headrace.errors import DeclarationError, SchemaError
from headrace.learners import Learner, LogLoss, OnlineLearner, PerLabel, Prequential, SharedBottom, SquaredError
from tests.shelves import SPEC, Stream

LOSS = PerLabel(LogLoss(), SquaredError())


class Both(Learner):
    inputs = SPEC
    model = SharedBottom(losses=(LogLoss(), SquaredError()), rank_by=(1, -0.5), dim=4, hidden=(8,))


def targets(truth, rng, unknown=0.4):
    labels = np.stack([rng.random(len(truth)) < truth, 3 * truth + rng.normal(0, 0.1, len(truth))], axis=1)
    return np.where(rng.random(labels.shape) < unknown, np.nan, labels).astype(np.float32)


def test_loss_and_gradients_equal_torchs_with_the_mask():
    rng = np.random.default_rng(0)
    labels = targets(rng.random(40), rng)
    outputs = rng.normal(size=(40, 2)).astype(np.float32)
    weights = np.linspace(0, 2, 40, dtype=np.float32)
    mean, grads = LOSS.gradients(outputs.copy(), labels, weights)
    leaf = torch.tensor(outputs, dtype=torch.float64, requires_grad=True)
    y, known = torch.tensor(np.nan_to_num(labels)).double(), torch.tensor(~np.isnan(labels))
    binary = nn.functional.binary_cross_entropy_with_logits(leaf[:, 0], y[:, 0], reduction="none")
    squared = (leaf[:, 1] - y[:, 1]) ** 2
    each = torch.stack([binary, squared], dim=1) * known
    (each.sum(1) * torch.tensor(weights)).mean().backward()
    assert mean == pytest.approx(float((each.sum(1) * torch.tensor(weights)).mean().detach()), rel=1e-6)
    np.testing.assert_allclose(grads, leaf.grad.numpy(), rtol=1e-5, atol=1e-7)
    assert (grads[np.isnan(labels)] == 0).all()
    values = LOSS.values(LOSS.predictions(outputs), labels)
    np.testing.assert_allclose(values, each.sum(1).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_each_label_is_learned_from_what_is_known():
    """Calibration and correlation, and figures by label of the known ones alone."""
    online, stream, rng = OnlineLearner(Both, seed=1), Stream(0), np.random.default_rng(0)
    marks, known = Prequential(Both.model, window=10_000), np.zeros(2, int)
    for step in range(150):
        inputs, _, truth = stream.batch()
        labels = targets(truth, rng)
        predictions, _ = online.predict_and_learn(inputs, labels, event_time_us=step)
        marks.observe(predictions, labels, starts=np.arange(0, 257, 8))
        known += (~np.isnan(labels)).sum(axis=0)
    figures = marks.snapshot()["labels"]
    assert [figures["0"]["rows"], figures["1"]["rows"]] == known.tolist()
    assert figures["0"]["recent"]["auc"] > 0.7
    assert figures["0"]["requests"] <= 150 * 32
    assert figures["1"]["recent"]["squared_error"] < figures["1"]["squared_error"]
    inputs, _, truth = Stream(5).batch(4_000)
    predictions = online.predict(inputs)
    assert predictions[:, 0].sum() / truth.sum() == pytest.approx(1, rel=0.1)
    assert np.corrcoef(predictions[:, 1], truth)[0, 1] > 0.75
    np.testing.assert_allclose(Both.model.score(predictions), predictions[:, 0] - 0.5 * predictions[:, 1], rtol=1e-6)


def test_a_label_that_nobody_knows_yet_starts_later():
    online, rng = OnlineLearner(Both), np.random.default_rng(2)
    for step in range(60):
        inputs, _, truth = Stream(step).batch(64)
        labels = targets(truth + 10, rng, unknown=0) if step >= 20 else np.full((64, 2), np.nan, np.float32)
        labels[:, 0] = np.where(np.isnan(labels[:, 0]), np.nan, rng.random(64) < 0.2)
        online.learn(inputs, labels)
    predictions = online.predict(Stream(99).batch(64)[0])
    assert predictions[:, 0].mean() == pytest.approx(0.2, abs=0.1)
    assert predictions[:, 1].mean() == pytest.approx(31, abs=3)


def test_wrong_labels_and_losses_are_refused():
    with pytest.raises(SchemaError, match="labels: 0.5, wanted label 0: 0 or 1, or NaN; label 1: a finite number"):
        OnlineLearner(Both).learn(Stream(1).batch(1)[0], np.array([[0.5, 1.0]]))
    with pytest.raises(DeclarationError, match="1 losses and 0 factors"):
        SharedBottom(losses=(LogLoss(),))
    with pytest.raises(DeclarationError, match="hidden widths must be at least 1"):
        SharedBottom(hidden=())
    with pytest.raises(DeclarationError, match="no losses"):
        PerLabel()
