"""Models from outside the package, each written in one file with public names, from training to a served score.

`TwoTasks` is the recipe of CONTRIBUTING: several labels, and a bag whose elements are read in order. `Visits` has a
loss of its own.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch import nn

from headrace.errors import DeclarationError, SchemaError, SnapshotError
from headrace.learners import (
    Adagrad,
    Adam,
    Gate,
    Learner,
    Model,
    ModelDirectory,
    OnlineLearner,
    Optimizer,
    Prequential,
    Scorer,
    Snapshot,
    TorchLoss,
    ZeroHead,
)
from headrace.serving import DirectoryReleases, Swap
from tests.shelves import SPEC, Stream


# --8<-- recipe
@dataclass(frozen=True, slots=True)
class TwoTasks(Model):
    """Two probabilities over shared vectors, as in a multi-task model; candidates are ranked by their product."""

    dim: int = 4
    sparse: Optimizer = field(default_factory=Adagrad)
    optimizer: Optimizer = field(default_factory=Adam)
    outputs: int = 2
    labels: int = 2

    def build(self, spec):
        return TwoTasksNet(self, spec)

    def reads_elements(self, bag):
        return bag.name == "recent"

    def score(self, predictions):
        return predictions[:, 0] * predictions[:, 1]


class TwoTasksNet(nn.Module):
    """B batch, E fields and bags, W = dim + 1, N = 2 x numbers, R distinct bags of L ids."""

    def __init__(self, model, spec):
        super().__init__()
        embedded = len(spec.categoricals) + len(spec.bags)
        self.recency = nn.Linear(spec.bags[0].length, 1, bias=False)
        self.head = ZeroHead((embedded + 1) * (model.dim + 1) + 2 * len(spec.numbers), model.outputs)

    def forward(self, fields):
        weighed = self.recency(fields.elements[0].transpose(1, 2)).squeeze(2)  # (R, W)
        recent = weighed.index_select(0, fields.run[0])  # (B, W)
        joined = torch.cat([fields.embedded.flatten(1), recent, fields.dense], dim=1)  # (B, (E + 1) * W + N)
        return self.head(joined)  # (B, 2)


# --8<-- recipe


class PoissonLoss(TorchLoss):
    """Counts: outputs are logarithms of the mean."""

    name = "deviance"
    label_values = "a number of at least 0"

    def is_allowed(self, labels):
        return np.isfinite(labels) & (labels >= 0)

    def link(self, outputs):
        return outputs.exp()

    def losses(self, predictions, labels):
        return predictions - labels * predictions.log()

    def base(self, labels, weights, log_rate):
        return np.log([np.average(labels, weights=weights) + 0.1])


@dataclass(frozen=True)
class Visits(Model):
    """A linear model of counts."""

    dim: int = 0
    sparse: Optimizer = field(default_factory=Adagrad)
    optimizer: Optimizer = field(default_factory=Adam)
    loss: TorchLoss = field(default_factory=PoissonLoss, repr=False)

    def build(self, spec):
        return VisitsNet(2 * len(spec.numbers))


class VisitsNet(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = ZeroHead(width)

    def forward(self, fields):
        return fields.embedded[..., 0].sum(1) + self.linear(fields.dense).squeeze(1)


class SquaredLoss(TorchLoss):
    def losses(self, predictions, labels):
        return (predictions - labels) ** 2


class Tasks(Learner):
    inputs = SPEC
    model = TwoTasks()


class Counts(Learner):
    inputs = SPEC
    model = Visits()


class Amounts(Learner):
    inputs = SPEC
    model = replace(Visits(), loss=SquaredLoss())


def targets(learner, truth, rng):
    """Labels of a learner's kind, by the known truth (B,) of the stream."""
    if learner is Tasks:
        return np.stack([rng.random(len(truth)) < truth, rng.random(len(truth)) < 0.5 * truth], axis=1).astype(float)
    return rng.poisson(20 * truth).astype(float) if learner is Counts else 3 * truth + rng.normal(0, 0.1, len(truth))


def trained(learner, batches=250):
    """A learner, and its marks and last predictions and truth."""
    online, stream, rng = OnlineLearner(learner, seed=1), Stream(0), np.random.default_rng(0)
    marks, gate = Prequential(learner.model, window=10_000), Gate()
    for step in range(batches):
        inputs, _, truth = stream.batch()
        labels = targets(learner, truth, rng)
        predictions, _ = online.predict_and_learn(inputs, labels, event_time_us=step)
        marks.observe(predictions, labels, slices=np.arange(256) % 2)
        gate.remember(inputs, labels, np.zeros(256, np.float32))
    return online, marks, gate


