"""Served rankings and what followed, and all other events, train `Ranking`. Run it: `headrace run pipelines.train`."""

from headrace.features.view import events_of, plan_of
from headrace.learners import ModelDirectory
from headrace.pipelines import Flow, Job, Joiner, JoinSpec, JoinSpecs, dataflow
from headrace.pipelines.examples import EventExamples
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


def join_spec(settings: Settings) -> JoinSpec | JoinSpecs:
    """Which event labels which ranking: the one that names its request, within the learner's window."""
    return JoinSpec.of_learner(
        Ranking,
        Impression,
        "candidates",
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


@dataflow
def flow() -> Flow:
    """The training, one step for the whole flow."""
    settings = load_settings()
    train = Job("train", lambda _place: make_step(settings), on_status=status_of(settings, "train"))
    return Flow("train", kafka_source(settings, EVENTS), EVENTS, [train], **intake_of(settings))
