"""Whole flows on a real broker and a real Redis: three runners, one answer; crashes and stops cost no event."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import ClassVar

import bytewax.operators as op
import numpy as np
import polars as pl
import pytest
import redis
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink
from polars.testing import assert_frame_equal

import headrace.pipelines
from headrace.clock import FixedClock
from headrace.errors import ConfigError, FencedError, UnknownTopicError
from headrace.features.store import OnlineStore
from headrace.pipelines import (
    FileSource,
    Flow,
    Intake,
    KafkaSource,
    Materializer,
    TopicWriter,
    create_topics,
    loop,
    on_bytewax,
)
from headrace.pipelines.flow import materialize
from headrace.pipelines.placing import worker_keys, worker_of
from headrace.schemas import FileDeadLetters
from headrace.schemas.dead_letters import read as read_letters
from headrace.streams.read_ahead import POLLS_AHEAD_MAX
from tests.forked import Forked
from tests.turnstiles import START_US, Passage, Shelf, door_use, passage_of, passages, read_doors, views_of

RUNNERS = ("loop", "bytewax-1", "bytewax-2")


def run_as(runner: str, flow) -> None:
    """Run a flow under the plain loop, or under Bytewax on one worker or two."""
    name, _, workers = runner.partition("-")
    headrace.pipelines.run_flow(flow, runner=name, workers=int(workers or 1))


def run_flow(runner: str, source, event, url: str, shelf, *, flush_s=(0.02, 1.0)) -> list:
    """Materialise both views of passages from `source`; the flush summaries."""
    summaries: list = []
    job = materialize(views_of(event), url, flush_s=flush_s, out=summaries.append)
    run_as(runner, Flow("materialize", source, (event,), [job], dead_letters=shelf))
    return summaries


def publish(bootstrap: str, event, frame: pl.DataFrame) -> None:
    writer = TopicWriter(bootstrap, event)
    for part in frame.iter_slices(500):
        writer.write(part)
    writer.close()


@pytest.mark.parametrize("codec", ["avro", "arrow"])
@pytest.mark.parametrize("runner", RUNNERS)
def test_every_runner_counts_every_good_row_once(runner, codec, broker, topic, redis_url):
    """8,000 passages in 4 partitions and 5 messages of rubbish; then half as many again, resumed from the offsets."""
    event, log, shelf = passage_of(topic, codec), passages(12_000), Shelf()
    create_topics(broker, {topic: 4})
    for begin, end in ((0, 8_000), (8_000, 12_000)):
        publish(broker, event, log[begin:end])
        from confluent_kafka import Producer

        producer = Producer({"bootstrap.servers": broker, "log_level": 0})
        for number in range(5):
            producer.produce(topic, b"rubbish %d" % number)
        assert producer.flush(60) == 0
        source = KafkaSource(broker, [event], until_end=True, rows_max=1_000)
        summaries = run_flow(runner, source, event, redis_url, shelf, flush_s=(0.001, 0.01))
        workers = 2 if runner[-1] == "2" else 1
        assert sum(summary.events for summary in summaries) == workers * (end - begin)
    with OnlineStore.open(redis_url) as store:
        assert_frame_equal(read_doors(store, event, log), door_use(log))
        other = store.read(views_of(event)[1], log.select("door", "way").unique(), now=START_US + 10**12)
        assert other["passages_lifetime"].sum() == log.height
    assert len(shelf.letters) == 10
    assert {letter.reason for letter in shelf.letters} == {"undecodable"}


@pytest.mark.parametrize("runner", RUNNERS)
def test_files_resume_by_row_and_another_runner_may_take_over(runner, tmp_path, redis_url):
    log = passages(5_000)
    log[:2_000].write_parquet(tmp_path / "1.parquet")
    run_flow("bytewax-2", FileSource(tmp_path / "*.parquet", Passage), Passage, redis_url, Shelf())
    log[2_000:].write_parquet(tmp_path / "2.parquet")
    run_flow(runner, FileSource(tmp_path / "*.parquet", Passage), Passage, redis_url, Shelf())
    run_flow(runner, FileSource(tmp_path / "*.parquet", Passage), Passage, redis_url, Shelf())
    with OnlineStore.open(redis_url) as store:
        assert_frame_equal(read_doors(store, Passage, log), door_use(log))


@pytest.mark.parametrize("runner", RUNNERS)
def test_an_error_is_told_as_ours_whatever_the_runner(runner, broker, redis_url):
    with pytest.raises(UnknownTopicError, match="no topic 'never-made'"):
        run_flow(runner, KafkaSource(broker, ["never-made"]), passage_of("never-made"), redis_url, Shelf())


TURN = threading.Lock()
"""Of the sources below: those of two workers are asked in two threads, and only one of them may act."""


class Usurped(KafkaSource):
    """A source during whose polls another engine takes everything over, once the first has flushed something."""

    usurp: ClassVar = None

    def poll(self):
        with TURN:
            if Usurped.usurp and Usurped.usurp():
                Usurped.usurp = None
        return super().poll()


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_second_engine_is_fenced_off_through_every_runner(runner, broker, topic, redis_url):
    """first engine: 100 passages | second: the next 100 | first: its fences have moved, it stops."""
    event, log = passage_of(topic), passages(200)
    create_topics(broker, {topic: 2})
    publish(broker, event, log[:100])

    def usurp() -> bool:
        with OnlineStore.open(redis_url) as store:
            if read_doors(store, event, log)["passages_lifetime"].sum() < 100:
                return False
        Usurped.usurp = None
        publish(broker, event, log[100:])
        run_flow("loop", KafkaSource(broker, [event], until_end=True), event, redis_url, Shelf())
        return True

    Usurped.usurp = usurp
    with pytest.raises(FencedError, match="Another engine owns the shard"):
        run_flow(runner, Usurped(broker, [event]), event, redis_url, Shelf())


class Emptied(FileSource):
    """A source whose reader's store loses everything after the reader has said where to begin."""

    url: ClassVar = ""

    def seek(self, positions):
        super().seek(positions)
        with TURN:
            if positions and Emptied.url:
                with redis.Redis.from_url(Emptied.url) as client:
                    client.flushall()
                    client.hset("hr:meta", "shards", 32)
                Emptied.url = ""


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_store_that_goes_back_while_a_flow_starts_leaves_no_gap(runner, tmp_path, redis_url):
    """1,000 passages flushed | seek to 1,000, the store is emptied: the flow stops | begun again: all counted."""
    log = passages(2_000)
    log[:1_000].write_parquet(tmp_path / "1.parquet")
    run_flow(runner, FileSource(tmp_path / "*.parquet", Passage), Passage, redis_url, Shelf())
    log[1_000:].write_parquet(tmp_path / "2.parquet")
    Emptied.url = redis_url
    with pytest.raises(FencedError, match="Redis lost data"):
        run_flow(runner, Emptied(tmp_path / "*.parquet", Passage), Passage, redis_url, Shelf())
    run_flow(runner, Emptied(tmp_path / "*.parquet", Passage), Passage, redis_url, Shelf())
    with OnlineStore.open(redis_url) as store:
        assert_frame_equal(read_doors(store, Passage, log), door_use(log))


