"""Served rankings and what followed, and all other events, train `Ranking`. Run it: `headrace run pipelines.train`."""

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from headrace.features.view import events_of, plan_of
from headrace.learners import ModelDirectory
from headrace.pipelines import Joiner, JoinSpec
from headrace.pipelines.examples import EventExamples
from headrace.pipelines.on_bytewax import consume, events_in
from headrace.pipelines.train_step import TrainStep
from headrace.pipelines.trainer import Cadence, Trainer
from headrace.pipelines.wiring import intake_of, kafka_source, status_of
from headrace.settings import Settings, load_settings
from learners.ranking import Ranking
from schemas.events import Impression

NEGATIVES = 9
"""Candidates drawn, by what is popular, against each one that was acted on."""
LEARNT = tuple(dict.fromkeys((*events_of(map(plan_of, Ranking.views)), Ranking.label.event)))
EVENTS = (*LEARNT, Impression)


def join_spec(settings: Settings) -> JoinSpec:
    """Which event labels which ranking: the one that names its request, within the learner's window."""
    return JoinSpec(
        Impression,
        Ranking.label.event,
        candidates="candidates",
        candidate=Ranking.label.candidate,
        positive=Ranking.label.positive,
        within_us=Ranking.label.within_us,
        lateness_us=int(settings.lateness_s * 1e6),
        request_entity=("request_id",),
        engagement_entity=("request_id",),
    )


def make_step(settings: Settings) -> TrainStep:
    """The trainer with its joiner; what it has learnt is kept in HEADRACE_STATE_DIR."""
    trainer = Trainer(
        Ranking,
        ModelDirectory(settings.model_dir, settings.redis_url, keep=settings.models_kept),
        cadence=Cadence(publish_s=settings.publish_s),
        events=EventExamples(Ranking, negatives=NEGATIVES),
        threads=settings.torch_threads,
    )
    return TrainStep(trainer, Joiner(join_spec(settings)), LEARNT, state=settings.state_dir / "train")


settings = load_settings()
flow = Dataflow("train")
events = op.input("events", flow, events_in(kafka_source(settings, EVENTS), EVENTS, **intake_of(settings)))
consume(
    "train", events, lambda _group, _groups: make_step(settings), spread=False, on_status=status_of(settings, "train")
)
