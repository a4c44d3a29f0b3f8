"""Plain Bytewax as its documentation shows it: one dict an event, keyed stateful_map, a sink that pipelines to Redis.

The state of a user is the same as ours: tiles of every window and the newest events. To be fair to it, the sink writes
a user once a batch, not once an event.
"""
# ruff: noqa: D101, D102, ARG002

import time
from pathlib import Path

import bytewax.operators as op
import orjson
import polars as pl
import redis
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main

from benchmarks.materialize.declaration import NEWEST_COUNT, SEQUENCE_COUNT, WINDOWS

BATCH = 1_000
SPAN_US = {"10m": 600_000_000, "1h": 3_600_000_000, "24h": 86_400_000_000, "7d": 604_800_000_000}
HOP_US = {"10m": 15_000_000, "1h": 120_000_000, "24h": 3_600_000_000, "7d": 21_600_000_000}


class Rows(StatefulSourcePartition):
    def __init__(self, log: Path):
        frame = pl.read_parquet(log).with_columns(pl.col("event_time").dt.epoch("us"))
        self.parts = frame.iter_slices(BATCH)

    def next_batch(self):
        return next(self.parts).to_dicts()

    def snapshot(self):
        return None


class Log(FixedPartitionedSource):
    def __init__(self, log: Path):
        self.log = log

    def list_parts(self):
        return [self.log.name]

    def build_part(self, step_id, for_part, resume_state):
        return Rows(self.log)


class Writer(StatelessSinkPartition):
    def __init__(self, url: str, namespace: str):
        self.client, self.namespace = redis.Redis.from_url(url), namespace

    def write_batch(self, items):
        with self.client.pipeline(transaction=False) as pipeline:
            for user, state in dict(items).items():
                pipeline.set(f"{self.namespace}:{user}", orjson.dumps(state, option=orjson.OPT_NON_STR_KEYS))
            pipeline.execute()


class Redis(DynamicSink):
    def __init__(self, url: str, namespace: str):
        self.url, self.namespace = url, namespace

    def build(self, step_id, worker_index, worker_count):
        return Writer(self.url, self.namespace)


def update(state, event):
    """One event into the state of its user; the state goes on to the sink."""
    if state is None:
        state = {"tiles": {window: {} for window in WINDOWS}, "newest": []}
    time_us = event["event_time"]
    for window, tiles in state["tiles"].items():
        number = time_us // HOP_US[window]
        cell = tiles.get(number)
        if cell is None:
            cell = tiles[number] = [0, 0, 0.0]
            for old in [old for old in tiles if old < number - SPAN_US[window] // HOP_US[window]]:
                del tiles[old]
        cell[0] += 1
        cell[1] += event["action"] == "click"
        cell[2] += event["dwell_s"]
    state["newest"].append((time_us, event["item_id"], event["dwell_s"]))
    del state["newest"][:-NEWEST_COUNT]
    return state, state


def run_log(log: Path, url: str, namespace: str) -> float:
    """Seconds from an empty store to every user written."""
    flow = Dataflow("rival")
    events = op.input("in", flow, Log(log))
    keyed = op.key_on("user", events, lambda event: str(event["user_id"]))
    op.output("out", op.stateful_map("update", keyed, update), Redis(url, namespace))
    started = time.perf_counter()
    cli_main(flow)
    return time.perf_counter() - started


def read(url: str, namespace: str, users: list[int], now_us: int) -> dict[int, dict]:
    """Feature values of some users as of `now_us`."""
    found = {}
    for user, raw in zip(users, redis.Redis.from_url(url).mget([f"{namespace}:{user}" for user in users]), strict=True):
        state = orjson.loads(raw)
        values = {"user_id": user}
        for window, tiles in state["tiles"].items():
            oldest = (now_us // HOP_US[window] * HOP_US[window] - SPAN_US[window]) // HOP_US[window]
            live = [cell for number, cell in tiles.items() if int(number) >= oldest]
            for index, name in enumerate(("events", "clicks", "dwell")):
                values[f"{name}_{window}"] = sum(cell[index] for cell in live)
        values["recent"] = [item for _, item, _ in state["newest"]][::-1]
        values["history_item_id"] = [item for _, item, _ in state["newest"][-SEQUENCE_COUNT:]]
        values["history_dwell_s"] = [dwell for _, _, dwell in state["newest"][-SEQUENCE_COUNT:]]
        found[user] = values
    return found
