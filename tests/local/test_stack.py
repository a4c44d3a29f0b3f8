"""A project's own Redis and broker: kept running, found by a file, and no event skipped when the broker begins anew."""

import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
import redis
from confluent_kafka import Producer

from headrace.cli import scaffold
from headrace.errors import ConfigError, HeadraceError, PortBusyError, ServiceError, StoreUnavailableError
from headrace.features import Count, FeatureView
from headrace.features.store import OnlineStore
from headrace.local.stack import DEATHS_MAX, LocalStack, add_topics, stop_stack
from headrace.local.topic_start import LIFE_OFFSETS
from headrace.pipelines import Intake, KafkaSource, Materializer, TopicWriter
from headrace.pipelines.loop import run
from headrace.schemas import Event, FileDeadLetters
from headrace.settings import load_settings
from headrace.stack_state import FILE, FOLDER, read_state
from tests.forked import Forked
from tests.local.processes import wait_until_gone

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
TOPICS = {"turns": 2}


class Turn(Event, topic="turns", key="gate", id="turn_id"):
    """Somebody passed a gate."""

    turn_id: str
    event_time: datetime
    gate: int


class Gate(FeatureView, source=Turn, entity="gate"):
    """How often a gate was passed."""

    turns = Count(windows="lifetime")


def turns(name: str, count: int) -> pl.DataFrame:
    """Events of two gates."""
    return pl.DataFrame(
        {
            "turn_id": [f"{name}-{index}" for index in range(count)],
            "event_time": [NOON + timedelta(seconds=index) for index in range(count)],
            "gate": [index % 2 for index in range(count)],
        }
    )


@contextmanager
def kept(folder: Path, **ports: int):
    """A stack that a thread keeps running."""
    stopping = threading.Event()
    with LocalStack(folder, TOPICS, **ports) as stack:
        keeper = threading.Thread(target=stack.keep_running, args=(stopping,))
        keeper.start()
        try:
            yield stack
        finally:
            stopping.set()
            keeper.join()


def send(stack: LocalStack, frame: pl.DataFrame) -> None:
    """Send events and wait for the broker."""
    writer = TopicWriter(stack.broker.bootstrap, Turn)
    writer.write(frame)
    writer.close()


def first_offset(bootstrap: str, topic: str) -> int:
    """Offset of a message that is sent now."""
    placed = []
    producer = Producer({"bootstrap.servers": bootstrap})
    producer.produce(topic, b"x", on_delivery=lambda _error, message: placed.append(message.offset()))
    assert producer.flush(60) == 0
    return placed[0]


def wait_for_restart(stack: LocalStack, service: str, count: int = 1) -> None:
    """Return when a service has been started again."""
    deadline_s = time.monotonic() + 90
    while stack.state.restarts.get(service, 0) < count:
        assert time.monotonic() < deadline_s, stack.state
        time.sleep(0.02)


@contextmanager
def engine(folder: Path, stack: LocalStack):
    """An engine that follows the topic with a store of its own; yields the store, which finds Redis by its folder."""
    stopping, failures = threading.Event(), []

    def work():
        try:
            with OnlineStore.open(stack.state.store_url) as store:
                intake = Intake([Turn], dead_letters=FileDeadLetters(folder / "letters"))
                source = KafkaSource(stack.broker.bootstrap, [Turn])
                run(source, intake, [Materializer([Gate], store, flush_s=(0.02, 0.05))], stop=stopping)
        except HeadraceError as exc:
            failures.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with OnlineStore.open(stack.state.store_url) as store:
            yield store
    finally:
        stopping.set()
        thread.join()
        assert failures == []


def wait_for(store: OnlineStore, expected: list[int]) -> None:
    """Return when the store counts what is expected of both gates."""
    deadline_s = time.monotonic() + 90
    while True:
        found = store.read(Gate, [0, 1], now=NOON + timedelta(days=1))["turns_lifetime"].to_list()
        if found == expected:
            return
        assert time.monotonic() < deadline_s, found
        time.sleep(0.05)


