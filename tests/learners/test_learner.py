import tracemalloc

import numpy as np
import pytest
import torch

from headrace.errors import DeclarationError, SchemaError, SnapshotError
from headrace.learners import (
    Adagrad,
    Bag,
    Categorical,
    DeepFM,
    Dense,
    Inputs,
    InputSpec,
    Learner,
    Logistic,
    OnlineLearner,
    Scorer,
    SharedBottom,
    Snapshot,
    SquaredError,
    TablePolicy,
    auc,
    log_rate,
)
from headrace.learners.labels.targets import LOG_RATE_MAX, WEIGHT_MAX
from headrace.learners.models.loss import LABEL_MAX
from headrace.learners.prequential import log_losses
from headrace.learners.tables.table import EmbeddingTable
from tests.shelves import SPEC, Lists, Shelf, Stream


def train(online, stream, batches, rows=256):
    """Prequential probabilities and labels."""
    seen = []
    for step in range(batches):
        inputs, labels, truth = stream.batch(rows)
        seen.append((online.predict(inputs), labels, truth))
        online.learn(inputs, labels, event_time_us=step)
    return (np.concatenate(part) for part in zip(*seen, strict=True))


@pytest.mark.parametrize(
    "model", [DeepFM(dim=4, hidden=(16,)), DeepFM(dim=4, hidden=(16,), attention=True), Logistic()]
)
def test_it_learns_a_known_truth(model):
    learner = type("Model", (Learner,), {"inputs": SPEC, "model": model})
    probabilities, labels, truth = train(OnlineLearner(learner, seed=1), Stream(0), 300)
    late = slice(-20_000, None)
    loss = log_losses(probabilities[late], labels[late]).mean()
    base = labels[late].mean()
    base_loss = -(base * np.log(base) + (1 - base) * np.log(1 - base))
    best = log_losses(truth[late], labels[late]).mean()
    assert loss < base_loss - 0.6 * (base_loss - best)  # most of what can be known
    assert auc(probabilities[late], labels[late]) > 0.75
    assert abs(probabilities[late].sum() / labels[late].sum() - 1) < 0.05


def test_log_rate_recovers_the_reference_rate():
    """Trained on 1:3 samples of a 1:39 stream, predictions are at 1:39."""
    rng = np.random.default_rng(4)
    online = OnlineLearner(Shelf, seed=0)
    stream = Stream(5)
    offset = log_rate(3, 39)
    for _ in range(300):
        inputs, _, _ = stream.batch(400)
        labels = (rng.random(400) < 0.25).astype(np.float32)
        online.learn(inputs, labels, log_rate=offset)
    inputs, _, _ = stream.batch(4_000)
    assert online.predict(inputs).mean() == pytest.approx(1 / 40, rel=0.1)
    assert online.predict(inputs, offset).mean() == pytest.approx(0.25, rel=0.1)
    np.testing.assert_array_equal(online.predict(inputs, np.full(4_000, offset)), online.predict(inputs, offset))


def test_samples_of_two_rates_train_one_model():
    """The same truth sampled at two rates, each with its own offset: the reference rate comes out of either alone."""
    rng = np.random.default_rng(6)
    online, stream = OnlineLearner(Shelf, seed=0), Stream(7)
    for step in range(400):
        negatives = (4, 19)[step % 2]
        inputs, _, _ = stream.batch(400)
        labels = (rng.random(400) < 1 / (1 + negatives)).astype(np.float32)
        online.learn(inputs, labels, log_rate=np.full(400, log_rate(negatives, 19)))
    inputs, _, _ = stream.batch(4_000)
    assert online.predict(inputs).mean() == pytest.approx(1 / 20, rel=0.1)


@pytest.mark.parametrize("model", [Logistic(), DeepFM(dim=4, hidden=(8,))])
@pytest.mark.parametrize("seed", range(3))
def test_the_first_version_says_the_base_rate(model, seed):
    rng = np.random.default_rng(seed)
    online = OnlineLearner(type("First", (Learner,), {"inputs": SPEC, "model": model}), seed=seed)
    labels = np.zeros(4_000, np.float32)
    labels[rng.choice(4_000, 80, replace=False)] = 1
    online.learn(Stream(seed).batch(4_000)[0], labels)
    assert online.predict(Stream(seed + 1).batch(4_000)[0]).mean() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("rows", [16, 640])
