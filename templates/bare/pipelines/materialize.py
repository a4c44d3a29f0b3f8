"""Keep the views' records in Redis up to date with events. Run it: `headrace run pipelines.materialize`."""

from features.views import VIEWS
from headrace.features.view import events_of, plan_of
from headrace.pipelines import Flow, dataflow
from headrace.pipelines.flow import materialize
from headrace.pipelines.wiring import intake_of, kafka_source, open_store, status_of
from headrace.settings import load_settings

EVENTS = events_of(map(plan_of, VIEWS))


@dataflow
def flow() -> Flow:
    """The flow that keeps all views up to date."""
    settings = load_settings()
    views = materialize(VIEWS, lambda: open_store(settings), on_status=status_of(settings, "materialize"))
    return Flow("materialize", kafka_source(settings, EVENTS), EVENTS, [views], **intake_of(settings))
