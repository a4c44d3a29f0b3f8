"""Served impressions and the engagements that followed become labelled requests, as Parquet files in the state folder.

Run it: `headrace run pipelines.join`. The files are for analysts; `pipelines.train` joins by itself.
"""

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from headrace.pipelines.on_bytewax import events_in, join_examples, parquet_out
from headrace.pipelines.wiring import intake_of, kafka_source
from headrace.settings import load_settings
from pipelines.labels import label_spec
from schemas.retail import Engagement, Impression

EVENTS = (Impression, Engagement)
settings = load_settings()
flow = Dataflow("join")
events = op.input("events", flow, events_in(kafka_source(settings, EVENTS), EVENTS, **intake_of(settings)))
requests = join_examples("join", events, label_spec(settings), state=settings.state_dir / "join")
parquet_out("examples", requests, settings.state_dir / "examples")
