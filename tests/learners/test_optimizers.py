import numpy as np
import pytest
import torch

from headrace.errors import DeclarationError
from headrace.learners import Adagrad, Adam, Ftrl, Learner, Logistic, OnlineLearner
from tests.shelves import SPEC, Stream

RNG = np.random.default_rng(5)


def run(optimizer, steps=20, rows=6, width=5):
    """Random steps on some rows each; yields what a reference needs."""
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(rows, width)).astype(np.float32)
    first = weights.copy()
    state = np.tile(optimizer.initial_state(width), (rows, 1))
    history = []
    for _ in range(steps):
        picked = rng.permutation(rows)[:3].astype(np.int64)
        grads = rng.normal(size=(3, width))
        optimizer.step(weights, state, picked, grads)
        history.append((picked, grads))
    return first, weights, history


def test_adagrad_equals_torch_row_by_row_for_one_coordinate():
    """With a vector of one and a linear weight, row-wise accumulators are torch's per-coordinate ones."""
    ours = Adagrad(lr=0.1, initial=0.2, eps=1e-8)
    first, weights, history = run(ours, width=2)
    for row in range(len(first)):
        parameter = torch.nn.Parameter(torch.tensor(first[row], dtype=torch.float64))
        theirs = torch.optim.Adagrad([parameter], lr=0.1, initial_accumulator_value=0.2, eps=1e-8)
        for picked, grads in history:
            if row in picked:
                parameter.grad = torch.tensor(grads[list(picked).index(row)])
                theirs.step()
        np.testing.assert_allclose(weights[row], parameter.detach().numpy(), rtol=2e-5)


def test_adagrad_equals_its_row_wise_definition():
    first, weights, history = run(Adagrad(lr=0.1, initial=0.0))
    expected, total = first.astype(np.float64), np.zeros((len(first), 2))
    for picked, grads in history:
        total[picked, 0] += (grads[:, :-1] ** 2).mean(axis=1)
        total[picked, 1] += grads[:, -1] ** 2
        expected[picked, :-1] -= 0.1 / np.sqrt(total[picked, :1]) * grads[:, :-1]
        expected[picked, -1] -= 0.1 / np.sqrt(total[picked, 1]) * grads[:, -1]
    np.testing.assert_allclose(weights, expected, rtol=2e-5, atol=1e-6)


def test_adam_equals_torch():
    first, weights, history = run(Adam(lr=0.01), width=7)
    for row in range(len(first)):
        parameter = torch.nn.Parameter(torch.tensor(first[row], dtype=torch.float64))
        theirs = torch.optim.Adam([parameter], lr=0.01)
        for picked, grads in history:
            if row in picked:
                parameter.grad = torch.tensor(grads[list(picked).index(row)])
                theirs.step()
        np.testing.assert_allclose(weights[row], parameter.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_ftrl_equals_the_paper():
    alpha, beta, l1, l2 = 0.1, 1.0, 0.3, 0.2
    _, weights, history = run(Ftrl(alpha, beta, l1, l2), width=3)
    z, n, w = np.zeros((6, 3)), np.zeros((6, 3)), np.zeros((6, 3))
    w[:] = run(Ftrl(alpha, beta, l1, l2), width=3)[0]
    for picked, grads in history:
        for row, g in zip(picked, grads, strict=True):
            sigma = (np.sqrt(n[row] + g**2) - np.sqrt(n[row])) / alpha
            z[row] += g - sigma * w[row]
            n[row] += g**2
            w[row] = np.where(
                abs(z[row]) <= l1, 0.0, -(z[row] - np.sign(z[row]) * l1) / ((beta + np.sqrt(n[row])) / alpha + l2)
            )
    np.testing.assert_allclose(weights, w, rtol=1e-4, atol=1e-6)
    assert (run(Ftrl(l1=50.0))[1] == 0).all()


def test_rows_that_are_not_named_stay():
    for optimizer in (Adagrad(), Adam(), Ftrl()):
        weights = np.ones((3, 2), np.float32)
        state = np.tile(optimizer.initial_state(2), (3, 1))
        before = state.copy()
        optimizer.step(weights, state, np.array([1]), np.ones((1, 2)))
        assert (weights[[0, 2]] == 1).all()
        assert (state[[0, 2]] == before[[0, 2]]).all()
        assert (weights[1] != 1).all()


@pytest.mark.parametrize("wrong", [lambda: Adagrad(lr=0), lambda: Adam(beta1=1.0), lambda: Ftrl(alpha=-1)])
def test_wrong_rates_are_refused(wrong):
    with pytest.raises(DeclarationError):
        wrong()


class Still(Adam):
    """Steps nothing."""

    def step(self, weights, state, rows, grads):
        del weights, state, rows, grads


def test_a_step_that_a_subclass_changes_is_taken_for_dense_parameters_too():
    learner = type("Stands", (Learner,), {"inputs": SPEC, "model": Logistic(optimizer=Still())})
    online = OnlineLearner(learner)
    inputs, labels, _ = Stream(0).batch(64)
    online.predict_and_learn(inputs, labels, per_example=True)
    assert (online.state_dict()["dense.linear.weight"] == 0).all()
