"""Keep events and rankings as Parquet files by day, each once. Run it: `headrace run pipelines.archive`.

The folder is a source for `headrace backfill`, `verify`, `train` and replays.
"""

from features.views import VIEWS
from headrace.features.view import events_of, plan_of
from headrace.pipelines import Archiver, Flow, Job, dataflow
from headrace.pipelines.wiring import intake_of, kafka_source, status_of
from headrace.settings import load_settings
from schemas.events import Impression

EVENTS = (*events_of(map(plan_of, VIEWS)), Impression)


@dataflow
def flow() -> Flow:
    """The flow that archives all events, in one step."""
    settings = load_settings()
    archive = Job(
        "archive",
        lambda _place: Archiver(settings.archive_dir, flush_s=settings.archive_flush_s),
        on_status=status_of(settings, "archive"),
    )
    return Flow("archive", kafka_source(settings, EVENTS), EVENTS, [archive], **intake_of(settings))
