"""A log in a real broker that keeps nothing: after its end it is published again, every event at its old offset."""

import os
import signal
import time
from pathlib import Path
from typing import Self

import polars as pl
from confluent_kafka import KafkaError, Message, Producer

from benchmarks.crashes.declaration import FILES, Reading
from headrace.local import EmbeddedBroker
from headrace.schemas import codec_for, spec_of

TOPIC = spec_of(Reading).topic
_QUEUE_ROWS = 200_000


class BrokerLog:
    """The rows of `frame` (columns `_partition`, `_offset`) in a broker in `folder`; a context manager."""

    def __init__(self, folder: Path, frame: pl.DataFrame) -> None:
        self._server = EmbeddedBroker(folder, topics={TOPIC: FILES})
        codec = codec_for(Reading)
        rows = frame.sort("_offset", "_partition")
        self._numbers = rows["_partition"].str.split("/").list.last().cast(pl.Int64).to_list()
        self._payloads = codec.encode(rows.drop("_partition", "_offset"))

    @property
    def bootstrap(self) -> str:
        """`host:port` of the broker."""
        return self._server.bootstrap

    def publish(self) -> None:
        """Append every event, in the order of offsets.

        Raises AssertionError where the broker put one elsewhere: counts of the whole log would then prove nothing.
        """
        options = {"bootstrap.servers": self.bootstrap, "enable.idempotence": True, "linger.ms": 20, "log_level": 0}
        producer = Producer({**options, "queue.buffering.max.messages": 2 * _QUEUE_ROWS})
        ends = [0] * FILES

        def placed(error: KafkaError | None, message: Message) -> None:
            assert error is None, error
            number = message.partition()
            assert message.offset() == ends[number], f"{number}: offset {message.offset()} in place of {ends[number]}"
            ends[number] += 1

        for row, (number, payload) in enumerate(zip(self._numbers, self._payloads, strict=True)):
            producer.produce(TOPIC, payload, partition=number, on_delivery=placed)
            if row % _QUEUE_ROWS == 0:
                producer.flush()
        assert producer.flush(60) == 0

    def freeze(self, seconds: float) -> None:
        """The broker answers nobody for some time; connections stay."""
        assert self._server.pid is not None
        os.kill(self._server.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self._server.pid, signal.SIGCONT)

    def lose(self, seconds: float) -> None:
        """Kill the broker, and after some time bring it back without its events: `publish` has to follow."""
        self._server.kill()
        time.sleep(seconds)
        self._server.start()

    def __enter__(self) -> Self:
        self._server.start()
        self.publish()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.stop()