@pytest.mark.parametrize("first", [0, 1, None])
def test_calibration_follows_the_base_rate(rows, first):
    """Whatever the first batch held, and however small batches are: a rate of 30 % that falls to 3 %."""
    rng = np.random.default_rng(rows)
    online = OnlineLearner(type("Follows", (Learner,), {"inputs": SPEC, "model": Logistic()}))
    if first is not None:
        inputs = Stream(1).batch(rows)[0]
        online.learn(inputs, np.full(rows, first, np.float32))
    for rate in (0.3, 0.03):
        said, came = 0.0, 0.0
        for start in range(0, 12_000, rows):
            inputs, labels = Stream(start).batch(rows)[0], (rng.random(rows) < rate).astype(np.float32)
            if start >= 8_000:
                said, came = said + float(online.predict(inputs).sum()), came + float(labels.sum())
            online.learn(inputs, labels)
        assert said / came == pytest.approx(1.0, rel=0.35)


@pytest.mark.parametrize("rows", [16, 256])
@pytest.mark.parametrize(
    "rate",
    [lambda place: 0.3 - 0.27 * place, lambda place: 0.1 + 0.08 * np.sin(8 * np.pi * place)],
    ids=["slope", "season"],
)
def test_calibration_follows_a_slope_and_a_season(rows, rate):
    """From 30 % to 3 %, and up and down four times: predictions before learning are within a factor of 1.6."""
    count = 40_960
    rng, online = (
        np.random.default_rng(rows),
        OnlineLearner(type("Moves", (Learner,), {"inputs": SPEC, "model": Logistic()})),
    )
    said, labels = [], (rng.random(count) < rate(np.arange(count) / count)).astype(np.float32)
    for start in range(0, count, rows):
        part = labels[start : start + rows]
        said.append(online.predict_and_learn(Stream(start).batch(rows)[0], part)[0])
    pieces = zip(np.array_split(np.concatenate(said), 10), np.array_split(labels, 10), strict=True)
    ratios = np.array([predicted.sum() / came.sum() for predicted, came in pieces])[1:]  # the first begins from nothing
    assert np.exp(np.abs(np.log(ratios))).max() < 1.6
    assert np.concatenate(said).sum() / labels.sum() == pytest.approx(1.0, rel=0.05)


NO_EXAMPLES = [
    ({"labels": np.array([0.0, np.nan])}, "labels: nan, wanted 0 or 1"),
    ({"labels": np.array([0.0, 0.5])}, "labels: 0.5, wanted 0 or 1"),
    ({"weights": np.array([1.0, np.inf])}, "weights: inf"),
    ({"weights": np.array([1.0, -1.0])}, "weights: -1.0"),
    ({"log_rate": np.nan}, "log_rate: nan"),
    ({"log_rate": np.array([0.0, -np.inf])}, "log_rate: -inf"),
    ({"weights": np.array([1.0, 1e30])}, "weights: 1e\\+30, wanted a finite number of 0 to 1,000,000"),
    ({"weights": np.array([1.0, 1e39])}, "weights: 1e\\+39"),
    ({"log_rate": 1e30}, "log_rate: 1e\\+30, wanted a finite number of -50 to 50"),
    ({"log_rate": np.zeros(3)}, r"log_rate \(3,\): wanted a number, or \(2,\)"),
    ({"log_rate": None}, "log_rate: nan"),
    ({"labels": ["0", "1"]}, "labels of type <U1: give numbers"),
    ({"labels": np.array([None, 1], object)}, "labels: nan, wanted 0 or 1"),
    ({"weights": ["1", "2"]}, "weights of type <U1: give numbers"),
    ({"weights": [[1], [1, 2]]}, "weights: .*: give an array of numbers"),
    ({"event_time_us": np.array([1.0, np.nan])}, "event_time_us: float64 .*, wanted microseconds since 1970"),
    ({"event_time_us": 10**30}, "event_time_us: object"),
    ({"event_time_us": np.zeros(2, "datetime64[us]")}, "event_time_us: datetime64"),
    ({"event_time_us": np.zeros(3, np.int64)}, r"event_time_us \(3,\): wanted a number, or \(2,\)"),
    *[
        ({"starts": np.array(starts)}, "starts .*: wanted first rows of requests, ascending from 0, and 2")
        for starts in (
            [],
            [0, 1],
            [1, 2],
            [0, 9, 2],
            [0, 2, 1, 2],
            [-1, 2],
            [0.0, 2.0],
            [[0, 2]],
            [0, 10**9, 2 * 10**9],
        )
    ],
]


