"""Labelled requests and all other purchases train `NextItem`. Run it: `headrace run pipelines.train`."""

import functools

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from headrace.learners import ModelDirectory
from headrace.pipelines import Joiner, JoinSpec
from headrace.pipelines.examples import EventExamples, RequestColumns
from headrace.pipelines.on_bytewax import consume, events_in
from headrace.pipelines.train_step import TrainStep
from headrace.pipelines.trainer import Cadence, Trainer
from headrace.pipelines.wiring import dead_letters, kafka_source, status_of
from headrace.settings import Settings, load_settings
from learners.next_item import NextItem
from schemas.retail import Engagement, Impression

NEGATIVES = 9  # drawn for a purchase that no request showed
SHOWN_NEGATIVES = 99  # of a request, to whose rate the others are corrected
POPULARITY_ROWS = 5_000  # negatives are drawn from the items of so many purchases before
ROWS_MIN = 640  # of a micro-batch: larger ones take fewer steps and learn less from the same examples


def make_trainer(settings: Settings, directory: ModelDirectory | None) -> Trainer:
    """The trainer of this project, for the live flow and for the warm start alike."""
    events = EventExamples(NextItem, negatives=NEGATIVES, reference=SHOWN_NEGATIVES, capacity=POPULARITY_ROWS)
    columns = RequestColumns(scores="scores", shadow="frozen_scores")
    cadence = Cadence(rows_min=ROWS_MIN, publish_s=settings.publish_s)
    return Trainer(NextItem, directory, cadence=cadence, events=events, columns=columns, threads=settings.torch_threads)


def make_step(settings: Settings) -> TrainStep:
    """The trainer with its joiner, as a step of the flow."""
    spec = JoinSpec(
        Impression,
        Engagement,
        candidates="item_ids",
        candidate="item_id",
        positive=NextItem.label.positive,
        within_us=NextItem.label.within_us,
        request_entity=("request_id",),
        engagement_entity=("request_id",),
        lateness_us=int(settings.lateness_s * 1e6),
    )
    directory = ModelDirectory(settings.model_dir, settings.redis_url, keep=settings.models_kept)
    trainer = make_trainer(settings, directory)
    return TrainStep(trainer, Joiner(spec), [Engagement], state=settings.state_dir / "train")


settings = load_settings()
flow = Dataflow("train")
source = events_in(
    kafka_source(settings, [Impression, Engagement]),
    [Impression, Engagement],
    dead_letters=dead_letters(settings),
    clock=settings.event_clock,
    future_us=int(settings.future_s * 1e6),
)
step = functools.cache(lambda: make_step(settings))  # loads its state once, when the flow starts
consume(
    "train",
    op.input("events", flow, source),
    make=lambda _group, _groups: step(),
    positions=lambda: step().positions(),
    spread=False,
    on_status=status_of(settings, "train"),
)