@pytest.fixture(scope="module", params=[Tasks, Counts, Amounts])
def finished(request):
    return request.param, *trained(request.param)


def test_it_learns_each_label(finished):
    learner, online, marks, _ = finished
    figures = marks.snapshot()
    inputs, _, truth = Stream(5).batch(4_000)
    predictions = online.predict(inputs)
    if learner is Tasks:
        for label, rate in enumerate((1.0, 0.5)):
            assert figures["labels"][str(label)]["recent"]["auc"] > 0.7
            assert predictions[:, label].sum() / (rate * truth.sum()) == pytest.approx(1, rel=0.1)
    else:
        scale = 20 if learner is Counts else 3
        assert np.corrcoef(predictions, truth)[0, 1] > 0.75
        assert predictions.mean() == pytest.approx(scale * truth.mean(), rel=0.1)
        assert figures["recent"][learner.model.loss.name] < figures[learner.model.loss.name]
        assert "auc" not in figures
    assert set(figures["slices"]) == {"0", "1"}


def test_marks_go_on_after_a_restart(finished):
    learner, online, marks, _ = finished
    other = Prequential(learner.model, window=10_000)
    other.load_state_dict(marks.state_dict())
    assert repr(other.snapshot(exact=True)) == repr(marks.snapshot(exact=True))
    inputs, _, truth = Stream(6).batch(64)
    labels = targets(learner, truth, np.random.default_rng(1))
    for each in (marks, other):
        each.observe(online.predict(inputs), labels)
    assert repr(other.snapshot(exact=True)) == repr(marks.snapshot(exact=True))


