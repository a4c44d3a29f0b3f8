"""Write events to a topic: rows of a source, checked and encoded as in a flow.

file, glob, URL or lines of stdin --> Intake --> good rows --> TopicWriter --> topic
'-----> refused rows, with the reason
"""

import os
import select
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from threading import Event as Flag
from typing import Self

import numpy as np
import polars as pl

from headrace.schemas import Event, spec_of
from headrace.streams.intake import Intake
from headrace.streams.kafka_writer import TopicWriter
from headrace.streams.source import Batch, Source

ROWS_MAX = 65_536
"""Rows between two waits for acknowledgements: at most these are uncertain if the broker fails."""
MESSAGE_BYTES_MAX = 500_000
"""Bytes of rows per message for a codec that packs many rows: brokers refuse messages over 1 MB."""
PARTS_A_SECOND = 20
"""Parts per second in which rows are sent to keep a rate."""
READ_BYTES = 1 << 20
WAIT_S = 0.1
"""Longest wait of a poll for lines, in seconds."""


@dataclass(slots=True)
class Sent:
    """Number of rows that the broker has acknowledged."""

    rows: int = 0


def produce(
    source: Source,
    event: type[Event],
    writer: TopicWriter,
    intake: Intake,
    sent: Sent,
    *,
    rate: float | None = None,
    stop: Flag | None = None,
    on_progress: Callable[[Sent], None] | None = None,
) -> None:
    """Send the good rows of `source` to the topic of `writer`, and count acknowledged rows in `sent`.

    `rate`: maximum rows per second. `stop` ends it early, after waiting for the rows that were passed to the producer.
    `sent` is correct even after an error: its rows have arrived, and at most `ROWS_MAX` rows after them may have.

    Raises:
        HeadraceError: the source cannot be read, or the broker refused a message or does not answer.
    """
    packs_many = spec_of(event).codec == "arrow"
    pace = _Pace(rate)
    source.seek({})
    try:
        while not source.exhausted and not (stop is not None and stop.is_set()):
            for batch in source.poll():
                rows = intake.decode(batch).frame
                for part in rows.iter_slices(pace.rows_max):
                    pace.wait(part.height)
                    for message in _messages(part) if packs_many else [part]:
                        writer.write(message)
                    writer.flush()
                    sent.rows += part.height
                    if on_progress is not None:
                        on_progress(sent)
                    if stop is not None and stop.is_set():
                        return
    finally:
        source.close()


class LineSource(Source):
    """Lines of a file descriptor as they arrive, one JSON payload each; blank lines are skipped.

    It has one partition, whose offsets are indexes of lines. `poll` waits up to `WAIT_S`.
    """

    def __init__(self, descriptor: int, event: type[Event]) -> None:
        self._descriptor = descriptor
        self._topic = spec_of(event).topic
        self._partition = f"{self._topic}/stdin"
        self._rest = b""
        self._line = 0
        self._ended = False

    @property
    def exhausted(self) -> bool:
        """Whether the writer has closed the descriptor and every line has been read."""
        return self._ended

    def partitions(self) -> list[str]:
        """The single partition."""
        return [self._partition]

    def share(self, index: int, count: int) -> Self:
        """This source: a stream of lines has a single reader."""
        assert (index, count) == (0, 1), "lines have one reader"
        return self

    def seek(self, positions: Mapping[str, int]) -> None:
        """Do nothing: lines can only be read as they arrive."""

    def poll(self) -> list[Batch]:
        """Lines that have arrived."""
        if not select.select([self._descriptor], [], [], WAIT_S)[0]:
            return []
        data = os.read(self._descriptor, READ_BYTES)
        self._ended = not data
        lines = (self._rest + data).split(b"\n")
        self._rest = b"" if self._ended else lines.pop()
        numbers = [self._line + index for index, line in enumerate(lines) if line.strip()]
        self._line += len(lines)
        return [self._batch(numbers, [line for line in lines if line.strip()])] if numbers else []

    def close(self) -> None:
        """Do nothing: the descriptor belongs to the caller."""

    def _batch(self, numbers: list[int], lines: list[bytes]) -> Batch:
        return Batch(
            topic=self._topic,
            partition=self._partition,
            offsets=np.array(numbers, np.int64),
            next_offset=self._line,
            payloads=lines,
            codec="json",
            ended=self._ended,
        )


class _Pace:
    """A limit of rows per second, which sends rows in parts."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._due_s = time.monotonic()
        self.rows_max = ROWS_MAX if rate is None else min(max(1, int(rate / PARTS_A_SECOND)), ROWS_MAX)

    def wait(self, rows: int) -> None:
        """Wait until the next `rows` rows may be sent."""
        if self._rate is None:
            return
        time.sleep(max(self._due_s - time.monotonic(), 0.0))
        self._due_s = max(self._due_s, time.monotonic() - 1.0) + rows / self._rate


def _messages(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Split a frame into parts that are each small enough for one message."""
    rows = max(1, int(MESSAGE_BYTES_MAX / max(frame.estimated_size() / frame.height, 1.0)))
    return frame.iter_slices(rows)
