"""Events become the views' records in Redis. Run it: `headrace run pipelines.materialize`."""

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from features.views import VIEWS
from headrace.features.view import events_of, plan_of
from headrace.pipelines.on_bytewax import events_in, materialize
from headrace.pipelines.wiring import intake_of, kafka_source, open_store, status_of
from headrace.settings import load_settings

EVENTS = events_of(map(plan_of, VIEWS))
settings = load_settings()
flow = Dataflow("materialize")
events = op.input("events", flow, events_in(kafka_source(settings, EVENTS), EVENTS, **intake_of(settings)))
materialize("views", events, VIEWS, lambda: open_store(settings), on_status=status_of(settings, "materialize"))
