"""`embedded://DIR`: one Redis a folder for any number of processes, found again by whoever uses it when it moves."""

import os
import signal
import socket
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis

from headrace.errors import ConfigError, ServiceError
from headrace.features.store import OnlineStore
from headrace.local import EmbeddedRedis, embedded_url
from tests.forked import Forked
from tests.local.processes import wait_until_gone

USER = """
import sys
from headrace.features.store import OnlineStore
with OnlineStore.open(sys.argv[1]) as store:
    print(store._link.client.incr("users"), flush=True)
    sys.stdin.readline()
"""


@contextmanager
def user(url: str):
    """Another process with an open store; ended with a line, or by the test."""
    process = Forked(
        ["-c", USER, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    try:
        process.first = process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.communicate()


def server_pid(folder: Path) -> int:
    """Process id of the server of a folder."""
    return int((folder / "redis.pid").read_text().split()[0])


def put(store: OnlineStore, key: str, value: str) -> None:
    """Set a key, and wait until it is on disk: a server that is killed may lose its last second."""
    store._link.client.set(key, value)
    store._link.client.execute_command("WAITAOF", 1, 0, 10_000)


@pytest.fixture
def folder(tmp_path):
    """A folder whose server, if this process started one, is stopped at the end."""
    yield tmp_path / "redis"
    server = embedded_url._servers.pop(tmp_path / "redis", None)
    if server is not None:
        server.stop()


def service_url(url):
    """Address of the Redis of a folder, which is started if it must be."""
    return EmbeddedRedis(embedded_url.client_options(url)["folder"]).served_at()


@pytest.mark.parametrize("end", ["ends", "is killed"])
def test_a_store_goes_on_when_the_process_that_started_redis_ends(folder, end):
    """
    other process   starts Redis ... ends
    this process              joins ... next command: starts Redis on the same data and port
    """
    url = f"embedded://{folder}"
    with user(url) as owner, OnlineStore.open(url) as store:
        assert owner.first == b"1\n"
        before = server_pid(folder), service_url(url)
        put(store, "kept", "value")
        if end == "ends":
            owner.communicate(b"\n", timeout=90)
        else:
            owner.send_signal(signal.SIGKILL)
            owner.wait()
        assert wait_until_gone(before[0])
        assert store._link.client.get("kept") == b"value"
        assert store.active("no_view") is None
        assert server_pid(folder) != before[0]
        assert service_url(url) == before[1]
        with user(url) as joined:
            assert joined.first == b"2\n"


def test_a_store_finds_a_redis_that_moved(folder):
    """Its port was taken meanwhile: the next command goes to the new one, on the same data."""
    url = f"embedded://{folder}"
    with user(url) as owner, OnlineStore.open(url) as store:
        port, pid = urlsplit(service_url(url)).port, server_pid(folder)
        os.kill(pid, signal.SIGKILL)
        assert wait_until_gone(pid)
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", port))
            taken.listen()
            assert store._link.client.get("users") == b"1"
            assert urlsplit(service_url(url)).port != port
        owner.communicate(b"\n", timeout=90)  # what it started is gone, so it ends no server of ours
        assert store._link.client.get("users") == b"1"


def test_threads_that_find_no_server_start_one(folder):
    """All of a process's threads reconnect at once: one server, no error."""
    url = f"embedded://{folder}"
    with OnlineStore.open(url) as store:
        for _ in range(3):
            put(store, "count", "0")
            os.kill(server_pid(folder), signal.SIGKILL)
            failures = []

            def use(failures=failures):
                try:
                    store._link.client.incr("count")
                except redis.RedisError as exc:
                    failures.append(exc)

            threads = [threading.Thread(target=use) for _ in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert failures == []
            assert store._link.client.get("count") == b"16"


def test_a_relative_folder_is_below_the_working_directory(tmp_path, monkeypatch):
    """And it stays the same one when the process changes its directory."""
    monkeypatch.chdir(tmp_path)
    with OnlineStore.open("embedded://data/redis") as store:
        put(store, "name", "value")
        monkeypatch.chdir("/")
        os.kill(server_pid(tmp_path / "data" / "redis"), signal.SIGKILL)
        assert store._link.client.get("name") == b"value"
    embedded_url._servers.pop(tmp_path / "data" / "redis").stop()


def test_a_folder_that_cannot_be_used_is_one_clear_error(tmp_path):
    """No folder named, a file in its place, a server that cannot read its data."""
    with pytest.raises(ConfigError, match="names no folder: write embedded://DIR"):
        OnlineStore.open("embedded://")
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="cannot use the folder .*file: (Not a directory|File exists)"):
        OnlineStore.open(f"embedded://{tmp_path}/file")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "appendonly.aof").write_bytes(b"this is not a log\r\n")
    with pytest.raises(ServiceError, match="Bad file format"):
        OnlineStore.open(f"embedded://{tmp_path}/damaged")


def test_a_server_started_as_an_object_is_joined(folder):
    """`EmbeddedRedis(folder)` and `embedded://folder` are the same Redis."""
    with EmbeddedRedis(folder) as server, redis.Redis.from_url(server.url) as client:
        client.set("name", "value")
        with OnlineStore.open(f"embedded://{folder}") as store:
            assert store._link.client.get("name") == b"value"
        assert service_url(f"embedded://{folder}") == server.url