def test_a_flow_without_our_input_is_refused():
    flow = Dataflow("other")
    from bytewax.testing import TestingSource

    events = op.input("in", flow, TestingSource([]))
    with pytest.raises(ConfigError, match="has no input made by `events_in`"):
        on_bytewax.materialize("features", events, views_of(Passage), "redis://127.0.0.1:1")


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_groups_land_on_workers_of_their_own(workers):
    assert [worker_of(key, workers) for key in worker_keys(workers)] == list(range(workers))


def test_the_router_and_bytewax_agree_on_workers():
    """Each of three groups is told its number on a thread of its own."""
    seen: dict[str, set[int]] = {}

    class Note(op.StatefulBatchLogic):
        def on_batch(self, values):
            seen.setdefault(values[0], set()).add(threading.get_ident())
            return (), False

        def snapshot(self):
            return None

    flow = Dataflow("keys")
    from bytewax.run import cli_main
    from bytewax.testing import TestingSource

    keys = worker_keys(3)
    items = op.input("in", flow, TestingSource([(key, key) for key in keys] * 5))
    op.output("out", op.stateful_batch("note", items, lambda _none: Note()), TestingSink([]))
    cli_main(flow, workers_per_process=3)
    assert set(seen) == set(keys)
    assert len(set.union(*seen.values())) == 3


