"""Archive impressions and engagements as Parquet files by event day, each event in exactly one file.

Run it: `headrace run pipelines.archive`. The folder is a source for `headrace backfill`, `verify` and replays.
"""

from headrace.pipelines import Archiver, Flow, Job, dataflow
from headrace.pipelines.wiring import intake_of, kafka_source, status_of
from headrace.settings import load_settings
from schemas.retail import Engagement, Impression

EVENTS = (Impression, Engagement)


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
