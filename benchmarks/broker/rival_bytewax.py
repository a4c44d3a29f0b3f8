"""Plain Bytewax on its own Kafka connector: fastavro a message, keyed stateful_map, a sink that pipelines to Redis.

State, sink and reading are those of the rival in benchmarks/materialize.
"""

import io
import time
from datetime import UTC, datetime, timedelta

import bytewax.operators as op
import fastavro
from bytewax.connectors.kafka import KafkaSource
from bytewax.dataflow import Dataflow
from bytewax.run import cli_main

from benchmarks.materialize.declaration import Engagement
from benchmarks.materialize.rival_bytewax import BATCH, Redis, update
from headrace.schemas import spec_of

_SCHEMA = fastavro.parse_schema(spec_of(Engagement).avro)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def decode(message):
    event = fastavro.schemaless_reader(io.BytesIO(message.value), _SCHEMA)
    event["event_time"] = (event["event_time"] - _EPOCH) // timedelta(microseconds=1)
    return event


def run_backlog(bootstrap: str, topic: str, url: str, namespace: str) -> float:
    """Seconds from an empty store to every user of what the topic holds now written."""
    flow = Dataflow("rival")
    messages = op.input("in", flow, KafkaSource([bootstrap], [topic], tail=False, batch_size=BATCH))
    events = op.map("decode", messages, decode)
    keyed = op.key_on("user", events, lambda event: str(event["user_id"]))
    op.output("out", op.stateful_map("update", keyed, update), Redis(url, namespace))
    started_s = time.perf_counter()
    cli_main(flow)
    return time.perf_counter() - started_s
