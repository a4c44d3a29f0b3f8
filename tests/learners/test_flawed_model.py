"""Models and losses from outside the package that are wrong: each is one error that names what to change."""

import numpy as np
import pytest
import torch
from torch import nn

from headrace.errors import DeclarationError, ModelError
from headrace.learners import (
    Adagrad,
    Adam,
    Learner,
    LogLoss,
    Model,
    OnlineLearner,
    Scorer,
    Snapshot,
    TorchLoss,
    ZeroHead,
)
from tests.shelves import SPEC, Stream


class Sum(nn.Module):
    """The sum of the linear weights, and a linear function of the numbers."""

    def __init__(self, width):
        super().__init__()
        self.linear = ZeroHead(width)

    def forward(self, fields):
        return fields.embedded[..., 0].sum(1) + self.linear(fields.dense).squeeze(1)


class Squared(TorchLoss):
    def losses(self, predictions, labels):
        return (predictions - labels) ** 2


class Flawed(Model):
    """A model whose module is `made` from the number of inputs."""

    dim, sparse, optimizer, loss, made = 0, Adagrad(), Adam(), LogLoss(), Sum

    def build(self, spec):
        return type(self).made(2 * len(spec.numbers))


def flawed(**attributes):
    """A learner of a model with other attributes, one of which may be the class of its module, `made`."""
    model = type("Odd", (Flawed,), attributes)
    return type("Tries", (Learner,), {"inputs": SPEC, "model": model()})


def module_that(**methods):
    """A subclass of the module with other methods."""
    return type("OddNet", (Sum,), methods)


class Cast(Sum):
    def __init__(self, width):
        super().__init__(width)
        self.bfloat16()


class Untouched(Sum):
    def __init__(self, width):
        super().__init__(width)
        self.lazy = nn.LazyLinear(1)


class Buffered(Sum):
    def __init__(self, width):
        super().__init__(width)
        self.register_buffer("coarse", torch.zeros(2, dtype=torch.bfloat16))


def failing(*_):
    raise ValueError("out of chalk")


PLAIN = Sum.forward


@pytest.mark.parametrize(
    ("attributes", "error", "message"),
    [
        ({"dim": -1}, DeclarationError, r"learner tries · model Odd: dim=-1; write a whole number of at least 0"),
        ({"dim": None}, DeclarationError, "dim=None; write a whole number"),
        ({"outputs": 0}, DeclarationError, "outputs=0; write a whole number of at least 1"),
        ({"labels": 1.5}, DeclarationError, "labels=1.5; write a whole number"),
        ({"loss": None}, DeclarationError, "loss is None without 'name'; write LogLoss"),
        ({"loss": LogLoss}, DeclarationError, "loss is the class LogLoss; call it"),
        ({"sparse": "adam"}, DeclarationError, "sparse is 'adam'; write an optimizer"),
        ({"optimizer": torch.optim.Adam}, DeclarationError, "optimizer is the class Adam; call it"),
        ({"made": lambda _: None}, DeclarationError, "`build` returned NoneType; return a torch.nn.Module"),
        ({"made": failing}, ModelError, "model Odd: its `build` failed: ValueError: out of chalk"),
        ({"made": Cast}, DeclarationError, "parameter linear.weight is torch.bfloat16; all parameters"),
        ({"made": Untouched}, DeclarationError, "parameter lazy.weight has no size yet"),
        ({"made": Buffered}, DeclarationError, "buffer coarse is torch.bfloat16; use float32"),
        ({"made": module_that(forward=failing)}, ModelError, "forward pass failed: ValueError: out of chalk"),
        (
            {"made": module_that(forward=lambda *_: None)},
            DeclarationError,
            "its module returned NoneType; return a tens",
        ),
        ({"made": module_that(forward=lambda s, x: PLAIN(s, x).long())}, DeclarationError, "returned torch.int64"),
        (
            {"made": module_that(forward=lambda s, x: PLAIN(s, x).detach())},
            DeclarationError,
            "outputs have no gradient",
        ),
        ({"made": module_that(forward=lambda s, x: PLAIN(s, x) / 0)}, ModelError, "step 1: the loss of this batch is"),
        ({"made": module_that(forward=lambda s, x: PLAIN(s, x).abs().sqrt())}, ModelError, "a gradient is not finite"),
    ],
)
def test_a_model_that_cannot_be_learned_is_one_clear_error_and_changes_no_weight(attributes, error, message):
    def run():
        online = OnlineLearner(flawed(**attributes))
        learners.append((online, online.state_dict()))
        online.predict_and_learn(*Stream(6).batch(16)[:2])

    learners = []
    with pytest.raises(error, match=message):
        run()
    for online, before in learners:
        assert all((online.state_dict()[name] == array).all() for name, array in before.items() if "dense" in name)


