from datetime import datetime
from functools import cache

import numpy as np
import polars as pl
import pytest
from prometheus_client import REGISTRY

from headrace.errors import DeclarationError, GateRefusedError, SnapshotError
from headrace.features import Count, FeatureView, LastN
from headrace.learners import (
    Bag,
    Categorical,
    DeepFM,
    Dense,
    Gate,
    InputSpec,
    Label,
    Learner,
    Match,
    ModelDirectory,
    OnlineLearner,
    Scorer,
    Snapshot,
    TablePolicy,
)
from headrace.pipelines.examples import EventExamples, RequestColumns, requests_to_examples
from headrace.pipelines.trainer import Cadence, Trainer
from headrace.schemas import Event
from tests import shelves
from tests.tiers import by_tier

START_US = 1_700_000_000_000_000


class Loan(Event, topic="loans", key="reader", time="at", id="loan_id"):
    loan_id: str
    at: datetime
    reader: int
    book: int
    renewed: bool


class ReaderLoans(FeatureView, source=Loan, entity="reader"):
    recent = LastN("book", n=5)
    loans = Count(windows="1h")


class BookLoans(FeatureView, source=Loan, entity="book"):
    loans = Count(windows="1h")


class NextLoan(Learner):
    views = (ReaderLoans, BookLoans)
    label = Label(Loan, within="10m", candidate="book", positive=~pl.col("renewed"))
    inputs = InputSpec(
        Categorical("book"),
        Bag("recent", "reader_loans.recent", table="book", length=5, candidate="book"),
        Dense("reader_loans", "reader_loans.loans_1h", transform="log1p"),
        Dense("book_loans", "book_loans.loans_1h", transform="log1p"),
        Dense("reader_age", "reader_loans._age_s", transform="log1p"),
        Match("again", candidate="book", column="reader_loans.recent", kind="count"),
    )
    model = DeepFM(dim=4, hidden=(8,), attention=True)
    tables = {"book": TablePolicy(min_count=2)}  # noqa: RUF012


@cache
def loans(rows=600):
    """Readers borrow near what they borrowed before; a tenth are renewals."""
    rng = np.random.default_rng(3)
    reader = rng.integers(0, 20, rows)
    return pl.DataFrame(
        {
            "loan_id": [f"l{i}" for i in range(rows)],
            "at": pl.Series(START_US + np.cumsum(rng.integers(1, 5_000_000, rows))).cast(pl.Datetime("us", "UTC")),
            "reader": reader,
            "book": reader * 2 + rng.integers(0, 3, rows),
            "renewed": rng.random(rows) < 0.1,
        }
    )


def trainer(**extra):
    cadence = Cadence(rows_min=128, wait_s=None, publish_s=None)
    events = EventExamples(NextLoan, negatives=4, capacity=200)
    return Trainer(NextLoan, **{"cadence": cadence, "events": events, **extra})


def feed(to, cuts, rows=600):
    for start, end in zip([0, *cuts], [*cuts, rows], strict=True):
        to.add_events({Loan: loans()[start:end]}, {"loans/0": end})
        to.poll()


def weights(of):
    return {name: array.tobytes() for name, array in of.online.state_dict().items()}


def test_event_examples_are_as_of_reads_of_a_positive_and_its_negatives():
    made = EventExamples(NextLoan, negatives=3)
    first, second = made.add({Loan: loans()[:100]}), made.add({Loan: loans()[100:300]})
    kept = loans().filter(~pl.col("renewed"))
    assert first.labels.sum() == kept.filter(pl.col("loan_id").is_in(loans()["loan_id"][:100].to_list())).height
    assert len(first.inputs) == len(first) == first.starts[-1]
    positives = second.inputs.take(second.starts[:-1])
    at = loans().with_row_index().filter(~pl.col("renewed"), pl.col("index").is_between(100, 299))
    np.testing.assert_array_equal(positives.ids[:, 0], at["book"])
    np.testing.assert_array_equal(second.time_us[second.starts[:-1]], at["at"].dt.epoch("us"))
    for row, (index, reader) in enumerate(at.select("index", "reader").iter_rows()):
        before = loans()[:index].filter(pl.col("reader") == reader)["book"].to_list()[::-1][:5]
        bag = positives.bags[0][row]
        assert bag[: len(before)].tolist() == before
        hits = before.count(int(positives.ids[row, 0]))
        assert positives.dense[row, 3] == hits
    negatives = np.setdiff1d(np.arange(len(second)), second.starts[:-1])
    group = np.searchsorted(second.starts, negatives, side="right") - 1
    assert (second.inputs.ids[negatives, 0] != positives.ids[group, 0]).all()
    assert set(second.inputs.ids[:, 0]) <= set(loans()["book"])