@pytest.mark.parametrize(
    ("given", "message", "per_example"),
    [
        (given, message, per_example)
        for given, message in NO_EXAMPLES
        for per_example in (False, True)
        if not (per_example and "starts" in given)  # requests mean nothing one by one
    ],
)
def test_what_no_example_can_have_is_refused_before_anything_changes(given, message, per_example):
    online = OnlineLearner(Shelf)
    online.learn(*Stream(1).batch()[:2])
    before = online.state_dict()
    with pytest.raises(SchemaError, match=message):
        online.predict_and_learn(
            Stream(2).batch(2)[0], **{"labels": np.array([0.0, 1.0]), **given}, per_example=per_example
        )
    assert all(before[name].tobytes() == array.tobytes() for name, array in online.state_dict().items())


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (np.zeros(3), r"learner shelf · log_rate \(3,\): wanted a number, or \(2,\)"),
        (np.zeros((2, 2)), r"log_rate \(2, 2\): wanted a number, or \(2,\)"),
        (np.array([0.0, np.nan]), "log_rate: nan, wanted a finite number of -50 to 50"),
        (1e30, "log_rate: 1e"),
        ("a half", "log_rate of type <U6: give numbers"),
    ],
)
def test_log_rates_of_no_prediction_are_refused(rate, message):
    """By the learner and by a snapshot of it."""
    online = OnlineLearner(Shelf)
    inputs = Stream(2).batch(2)[0]
    for each in (online, Scorer(Snapshot.of(online), Shelf)):
        with pytest.raises(SchemaError, match=message):
            each.predict(inputs, rate)
        assert each.predict(inputs, [0.0, 1.0]).shape == (2,)


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize(
    "model",
    [Logistic(), DeepFM(dim=4, hidden=()), DeepFM(dim=4, hidden=(8,)), SharedBottom(losses=(SquaredError(),) * 2)],
)
def test_the_largest_numbers_that_are_allowed_leave_weights_finite(model, per_example):
    online = OnlineLearner(type("Huge", (Learner,), {"inputs": SPEC, "model": model}))
    inputs, labels, _ = Stream(1).batch(64)
    rates = np.where(labels > 0.5, -LOG_RATE_MAX, LOG_RATE_MAX)
    if model.labels > 1:
        labels, rates = np.where(labels > 0.5, LABEL_MAX, -LABEL_MAX)[:, None].repeat(2, axis=1), 0.0
    for _ in range(20):
        weights = None if model.labels > 1 else [WEIGHT_MAX] * 64  # a list will do
        online.predict_and_learn(inputs, labels, weights, rates, per_example=per_example)
    assert all(np.isfinite(array).all() for array in online.state_dict().values())


