"""Records follow the events, flushes follow the load, and a store that is away costs time but no event."""

import threading
import time
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
from polars.testing import assert_frame_equal

from headrace.clock import wall_us
from headrace.errors import FencedError, StoreUnavailableError
from headrace.features import Count, FeatureView
from headrace.features.store import OnlineStore
from headrace.pipelines import materializer
from headrace.pipelines.materializer import Materializer
from headrace.schemas import Event
from tests.faults import Wire
from tests.logs import capture_logs
from tests.turnstiles import Passage, as_batch, door_use, passages, read_doors, views_of

VIEWS = views_of(Passage)
LOG = passages(3_000)


@pytest.fixture
def store(store_url):
    with OnlineStore.open(store_url) as opened:
        yield opened


def test_what_was_flushed_is_read_and_a_new_engine_takes_up_there(store):
    first = Materializer(VIEWS, store)
    assert first.positions() == {}
    first.apply(as_batch(Passage, LOG[:1_000]))
    summary = first.flush()
    assert (summary.events, first.dirty_count) == (1_000, 0)
    assert summary.records >= LOG[:1_000]["door"].n_unique()
    second = Materializer(VIEWS, store)
    assert second.positions() == {"passages/0": 1_000}
    second.apply(as_batch(Passage, LOG[500:], first=500))
    second.finish()
    assert_frame_equal(read_doors(store, Passage, LOG), door_use(LOG))


def test_a_new_view_is_read_from_the_start_and_the_old_one_counts_nothing_twice(store):
    old = Materializer(VIEWS[:1], store)
    old.apply(as_batch(Passage, LOG[:2_000]))
    old.flush()
    both = Materializer(VIEWS, store)
    assert both.positions() == {}
    both.apply(as_batch(Passage, LOG))
    both.flush()
    assert both.positions() == {"passages/0": 3_000}
    assert_frame_equal(read_doors(store, Passage, LOG), door_use(LOG))


def test_a_view_does_not_hold_back_partitions_of_topics_that_it_does_not_read(store):
    class Knock(Event, topic="knocks", key="door", time="at"):
        at: datetime
        door: int

    class Knocks(FeatureView, source=Knock, entity="door"):
        knocks = Count(windows="lifetime")

    both = Materializer((VIEWS[0], Knocks), store)
    assert set(both.events) == {Passage, Knock}
    both.apply(as_batch(Passage, LOG))
    both.apply(as_batch(Knock, LOG.select("at", "door")[:7]))
    both.flush()
    assert Materializer((VIEWS[0], Knocks), store).positions() == {"passages/0": 3_000, "knocks/0": 7}


def test_a_batch_of_nothing_but_bad_rows_moves_the_offsets(store):
    engine = Materializer(VIEWS, store)
    engine.apply(as_batch(Passage, LOG[:0], first=40))
    engine.flush()
    assert Materializer(VIEWS, store).positions() == {"passages/0": 40}


def test_small_batches_are_applied_together_also_when_offsets_come_again(store):
    """Two partitions in turn, one of them read again from the middle: each row counts once, and positions follow."""
    engine = Materializer(VIEWS, store)
    halves = {"passages/0": LOG[:1_500], "passages/1": LOG[1_500:]}
    for first in range(0, 1_500, 100):
        for partition, rows in halves.items():
            engine.apply(as_batch(Passage, rows[first : first + 100], first, partition))
    engine.apply(as_batch(Passage, halves["passages/0"][700:], 700, "passages/0"))
    engine.apply(as_batch(Passage, halves["passages/1"][:50], 0, "passages/1"))
    assert [summary.events for summary in engine.finish()] == [3_000 + 800 + 50]
    assert_frame_equal(read_doors(store, Passage, LOG), door_use(LOG))
    assert engine.positions() == {"passages/0": 1_500, "passages/1": 1_500}


def test_owners_share_the_shards_and_each_key_is_counted_once(store):
    engines = [Materializer(VIEWS, store, owner=(index, 3)) for index in range(3)]
    for engine in engines:
        engine.apply(as_batch(Passage, LOG))
        engine.flush()
    assert_frame_equal(read_doors(store, Passage, LOG), door_use(LOG))


def appended(first: int, ago_s: float):
    """Ten passages that the broker was given `ago_s` seconds ago."""
    appended_us = np.full(10, wall_us() - int(ago_s * 1e6))
    return as_batch(Passage, LOG[first : first + 10], first=first, appended_us=appended_us)


def test_a_quiet_stream_is_flushed_at_once_and_a_busy_one_at_intervals(store, monkeypatch):
    now_s = 1_000.0  # it stands still between the lines that set it
    monkeypatch.setattr(materializer, "time", SimpleNamespace(monotonic=lambda: now_s))
    engine = Materializer(VIEWS, store, flush_s=(0.25, 1.0))
    assert engine.maybe_flush() is None
    assert engine.due_s > now_s + 0.5
    engine.apply(appended(0, 0))
    assert engine.tick()[0].events == 10
    engine.apply(appended(10, 0))
    engine.apply(appended(20, 0))
    assert engine.tick() == []
    assert 0 < engine.due_s - now_s <= 0.25
    now_s += 0.25
    assert engine.tick()[0].events == 20


