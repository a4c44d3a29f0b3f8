"""A Redis Cluster of three masters on this machine, from the server binary that the embedded Redis runs."""

import socket
import time
from pathlib import Path
from typing import Self

import redis

from headrace.local.ports import HOST, free_port
from headrace.local.process import ServiceProcess
from headrace.local.redis_server import redis_binary

SLOTS = 16_384
MASTERS = 3
READY_S_MAX = 30.0
_BUS = 10_000  # a node's bus listens on its port + 10,000


class RedisCluster:
    """Three masters with their append-only files on; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.ports = [_port_with_bus() for _ in range(MASTERS)]
        self._processes = [ServiceProcess("redis", folder / str(port)) for port in self.ports]
        self._binary = redis_binary()

    @property
    def url(self) -> str:
        return f"redis+cluster://{HOST}:{self.ports[0]}"

    def node(self, index: int) -> redis.Redis:
        """A client of one master that follows no redirection."""
        return redis.Redis(host=HOST, port=self.ports[index])

    def start(self, index: int) -> None:
        settings = {
            "port": self.ports[index],
            "bind": HOST,
            "cluster-enabled": "yes",
            "cluster-config-file": "nodes.conf",
            "appendonly": "yes",
            "save": "",
        }
        self._processes[index].start([self._binary, *[str(w) for k, v in settings.items() for w in (f"--{k}", v)]])

    def kill(self, index: int) -> None:
        """End one master as a power cut would; `start` brings it back with its data and slots."""
        self._processes[index].kill()

    def wait(self) -> None:
        """Return when every master knows the others and serves all slots."""
        deadline_s = time.monotonic() + READY_S_MAX
        for index in range(MASTERS):
            while not self._ready(index):
                assert time.monotonic() < deadline_s, self._processes[index].log_tail()
                time.sleep(0.02)

    def give(self, slot: int, index: int) -> None:
        """Let master `index` own `slot`, which must be empty: what the last step of a resharding does."""
        with self.node(index) as client:
            owner = client.execute_command("CLUSTER MYID")
        for other in range(MASTERS):
            with self.node(other) as client:
                client.execute_command("CLUSTER SETSLOT", slot, "NODE", owner)

    def _ready(self, index: int) -> bool:
        with self.node(index) as client:
            try:
                info = client.execute_command("CLUSTER INFO")
            except redis.ConnectionError:
                return False
        return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == MASTERS

    def __enter__(self) -> Self:
        for index in range(MASTERS):
            self.start(index)
        for index in range(MASTERS):
            with self.node(index) as client:
                while True:
                    try:
                        client.ping()
                        break
                    except redis.ConnectionError:
                        self._processes[index].check()
                        time.sleep(0.01)
                client.execute_command(
                    "CLUSTER ADDSLOTS", *range(index * SLOTS // MASTERS, (index + 1) * SLOTS // MASTERS)
                )
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", index + 1)
                if index:
                    client.execute_command("CLUSTER MEET", HOST, self.ports[0])
        self.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self._processes:
            process.stop()


def _port_with_bus() -> int:
    """A free port whose bus port is free and exists as well."""
    while True:
        port = free_port() % 30_000 + 20_000
        with socket.socket() as probe, socket.socket() as bus:
            try:
                probe.bind((HOST, port))
                bus.bind((HOST, port + _BUS))
            except OSError:
                continue
            return port
