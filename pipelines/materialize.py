"""Engagements become the views' records in Redis. Run it: `headrace run pipelines.materialize`."""

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from features.customer import CustomerActivity
from features.item import ItemActivity
from headrace.pipelines.on_bytewax import events_in, materialize
from headrace.pipelines.wiring import intake_of, kafka_source, open_store, status_of
from headrace.settings import load_settings
from schemas.retail import Engagement

EVENTS = (Engagement,)
settings = load_settings()
flow = Dataflow("materialize")
events = op.input("engagements", flow, events_in(kafka_source(settings, EVENTS), EVENTS, **intake_of(settings)))
materialize(
    "views",
    events,
    [CustomerActivity, ItemActivity],
    lambda: open_store(settings),
    flush_s=(0.05, 1.0),
    records_max=settings.memory_records,
    on_status=status_of(settings, "materialize"),
)
