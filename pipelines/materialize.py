"""Engagements become the views' records in Redis. Run it: `headrace run pipelines.materialize`."""

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from features.customer import CustomerActivity
from features.item import ItemActivity
from headrace.pipelines.on_bytewax import events_in, materialize
from headrace.pipelines.wiring import dead_letters, kafka_source, open_store, status_of
from headrace.settings import load_settings
from schemas.retail import Engagement

settings = load_settings()
future_us = int(settings.future_s * 1e6)

flow = Dataflow("materialize")
source = events_in(
    kafka_source(settings, [Engagement]),
    [Engagement],
    dead_letters=dead_letters(settings),
    clock=settings.event_clock,
    future_us=future_us,
)
events = op.input("engagements", flow, source)
materialize(
    "views",
    events,
    [CustomerActivity, ItemActivity],
    lambda: open_store(settings),
    flush_s=(0.05, 1.0),
    on_status=status_of(settings, "materialize"),
)