def test_frames_without_a_positive_give_no_example():
    made = EventExamples(NextLoan)
    assert made.add({}) is None
    assert made.add({Loan: loans().filter(pl.col("renewed"))}) is None
    assert made.add({Loan: loans()[:0]}) is None


def test_an_event_that_positive_has_no_value_for_gives_no_example_and_is_counted():
    def skipped():
        return REGISTRY.get_sample_value("headrace_requests_skipped_total", {"reason": "failed_label"}) or 0

    strict = Label(Loan, within="10m", candidate="book", positive=pl.col("renewed").replace_strict({False: True}))
    body = {name: vars(NextLoan)[name] for name in ("views", "inputs", "model", "tables")}
    made, before = EventExamples(type("Strict", (Learner,), {**body, "label": strict})), skipped()
    found, expected = made.add({Loan: loans()}), EventExamples(NextLoan).add({Loan: loans()})
    np.testing.assert_array_equal(found.time_us, expected.time_us)
    np.testing.assert_array_equal(found.inputs.ids, expected.inputs.ids)
    assert skipped() - before == loans()["renewed"].sum()


@pytest.mark.parametrize("cuts", [[], [1, 2, 3, 50], list(range(7, 600, 13))])
def test_weights_do_not_depend_on_how_the_stream_is_cut(cuts):
    whole, cut = trainer(), trainer()
    feed(whole, [300])
    feed(cut, cuts)
    assert whole.trained == cut.trained > 1_000
    assert weights(whole) == weights(cut)


def test_learning_per_example_does_not_depend_on_micro_batches():
    """Examples in order of events, each predicted with the weights after the one before it, whatever `rows_min` is."""
    small, large = (trainer(cadence=Cadence(rows_min=rows, publish_s=None, per_example=True)) for rows in (5, 128))
    rows = by_tier(fast=100, whole=600)  # an example is a step, of 4 ms
    feed(small, [rows // 2], rows)
    feed(large, [40, 41, rows - 45], rows)
    for each in (small, large):
        each.drain()
    assert small.online.steps == small.trained == large.trained
    assert weights(small) == weights(large)


@pytest.mark.parametrize("at", [20, 250, 601])
def test_a_resumed_run_ends_bitwise_equal(at, tmp_path):
    cuts = list(range(10, 600, 10))
    whole, first, second = trainer(), trainer(), trainer(seed=5)
    feed(whole, cuts)
    for start, end in zip([0, *cuts], [*cuts, 600], strict=True):
        if start < at:
            first.add_events({Loan: loans()[start:end]}, {"loans/0": end})
            first.poll()
    first.save(tmp_path)
    assert second.load(tmp_path)
    resumed = second.positions["loans/0"]
    assert resumed >= min(at, 600)
    for start in range(resumed, 600, 30):
        second.add_events({Loan: loans()[start : start + 30]}, {"loans/0": min(start + 30, 600)})
        second.poll()
    for each in (whole, second):
        each.drain()
    assert whole.trained == second.trained
    assert weights(whole) == weights(second)
    assert whole.prequential.snapshot(exact=True)["auc"] == second.prequential.snapshot(exact=True)["auc"]
    assert second.trained_positions == {"loans/0": 600}


def test_checkpoints_are_atomic_and_two_are_kept(tmp_path):
    one = trainer()
    assert not one.load(tmp_path)
    assert not one.load(tmp_path / "none")
    for _ in range(3):
        feed(one, [])
        one.save(tmp_path)
    (tmp_path / ".c00000004").mkdir()  # a save that died
    assert sorted(path.name for path in tmp_path.glob("c*")) == ["c00000002", "c00000003"]
    other = trainer()
    assert other.load(tmp_path)
    assert weights(one) == weights(other)
    assert one.save(tmp_path).name == "c00000004"


@pytest.mark.parametrize("name", ["state.safetensors", "events/sampler.safetensors", "learner/model.safetensors"])
def test_a_damaged_checkpoint_is_refused(name, tmp_path):
    one = trainer()
    feed(one, [])
    path = one.save(tmp_path) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(SnapshotError, match=name):
        trainer().load(tmp_path)
    (path.parent.parent / "trainer.json" if "/" in name else path.parent / "trainer.json").unlink()
    with pytest.raises(SnapshotError, match=r"trainer\.json: unreadable"):
        trainer().load(tmp_path)


def requests(count=40, size=10, seed=0):
    """Joined requests as the joiner gives them, features as serving logged them."""
    stream = shelves.Stream(seed)
    rows = []
    for i in range(count):
        inputs, labels, truth = stream.batch(size)
        at = START_US + i * 1_000_000
        rows.append((f"r{i}", at, inputs.to_bytes(), labels.astype(int).tolist(), truth.astype("f4").tolist()))
    schema = {"request_id": pl.String, "event_time": pl.Int64, "features": pl.Binary}
    lists = {"labels": pl.List(pl.Int8), "scores": pl.List(pl.Float64)}
    frame = pl.DataFrame(rows, schema=schema | lists, orient="row")
    return frame.with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))