MODULE = """
import json, os
import bytewax.operators as op
from bytewax.dataflow import Dataflow
from headrace.pipelines import KafkaSource
from headrace.pipelines.on_bytewax import events_in, materialize
from headrace.schemas import FileDeadLetters
from tests.turnstiles import passage_of, views_of

given = json.loads(os.environ["FLOW"])
event = passage_of(given["topic"])
source = KafkaSource(given["broker"], [event], rows_max=200)
letters = FileDeadLetters(given["letters"])
flow = Dataflow("materialize")
events = op.input("in", flow, events_in(source, (event,), dead_letters=letters))
materialize("features", events, views_of(event, given.get("dedupe")), given["redis"])
"""


class Engine:
    """`python -m bytewax.run` on a project module, in a process of its own."""

    def __init__(self, folder: Path, repo: Path, workers: int, **given: str | None) -> None:
        (folder / "flow_module.py").write_text(MODULE)
        environment = {**os.environ, "PYTHONPATH": f"{repo}", "FLOW": json.dumps(given), "NUMBA_NUM_THREADS": "2"}
        self.errors = folder / "stderr.txt"
        command = ["-m", "bytewax.run", f"{folder}/flow_module.py:flow", "-w", str(workers)]
        with self.errors.open("ab") as errors:
            self.process = Forked(command, env=environment, stderr=errors, stdout=errors, cwd=folder)

    def __enter__(self):
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait(60)

    def end(self, number: signal.Signals) -> int:
        assert self.process.poll() is None, self.errors.read_text()
        self.process.send_signal(number)
        return self.process.wait(60)


def wait_for(store, event, frame: pl.DataFrame, count: int, seconds: float = 60, dedupe: str | None = None) -> None:
    """Until `count` passages are in the store."""
    deadline = time.monotonic() + seconds
    while (found := read_doors(store, event, frame, dedupe)["passages_lifetime"].sum()) < count:
        assert time.monotonic() < deadline, f"{found} of {count} after {seconds} s"
        time.sleep(0.1)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_kill_and_restart_count_every_event_once_and_sigterm_drains(workers, tmp_path, repo, broker, topic, redis_url):
    """
    events   0 .. 2000 ... 6000 . 8000 ......... 12000
    engine    start ...x kill -9   start ...............  SIGTERM: exit 0, all flushed
    """
    event, log = passage_of(topic), passages(12_000)
    create_topics(broker, {topic: 4})
    writer = TopicWriter(broker, event)
    given = {"topic": topic, "broker": broker, "redis": redis_url, "letters": str(tmp_path / "letters")}

    def produce(begin: int, end: int, pause_s: float) -> None:
        for part in log[begin:end].iter_slices(100):
            writer.write(part)
            writer.flush()
            time.sleep(pause_s)

    with OnlineStore.open(redis_url) as store:
        produce(0, 2_000, 0)
        producing = threading.Thread(target=produce, args=(2_000, 6_000, 0.02))
        with Engine(tmp_path, repo, workers, **given) as engine:
            wait_for(store, event, log, 2_000)
            producing.start()
            wait_for(store, event, log, 2_500)
            assert engine.end(signal.SIGKILL) == -signal.SIGKILL
        producing.join()
        produce(6_000, 8_000, 0)
        with Engine(tmp_path, repo, workers, **given) as engine:
            produce(8_000, 12_000, 0)
            wait_for(store, event, log, 11_000)
            assert engine.end(signal.SIGTERM) == 0, engine.errors.read_text()
        run_flow("loop", KafkaSource(broker, [event], until_end=True), event, redis_url, Shelf())
        assert_frame_equal(read_doors(store, event, log), door_use(log))


class Asking(KafkaSource):
    """A source that asks this very process to end, once, when it has handed out 1,000 messages."""

    handed_out = 0
    has_asked = False

    def poll(self):
        if self.handed_out == 1_000 and not self.has_asked:
            self.has_asked = True
            os.kill(os.getpid(), signal.SIGTERM)
        found = super().poll()
        self.handed_out += sum(len(batch.offsets) for batch in found)
        return found


