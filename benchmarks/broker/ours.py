"""Headrace: a topic to records in Redis, through Bytewax, batches all the way."""

import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headrace.features import FeatureView
from headrace.features.store import OnlineStore
from headrace.features.view import plan_of
from headrace.pipelines import KafkaSource
from headrace.pipelines.flow import materialize_flow
from headrace.pipelines.runner import run_flow
from headrace.schemas import FileDeadLetters


def run_backlog(bootstrap: str, view: type[FeatureView], url: str, namespace: str, letters: Path) -> float:
    """Seconds from an empty store to every record of what the topic holds now written."""
    source = KafkaSource(bootstrap, plan_of(view).sources, until_end=True)
    flow = materialize_flow(
        source, [view], lambda: OnlineStore.open(url, namespace=namespace), {"dead_letters": FileDeadLetters(letters)}
    )
    started_s = time.perf_counter()
    run_flow(flow, runner="bytewax")
    return time.perf_counter() - started_s


def run_live(
    bootstrap: str,
    view: type[FeatureView],
    url: str,
    namespace: str,
    letters: Path,
    is_over: Callable[[], bool],
) -> Mapping[str, Any]:
    """Follow a topic until `is_over`, asked twice a second, says so; the step's last figures.

    Freshness is an event's time from the producer's stamp to the answer of the Redis that holds it.
    """
    last: dict[str, Any] = {}

    def look(status: Mapping[str, Any]) -> None:
        """Called twice a second, on the flow's own thread."""
        for figures in status["steps"]:
            last.update(figures)
        if is_over():
            signal.raise_signal(signal.SIGTERM)  # how a flow is ended: it flushes and returns

    source = KafkaSource(bootstrap, plan_of(view).sources)
    flow = materialize_flow(
        source,
        [view],
        lambda: OnlineStore.open(url, namespace=namespace),
        {"dead_letters": FileDeadLetters(letters)},
        on_status=look,
    )
    run_flow(flow, runner="bytewax")
    return last


def read(view: type[FeatureView], url: str, namespace: str, users: list[int], now_us: int) -> dict[int, dict]:
    """Feature values of some users as of `now_us`."""
    with OnlineStore.open(url, namespace=namespace) as store:
        found = store.read(view, users, now=now_us)
    return {row["user_id"]: row for row in found.drop("_status", "_age_s").iter_rows(named=True)}
