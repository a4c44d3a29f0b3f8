"""The trainer picks the smallest micro-batch that keeps up with the stream, once, and its state records it."""

import orjson

from headrace.pipelines.trainer import MANIFEST, Cadence
from headrace.pipelines.training.cadence import ENOUGH_ROWS, SIZES, START_ROWS
from tests.logs import capture_logs
from tests.pipelines.test_trainer import Loan, loans, trainer, weights

CUTS = list(range(10, 601, 10))


def feed(to, cuts):
    for start, end in zip([0, *cuts], cuts, strict=False):
        if start >= to.positions.get("loans/0", 0):
            to.add_events({Loan: loans()[start:end]}, {"loans/0": end})
            to.poll()


def test_the_smallest_that_keeps_up_is_chosen_said_and_recorded(tmp_path):
    """A loan each few seconds leaves time for the smallest steps. A resumed run ends with equal weights."""
    one, whole = (trainer(cadence=Cadence(publish_s=None)) for _ in range(2))
    assert (one.micro_batch.rows, one.micro_batch.is_chosen) == (START_ROWS, False)
    with capture_logs() as logs:
        feed(one, CUTS[:55])
    [said] = [line for line in logs if line["event"] == "micro_batch_chosen"]
    assert (said["rows"], said["keeps_up"], said["learner"]) == (SIZES[0], True, "next_loan")
    assert one.trained >= ENOUGH_ROWS
    assert (one.micro_batch.rows, one.micro_batch.is_chosen) == (SIZES[0], True)
    folder = one.save(tmp_path)
    assert orjson.loads((folder / MANIFEST).read_bytes())["micro_batch"]["rows"] == SIZES[0]
    resumed = trainer(cadence=Cadence(publish_s=None))
    assert resumed.load(tmp_path)
    assert (resumed.micro_batch.rows, resumed.micro_batch.is_chosen) == (SIZES[0], True)
    for each in (whole, resumed):
        feed(each, CUTS)
        each.drain()
    assert whole.trained == resumed.trained
    assert weights(whole) == weights(resumed)


def test_a_choice_not_made_yet_goes_on_counting(tmp_path):
    first, second, whole = (trainer(cadence=Cadence(publish_s=None)) for _ in range(3))
    feed(first, CUTS[:30])
    first.save(tmp_path)
    assert second.load(tmp_path)
    assert 0 < second.trained < ENOUGH_ROWS
    for each in (second, whole):
        feed(each, CUTS)
        assert each.micro_batch.is_chosen
    assert second.trained == whole.trained
    assert weights(second) == weights(whole)


def test_an_explicit_size_and_a_state_of_an_earlier_release_stay(tmp_path):
    one = trainer()
    feed(one, CUTS)
    assert (one.micro_batch.rows, one.micro_batch.is_chosen) == (128, True)
    one.save(tmp_path)
    older = trainer(cadence=Cadence(publish_s=None))
    older.micro_batch.load(None)
    assert (older.micro_batch.rows, older.micro_batch.is_chosen) == (START_ROWS, True)
    each = trainer(cadence=Cadence(publish_s=None, per_example=True))
    assert each.micro_batch.is_chosen
