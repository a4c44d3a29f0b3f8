"""The served log: what is written, and that it never holds up an answer."""

import os
import signal
import time
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from headrace.errors import DeclarationError
from headrace.learners import Inputs
from headrace.local import EmbeddedBroker
from headrace.schemas import Event, codec_for
from headrace.serving import Impression, ImpressionColumns, ImpressionLog
from headrace.serving.impressions import ImpressionBatch
from tests.logs import capture_logs
from tests.serving import stage
from tests.serving.stage import NOW, NOW_US, Ranks, Shown, Signature, until

NOWHERE = "127.0.0.1:1"


class ShownElsewhere(Shown, topic="shown_elsewhere"):
    """To a topic of its own, which the broker makes at the first message."""


def impression(request_id: str = "r", rows: int = 3) -> Impression:
    names = [f"t{i}" for i in range(rows)]
    scores = np.linspace(0.9, 0.1, rows, dtype=np.float32)
    return Impression(request_id, NOW_US, {"reader": 7}, names, scores, 5, stage.NO_STORE_RANKER.probe(rows))


def consume(bootstrap: str, count: int) -> pl.DataFrame:
    """The newest `count` payloads of the topic, decoded."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "t", "enable.auto.commit": False})
    consumer.assign([TopicPartition("shown", 0, 0)])
    payloads, deadline = [], time.monotonic() + 60
    while len(payloads) < count and time.monotonic() < deadline:
        message = consumer.poll(0.2)
        if message is not None and message.error() is None:
            payloads.append(message.value())
    consumer.close()
    return codec_for(Shown).decode(payloads).frame


def test_a_ranking_is_logged_as_it_was_served(serve, broker):
    """Candidates in served order, scores and shadow scores beside them, and the very inputs that were scored."""
    admin = AdminClient({"bootstrap.servers": broker})
    admin.create_topics([NewTopic("shown", 1, 1)])["shown"].result(10)
    log = ImpressionLog(Shown, broker, shadow=Signature(9))
    client = serve(Ranks(), impressions=log)
    ask = {"entity": {"reader": 7}, "candidates": ["c", "b", "a", "z"], "k": 3, "context": {"page": 4}}
    asked = [client.post("/v1/rank", {**ask, "request_id": f"log-{i}"}).json() for i in range(3)]
    client.post("/v1/score", {"entity": {"reader": 7}, "candidates": ["a"]})
    assert log.flush() == 0
    log.close()
    assert (log.logged, log.dropped) == (3, 0)
    counts = client.get("/v1/report").json()["impressions"]
    assert counts == {"logged": 3, "delivered": 3, "dropped": 0, "dropped_by_reason": {}}
    frame = consume(broker, 3).filter(pl.col("request_id").str.starts_with("log-")).sort("request_id")
    row = frame.row(0, named=True)
    assert frame["request_id"].to_list() == ["log-0", "log-1", "log-2"]
    assert (row["reader"], row["model_version"], row["page"], row["event_time"]) == (7, 3, 4, NOW)
    assert row["candidates"] == [each["candidate"] for each in asked[0]["ranked"]] == ["a", "b", "c"]
    assert row["scores"] == pytest.approx([each["score"] for each in asked[0]["ranked"]])
    assert row["shadow_scores"] == pytest.approx([9 / stage.SIGN] * 3)
    inputs = Inputs.from_bytes(row["features"])
    assert Ranks().score(inputs) == pytest.approx(row["scores"])


def test_a_full_queue_drops_and_counts_and_never_waits():
    """The broker is away and the queue holds one. A log that waited for it would take 100 ms, all of them 100 s."""
    log = ImpressionLog(Shown, NOWHERE, queue_max=1, batch_max=1, config={"message.timeout.ms": 100, "log_level": 0})
    one = impression()
    started = time.monotonic()
    taken = sum(log.log(one) for _ in range(1_000))
    assert time.monotonic() - started < 30.0
    assert log.dropped >= 1_000 - taken > 0
    log.close()
    assert log.dropped == 1_000  # what was taken could not be delivered, and is counted as well
    assert not log.log(impression())


def test_a_shadow_that_fails_costs_its_scores_only():
    """The impression is logged with an empty list."""

    class Broken:
        def score(self, inputs):
            raise ValueError("shadow")

    log = ImpressionLog(Shown, NOWHERE, shadow=Broken(), config={"log_level": 0, "message.timeout.ms": 100})
    frame = log.frame([ImpressionBatch.of(impression("a")), ImpressionBatch.of(impression("b"))])
    assert frame["shadow_scores"].to_list() == [[], []]
    log.close()


def test_shadow_scores_of_a_batch_are_parted_by_request():
    """One call of the shadow for requests of different lengths."""

    class Counts:
        def score(self, inputs):
            return np.arange(len(inputs), dtype=np.float32)

    log = ImpressionLog(Shown, NOWHERE, shadow=Counts(), config={"log_level": 0})
    frame = log.frame([ImpressionBatch.of(impression(name, rows)) for name, rows in (("a", 2), ("b", 1), ("c", 3))])
    assert frame["shadow_scores"].to_list() == [[0, 1], [2], [3, 4, 5]]
    log.close()


def test_an_event_without_a_column_is_refused_at_the_start():
    """Named, with those that there are."""

    class Bare(Event, topic="bare", key="reader", time="event_time", id="request_id"):
        request_id: str
        event_time: stage.datetime
        reader: int

    with pytest.raises(DeclarationError, match="candidates"):
        ImpressionLog(Bare, NOWHERE)
    with pytest.raises(DeclarationError, match="nope"):
        ImpressionLog(Shown, NOWHERE, columns=ImpressionColumns(shadow="nope"))


class ShownLive(Shown, topic="shown_live"):
    """With the versions that were live around the work."""

    live_before: int
    live_after: int


def test_the_versions_live_around_the_work_are_logged_where_the_event_has_columns():
    """Of two batches, one request and two."""
    columns = ImpressionColumns(live_at_start="live_before", live_at_end="live_after")
    log = ImpressionLog(ShownLive, NOWHERE, columns=columns)
    one, two = ImpressionBatch.of(impression("a")), ImpressionBatch.of(impression("b"))
    frame = log.frame([replace(one, live=(5, 6)), replace(two, live=(6, 6))])
    assert frame.select("model_version", "live_before", "live_after").rows() == [(5, 5, 6), (5, 6, 6)]
    log.close()


def rows_of(*impressions):
    return [ImpressionBatch.of(one) for one in impressions]


def test_an_impression_that_cannot_be_encoded_costs_itself_alone(broker):
    """Its reader is text in a column of whole numbers; the 49 beside it are delivered."""
    log = ImpressionLog(ShownElsewhere, broker)
    for i in range(50):
        log.log(replace(impression(f"r{i}"), entity={"reader": "seven" if i == 25 else 7}))
    assert log.flush() == 0
    log.close()
    assert (log.delivered, log.dropped, log.dropped_by_reason) == (49, 1, {"encode": 1})


def test_an_impression_that_the_client_refuses_costs_itself_alone(broker):
    """It is longer than a message may be."""
    log = ImpressionLog(ShownElsewhere, broker, config={"message.max.bytes": 20_000})
    for i in range(20):
        log.log(impression(f"r{i}", rows=8_000 if i == 10 else 3))
    assert log.flush() == 0
    log.close()
    assert (log.logged, log.delivered, log.dropped_by_reason) == (19, 19, {"refused": 1})


def test_impressions_reach_a_broker_that_came_back_without_its_log(tmp_path):
    """It takes no message of a sequence whose beginning it does not know."""
    with EmbeddedBroker(tmp_path / "broker", topics={"shown": 1}) as server:
        log = ImpressionLog(Shown, server.bootstrap, config={"message.timeout.ms": 2_000})
        log.log(impression("first"))
        assert log.flush() == 0
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        server.start()
        count, deadline_s = 0, time.monotonic() + 60
        while log.delivered < 3 and time.monotonic() < deadline_s:
            log.log(impression(f"later-{count}"))
            count += 1
            time.sleep(0.2)
        assert log.delivered >= 3
        assert log.flush() == 0
        log.close()
        assert log.delivered + log.dropped == 1 + count, "an impression was lost uncounted"
        assert set(log.dropped_by_reason) <= {"broker"}


def test_a_storm_of_lost_impressions_is_no_storm_of_lines():
    """400 that no broker takes: all counted, in a line or two that say how many and why."""
    began_s = time.monotonic()
    with capture_logs() as logs:
        log = ImpressionLog(Shown, NOWHERE, config={"message.timeout.ms": 500})
        for number in range(400):
            log.log(impression(f"r{number}"))
        until(lambda: log.dropped == 400)
        log.close()
    lines = [line for line in logs if line["event"] == "impressions_dropped"]
    assert sum(line["impressions"] for line in lines) == 400
    assert len(lines) <= 3 + (time.monotonic() - began_s)  # a line a second
    assert {(line["reason"], line["detail"]) for line in lines} == {("broker", "Local: Message timed out")}


def test_the_queue_is_bounded_in_bytes():
    """Large impressions are dropped and counted long before the queue is full by their number."""
    log = ImpressionLog(Shown, NOWHERE, bytes_max=1_000_000, config={"log_level": 0, "message.timeout.ms": 100})
    one = impression(rows=1_000)
    size_bytes = ImpressionBatch.of(one).size_bytes
    assert size_bytes > one.inputs.ids.nbytes + one.inputs.dense.nbytes
    taken = sum(log.log(one) for _ in range(200))
    assert 1 <= taken < 200
    assert log.dropped_by_reason["queue_full"] == 200 - taken
    log.close()


def test_a_batch_is_written_as_its_requests_alone():
    """Rows picked in served order from the inputs of the whole batch."""
    log = ImpressionLog(Shown, NOWHERE, config={"log_level": 0})
    names, rows = [["b", "a"], ["c"], ["d", "f", "e"]], np.array([1, 0, 2, 3, 5, 4])
    scores, inputs = np.linspace(0.9, 0.1, 6, dtype=np.float32), stage.NO_STORE_RANKER.probe(6)
    readers, contexts = [{"reader": i} for i in range(3)], [{"page": i} for i in range(3)]
    times = [NOW_US + i for i in range(3)]
    edges = np.array([0, 2, 3, 6])
    batch = ImpressionBatch(["x", "y", "z"], times, readers, names, scores, 5, inputs, rows, edges, contexts, (5, 5))
    alone = [
        Impression(
            f"{'xyz'[i]}",
            times[i],
            readers[i],
            names[i],
            scores[edges[i] : edges[i + 1]],
            5,
            inputs.take(rows[edges[i] : edges[i + 1]]),
            contexts[i],
        )
        for i in range(3)
    ]
    assert log.frame([batch]).equals(log.frame(rows_of(*alone)))
    assert log.frame([batch]).equals(log.frame(batch.split()))
    log.close()


@pytest.mark.parametrize(
    ("context", "field"),
    [({"page": "x"}, "context.page"), ({"page": 1.5}, "context.page"), ({"page": True}, "context.page")],
)
def test_a_context_that_the_event_cannot_hold_is_refused_at_the_request(serve, context, field):
    """422 that names it, instead of an impression that is lost later."""
    log = ImpressionLog(Shown, NOWHERE, config={"log_level": 0, "message.timeout.ms": 100})
    client = serve(Ranks(), impressions=log)
    ask = {"entity": {"reader": 7}, "candidates": ["a"]}
    refused = client.post("/v1/rank", {**ask, "context": context})
    assert (refused.status_code, refused.json()["error"]) == (422, "invalid_request")
    assert refused.json()["field"] == field
    assert client.post("/v1/score", {**ask, "context": context}).status_code == 200  # scores are not logged
    for fine in ({}, {"page": None}, {"page": 3}, {"page": 3, "further": "x"}):
        assert client.post("/v1/rank", {**ask, "context": fine}).status_code == 200
    log.close()