def test_an_engine_goes_on_over_the_death_of_each_service(tmp_path):
    """
    10 events | Redis killed | 20 | broker killed | 30, more than before: at offsets that were never used | both | 4
    The engine neither stops, nor skips the first events of the new topic, nor counts one twice.
    """
    with kept(tmp_path / "stack") as stack, engine(tmp_path, stack) as store:
        send(stack, turns("a", 10))
        wait_for(store, [5, 5])
        store._link.client.execute_command("WAITAOF", 1, 0, 10_000)
        os.kill(stack.redis.pid, signal.SIGKILL)
        send(stack, turns("b", 20))
        wait_for(store, [15, 15])
        os.kill(stack.broker.pid, signal.SIGKILL)
        wait_for_restart(stack, "broker")
        send(stack, turns("c", 60))
        wait_for(store, [45, 45])
        store._link.client.execute_command("WAITAOF", 1, 0, 10_000)
        os.kill(stack.redis.pid, signal.SIGKILL)
        os.kill(stack.broker.pid, signal.SIGKILL)
        wait_for_restart(stack, "broker", 2)
        wait_for_restart(stack, "redis", 2)
        send(stack, turns("d", 4))
        wait_for(store, [47, 47])


def test_a_new_stack_neither_skips_nor_counts_twice(tmp_path):
    """
    stack 1   60 events, counted           Redis keeps the counts and the offsets
    stack 2   100 events                   more than the offsets that are stored: all are counted, each once
    """
    with kept(tmp_path) as stack, engine(tmp_path, stack) as store:
        send(stack, turns("a", 60))
        wait_for(store, [30, 30])
    ports = stack.state.redis_port, stack.state.broker_port
    with kept(tmp_path, redis_port=ports[0], broker_port=ports[1]) as stack:
        send(stack, turns("b", 100))
        with engine(tmp_path, stack) as store:
            wait_for(store, [80, 80])
        assert (stack.state.redis_port, stack.state.broker_port) == ports


def test_a_topic_that_is_added_is_made_again_with_the_others(tmp_path):
    """A class that is declared while the stack runs: its topic does not begin at offset 0 in a later life either."""
    with kept(tmp_path) as stack:
        for life in (1, 2):
            os.kill(stack.broker.pid, signal.SIGKILL)
            wait_for_restart(stack, "broker", life)
            assert add_topics(stack.state, {"turns": 2, "more": 1}) == ["more"] * (life == 1)
            assert add_topics(stack.state, {"turns": 2}) == []
            assert first_offset(stack.broker.bootstrap, "more") == life * LIFE_OFFSETS


def test_the_state_file_tells_who_runs_and_who_did(tmp_path):
    """Locked while the stack lives; what is left behind names the ports and is not taken for a running stack."""
    assert read_state(tmp_path) is None
    with kept(tmp_path) as stack:
        state = read_state(tmp_path)
        assert state == stack.state
        assert state.is_running
        assert (state.pid, state.redis_url) == (os.getpid(), stack.redis.url)
        with pytest.raises(ServiceError, match="kept by another process: `headrace down` ends it"):
            LocalStack(tmp_path, TOPICS).__enter__()
    left = read_state(tmp_path)
    assert not left.is_running
    assert left.redis_port == state.redis_port
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ConfigError, match=r"headrace-up.json is damaged.*delete the file"):
        read_state(tmp_path)


KEEPER = """
import sys, threading
from pathlib import Path
from headrace.local.stack import LocalStack
with LocalStack(Path(sys.argv[1]), {"turns": 2}) as stack:
    print(stack.redis.pid, stack.broker.pid, flush=True)
    stack.keep_running(threading.Event())
"""


