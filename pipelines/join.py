"""Join served impressions with the engagements that follow to labelled requests, as Parquet files in the state folder.

Run it: `headrace run pipelines.join`. The files are for analysis; `pipelines.train` does its own join.
"""

from headrace.pipelines import Flow, dataflow
from headrace.pipelines.flow import frames_to, join
from headrace.pipelines.wiring import intake_of, kafka_source
from headrace.settings import load_settings
from pipelines.labels import label_spec
from schemas.retail import Engagement, Impression

EVENTS = (Impression, Engagement)


@dataflow
def flow() -> Flow:
    """The flow that joins labels to requests and writes the files."""
    settings = load_settings()
    requests = join(
        label_spec(settings), state=settings.state_dir / "join", out=frames_to(settings.state_dir / "examples")
    )
    return Flow("join", kafka_source(settings, EVENTS), EVENTS, [requests], **intake_of(settings))