@pytest.mark.parametrize("runner", ["loop", "bytewax-1"])
def test_sigterm_flushes_what_the_cadence_had_not(runner, tmp_path, broker, topic, redis_url):
    """A flush is due in a minute, but SIGTERM comes: the rows are there, and the old handler is back."""
    event, log = passage_of(topic), passages(1_000)
    create_topics(broker, {topic: 2})
    publish(broker, event, log)
    before = signal.getsignal(signal.SIGTERM)
    source = Asking(broker, [event], rows_max=100)
    run_flow(runner, source, event, redis_url, FileDeadLetters(tmp_path), flush_s=(60, 60))
    assert signal.getsignal(signal.SIGTERM) is before
    with OnlineStore.open(redis_url) as store:
        assert_frame_equal(read_doors(store, event, log), door_use(log))
    assert read_letters(tmp_path).is_empty()


def test_the_future_is_put_aside_and_the_present_counted(broker, topic, redis_url):
    event, log, shelf = passage_of(topic), passages(100), Shelf()
    create_topics(broker, {topic: 1})
    ahead = log[:1].with_columns(pl.col("at").dt.offset_by("10y"), passage_id=pl.lit("ahead"))
    publish(broker, event, pl.concat([log[:50], ahead, log[50:]]))
    clock = FixedClock(START_US + 2 * 3_600_000_000)
    with OnlineStore.open(redis_url) as store:
        intake = Intake((event,), dead_letters=shelf, clock=clock)
        loop.run(KafkaSource(broker, [event], until_end=True), intake, [Materializer(views_of(event), store)])
        assert_frame_equal(read_doors(store, event, log), door_use(log))
    assert [(letter.reason, letter.offset) for letter in shelf.letters] == [("future", 50)]
    assert np.all([letter.source == topic for letter in shelf.letters])


class Slow:
    """A step that takes its time and notes how far the sources are ahead of it."""

    due_s = None

    def __init__(self, taken: list[int], handed_out: list[int]) -> None:
        self.taken, self.handed_out = taken, handed_out
        self.ahead = 0

    def positions(self):
        return {}

    def expect(self, partitions):
        pass

    def apply(self, batch):
        time.sleep(0.002)
        self.taken.append(1)
        self.ahead = max(self.ahead, len(self.handed_out) - len(self.taken))

    def tick(self):
        return ()

    def finish(self):
        return ()


def test_sources_do_not_run_ahead_of_a_slow_step(tmp_path):
    """400 batches, two workers, the step on one of them: each source is at most its credit ahead."""
    handed_out: list[int] = []

    class Counted(FileSource):
        def poll(self):
            found = super().poll()
            handed_out.extend([1] * len(found))
            return found

    for name in "ab":
        passages(2_000, seed=ord(name)).write_parquet(tmp_path / f"{name}.parquet")
    step = Slow([], handed_out)
    flow = Dataflow("slow")
    source = Counted(tmp_path / "*.parquet", Passage, rows_max=10)
    events = op.input("in", flow, on_bytewax.events_in(source, (Passage,), dead_letters=Shelf()))
    on_bytewax.consume("slow", events, lambda _group, _groups: step, spread=False)
    on_bytewax.run(flow, workers=2)
    assert len(step.taken) == 400
    assert step.ahead <= 2 * (on_bytewax.IN_FLIGHT_MAX + POLLS_AHEAD_MAX + 2)


def test_an_authors_own_error_comes_through_as_it_is(tmp_path):
    passages(10).write_parquet(tmp_path / "a.parquet")
    flow = Dataflow("broken")
    source = FileSource(tmp_path / "a.parquet", Passage)
    events = op.input("in", flow, on_bytewax.events_in(source, (Passage,), dead_letters=Shelf()))
    broken = op.map("divide", events, lambda batch: batch.next_offset // 0)
    op.output("out", broken, TestingSink([]))
    with pytest.raises(ZeroDivisionError):
        on_bytewax.run(flow)


def test_the_benchmark_runs_and_both_sides_agree(capsys):
    from benchmarks.materialize.run import main

    main(["--events", "5000", "--rival-events", "2000", "--users", "100"])
    assert "equal: 15 features of 100 users" in capsys.readouterr().out