class Ticks:
    """Time that moves when told."""

    now = 0.0

    def __call__(self):
        return self.now


def shelf_trainer(tmp_path, **extra):
    clock = Ticks()
    cadence = Cadence(rows_min=100, wait_s=1.0, publish_s=2.0, refusals_max=2)
    models = ModelDirectory(tmp_path / "models")
    return Trainer(shelves.Shelf, models, cadence=cadence, monotonic=clock, **extra), clock, models


def test_requests_are_trained_on_as_served_and_their_scores_marked(tmp_path):
    one, _, _ = shelf_trainer(tmp_path)
    frame = requests()
    assert one.add_requests(frame, {"joined/0": 40}) == 400
    one.poll()
    assert one.trained == 400
    assert one.trained_positions == {"joined/0": 40}
    labels = np.concatenate(frame["labels"].to_list())
    served = one.served.snapshot(exact=True)
    assert (served["rows"], served["positives"]) == (400, labels.sum())
    assert served["auc"] > 0.7
    assert one.prequential.snapshot()["slices"]["requests"]["rows"] == 400
    by_hand = OnlineLearner(shelves.Shelf)
    made = requests_to_examples(frame, shelves.Shelf, RequestColumns())
    for start in range(0, 40, 10):
        part = made.groups(start, start + 10)
        by_hand.learn(part.inputs, part.labels, None, part.log_rate, part.time_us, part.starts)
    arrays = by_hand.state_dict()
    assert all(array.tobytes() == arrays[name].tobytes() for name, array in one.online.state_dict().items())


def test_requests_that_cannot_be_used_are_skipped(tmp_path):
    one, _, _ = shelf_trainer(tmp_path)
    frame = requests(4)
    other = InputSpec(Dense("x")).assemble({"x": np.zeros(10)}, 10).to_bytes()
    features = frame["features"].to_list()
    bad = frame.with_columns(pl.Series("features", [features[0], features[1][:-1], other, features[3]]))
    bad = bad.with_columns(pl.Series("labels", [[1] * 10, [0] * 10, [0] * 10, [0] * 3], dtype=pl.List(pl.Int8)))
    assert one.add_requests(bad) == 10
    assert one.add_requests(bad[1:3]) == 0
    assert one.add_requests(bad[:0]) == 0


def test_micro_batches_go_by_rows_or_by_time(tmp_path):
    one, clock, _ = shelf_trainer(tmp_path)
    one.add_requests(requests(12), {"joined/0": 12})
    one.poll()
    assert (one.online.steps, one.trained) == (1, 100)
    assert one.trained_positions == {}
    clock.now = 0.9
    one.poll()
    assert one.online.steps == 1
    clock.now = 1.1
    one.poll()
    assert (one.online.steps, one.trained) == (2, 120)
    assert one.trained_positions == {"joined/0": 12}
    one.add_requests(requests(0), {"joined/0": 13})
    assert one.trained_positions == {"joined/0": 13}


def test_groups_are_never_parted(tmp_path):
    one, _, _ = shelf_trainer(tmp_path)
    sizes = []
    learn = one.online.predict_and_learn
    one.online.predict_and_learn = lambda inputs, *rest, **kwargs: (
        sizes.append(len(inputs)),
        learn(inputs, *rest, **kwargs),
    )[1]
    for i in range(5):
        one.add_requests(requests(3, size=30, seed=i))
        one.poll()
    one.drain()
    assert sizes == [120, 120, 120, 90]


