"""A step of every shipped model with every optimizer, beside plain torch in float64: equal to 1e-6.

The reference reads the saved state before the step, computes logits with torch indexing alone, takes autograd's
gradients, and steps by the papers' formulas (Adam: torch's own).
"""

import numpy as np
import pytest
import torch
from torch.nn import functional

from headrace.learners import PAD, Adagrad, Adam, DeepFM, Ftrl, Learner, Logistic, OnlineLearner
from headrace.learners.standardizer import Standardizer
from tests.shelves import SPEC, Stream

MODELS = {
    "logistic": Logistic,
    "fm": lambda **steps: DeepFM(dim=4, hidden=(), **steps),
    "deep_fm": lambda **steps: DeepFM(dim=4, hidden=(8, 4), **steps),
    "wide_deep_fm": lambda **steps: DeepFM(dim=4, hidden=(256, 128), **steps),  # its products are of BLAS
    "attention": lambda **steps: DeepFM(dim=4, hidden=(8,), attention=True, **steps),
}
OPTIMIZERS = {"adagrad": Adagrad(lr=0.05), "adam": Adam(lr=0.01), "ftrl": Ftrl(l1=1e-3, l2=1e-2)}
ROWS = 48


def logistic(dense, rows, bag, present, numbers):
    del bag, present
    return rows[..., 0].sum(1) + numbers @ dense["linear.weight"][0] + dense["linear.bias"]


def deep_fm(dense, rows, bag, present, numbers):
    """Logits (B,) of rows (B, 3, W): the sum over pairs written out, the attention example by example."""
    vectors, linear = rows[..., :-1], rows[..., -1].sum(1)
    if "attention" in dense:
        scores = dense["sharpness"][0] * (bag[..., :-1] * vectors[:, :1]).sum(2)  # (B, L)
        weighed = [
            functional.softmax(score[here], 0) @ each[here, :-1] if here.any() else torch.zeros(vectors.shape[2])
            for score, each, here in zip(scores, bag, present, strict=True)
        ]
        vectors = torch.stack([vectors[:, 0], vectors[:, 1], torch.stack(weighed).double()], dim=1)
    pairs = sum((vectors[:, i] * vectors[:, j]).sum(1) for i in range(3) for j in range(i))
    hidden = torch.cat([vectors.flatten(1), numbers], dim=1)
    layers = sorted({int(name.split(".")[1]) for name in dense if name.startswith("mlp.")})
    for layer in layers:
        hidden = hidden @ dense[f"mlp.{layer}.weight"].T + dense[f"mlp.{layer}.bias"]
        hidden = hidden if layer == layers[-1] else functional.relu(hidden)
    first_order = numbers @ dense["first_order.weight"][0] + dense["first_order.bias"]
    return linear + pairs + hidden[:, 0] + first_order


LOGITS = {"logistic": logistic} | dict.fromkeys(("fm", "deep_fm", "wide_deep_fm", "attention"), deep_fm)
"""Of each model: logits (B,) of dense weights, rows (B, F + J, W), a bag's rows (B, L, W) and presence, and numbers."""


def stepped(optimizer, weights, state, grads):
    """Weights (n, W) after a step from float64 weights, state (n, S) and gradients."""
    width = weights.shape[1]
    match optimizer:
        case Adagrad(lr, _, eps):
            total = np.empty((len(weights), width))
            total[:, :-1] = state[:, :1] + (grads[:, :-1] ** 2).mean(axis=1, keepdims=True) if width > 1 else 0.0
            total[:, -1] = state[:, 1] + grads[:, -1] ** 2
            return weights - lr * grads / (np.sqrt(total) + eps)
        case Adam(lr, beta1, beta2, eps):
            out = np.empty_like(weights)
            for i in range(len(weights)):
                parameter = torch.nn.Parameter(torch.tensor(weights[i]))
                theirs = torch.optim.Adam([parameter], lr=lr, betas=(beta1, beta2), eps=eps)
                first, second = (torch.tensor(state[i, k * width : (k + 1) * width]) for k in (0, 1))
                theirs.state[parameter] = {
                    "step": torch.tensor(state[i, 2 * width]),
                    "exp_avg": first,
                    "exp_avg_sq": second,
                }
                parameter.grad = torch.tensor(grads[i])
                theirs.step()
                out[i] = parameter.detach().numpy()
            return out
        case Ftrl(alpha, beta, l1, l2):
            z, n = state[:, :width], state[:, width:]
            z = z + grads - (np.sqrt(n + grads**2) - np.sqrt(n)) / alpha * weights
            n = n + grads**2
            shrunk = -(z - np.sign(z) * l1) / ((beta + np.sqrt(n)) / alpha + l2)
            return np.where(np.abs(z) <= l1, 0.0, shrunk)


