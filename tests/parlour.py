"""A small domain of several labels: cakes that were shown to guests, who tasted, bought, or sent some away.

shows     s1    s2    s3 ...         each with four cakes
tastes      x        x               within 10 s
bills            12.5                within 60 s, with an amount
returns        x                     within 30 s; none says nothing
"""

from datetime import datetime
from functools import cache

import numpy as np
import polars as pl

from headrace import Categorical, InputSpec, Label, Learner, Logistic, col
from headrace.learners import LogLoss, SharedBottom, SquaredError
from headrace.pipelines import EventBatch, Joiner, JoinSpec
from headrace.pipelines.examples import RequestColumns
from headrace.pipelines.train_step import TrainStep
from headrace.pipelines.trainer import Cadence, Trainer
from headrace.schemas import Event, spec_of
from tests.tiers import by_tier

START_US = 1_700_000_000_000_000
SHOWS = by_tier(fast=100, whole=150)
LATENESS_US = 20_000_000


class Show(Event, topic="shows", key="guest", time="at", id="show_id"):
    show_id: str
    at: datetime
    guest: int
    cakes: list[int]
    features: bytes


class Taste(Event, topic="tastes", key="guest", time="at", id="taste_id"):
    taste_id: str
    at: datetime
    guest: int
    cake: int


class Bill(Event, topic="bills", key="guest", time="at", id="bill_id"):
    bill_id: str
    at: datetime
    guest: int
    cake: int
    amount: float


class Return(Event, topic="returns", key="guest", time="at", id="return_id"):
    return_id: str
    at: datetime
    guest: int
    cake: int


class Cakes(Learner):
    label = {  # noqa: RUF012 - a declaration
        "taste": Label(Taste, "10s", candidate="cake"),
        "bill": Label(Bill, "60s", candidate="cake", value=col("amount")),
        "sent": Label(Return, "30s", candidate="cake", absent="unknown"),
    }
    inputs = InputSpec(Categorical("cake"), Categorical("guest"))
    model = SharedBottom(losses=(LogLoss(), SquaredError(), LogLoss()), rank_by=(1, 0.1, -1), dim=4, hidden=(8,))


class Tasted(Learner):
    label = Label(Taste, "60s", candidate="cake")
    inputs = Cakes.inputs
    model = Logistic()


ENGAGEMENTS = {Taste: "taste_id", Bill: "bill_id", Return: "return_id"}


@cache
def events() -> dict[type[Event], pl.DataFrame]:
    """All events by class, in the order of time; a twentieth of the engagements labels nothing."""
    rng = np.random.default_rng(3)
    rows: dict[type[Event], list[dict]] = {Show: [], Taste: [], Bill: [], Return: []}
    for number in range(SHOWS):
        at, guest = START_US + number * 4_000_000, int(rng.integers(0, 9))
        cakes = rng.choice(20, 4, replace=False).tolist()
        inputs = Cakes.inputs.assemble({"cake": np.array(cakes), "guest": np.full(4, guest)}, 4)
        features = inputs.to_bytes()
        rows[Show].append({"show_id": f"s{number:03d}", "at": at, "guest": guest, "cakes": cakes, "features": features})
        for event, share, reach_s in ((Taste, 0.4, 20), (Bill, 0.3, 90), (Return, 0.2, 45)):
            for cake in cakes:
                if rng.random() < share:
                    delay_us = int(rng.uniform(0, reach_s) * 1e6)
                    row = {"at": at + delay_us, "guest": guest, "cake": cake, ENGAGEMENTS[event]: ""}
                    rows[event].append(row | ({"amount": float(rng.integers(1, 9))} if event is Bill else {}))
    for event, name in ENGAGEMENTS.items():
        rows[event].sort(key=lambda row: row["at"])
        for number, row in enumerate(rows[event]):
            row[name] = f"{name[0]}{number:04d}"
    types = {event: spec_of(event).polars for event in rows}
    return {event: pl.DataFrame(listed).select(*types[event]).cast(types[event]) for event, listed in rows.items()}


def naive(name: str) -> list[list[float | None]]:
    """Labels of each show by the definition: the first event of guest and cake within the window, else what is said."""
    label = Cakes.label[name]
    following = events()[label.event].with_columns(us=pl.col("at").dt.epoch("us")).sort("us").to_dicts()
    labels = []
    for show in events()[Show].with_columns(us=pl.col("at").dt.epoch("us")).iter_rows(named=True):
        row = []
        for cake in show["cakes"]:
            first = next(
                (
                    event
                    for event in following
                    if (event["guest"], event["cake"]) == (show["guest"], cake)
                    and show["us"] <= event["us"] < show["us"] + label.within_us
                ),
                None,
            )
            absent = None if label.absent == "unknown" else 0.0
            row.append(absent if first is None else first.get("amount", 1.0))
        labels.append(row)
    return labels


def make(learner=Cakes, state=None, **options) -> TrainStep:
    """A step that learns from requests alone."""
    trainer = Trainer(
        learner, cadence=Cadence(rows_min=24, publish_s=None), columns=RequestColumns(time="at", scores=None), **options
    )
    spec = JoinSpec.of_learner(learner, Show, "cakes", lateness_us=LATENESS_US)
    return TrainStep(trainer, Joiner(spec), [], state=state, idle_s=1e9)


def batches(step_s: float, classes=None) -> list[list[EventBatch]]:
    """Events in pieces of `step_s` seconds of event time, each within its class's lateness of the others."""
    last_us = max(int(frame["at"].dt.epoch("us").max()) for frame in events().values())
    pieces, offsets = [], dict.fromkeys(events(), 0)
    edges = [*np.arange(START_US, last_us, step_s * 1e6), last_us + 1]
    for edge in edges:
        piece = []
        for event, frame in events().items():
            if classes is not None and event not in classes:
                continue
            rows = frame[offsets[event] :].filter(pl.col("at").dt.epoch("us") < edge)
            first, offsets[event] = offsets[event], offsets[event] + rows.height
            if rows.height:
                numbers, topic = np.arange(first, offsets[event]), spec_of(event).topic
                piece.append(EventBatch(event, f"{topic}/0", numbers, offsets[event], rows, None, 0))
        pieces.append((piece, int(edge)))
    return pieces


def live(step: TrainStep, step_s: float) -> TrainStep:
    """Feed all events; the watermark is the end of each piece less the lateness."""
    for piece, edge_us in batches(step_s, (Show, *step.classes)):
        for batch in piece:
            step.add(batch)
        step.advance(edge_us - LATENESS_US)
    return step