@pytest.mark.parametrize("size", [1, 7, 25])
def test_a_step_in_pieces_gives_the_micro_batches_of_the_whole(tmp_path, size):
    whole, pieces = shelf_trainer(tmp_path / "whole")[0], shelf_trainer(tmp_path / "pieces")[0]
    frame = requests(45)
    whole.add_requests(frame)
    for piece in frame.iter_slices(size):
        pieces.add_requests(piece)
        pieces.train_whole()
    assert pieces._waiting_rows == 50
    for one in (whole, pieces):
        one.drain()
    assert weights(pieces) == weights(whole)
    assert whole.online.steps == pieces.online.steps == 5


def test_versions_are_published_as_time_passes(tmp_path):
    one, clock, models = shelf_trainer(tmp_path)
    assert one.poll() is None
    for step in range(1, 4):
        clock.now = 2.0 * step
        one.add_requests(requests(seed=step), {"joined/0": 40 * step})
        verdict = one.poll()
        assert verdict.passed
        assert verdict.version == models.latest() == step
    manifest = models.manifest(3)
    assert (manifest.parent, manifest.offsets, manifest.steps) == (2, {"joined/0": 120}, 12)
    assert manifest.metrics["rows"] == 1_200
    scorer = Scorer(models.load(3, shelves.Shelf), shelves.Shelf)
    inputs = shelves.Stream(9).batch(20)[0]
    np.testing.assert_array_equal(scorer.score(inputs), one.online.predict(inputs))
    clock.now = 99.0
    assert one.poll() is None  # nothing new was learnt


def test_what_the_gate_refuses_is_not_published_and_stops_at_last(tmp_path):
    one, clock, models = shelf_trainer(tmp_path, gate=Gate(window=200))
    one.add_requests(requests())
    one.poll()
    assert one.publish().passed
    one.online.tables["book"].weights[:] = np.nan
    one.add_requests(requests(seed=1))
    clock.now = 3.0
    verdict = one.poll()
    assert not verdict.passed
    assert models.versions() == [1]
    assert one.live.version == 1
    with pytest.raises(GateRefusedError, match="2 models in a row"):
        one.publish()
    assert [path.name for path in models.path.iterdir()] == ["v00000001"]


def test_a_new_trainer_compares_with_what_is_live(tmp_path):
    one, _, models = shelf_trainer(tmp_path)
    one.add_requests(requests())
    one.poll()
    one.publish()
    other, _, _ = shelf_trainer(tmp_path)
    other.add_requests(requests(seed=2))
    other.poll()
    other.publish()
    assert models.manifest(2).parent == 1
    changed = type("Shelf", (Learner,), {"inputs": shelves.SPEC, "model": DeepFM(dim=5)})
    third = Trainer(changed, models, cadence=Cadence(rows_min=100))
    third.add_requests(requests(seed=3))
    third.poll()
    assert third.publish().passed
    assert models.manifest(3).parent == 0


def test_a_trainer_compares_with_a_rollback_that_was_published_meanwhile(tmp_path):
    """1, 2, back to 1 as 3: the next is 4, whose parent is 3 | a damaged 5 comes: 6 is compared with 4, as before."""
    one, _, models = shelf_trainer(tmp_path)
    for seed in range(2):
        one.add_requests(requests(seed=seed))
        one.train_whole()
        assert one.publish().passed
    assert models.rollback(1) == 3
    one.add_requests(requests(seed=3))
    one.train_whole()
    assert one.publish().passed
    assert models.manifest(4).parent == 3
    models.folder(5).mkdir()
    assert one.publish().passed
    assert models.manifest(6).parent == 4


class Overtaken(Gate):
    """A gate during whose check another process publishes."""

    def check(self, candidate, live=None, recent=None):
        verdict = super().check(candidate, live, recent)
        self.overtake()
        return verdict


def test_a_rollback_during_the_gate_does_not_end_the_training(tmp_path):
    """Another trainer of the same folder does."""
    one, clock, models = shelf_trainer(tmp_path, gate=(gate := Overtaken(window=200)))
    gate.overtake = lambda: None
    for seed in range(2):
        one.add_requests(requests(seed=seed))
        one.poll()
        assert one.publish().passed
    other = ModelDirectory(models.path)
    gate.overtake = lambda: other.rollback(1)
    one.add_requests(requests(seed=2))
    clock.now = 3.0
    verdict = one.poll()
    assert (verdict.passed, verdict.reasons) == (False, ("version 3 is a rollback, published meanwhile",))
    gate.overtake = lambda: None
    assert one.publish().passed
    assert models.versions() == [1, 2, 3, 4]
    assert models.manifest(4).parent == 3
    gate.overtake = lambda: other.publish(Snapshot.of(one.online))
    one.add_requests(requests(seed=3))
    one.train_whole()
    with pytest.raises(SnapshotError, match="v00000005: exists; another writer"):
        one.publish()
    assert not list(models.path.glob(".v*"))


