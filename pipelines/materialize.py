"""Keep the views' records in Redis up to date with engagements. Run it: `headrace run pipelines.materialize`."""

from features.customer import CustomerActivity
from features.item import ItemActivity
from headrace.pipelines import Flow, dataflow
from headrace.pipelines.flow import materialize
from headrace.pipelines.wiring import intake_of, kafka_source, open_store, status_of
from headrace.settings import load_settings
from schemas.retail import Engagement

EVENTS = (Engagement,)


@dataflow
def flow() -> Flow:
    """The flow that keeps both views up to date."""
    settings = load_settings()
    views = materialize(
        [CustomerActivity, ItemActivity],
        lambda: open_store(settings),
        flush_s=(0.05, 1.0),
        records_max=settings.memory_records,
        on_status=status_of(settings, "materialize"),
    )
    return Flow("materialize", kafka_source(settings, EVENTS), EVENTS, [views], **intake_of(settings))