def test_a_killed_keeper_leaves_nothing_that_is_taken_for_a_stack(tmp_path):
    """kill -9 of `up`: its services end, the file is stale, and the next stack starts on the same data."""
    keeper = Forked(
        ["-c", KEEPER, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    pids = [int(pid) for pid in keeper.stdout.readline().split()]
    with redis.Redis.from_url(read_state(tmp_path).redis_url) as client:
        client.set("name", "value")
    keeper.kill()
    keeper.communicate()
    assert not read_state(tmp_path).is_running
    with kept(tmp_path) as stack, redis.Redis.from_url(stack.redis.url) as client:
        assert client.get("name") == b"value"
        assert stack.state.broker_starts == 2
    assert all(wait_until_gone(pid) for pid in pids)


def test_a_store_of_a_stack_waits_for_it_and_finds_it_elsewhere(tmp_path):
    """
    stack 1 on port A | down: an error that says so, no server is started | stack 2 on port B: the same store goes on
    """
    with kept(tmp_path) as stack:
        url, port = stack.state.store_url, stack.redis.port
        store = OnlineStore.open(url)
        store._link.client.set("name", "value")
    with store:
        with pytest.raises(StoreUnavailableError, match="does not run: start it with `headrace up`"):
            store.active("gate")
        with pytest.raises(ServiceError, match="does not run: start it with `headrace up`, or set HEADRACE_REDIS_URL"):
            OnlineStore.open(url)
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", port))
            with kept(tmp_path) as stack:
                assert stack.redis.port != port
                assert store._link.client.get("name") == b"value"


def test_services_that_die_again_and_again_are_given_up(tmp_path):
    """One clear error, with the end of the log, in place of an endless loop."""
    stopping = threading.Event()
    with LocalStack(tmp_path, TOPICS) as stack:
        killer = threading.Thread(target=_kill_often, args=(stack, stopping))
        killer.start()
        try:
            with pytest.raises(ServiceError, match=rf"given up after {DEATHS_MAX} deaths .*broker is not running"):
                stack.keep_running(stopping)
        finally:
            stopping.set()
            killer.join()
        assert stack.state.restarts.get("broker", 0) < DEATHS_MAX


def _kill_often(stack: LocalStack, stopping: threading.Event) -> None:
    while not stopping.wait(0.01):
        pid = stack.broker.pid
        if pid is not None and stack.broker.alive:
            with suppress(ProcessLookupError):  # the keeper has just seen its end
                os.kill(pid, signal.SIGKILL)


def test_a_taken_port_names_its_process_and_the_flag(tmp_path):
    """Whose port it is, and how to give another; nothing is left running."""
    with kept(tmp_path / "one") as stack:
        with pytest.raises(PortBusyError, match=rf"port {stack.redis.port}.*valkey-server.*--redis-port"):
            LocalStack(tmp_path / "two", TOPICS, redis_port=stack.redis.port).__enter__()
        with pytest.raises(PortBusyError, match=rf"port {stack.broker.port}.*tansu.*--broker-port"):
            LocalStack(tmp_path / "two", TOPICS, broker_port=stack.broker.port).__enter__()
        assert not stop_stack(tmp_path / "two")


def test_settings_find_the_services_of_the_project(tmp_path, monkeypatch):
    """From any folder of it, running or not; what the environment or .env names comes first; outside, the defaults."""
    for name in ("REDIS_URL", "BROKERS", "PROJECT"):
        monkeypatch.delenv(f"HEADRACE_{name}", raising=False)
    root = tmp_path / "mine"
    scaffold.init(root, bare=True)
    monkeypatch.chdir(root / "features")
    assert load_settings().stack is None
    with kept(root / FOLDER) as stack:
        found = load_settings()
        assert found.stack == stack.state
        assert (found.redis_url, found.brokers) == (f"embedded://{root}/{FOLDER}/redis", stack.broker.bootstrap)
        monkeypatch.setenv("HEADRACE_BROKERS", "elsewhere:9092")
        assert load_settings().brokers == "elsewhere:9092"
        assert load_settings().stack == stack.state  # its Redis is used still
        monkeypatch.setenv("HEADRACE_REDIS_URL", "redis://elsewhere:6379/0")
        assert load_settings().redis_url == "redis://elsewhere:6379/0"
        assert load_settings().stack is None
    monkeypatch.delenv("HEADRACE_REDIS_URL")
    assert not load_settings().stack.is_running
    assert load_settings().redis_url == f"embedded://{root}/{FOLDER}/redis"
    monkeypatch.chdir(tmp_path)
    assert load_settings().stack is None
    monkeypatch.setenv("HEADRACE_PROJECT", str(root))
    assert load_settings().stack.folder == root / FOLDER
