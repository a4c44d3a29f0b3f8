"""Served impressions and the engagements that followed become labelled requests, as Parquet files in the state folder.

Run it: `headrace run pipelines.join`. The files are for analysts; `pipelines.train` joins by itself.
"""

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from headrace.pipelines import JoinSpec
from headrace.pipelines.on_bytewax import events_in, join_examples, parquet_out
from headrace.pipelines.wiring import dead_letters, kafka_source
from headrace.settings import load_settings
from learners.next_item import NextItem
from schemas.retail import Engagement, Impression

settings = load_settings()
spec = JoinSpec(
    Impression,
    Engagement,
    candidates="item_ids",
    candidate="item_id",
    positive=NextItem.label.positive,
    within_us=NextItem.label.within_us,
    request_entity=("request_id",),
    engagement_entity=("request_id",),
    lateness_us=int(settings.lateness_s * 1e6),
)

flow = Dataflow("join")
source = events_in(
    kafka_source(settings, [Impression, Engagement]),
    [Impression, Engagement],
    dead_letters=dead_letters(settings),
    clock=settings.event_clock,
    future_us=int(settings.future_s * 1e6),
)
requests = join_examples("join", op.input("events", flow, source), spec, state=settings.state_dir / "join")
parquet_out("examples", requests, settings.state_dir / "examples")
