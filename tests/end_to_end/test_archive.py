"""The archive as it is run for real: killed again and again, it holds each event once, and replays as the log does."""

import json
import math
import random
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from prometheus_client.parser import text_string_to_metric_families

from features.customer import CustomerActivity
from features.item import ItemActivity
from headrace.history.replay import replay
from headrace.local import free_port
from headrace.pipelines import TopicWriter, create_topics
from headrace.streams.urls import source_of_url
from schemas.retail import Engagement
from tests.end_to_end.test_flows import bootstrap, environment, purchases, start  # noqa: F401 - fixtures
from tests.turnstiles import drain

RUNNERS = (["-m", "bytewax.run", "pipelines.archive:flow"], ["-m", "headrace.cli", "run", "pipelines.archive"])
EVENTS, KILLS, WAIT_S = 60_000, 5, 60.0


@pytest.mark.slow
def test_a_killed_archiver_writes_each_event_once_and_its_files_replay_as_the_log(
    repo,
    bootstrap,  # noqa: F811
    environment,  # noqa: F811
    tmp_path,
):
    """append ... | archive -x kill -9 | append ... | archive -x | ... | SIGTERM: files and offsets, nothing twice."""
    create_topics(bootstrap, {"engagements": 3, "impressions": 1, "dead-letters": 1})
    folder, moments = tmp_path / "archive", random.Random(7)
    port = free_port()
    settings = {
        "HEADRACE_ARCHIVE_DIR": str(folder),
        "HEADRACE_ARCHIVE_FLUSH_S": "0.05",
        "HEADRACE_METRICS_PORT": str(port),
    }
    log = purchases(EVENTS, datetime.now(UTC) - timedelta(days=1))
    writer = TopicWriter(bootstrap, Engagement)
    for kill in range(KILLS + 1):
        process = start(repo, RUNNERS[kill % 2], environment | settings)
        begun = archived_rows(folder)
        for part in log[kill * EVENTS // (KILLS + 1) : (kill + 1) * EVENTS // (KILLS + 1)].iter_slices(500):
            writer.write(part)
        writer.flush()
        last = kill == KILLS
        wanted = EVENTS if last else begun + moments.randint(1, EVENTS // (KILLS + 1) - 2_000)
        deadline_s = time.monotonic() + WAIT_S
        while archived_rows(folder) < wanted:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        if last:
            check_metrics(httpx.get(f"http://127.0.0.1:{port}/metrics").text)
        process.send_signal(signal.SIGTERM if last else signal.SIGKILL)
        assert (process.wait(WAIT_S) == 0) is last, process.stderr.read()
        process.stderr.close()
    source = source_of_url(str(folder), [Engagement])
    found = pl.concat([batch.frame for batch in drain(source)]).sort("event_id")
    assert_frame_equal(found, log.select(found.columns).sort("event_id"))
    spine = log.gather_every(97).select("customer_id", "item_id", "event_time")
    views = [CustomerActivity, ItemActivity]
    by_log, by_archive = (replay(views, {Engagement: events}, spine) for events in (log, found))
    assert_frame_equal(by_archive, by_log)


def values_of(page: str) -> dict[tuple[str, ...], float]:
    """Value of each sample by its name and the values of its labels."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def lags(page: str) -> list[float]:
    """Lag of each partition of engagements; infinite before it was looked at."""
    values = values_of(page)
    return [values.get(("headrace_source_lag_rows", str(number), "engagements"), math.inf) for number in range(3)]


def check_metrics(page: str) -> None:
    """Counters and the seconds of the stages, of the last process; it took in what those before it had not."""
    values = values_of(page)
    taken_in = values["headrace_events_total", "engagements"]
    assert 0 < taken_in <= EVENTS
    assert values["headrace_archived_rows_total", "engagements"] == taken_in
    for stage in ("read", "decode", "apply", "tick"):
        assert values["headrace_stage_seconds_count", stage] > 0
        assert values["headrace_stage_seconds_sum", stage] > 0
    assert values["headrace_archive_flush_seconds_count",] > 0


def archived_rows(folder: Path) -> int:
    """Rows below the committed offsets."""
    path = folder / "engagements" / "offsets.json"
    return sum(json.loads(path.read_bytes()).values()) if path.exists() else 0
