"""Train `Ranking` on served rankings with their labels and on all other events. Run: `headrace run pipelines.train`."""

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
"""Number of negatives drawn, by popularity, for each action that no ranking showed."""
LEARNT = tuple(dict.fromkeys((*events_of(map(plan_of, Ranking.views)), Ranking.label.event)))
EVENTS = (*LEARNT, Impression)


def join_spec(settings: Settings) -> JoinSpec | JoinSpecs:
    """The join of rankings with events: an event labels the ranking with its `request_id`, in the learner's window."""
    return JoinSpec.of_learner(
        Ranking,
        Impression,
        "candidates",
        lateness_us=int(settings.lateness_s * 1e6),
        request_entity=("request_id",),
        engagement_entity=("request_id",),
    )


def make_step(settings: Settings) -> TrainStep:
    """The trainer with its joiner; its state is saved in HEADRACE_STATE_DIR."""
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
    """The flow that trains, with one step."""
    settings = load_settings()
    train = Job("train", lambda _place: make_step(settings), on_status=status_of(settings, "train"))
    return Flow("train", kafka_source(settings, EVENTS), EVENTS, [train], **intake_of(settings))