def test_losses_and_gradients_equal_torchs(finished):
    """Beside torch's own functions for the losses, in float64."""
    learner = finished[0]
    truth = Stream(7).batch(32)[2]
    labels = targets(learner, truth, np.random.default_rng(2))
    loss = learner.model.loss
    outputs = torch.randn(32, learner.model.outputs, generator=torch.Generator().manual_seed(1))
    outputs = outputs if learner.model.outputs > 1 else outputs[:, 0]
    weights = np.linspace(0, 2, 32, dtype=np.float32)
    mean, grads = loss.gradients(outputs.numpy().copy(), labels.astype(np.float32), weights)
    leaf = outputs.double().requires_grad_()
    y, w = torch.tensor(labels.astype(np.float32)).double(), torch.tensor(weights).double()
    if learner is Tasks:
        each = nn.functional.binary_cross_entropy_with_logits(leaf, y, reduction="none").sum(1)
    elif learner is Counts:
        each = nn.functional.poisson_nll_loss(leaf, y, reduction="none")
    else:
        each = nn.functional.mse_loss(leaf, y, reduction="none")
    (each * w).mean().backward()
    assert mean == pytest.approx(float((each * w).mean().detach()), rel=1e-6)
    np.testing.assert_allclose(grads, leaf.grad.numpy(), rtol=1e-5, atol=1e-6)
    predictions = loss.predictions(outputs.numpy())
    np.testing.assert_allclose(loss.values(predictions, labels), each.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_what_is_served_is_what_was_trained(finished, tmp_path):
    learner, online, _, gate = finished
    probe, inputs = Stream(8).batch(16)[0], Stream(9).batch(64)[0]
    models = ModelDirectory(tmp_path / "models")
    staged = models.stage(Snapshot.of(online, probe=probe))
    verdict = gate.require(Scorer(staged.snapshot, learner))
    assert verdict.figures["probe_off"] == 0.0
    assert learner.model.loss.name in verdict.figures
    models.publish(staged)
    swap = Swap(DirectoryReleases(models, learner), probe=lambda: probe)
    assert swap.refresh()
    trained = online.predict(inputs)
    np.testing.assert_array_equal(swap.live.scorer.predict(inputs), trained)
    ranking = trained[:, 0] * trained[:, 1] if learner is Tasks else trained
    np.testing.assert_array_equal(swap.live.scorer.score(inputs), ranking)


def test_the_gate_refuses_a_worse_model(finished):
    learner, online, _, gate = finished
    live = Scorer(Snapshot.of(online), learner)
    first, rng = OnlineLearner(learner, seed=3), np.random.default_rng(3)
    inputs, _, truth = Stream(10).batch()
    first.learn(inputs, targets(learner, truth, rng))
    verdict = gate.check(Scorer(Snapshot.of(first), learner), live)
    assert any(f"{learner.model.loss.name} " in reason for reason in verdict.reasons)


def test_a_resumed_run_ends_with_bitwise_equal_weights(finished):
    learner, _, _, _ = finished
    whole, second = OnlineLearner(learner, seed=2), OnlineLearner(learner, seed=4)
    rng = np.random.default_rng(4)
    for step in range(20):
        inputs, _, truth = Stream(step).batch(50)
        labels = targets(learner, truth, rng)
        if step == 10:
            second.load_state_dict(whole.state_dict())
        whole.learn(inputs, labels)
        if step >= 10:
            second.learn(inputs, labels)
    one, other = whole.state_dict(), second.state_dict()
    assert one.keys() == other.keys()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.mark.parametrize(
    ("learner", "given", "message"),
    [
        (Tasks, {"labels": np.zeros(4)}, r"labels \(4,\): wanted \(4, 2\)"),
        (Tasks, {"labels": np.full((4, 2), 0.5)}, "labels: 0.5, wanted 0 or 1"),
        (Tasks, {"labels": np.zeros((4, 2)), "log_rate": 0.5}, r"log_rate: 0.5, wanted 0, or one for each output"),
        (Counts, {"labels": np.array([0.0, 2, -1, 3])}, "labels: -1.0, wanted a number of at least 0"),
        (Counts, {"labels": np.zeros(4), "log_rate": np.ones(4)}, "log_rate: 1.0, wanted 0, for the model's loss is"),
        (Amounts, {"labels": np.array([0.0, np.inf, 0, 0])}, "labels: inf, wanted a finite number"),
    ],
)
def test_labels_that_the_loss_does_not_take_are_refused(learner, given, message):
    online = OnlineLearner(learner)
    with pytest.raises(SchemaError, match=message):
        online.learn(Stream(1).batch(4)[0], **given)
    assert online.steps == 0


def test_log_rates_of_each_output_shift_their_own_probability():
    online, _, _ = trained(Tasks, batches=20)
    inputs = Stream(2).batch(4)[0]
    plain, shifted = online.predict(inputs), online.predict(inputs, np.tile([0.0, 1.0], (4, 1)))
    odds = shifted / (1 - shifted) / (plain / (1 - plain))
    np.testing.assert_allclose(odds, np.tile([1.0, np.e], (4, 1)), rtol=1e-4)


def test_an_empty_batch_has_the_predictions_shape():
    inputs = Stream(3).batch(2)[0].take(slice(0, 0))
    predictions, loss = OnlineLearner(Tasks).predict_and_learn(inputs, np.zeros((0, 2)))
    assert (predictions.shape, loss) == ((0, 2), 0.0)


def test_outputs_that_are_not_as_declared_are_refused():
    learner = type("Wrong", (Learner,), {"inputs": SPEC, "model": replace(TwoTasks(), outputs=3)})
    squeezed = type("Squeezed", (Learner,), {"inputs": SPEC, "model": replace(TwoTasks(), outputs=1)})
    with pytest.raises(DeclarationError, match=r"outputs \(4, 1\) of its module for 4 examples; with outputs=1 return"):
        OnlineLearner(squeezed).predict(Stream(4).batch(4)[0])
    arrays = OnlineLearner(Tasks).state_dict()
    with pytest.raises(SnapshotError):
        OnlineLearner(learner).load_state_dict(arrays)


def test_a_batch_of_no_weight_leaves_the_intercept():
    online = OnlineLearner(Tasks)
    inputs = Stream(5).batch(4)[0]
    online.learn(inputs, np.ones((4, 2)), weights=np.zeros(4))
    assert np.isfinite(online.predict(inputs)).all()


def test_a_model_or_loss_that_lacks_a_method_is_refused_by_its_name():
    """With the method that it needs."""
    bare = type("Bare", (Model,), {"dim": 0, "sparse": Adagrad(), "optimizer": Adam()})
    with pytest.raises(DeclarationError, match="Bare defines no `build`"):
        OnlineLearner(type("Lacks", (Learner,), {"inputs": SPEC, "model": bare()}))
    lossless = replace(Visits(), loss=type("Lossless", (TorchLoss,), {})())
    learner = OnlineLearner(type("Loses", (Learner,), {"inputs": SPEC, "model": lossless}))
    with pytest.raises(DeclarationError, match="Lossless defines no `losses`"):
        learner.learn(Stream(4).batch(4)[0], np.zeros(4))