def test_statistics_of_a_module_survive_publishing_and_a_restart(tmp_path):
    """Among them a count that has no dimension, as in batch normalisation."""

    class Normal(Sum):
        def __init__(self, width):
            super().__init__(width)
            self.norm = nn.BatchNorm1d(width)

        def forward(self, fields):
            return fields.embedded[..., 0].sum(1) + self.linear(self.norm(fields.dense)).squeeze(1)

    learner, stream = flawed(made=Normal), Stream(7)
    online = OnlineLearner(learner)
    for _ in range(5):
        inputs, labels, _ = stream.batch(32)
        online.learn(inputs, labels)
    Snapshot.of(online).save(tmp_path / "published")
    Snapshot.of(online, with_optimizer=True).save(tmp_path / "saved")
    scorer, resumed = Scorer(Snapshot.load(tmp_path / "published", learner), learner), OnlineLearner(learner)
    Snapshot.load(tmp_path / "saved").restore(resumed)
    assert resumed.state_dict()["dense.norm.num_batches_tracked"] == 5
    np.testing.assert_array_equal(scorer.predict(inputs), online.predict(inputs))
    np.testing.assert_array_equal(resumed.predict_and_learn(inputs, labels)[0], online.predict(inputs))


def test_a_module_may_have_no_parameters_and_may_change_its_inputs_in_place():
    class Sums(nn.Module):
        def __init__(self, width):
            del width
            super().__init__()

        def forward(self, fields):
            return fields.embedded[..., 0].sum(1) + fields.dense.mul_(2).sum(1)

    learner, stream = flawed(made=Sums), Stream(8)
    one, two = OnlineLearner(learner), OnlineLearner(learner)
    for _ in range(5):
        inputs, labels, _ = stream.batch(32)
        expected = one.predict(inputs)
        one.learn(inputs, labels)
        np.testing.assert_array_equal(two.predict_and_learn(inputs, labels)[0], expected)
    np.testing.assert_array_equal(one.predict(inputs), two.predict(inputs))


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        ({"losses": lambda *_: failing()}, ModelError, "loss Odd: `losses` failed: ValueError: out of chalk"),
        (
            {"losses": lambda _, p, y: (p - y).mean()},
            DeclarationError,
            r"`losses` returned \(\); return a tensor \(4,\)",
        ),
        ({"losses": lambda _, p, y: (p - y).detach()}, DeclarationError, "Odd: `losses` has no gradient"),
        ({"losses": lambda _, p, y: (p - y) / 0}, ModelError, "the loss of this batch is"),
        ({"link": lambda _, z: z.sum()}, DeclarationError, r"`link` returned \(\); return a tensor \(4,\)"),
        ({"base": lambda *_: np.zeros(7)}, DeclarationError, r"`base` returned .*; return finite numbers \(1,\)"),
        ({"base": lambda *_: np.array([np.nan])}, DeclarationError, r"`base` returned \[nan\]; return finite numbers"),
        ({"is_allowed": lambda *_: True}, DeclarationError, r"`is_allowed` returned \(\); return a mask \(4,\)"),
    ],
)
def test_a_loss_that_cannot_be_learned_is_one_clear_error(methods, error, message):
    learner = flawed(loss=type("Odd", (Squared,), methods)())
    online, before = OnlineLearner(learner), OnlineLearner(learner).state_dict()
    with pytest.raises(error, match=message):
        online.learn(Stream(4).batch(4)[0], np.array([0.0, 1, 2, 3]))
    assert all((online.state_dict()[name] == array).all() for name, array in before.items() if "dense" in name)


def test_a_score_that_is_not_one_for_each_example_is_refused():
    learner = flawed(score=lambda _, predictions: predictions[:1])
    scorer = Scorer(Snapshot.of(OnlineLearner(learner)), learner)
    with pytest.raises(DeclarationError, match=r"model Odd: `score` returned \(1,\) for 4 examples"):
        scorer.score(Stream(4).batch(4)[0])
