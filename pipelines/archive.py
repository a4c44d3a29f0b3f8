"""Impressions and engagements become Parquet files by event day, each event in exactly one.

Run it: `headrace run pipelines.archive`. The folder is a source for `headrace backfill`, `verify` and replays.
"""

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from headrace.pipelines import Archiver
from headrace.pipelines.on_bytewax import consume, events_in
from headrace.pipelines.wiring import intake_of, kafka_source, status_of
from headrace.settings import load_settings
from schemas.retail import Engagement, Impression

EVENTS = (Impression, Engagement)
settings = load_settings()
flow = Dataflow("archive")
events = op.input("events", flow, events_in(kafka_source(settings, EVENTS), EVENTS, **intake_of(settings)))
consume(
    "archive",
    events,
    make=lambda _group, _groups: Archiver(settings.archive_dir, flush_s=settings.archive_flush_s),
    spread=False,
    on_status=status_of(settings, "archive"),
)
