"""Quix Streams, where it is installed (pip install quixstreams): a stateful function over the topic, a batching sink.

State and reading are those of the rival in benchmarks/materialize; Avro is decoded by Quix's own deserializer.

Better than what its documentation shows: no changelog topic; the sink writes a user once a batch, where Quix's own for
Redis writes every event; and it is handed bytes: a batch of decoded states, each some hundred objects, made the whole
take 2.3 times as long, most of it in the garbage collector. States are pickled, as their integer keys would not come
back from JSON, Quix's default.
"""
# ruff: noqa: D101, D102

import pickle
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import redis
from quixstreams import Application
from quixstreams.models.serializers.avro import AvroDeserializer
from quixstreams.sinks import BatchingSink
from quixstreams.state.rocksdb import RocksDBOptions

from benchmarks.materialize.declaration import Engagement
from benchmarks.materialize.rival_bytewax import BATCH, update
from headrace.schemas import spec_of

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Redis(BatchingSink):
    def __init__(self, url: str, namespace: str):
        super().__init__()
        self.url, self.namespace, self.written_s = url, namespace, 0.0

    def setup(self):
        self.client = redis.Redis.from_url(self.url)

    def write(self, batch):
        with self.client.pipeline(transaction=False) as pipeline:
            for user, raw in {item.key: item.value for item in batch}.items():
                pipeline.set(f"{self.namespace}:{user}", raw)
            pipeline.execute()
        self.written_s = time.perf_counter()


def step(event, state):
    """One event into the state that Quix keeps for the key of its message; its bytes go on to the sink."""
    event["event_time"] = (event["event_time"] - _EPOCH) // timedelta(microseconds=1)
    held, _ = update(state.get("user"), event)
    state.set("user", held)
    return orjson.dumps(held, option=orjson.OPT_NON_STR_KEYS)


def run_backlog(bootstrap: str, topic: str, url: str, namespace: str, events: int, folder: Path) -> float:
    """Seconds from the first of `events` messages to the last user written: joining a group takes far longer here."""
    seen_s: list[float] = []

    def first(*_: object) -> None:
        if not seen_s:
            seen_s.append(time.perf_counter())

    app = Application(
        bootstrap,
        consumer_group="rival",
        auto_offset_reset="earliest",
        commit_every=BATCH,
        state_dir=folder / "quix",
        rocksdb_options=RocksDBOptions(dumps=pickle.dumps, loads=pickle.loads),
        use_changelog_topics=False,
        on_message_processed=first,
        loglevel="WARNING",
    )
    messages = app.topic(topic, key_deserializer="str", value_deserializer=AvroDeserializer(spec_of(Engagement).avro))
    messages.broker_config.extra_config.setdefault("retention.ms", "-1")  # Quix asks for it, the broker does not tell
    sink = Redis(url, namespace)
    app.dataframe(messages).apply(step, stateful=True).sink(sink)
    app.run(count=events, collect=False)
    return sink.written_s - seen_s[0]