@pytest.mark.parametrize("model", [Logistic(), DeepFM(dim=4, hidden=(8,), attention=True)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_no_number_of_an_input_makes_a_weight_infinite(model, value):
    online, stream = OnlineLearner(type("Any", (Learner,), {"inputs": SPEC, "model": model})), Stream(3)
    for step in range(30):
        inputs, labels, _ = stream.batch(64)
        dense = inputs.dense.copy()
        dense[step % 64] = value
        online.learn(Inputs(inputs.ids, inputs.bags, dense, inputs.fingerprint), labels)
    assert all(np.isfinite(array).all() for array in online.state_dict().values() if array.dtype.kind == "f")


def test_weights_count_as_repetitions():
    one, other = OnlineLearner(Shelf), OnlineLearner(Shelf)
    inputs, labels, _ = Stream(8).batch(64)
    one.learn(inputs, labels, weights=np.full(64, 2.0))
    doubled = one.state_dict()
    other.learn(inputs, labels)
    plain = other.state_dict()
    gained = doubled["table.shop.state"] - 0.01
    np.testing.assert_allclose(gained, 4 * (plain["table.shop.state"] - 0.01), rtol=1e-3)


def equal(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert one.keys() == other.keys()
    return all(one[name].tobytes() == other[name].tobytes() for name in one)


class Dropping(DeepFM):
    """With dropout: it draws from torch's generator."""

    def build(self, spec):
        net = super().build(spec)
        net.mlp.insert(1, torch.nn.Dropout(0.3))
        return net


@pytest.mark.parametrize("model", [DeepFM(dim=4, hidden=(16,), attention=True), Logistic(), Dropping(dim=4)])
def test_a_resumed_run_ends_with_bitwise_equal_weights(model):
    policies = {"book": TablePolicy(min_count=2, rows_max=150)}
    learner = type("Resumed", (Learner,), {"inputs": SPEC, "model": model, "tables": policies})
    batches = [Stream(9).batch(100) for _ in range(1)] + [Stream(10 + i).batch(100) for i in range(30)]
    whole, first, second = (OnlineLearner(learner, seed=2) for _ in range(3))
    for step, (inputs, labels, _) in enumerate(batches):
        whole.learn(inputs, labels, event_time_us=step)
        first.learn(inputs, labels, event_time_us=step) if step < 12 else None
    torch.rand(3)  # others use torch's generator too
    second.load_state_dict(first.state_dict())
    for step, (inputs, labels, _) in enumerate(batches[12:], start=12):
        second.predict(inputs)
        second.learn(inputs, labels, event_time_us=step)
    assert equal(whole, second)
    assert not equal(whole, first)


@pytest.mark.parametrize("policies", [{}, {"book": TablePolicy(min_count=3)}, {"book": TablePolicy(rows_max=90)}])
def test_a_captured_state_is_that_of_its_moment(policies):
    learner = type("Captured", (Learner,), {"inputs": SPEC, "model": DeepFM(dim=3, hidden=(8,)), "tables": policies})
    online, stream = OnlineLearner(learner, seed=2), Stream(5, books=900)
    train(online, stream, 3)
    wanted, captured = online.state_dict(), online.capture()
    train(online, stream, 3)
    state = captured()
    assert list(state) == list(wanted)
    assert all(state[name].tobytes() == wanted[name].tobytes() for name in wanted)
    assert not all(array.tobytes() == wanted[name].tobytes() for name, array in online.state_dict().items())


@pytest.mark.parametrize(
    "policy",
    [TablePolicy(), TablePolicy(min_count=2), TablePolicy(rows_max=20_000), TablePolicy(expire_us=40)],
    ids=["grows", "waits", "evicts", "expires"],
)
@pytest.mark.parametrize(
    ("model", "per_example"),
    [(DeepFM(dim=63, hidden=(8,)), False), (DeepFM(dim=63, hidden=()), True), (Dropping(dim=63), False)],
    ids=["by hand", "per example", "autograd"],
)
def test_a_state_that_is_copied_while_it_is_learned_is_that_of_its_moment(model, per_example, policy):
    """Large tables are copied by a thread amid steps that change, add and remove rows, and now and then grow them."""
    spec = InputSpec(Categorical("book"), Bag("read", table="book", length=2), Categorical("reader"))
    learner = type("Copied", (Learner,), {"inputs": spec, "model": model, "tables": {"book": policy}})
    online, rng = OnlineLearner(learner, seed=2), np.random.default_rng(3)

    def learn(steps, rows=300, ids=60_000):
        for _ in range(steps):
            columns = {"book": rng.integers(0, ids, rows), "reader": rng.integers(0, 50, rows)}
            columns["read"] = Lists(rng.integers(0, ids, (rows, 2)), np.full(rows, 2))
            inputs, labels = spec.assemble(columns, rows), rng.random(rows) < 0.3
            online.predict_and_learn(inputs, labels, event_time_us=online.now_us + 1, per_example=per_example)

    learn(2, rows=16_000)
    for rounds in range(8):
        was_prepared = online.prepare_capture()
        while not was_prepared and rounds % 2:
            learn(1)
            was_prepared = online.prepare_capture()
        learn(rounds)
        online.expire()
        wanted, captured = online.state_dict(), online.capture()
        learn(2)
        state = captured()
        assert list(state) == list(wanted)
        assert all(state[name].tobytes() == wanted[name].tobytes() for name in wanted)


def test_weights_alone_are_loaded_as_into_a_new_learner():
    """No moments, accumulators or counts of ids that wait are left of what was learned before."""
    policies = {"book": TablePolicy(min_count=3)}
    learner = type("Restored", (Learner,), {"inputs": SPEC, "model": DeepFM(dim=4, hidden=(8,)), "tables": policies})
    trained, new, stream = OnlineLearner(learner), OnlineLearner(learner), Stream(3, books=500)
    for _ in range(5):
        trained.learn(*stream.batch(60)[:2])
    state = trained.state_dict(with_optimizer=False)
    for _ in range(5):
        trained.learn(*stream.batch(60)[:2])
    for online in (trained, new):
        online.load_state_dict(state)
    for _ in range(5):
        batch = stream.batch(60)[:2]
        for online in (trained, new):
            online.learn(*batch, event_time_us=1_000)
    got = trained.state_dict()
    for name, array in new.state_dict().items():
        assert name == "progress" or array.tobytes() == got[name].tobytes(), name


def test_a_copy_of_a_table_that_nobody_takes_needs_no_memory_for_what_changes():
    """Steps between the end of the thread and the checkpoint, as in a long piece of history, are marked, not kept."""
    ids = np.arange(60_000)
    table = EmbeddingTable("book", 31, Adagrad())
    table.admit(ids, 1)
    while not table.prepare_capture():
        pass
    tracemalloc.start()
    for _ in range(200):
        table.admit(ids[:10_000].copy(), 2)
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 1e6  # the rows' numbers would be 16 MB
    wanted = table.export(with_optimizer=True)
    got = table.capture()()
    assert all(wanted[name].tobytes() == got[name].tobytes() for name in wanted)


def test_predicting_changes_nothing():
    online = OnlineLearner(Shelf)
    inputs, labels, _ = Stream(11).batch()
    online.learn(inputs, labels)
    before = online.state_dict()
    online.predict(Stream(12).batch()[0])
    after = online.state_dict()
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_another_seed_gives_other_weights_and_torchs_own_generator_stays():
    torch.manual_seed(5)
    wanted = torch.rand(1)
    torch.manual_seed(5)
    one, other = OnlineLearner(Shelf, seed=0), OnlineLearner(Shelf, seed=1)
    one.learn(*Stream(13).batch()[:2])
    assert torch.rand(1) == wanted
    assert not equal(one, other)


def test_an_id_is_used_once_a_request_however_many_candidates_it_has():
    spec = InputSpec(Categorical("user"), Categorical("item"), Bag("recent", table="item", length=2))
    policies = {"user": TablePolicy(min_count=3), "item": TablePolicy(min_count=2)}
    learner = type("Uses", (Learner,), {"inputs": spec, "model": Logistic(), "tables": policies})
    online = OnlineLearner(learner)
    recent = Lists(np.array([[50, 51]]), np.array([2]))

    def request(*users, starts=None):
        rows = 4 * len(users)
        columns = {"user": np.repeat(users, 4), "item": np.arange(rows), "recent": recent}
        online.learn(spec.assemble(columns, rows), np.eye(1, rows)[0], starts=starts)

    request(7)
    request(7, 8)
    assert len(online.tables["user"]) == 0  # used twice and once
    assert set(online.tables["item"].export()["ids"].tolist()) == {0, 1, 2, 3, 50, 51}
    request(7, 7)  # one request of eight, as far as one can see
    assert online.tables["user"].export()["ids"].tolist() == [7]
    request(8, 8, starts=np.array([0, 4, 8]))
    assert online.tables["user"].export()["ids"].tolist() == [7, 8]


def test_old_rows_expire_by_event_time():
    learner = type(
        "Ageing", (Learner,), {"inputs": SPEC, "model": DeepFM(4), "tables": {"shop": TablePolicy(expire_us=10)}}
    )
    online = OnlineLearner(learner)
    inputs, labels, _ = Stream(14).batch()
    online.learn(inputs, labels, event_time_us=np.arange(256))
    assert online.now_us == 255
    online.now_us = 1_000
    assert online.expire() == 5
    assert len(online.tables["shop"]) == 0


def test_an_empty_batch_does_nothing():
    online = OnlineLearner(Shelf)
    inputs, labels, _ = Stream(15).batch(4)
    assert online.learn(inputs.take(slice(0, 0)), labels[:0]) == 0.0
    assert online.predict(inputs.take(slice(0, 0))).shape == (0,)
    assert online.steps == 0


def test_inputs_and_labels_that_do_not_fit_are_refused():
    online = OnlineLearner(Shelf)
    inputs, labels, _ = Stream(16).batch(4)
    with pytest.raises(SchemaError, match=r"labels \(3,\)"):
        online.learn(inputs, labels[:3])
    with pytest.raises(SchemaError, match="weights"):
        online.learn(inputs, labels, weights=np.ones(5))
    other = InputSpec(Categorical("a"), Dense("b")).assemble({"a": np.zeros(2, int), "b": np.zeros(2)}, 2)
    with pytest.raises(SchemaError, match=SPEC.fingerprint):
        online.predict(other)


def test_states_of_other_learners_are_refused():
    online = OnlineLearner(Shelf)
    arrays = online.state_dict()
    wide = type("Wide", (Learner,), {"inputs": SPEC, "model": DeepFM(dim=5)})
    with pytest.raises(SnapshotError, match="dense arrays differ"):
        OnlineLearner(wide).load_state_dict(arrays)
    with pytest.raises(SnapshotError, match="dense optimizer"):
        online.load_state_dict({**arrays, "optimizer.dense": np.zeros((1, 3), np.float32)})
    with pytest.raises(SnapshotError, match="no arrays of table 'book'"):
        online.load_state_dict({name: array for name, array in arrays.items() if "book" not in name})


def test_declarations():
    assert Shelf.name == "shelf"
    assert type("NextBookToRead", (Learner,), {"inputs": SPEC, "model": DeepFM()}).name == "next_book_to_read"
    with pytest.raises(DeclarationError, match="no model"):
        type("Bare", (Learner,), {"inputs": SPEC})
    with pytest.raises(DeclarationError, match="inputs use book, shop"):
        type("Lost", (Learner,), {"inputs": SPEC, "model": DeepFM(), "tables": {"boks": TablePolicy()}})
    spec = InputSpec(Dense("x", "reader.reads"))
    with pytest.raises(DeclarationError, match=r"column 'reader.reads': no such feature"):
        type("Viewless", (Learner,), {"inputs": spec, "model": DeepFM()})


@pytest.mark.parametrize("policies", [{}, {"book": TablePolicy(min_count=3)}, {"book": TablePolicy(rows_max=90)}])
@pytest.mark.parametrize("model", [Logistic(), DeepFM(dim=3, hidden=()), DeepFM(dim=3, hidden=(8,)), Dropping(dim=3)])
def test_predict_and_learn_is_predict_then_learn_bit_for_bit(model, policies):
    """With new ids in fields and bags, rows that wait and rows that are evicted; 1,500 books make tables grow."""
    learner = type("Paired", (Learner,), {"inputs": SPEC, "model": model, "tables": policies})
    together, apart = OnlineLearner(learner, seed=5), OnlineLearner(learner, seed=5)
    stream, rng = Stream(3, books=1_500), np.random.default_rng(3)
    for step, rows in enumerate([1, 16, 700, 0, 33, 900, 16, 400]):
        inputs, labels, _ = stream.batch(rows)
        given = (labels, rng.uniform(0.5, 2, rows), rng.normal(0, 0.3, rows), step)
        predictions, loss = together.predict_and_learn(inputs, *given)
        wanted = apart.predict(inputs, given[2])
        assert predictions.tobytes() == wanted.tobytes()
        assert loss == apart.learn(inputs, *given)
    assert equal(together, apart)
    assert len(together.tables["book"]) > 60


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize(("label", "rows"), [(0, 1), (0, 500), (1, 1), (1, 500)])
def test_a_first_batch_of_one_class_leaves_the_other_possible(label, rows, per_example):
    """About as probable as half an example among `rows`; without any prior it had the probability 0."""
    online = OnlineLearner(type("First", (Learner,), {"inputs": SPEC, "model": Logistic()}))
    inputs, _, _ = Stream(9).batch(rows)
    online.predict_and_learn(inputs, np.full(rows, label), per_example=per_example)
    other = np.abs(online.predict(Stream(10).batch(50)[0]) - label)
    assert other.min() > 0.02 / rows
    assert other.max() < 0.6