def reference(before, model, batch, logits_of):
    """The loss of a batch, and all weights by their names in the state after a step on it."""
    inputs, labels, weights, log_rate = batch
    dense = {name.removeprefix("dense."): value for name, value in before.items() if name.startswith("dense.")}
    dense = {name: torch.tensor(value).double().requires_grad_() for name, value in dense.items()}
    tables = {name: torch.tensor(before[f"table.{name}.weights"]).double() for name in ("book", "shop")}
    for table in tables.values():
        table.requires_grad_()

    def rows(name, ids):
        """Rows (.., W) of ids, zeros where missing; every id has a row."""
        at = np.searchsorted(before[f"table.{name}.ids"], np.where(ids == PAD, before[f"table.{name}.ids"][0], ids))
        return tables[name][torch.tensor(at)] * torch.tensor(ids != PAD).unsqueeze(-1)

    statistics = Standardizer(len(SPEC.numbers))
    statistics.load_state_dict({name.removeprefix("numbers."): value for name, value in before.items()})
    numbers = torch.tensor(statistics.transform(inputs.dense)).double()
    bag, present = rows("book", inputs.bags[0]), torch.tensor(inputs.bags[0] != PAD)
    mean = bag.sum(1) / present.sum(1, keepdim=True).clamp(min=1)
    embedded = torch.stack([rows("book", inputs.ids[:, 0]), rows("shop", inputs.ids[:, 1]), mean], dim=1)
    extra = {"attention": True} if getattr(model, "attention", False) else {}
    logits = logits_of({**dense, **extra}, embedded, bag, present, numbers) + float(before["intercept"][0])
    logits = logits + torch.tensor(log_rate)
    losses = functional.binary_cross_entropy_with_logits(logits, torch.tensor(labels).double(), reduction="none")
    loss = (losses * torch.tensor(weights)).mean()
    loss.backward()
    flat, grads = (
        np.concatenate([part(value).reshape(-1) for value in dense.values()])[None]
        for part in (lambda value: value.detach().numpy(), lambda value: _grad(value).numpy())
    )
    after = {"dense": stepped(model.optimizer, flat, before["optimizer.dense"].astype(np.float64), grads)}
    for name, table in tables.items():
        touched = np.flatnonzero(np.isin(before[f"table.{name}.ids"], [*inputs.ids.ravel(), *inputs.bags[0].ravel()]))
        after[name] = table.detach().numpy().copy()
        state = before[f"table.{name}.state"][touched].astype(np.float64)
        # A row learns from the sum of its examples' losses, a dense weight from their mean.
        grads = ROWS * table.grad.numpy()[touched]
        after[name][touched] = stepped(model.sparse, after[name][touched], state, grads)
    return float(loss.detach()), after


def _grad(parameter):
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@pytest.mark.parametrize("dense", OPTIMIZERS)
@pytest.mark.parametrize("sparse", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_a_step_equals_plain_torch(name, sparse, dense):
    model = MODELS[name](sparse=OPTIMIZERS[sparse], optimizer=OPTIMIZERS[dense])
    learner = type("Parity", (Learner,), {"inputs": SPEC, "model": model})
    online, stream, rng = OnlineLearner(learner, seed=1), Stream(0, books=20), np.random.default_rng(0)
    for _ in range(12):
        online.learn(*stream.batch(200)[:2])
    before = online.state_dict()
    inputs, labels, _ = stream.batch(ROWS)
    weights, log_rate = rng.uniform(0.5, 2, ROWS).astype(np.float32), rng.normal(0, 1, ROWS).astype(np.float32)
    batch = inputs, labels, weights, log_rate
    wanted_loss, wanted = reference(before, model, batch, LOGITS[name])
    assert online.learn(inputs, labels, weights, log_rate) == pytest.approx(wanted_loss, abs=1e-6)
    after = online.state_dict()
    flat = np.concatenate([value.reshape(-1) for key, value in after.items() if key.startswith("dense.")])
    np.testing.assert_allclose(flat, wanted["dense"][0], atol=1e-6, rtol=1e-6)
    for table in ("book", "shop"):
        np.testing.assert_allclose(after[f"table.{table}.weights"], wanted[table], atol=1e-6, rtol=1e-6)
        assert (after[f"table.{table}.weights"] != before[f"table.{table}.weights"]).any()