def test_wrong_wiring_is_refused(tmp_path):
    one = Trainer(shelves.Shelf)
    with pytest.raises(DeclarationError, match="no events="):
        one.add_events({})
    with pytest.raises(DeclarationError, match="no directory"):
        one.publish()
    with pytest.raises(DeclarationError, match="no label"):
        EventExamples(shelves.Shelf)
    with pytest.raises(DeclarationError, match="rows_min"):
        Cadence(rows_min=0)
    spec = InputSpec(Categorical("book"), Dense("place"))
    needs = type(
        "Needs", (Learner,), {"views": (BookLoans,), "inputs": spec, "model": DeepFM(), "label": NextLoan.label}
    )
    with pytest.raises(DeclarationError, match="Loan has no column place"):
        EventExamples(needs)


def renamed(label):
    body = {name: vars(NextLoan)[name] for name in ("views", "inputs", "model", "tables")}
    return type("Labelled", (Learner,), {**body, "label": label})


def test_explicit_negatives_are_groups_of_their_own():
    """No negative is drawn beside them, unless it is asked for; then a positive has its own, and they have none."""
    label = Label(Loan, within="10m", candidate="book", positive=~pl.col("renewed"), negative=pl.col("renewed"))
    plain = EventExamples(renamed(label)).add({Loan: loans()})
    np.testing.assert_array_equal(plain.labels, (~loans()["renewed"]).cast(pl.Float32))
    np.testing.assert_array_equal(plain.starts, np.arange(loans().height + 1))
    assert not plain.log_rate.any()
    mixed = EventExamples(renamed(label), negatives=3).add({Loan: loans()})
    drawn = EventExamples(NextLoan, negatives=3).add({Loan: loans()})
    sizes = np.diff(mixed.starts)
    assert set(sizes[loans()["renewed"].to_numpy()]) == {1}
    np.testing.assert_array_equal(sizes[~loans()["renewed"].to_numpy()], np.diff(drawn.starts))
    assert mixed.labels.sum() == drawn.labels.sum()
    np.testing.assert_array_equal(mixed.log_rate[mixed.log_rate != 0], drawn.log_rate[drawn.log_rate != 0])


def test_numeric_labels_are_values_of_the_events():
    """One that is null or not finite gives no example and is counted."""
    value = pl.when(pl.col("reader") == 3).then(None).otherwise(pl.col("reader") / 2)
    made = EventExamples(renamed(Label(Loan, within="10m", candidate="book", value=value))).add({Loan: loans()})
    np.testing.assert_array_equal(made.labels, loans().filter(pl.col("reader") != 3)["reader"].to_numpy() / 2)


def test_unknown_labels_of_a_request_are_not_learned_from():
    """Its other rows are; of the scores too, only those of known labels are judged."""
    inputs = EventExamples(NextLoan, negatives=3).add({Loan: loans()[:40]}).inputs.take(slice(20, 24))
    frame = pl.DataFrame(
        {
            "event_time": loans()["at"][:2],
            "features": [inputs.to_bytes()] * 2,
            "labels": [[1, None, 0, None], [0, 0, 0, 2]],
            "scores": [[0.5, 0.1, 0.2, 0.3]] * 2,
        }
    )
    made = requests_to_examples(frame, NextLoan, RequestColumns())
    np.testing.assert_array_equal(made.labels, [1, 0])
    np.testing.assert_array_equal(made.inputs.ids, inputs.ids[[0, 2]])
    one = trainer()
    assert one.add_requests(frame[:1]) == 2
    assert one.served.snapshot()["rows"] == 2
    assert one.served.snapshot()["auc"] == 1.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"negative": pl.col("book")}, "negative is Int64, not Boolean"),
        ({"negative": "renewed"}, "negative='renewed'; write an expression"),
        ({"negative": pl.col("sold")}, "negative names 'sold'"),
        ({"value": pl.col("loan_id")}, "value is String; write a number"),
        ({"absent": "maybe"}, "absent"),
    ],
)
def test_a_wrong_label_is_refused(wrong, message):
    with pytest.raises(DeclarationError, match=message):
        Label(Loan, within="10m", candidate="book", **wrong)
