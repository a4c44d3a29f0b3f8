"""Train `NextItem` on labelled requests and on all other purchases. Run it: `headrace run pipelines.train`."""

from headrace.learners import ModelDirectory
from headrace.pipelines import Flow, Job, Joiner, dataflow
from headrace.pipelines.examples import EventExamples, RequestColumns
from headrace.pipelines.train_step import TrainStep
from headrace.pipelines.trainer import Cadence, Trainer
from headrace.pipelines.wiring import intake_of, kafka_source, status_of
from headrace.settings import Settings, load_settings
from learners.next_item import NextItem
from pipelines.labels import label_spec
from schemas.retail import Engagement, Impression

EVENTS = (Impression, Engagement)
NEGATIVES = 9  # drawn for each purchase that no request showed
SHOWN_NEGATIVES = 99  # negatives per positive in a request, the rate for which drawn ones are corrected
POPULARITY_ROWS = 5_000  # number of recent purchases from whose items negatives are drawn
ROWS_MIN = 640  # rows of a micro-batch; larger ones take fewer steps and learn less from the same examples


def make_step(settings: Settings) -> TrainStep:
    """The trainer with its joiner, for both the live flow and the demo's warm start."""
    trainer = Trainer(
        NextItem,
        ModelDirectory(settings.model_dir, settings.redis_url, keep=settings.models_kept),
        cadence=Cadence(rows_min=ROWS_MIN, publish_s=settings.publish_s),
        events=EventExamples(NextItem, negatives=NEGATIVES, reference=SHOWN_NEGATIVES, capacity=POPULARITY_ROWS),
        columns=RequestColumns(scores="scores", shadow="frozen_scores"),
        threads=settings.torch_threads,
    )
    return TrainStep(trainer, Joiner(label_spec(settings)), [Engagement], state=settings.state_dir / "train")


@dataflow
def flow() -> Flow:
    """The flow that trains, with one step."""
    settings = load_settings()
    train = Job("train", lambda _place: make_step(settings), on_status=status_of(settings, "train"))
    return Flow("train", kafka_source(settings, EVENTS), EVENTS, [train], **intake_of(settings))
