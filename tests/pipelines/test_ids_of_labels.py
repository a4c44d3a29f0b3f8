"""Ids of requests and engagements: whole numbers as well as texts, and one id that arrives with several times."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest

from headrace import Event
from headrace.learners import Categorical, InputSpec, Label, Learner, Logistic
from headrace.pipelines.examples import EventExamples, RequestColumns
from headrace.pipelines.joiner import Joiner
from headrace.pipelines.joining.spec import JoinSpec
from headrace.pipelines.train_step import TrainStep
from headrace.pipelines.trainer import Cadence, Trainer
from headrace.schemas import spec_of
from headrace.streams.watermark import END_OF_TIME_US
from tests.turnstiles import as_batch

START_S = 1_700_000_000
WITHIN_S = 160


class Menu(Event, topic="menus", key="guest", time="at", id="menu_id"):
    """Dishes shown to a guest."""

    menu_id: int
    at: datetime
    guest: int
    dishes: list[int]
    features: bytes
    scores: list[float]


class Order(Event, topic="orders", key="guest", time="at", id="order_id"):
    """A guest ordered a dish."""

    order_id: int
    at: datetime
    guest: int
    dish: int


class NextDish(Learner):
    inputs = InputSpec(Categorical("dish"), Categorical("guest"))
    label = Label(Order, f"{WITHIN_S}s", candidate="dish")
    model = Logistic()


class Told(NextDish):
    label = Label(Order, f"{WITHIN_S}s", candidate="dish", absent="unknown")
    name = "told"


def at(second: float) -> datetime:
    return datetime.fromtimestamp(START_S + second, UTC)


def menus(*rows: tuple[int, float, tuple[int, ...]]):
    """Menus (id, second, dishes) of guest 1, as one batch."""
    shown = [
        {
            "menu_id": number,
            "at": at(second),
            "guest": 1,
            "dishes": list(dishes),
            "features": NextDish.inputs.assemble({"dish": np.array(dishes), "guest": np.array([1])}, len(dishes)),
            "scores": [0.5] * len(dishes),
        }
        for number, second, dishes in rows
    ]
    packed = [{**row, "features": row["features"].to_bytes()} for row in shown]
    return as_batch(Menu, pl.DataFrame(packed, schema=spec_of(Menu).polars), 0)


def orders(*rows: tuple[int, float, int]):
    """Orders (id, second, dish) of guest 1, as one batch."""
    made = [{"order_id": number, "at": at(second), "guest": 1, "dish": dish} for number, second, dish in rows]
    return as_batch(Order, pl.DataFrame(made, schema=spec_of(Order).polars), 0)


@pytest.mark.parametrize(("learner", "shown"), [(NextDish, 3 + 1), (Told, 1)])
def test_an_order_with_a_whole_number_as_id_is_learned_once(learner, shown):
    """Order 7 is an example of menu 1 only; order 8 labels no menu, and is an example with a drawn negative."""
    events = EventExamples(learner, negatives=1)
    trainer = Trainer(learner, cadence=Cadence(publish_s=None), events=events, columns=RequestColumns(time="at"))
    step = TrainStep(trainer, Joiner(JoinSpec.of_learner(learner, Menu, "dishes")), [Order])
    step.add(menus((1, 0, (3, 4, 5)), (2, 300, (4,))))
    step.add(orders((7, 10, 4), (8, 250, 6)))
    step.advance(END_OF_TIME_US)
    trainer.drain()
    assert trainer.trained == shown + 2
    assert trainer.served.snapshot()["rows"] == shown


@pytest.mark.parametrize("seconds", [[], [120, 200, 330], [171, 340]])
def test_which_copy_of_an_id_counts_does_not_depend_on_the_steps_of_the_watermark(seconds):
    """
    second   0       50     100     150        of order 7 a copy of another time, and of menu 1 too
             menu 1  7      menu 2  7 again
    """
    joiner = Joiner(JoinSpec.of_learner(NextDish, Menu, "dishes"))
    joiner.add(menus((1, 0, (3,)), (2, 100, (3,)), (1, 101, (3, 4)), (1, 104, (4,))))
    joiner.add(orders((7, 50, 3), (7, 250, 3), (7, 50, 4), (7, 251, 3)))
    frames = [joiner.advance((START_S + second) * 1_000_000) for second in seconds]
    whole = pl.concat([frame for frame in [*frames, joiner.advance(END_OF_TIME_US)] if frame is not None])
    assert whole.select("menu_id", "labels").rows() == [(1, [1]), (2, [1]), (1, [1, 0])]
    assert whole["label_times"].list.first().to_list() == [at(50), at(250), at(250)]
    assert joiner.counts["duplicate_requests"] == 1
    assert joiner.counts["duplicate_engagements"] == 2


def test_of_copies_with_equal_times_the_one_that_counts_does_not_depend_on_their_order():
    found = []
    for copies in ([(7, 50, 4), (7, 50, 3)], [(7, 50, 3), (7, 50, 4)]):
        joiner = Joiner(JoinSpec.of_learner(NextDish, Menu, "dishes"))
        joiner.add(menus((1, 0, (3, 4))))
        joiner.add(orders(*copies))
        found.append(joiner.advance(END_OF_TIME_US)["labels"].to_list())
    assert found == [[[1, 0]], [[1, 0]]]
