"""Learning example by example: the compiled loop does what calls of one example each do."""

import numpy as np
import pytest

from headrace.learners import (
    Adagrad,
    Adam,
    Categorical,
    DeepFM,
    Dense,
    Ftrl,
    Inputs,
    InputSpec,
    Learner,
    Logistic,
    OnlineLearner,
    TablePolicy,
)
from tests.shelves import SPEC, Stream
from tests.tiers import by_tier

FM = {"dim": 3, "hidden": ()}
MODELS = {
    "logistic": Logistic(),
    "logistic, other optimizers": Logistic(sparse=Adagrad(), optimizer=Ftrl()),
    "fm": DeepFM(**FM),
    "fm, other optimizers": DeepFM(**FM, sparse=Adam(), optimizer=Adagrad()),
    "deep": DeepFM(dim=3, hidden=(4,)),
}
POLICIES = {
    "rows at once": {},
    "admission": {"book": TablePolicy(min_count=3)},
    "eviction": {"book": TablePolicy(rows_max=40), "shop": TablePolicy(min_count=2)},
}


def batch(rows, seed=0):
    """Inputs, labels, weights and log-rates; some numbers are missing, and one is there for few examples."""
    stream, rng = Stream(seed, books=60), np.random.default_rng(seed)
    inputs, labels, _ = stream.batch(rows)
    dense = inputs.dense.copy()
    dense[rng.random(rows) < 0.2, 0] = np.nan
    dense[rng.random(rows) < 0.95, 1] = np.nan
    weights, log_rates = rng.uniform(0.5, 2, rows).astype(np.float32), rng.normal(0, 0.3, rows).astype(np.float32)
    weights[:2] = 0.0  # the intercept starts later
    return Inputs(inputs.ids, inputs.bags, dense, inputs.fingerprint), labels, weights, log_rates


def one_by_one(online, inputs, labels, weights, log_rates, times):
    parts = [slice(i, i + 1) for i in range(len(inputs))]
    steps = [online.predict_and_learn(inputs.take(p), labels[p], weights[p], log_rates[p], times[p]) for p in parts]
    return np.concatenate([predictions for predictions, _ in steps]), np.mean([loss for _, loss in steps])


@pytest.mark.parametrize("policies", POLICIES)
@pytest.mark.parametrize("model", MODELS)
def test_it_equals_calls_of_one_example_bit_for_bit(model, policies):
    learner = type("Each", (Learner,), {"inputs": SPEC, "model": MODELS[model], "tables": POLICIES[policies]})
    singles, whole, cut = (OnlineLearner(learner, seed=3) for _ in range(3))
    rows = by_tier(fast=540, whole=700)
    data = batch(rows)
    times = np.random.default_rng(1).integers(0, 1_000, rows)  # not in order: the newest counts
    wanted, wanted_loss = one_by_one(singles, *data, times)
    predictions, loss = whole.predict_and_learn(*data, times, per_example=True)
    np.testing.assert_allclose(predictions, wanted, atol=1e-6)
    assert loss == pytest.approx(wanted_loss)
    for begin, end in ((0, 1), (1, 300), (300, rows)):
        part = slice(begin, end)
        inputs, *arrays = data
        cut.predict_and_learn(inputs.take(part), *(array[part] for array in arrays), times[part], per_example=True)
    states = [online.state_dict() for online in (singles, whole, cut)]
    for name, array in states[0].items():
        assert array.tobytes() == states[1][name].tobytes(), name
        assert array.tobytes() == states[2][name].tobytes(), name


def test_the_shipped_linear_models_have_a_compiled_loop():
    """Else the test above compares calls of one example with themselves."""
    loops = {
        name: OnlineLearner(type("Each", (Learner,), {"inputs": SPEC, "model": m}))._loop for name, m in MODELS.items()
    }
    assert [name for name, loop in loops.items() if loop is None] == ["deep"]


def test_without_times_each_example_is_later_than_the_one_before():
    one, other = (OnlineLearner(type("Each", (Learner,), {"inputs": SPEC, "model": Logistic()})) for _ in range(2))
    inputs, labels, _ = Stream(2).batch(50)
    one.predict_and_learn(inputs, labels, per_example=True)
    for i in range(50):
        other.predict_and_learn(inputs.take(slice(i, i + 1)), labels[i : i + 1])
    assert one.now_us == other.now_us == 50
    assert one.steps == other.steps == 50


def test_an_empty_batch_and_inputs_without_numbers_or_bags():
    spec = InputSpec(Categorical("book"))
    online = OnlineLearner(type("Bare", (Learner,), {"inputs": spec, "model": Logistic()}))
    empty = spec.assemble({"book": np.empty(0, np.int64)}, 0)
    assert online.predict_and_learn(empty, np.empty(0, np.float32), per_example=True)[0].shape == (0,)
    inputs = spec.assemble({"book": np.array([1, 2] * 200)}, 400)
    predictions, _ = online.predict_and_learn(inputs, np.array([1.0, 0.0] * 200, np.float32), per_example=True)
    assert predictions[-2] > 0.8
    assert predictions[-1] < 0.2


def test_inputs_without_ids_take_steps():
    spec = InputSpec(Dense("x"))
    online = OnlineLearner(type("Numbers", (Learner,), {"inputs": spec, "model": Logistic()}))
    x = np.random.default_rng(0).normal(size=300)
    online.predict_and_learn(spec.assemble({"x": x}, 300), (x > 0).astype(np.float32), per_example=True)
    assert online.steps == 300
