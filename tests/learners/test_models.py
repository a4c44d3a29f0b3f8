import numpy as np
import pytest
import torch

from headrace.errors import DeclarationError
from headrace.learners import PAD, DeepFM, Inputs, Learner, Logistic, OnlineLearner
from headrace.learners.models import Fields
from tests.shelves import SPEC, Shelf, Stream


def attending(spec_model):
    return type("Attending", (Learner,), {"inputs": SPEC, "model": spec_model})


class Recorder:
    """An optimizer that keeps the gradients and steps nothing."""

    def __init__(self, width):
        self.seen = []

    def initial_state(self, width):
        return np.zeros(1, np.float32)

    def step(self, weights, state, rows, grads):
        self.seen.append((rows.copy(), grads.copy()))


def reference_logits(online, weights, inputs, dense):
    """The same model over one dense embedding matrix a table, read with torch indexing alone."""
    book, shop = weights["book"], weights["shop"]
    index = {name: {int(i): n for n, i in enumerate(ids)} for name, ids in online.reference_ids.items()}
    rows = []
    elements, present = [], []
    for b in range(len(inputs)):
        fields = [book[index["book"][int(inputs.ids[b, 0])]], shop[index["shop"][int(inputs.ids[b, 1])]]]
        bag = [index["book"][int(i)] for i in inputs.bags[0][b] if i != PAD]
        fields.append(book[bag].mean(0) if bag else torch.zeros(book.shape[1], dtype=book.dtype))
        rows.append(torch.stack(fields))
        padded = torch.zeros(inputs.bags[0].shape[1], book.shape[1], dtype=book.dtype)
        if bag:
            padded[: len(bag)] = book[bag]
        elements.append(padded)
        present.append(torch.arange(inputs.bags[0].shape[1]) < len(bag))
    run = torch.arange(len(inputs))
    fields = Fields(
        torch.stack(rows),
        torch.from_numpy(dense).to(book.dtype),
        (torch.stack(elements),),
        (torch.stack(present),),
        (run,),
    )
    return online._module(fields)


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_row_gradients_equal_autograd_through_a_dense_embedding(attention, grouped):
    recorder = Recorder(5)
    learner = attending(DeepFM(dim=4, hidden=(8,), attention=attention, sparse=recorder, optimizer=recorder))
    online = OnlineLearner(learner, seed=3)
    inputs, labels, _ = Stream(1, books=9).batch(24)
    if grouped:  # four candidates a request: equal consecutive bags
        inputs = Inputs(inputs.ids, (np.repeat(inputs.bags[0][::4], 4, axis=0),), inputs.dense, inputs.fingerprint)
    online.learn(*Stream(2, books=9).batch(200)[:2])  # so that numbers have a scale
    before, dense = online.state_dict(), online._numbers.transform(inputs.dense)
    recorder.seen.clear()
    online.learn(inputs, labels)
    by_table = dict(zip(["dense", *online.tables], recorder.seen, strict=True))
    online._module.double().eval()
    online.reference_ids, weights = {}, {}
    for name, table in online.tables.items():
        arrays = table.export()
        online.reference_ids[name] = arrays["ids"]
        weights[name] = torch.tensor(arrays["weights"], dtype=torch.float64, requires_grad=True)
    logits = reference_logits(online, weights, inputs, dense) + float(before["intercept"][0])
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(labels).double(), reduction="sum")
    loss.backward()
    for name, table in online.tables.items():
        rows, grads = by_table[name]
        order = np.argsort(rows)
        wanted = weights[name].grad.numpy()
        at = table.locate(online.reference_ids[name])
        full = np.zeros_like(wanted)
        where = {int(r): n for n, r in enumerate(at)}
        for row, grad in zip(rows[order], grads[order], strict=True):
            full[where[int(row)]] = grad
        np.testing.assert_allclose(full, wanted, rtol=2e-4, atol=2e-6)


def test_the_factorisation_term_is_the_sum_over_pairs():
    learner = attending(DeepFM(dim=4, hidden=()))
    net = learner.model.build(SPEC).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    embedded = torch.randn(6, 3, 5, generator=torch.Generator().manual_seed(0))
    logits = net(Fields(embedded, torch.zeros(6, 6)))
    vectors = embedded[..., :4]
    pairs = sum((vectors[:, i] * vectors[:, j]).sum(1) for i in range(3) for j in range(i))
    torch.testing.assert_close(logits, pairs + embedded[..., 4].sum(1))


def test_attention_prefers_what_is_like_the_candidate():
    net = DeepFM(dim=2, hidden=(), attention=True).build(SPEC).eval()
    keys = torch.tensor([[[8.0, 0, 0], [0, 8.0, 0], [9, 9, 9]]])  # (R, L, W), the last one absent
    present = torch.tensor([[True, True, False]])
    query = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    fields = Fields(torch.zeros(2, 3, 3), torch.zeros(2, 6), (keys,), (present,), (torch.zeros(2, dtype=torch.long),))
    got = net._weigh(0, query, fields)
    torch.testing.assert_close(got, torch.tensor([[8.0, 0.0], [0.0, 8.0]]), atol=1e-4, rtol=0)
    empty = Fields(fields.embedded, fields.dense, (keys,), (torch.zeros(1, 3, dtype=torch.bool),), fields.run)
    assert (net._weigh(0, query, empty) == 0).all()


@pytest.mark.parametrize("model", [DeepFM(dim=4, hidden=(8,)), DeepFM(dim=4, attention=True), Logistic()])
def test_a_rows_score_does_not_depend_on_its_batch(model):
    online = OnlineLearner(attending(model))
    stream = Stream(2)
    for _ in range(5):
        inputs, labels, _ = stream.batch()
        online.learn(inputs, labels)
    inputs, _, _ = stream.batch(50)
    whole = online.predict(inputs)
    single = np.concatenate([online.predict(inputs.take(slice(i, i + 1))) for i in range(50)])
    np.testing.assert_allclose(whole, single, atol=2e-6)


def test_an_unknown_id_reads_as_zeros():
    online = OnlineLearner(Shelf)
    inputs, labels, _ = Stream(3).batch()
    online.learn(inputs, labels)
    strange, missing = inputs.take(slice(0, 1)), inputs.take(slice(0, 1))
    strange = Inputs(np.full_like(strange.ids, 10**12), strange.bags, strange.dense, strange.fingerprint)
    missing = Inputs(np.full_like(missing.ids, PAD), missing.bags, missing.dense, missing.fingerprint)
    assert online.predict(strange) == online.predict(missing)
    assert online.predict(strange) != online.predict(inputs.take(slice(0, 1)))


def test_wrong_widths_are_refused():
    with pytest.raises(DeclarationError, match="at least 1"):
        DeepFM(dim=0)
    with pytest.raises(DeclarationError, match="at least 1"):
        DeepFM(hidden=(8, 0))