@pytest.mark.parametrize("lost", ["everything", "a shard to another engine"])
def test_an_engine_without_events_notices_that_its_store_is_another(store, monkeypatch, lost):
    """FLUSHALL, or a second engine, while nothing comes: loud within a second, not at the next event."""
    monkeypatch.setattr(materializer, "CHECK_S", 0.05)
    engine = Materializer(VIEWS, store)
    engine.apply(appended(0, 0))
    engine.tick()
    time.sleep(0.06)
    assert engine.tick() == []
    if lost == "everything":
        store._link.client.flushall()
    else:
        other = Materializer(VIEWS, store)
        other.apply(appended(10, 0))
        other.flush()
    assert engine.due_s <= time.monotonic() + 0.05
    time.sleep(0.06)
    with pytest.raises(FencedError, match="Another engine owns the shard, or Redis lost data"):
        engine.tick()


def test_a_flow_that_is_behind_flushes_rarely_and_once_it_has_caught_up_at_once(store):
    engine = Materializer(VIEWS, store, flush_s=(0.01, 1.0), catch_up_s=30.0)
    for first in (0, 10, 20):
        engine.apply(appended(first, ago_s=3_600))
        assert engine.tick() == []
        assert 25 < engine.due_s - time.monotonic() <= 30
    engine.apply(appended(30, ago_s=2))  # nearly
    assert engine.tick() == []
    engine.apply(appended(40, ago_s=0))
    assert engine.tick()[0].events == 50
    time.sleep(max(engine._due_s - time.monotonic(), 0.0))
    engine.apply(appended(50, ago_s=2))  # late, not yet behind
    assert engine.tick()[0].events == 10
    engine.apply(as_batch(Passage, LOG[60:], first=60))  # nobody knows when: a file
    assert engine.tick() == []
    assert engine.finish()[0].events == LOG.height - 60


def test_the_interval_grows_with_the_time_a_flush_takes(store, monkeypatch):
    """A flush of 0.9 s is followed by 0.1 s without, a tenth of the time; after 18 s the longest interval counts."""
    engine = Materializer(VIEWS[:1], store, flush_s=(0.02, 1.0))
    clock = {"s": 100.0}
    for took_s, interval_s in ((0.0001, 0.02), (0.9, 0.1), (18.0, 1.0)):
        with monkeypatch.context() as patch:

            def flush_for(call, took_s=took_s):
                clock["s"] += took_s
                return call()

            patch.setattr(materializer, "time", SimpleNamespace(monotonic=lambda: clock["s"]))
            patch.setattr(engine, "_retried", flush_for)
            engine.flush()
        assert engine._due_s == pytest.approx(clock["s"] + interval_s)


def test_many_dirty_records_do_not_wait_for_the_interval(store):
    engine = Materializer(VIEWS[:1], store, flush_s=(60, 60), dirty_max=30)
    engine.apply(as_batch(Passage, LOG[:1]))
    engine.flush()
    engine.apply(as_batch(Passage, LOG, first=0))
    assert engine.dirty_count >= 30
    assert engine.maybe_flush() is not None


def test_freshness_is_append_to_visible_of_each_event(store):
    engine = Materializer(VIEWS, store)
    now_us = wall_us()
    engine.apply(as_batch(Passage, LOG[:4], appended_us=now_us - np.array([1_000_000, 0, 2_000_000, 0])))
    summary = engine.flush()
    assert 2.0 <= summary.freshness_s <= 2.0 + (wall_us() - now_us) / 1e6
    found = np.sort(engine.freshness_ms())
    assert len(found) == 4
    assert found[3] - found[2] == pytest.approx(1_000)


def mend_once_away(wire, logs):
    """Mend the wire 0.4 s after somebody said that the store is away."""
    deadline_s = time.monotonic() + 30
    while not logs and time.monotonic() < deadline_s:
        time.sleep(0.005)
    time.sleep(0.4)
    wire.mend()


def test_a_store_that_is_away_costs_time_and_two_log_lines(redis_url):
    """flush fails | 0.4 s | mended: the same flush goes through; then a load of unknown entities does the same."""
    with Wire(redis_url) as wire, OnlineStore.open(wire.url) as store:
        Materializer(VIEWS, store).flush()
        engine = Materializer(VIEWS, store)
        for begin in (0, 1_000):
            engine.apply(as_batch(Passage, LOG[begin : begin + 1_000], first=begin))
            wire.cut()
            with capture_logs() as logs:
                mending = threading.Thread(target=mend_once_away, args=(wire, logs))
                mending.start()
                engine.flush()
                mending.join()
            assert [line["event"] for line in logs] == ["store_away", "store_back"]
        assert_frame_equal(read_doors(store, Passage, LOG[:2_000]), door_use(LOG[:2_000]))
        again = Materializer(VIEWS, store)
        wire.cut()
        threading.Timer(0.4, wire.mend).start()
        again.apply(as_batch(Passage, LOG[1_500:], first=1_500))
        again.flush()
        assert_frame_equal(read_doors(store, Passage, LOG), door_use(LOG))


def test_a_stop_does_not_wait_for_a_dead_store_for_ever(redis_url, monkeypatch):
    monkeypatch.setattr(materializer, "STOP_PATIENCE_S", 0.2)
    stop = threading.Event()
    with Wire(redis_url) as wire, OnlineStore.open(wire.url) as store:
        engine = Materializer(VIEWS, store, stop=stop)
        engine.apply(as_batch(Passage, LOG))
        wire.cut()
        threading.Timer(0.2, stop.set).start()
        started_s = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            engine.flush()
        assert time.monotonic() - started_s < 10  # without the stop it would wait for ever


def test_a_second_engine_stops_the_first_loudly(store):
    first, second = Materializer(VIEWS, store), Materializer(VIEWS, store)
    first.apply(as_batch(Passage, LOG))
    second.apply(as_batch(Passage, LOG))
    second.flush()
    with pytest.raises(FencedError, match="Another engine owns the shard, or Redis lost data"):
        first.flush()
