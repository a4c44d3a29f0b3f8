"""Headrace: Parquet to records in Redis, through Bytewax, batches all the way."""

import time
from pathlib import Path

import bytewax.operators as op
from bytewax.dataflow import Dataflow

from benchmarks.materialize.declaration import Engagement, UserActivity
from headrace.features.store import OnlineStore
from headrace.pipelines import FileSource
from headrace.pipelines.on_bytewax import events_in, materialize, run
from headrace.schemas import FileDeadLetters


def run_log(log: Path, url: str, namespace: str, letters: Path) -> float:
    """Seconds from an empty store to every record written."""
    flow = Dataflow("ours")
    source = FileSource(log, Engagement)
    events = op.input("in", flow, events_in(source, (Engagement,), dead_letters=FileDeadLetters(letters)))
    materialize("features", events, (UserActivity,), lambda: OnlineStore.open(url, namespace=namespace))
    started = time.perf_counter()
    run(flow)
    return time.perf_counter() - started


def read(url: str, namespace: str, users: list[int], now_us: int) -> dict[int, dict]:
    """Feature values of some users as of `now_us`."""
    with OnlineStore.open(url, namespace=namespace) as store:
        found = store.read(UserActivity, users, now=now_us)
    return {row["user_id"]: row for row in found.drop("_status", "_age_s").iter_rows(named=True)}
