"""Follow a topic: rows as JSON, and the reason for each message that cannot be used."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event as Flag

from headrace.schemas import DeadLetter, DeadLetters, Event, codec_for
from headrace.streams.intake import Intake
from headrace.streams.source import Source

IDLE_S = 0.02
"""Pause in seconds after an empty poll."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One row of a topic as JSON; None if it cannot be used, with `reason` and `detail`."""

    partition: str
    offset: int
    row: bytes | None
    reason: str = ""
    detail: str = ""


class _LettersInMemory:
    """Dead letters of the current batch, in memory."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []

    def write(self, letters: Sequence[DeadLetter]) -> None:
        self.letters.extend(letters)

    def close(self) -> None:
        """Do nothing."""


def tail(
    source: Source, event: type[Event], make_intake: Callable[[DeadLetters], Intake], stop: Flag
) -> Iterator[Seen]:
    """Yield rows of a topic as they arrive, in the order of offsets within a partition, until `stop` is set.

    `make_intake` creates the intake for a given dead-letter sink.

    Raises:
        SourceError: the broker does not answer, or does not have the topic.
    """
    letters = _LettersInMemory()
    intake = make_intake(letters)
    try:
        while not stop.is_set():
            batches = source.poll()
            for batch in batches:
                good = intake.decode(batch)
                rows = codec_for(event, "json").encode(good.frame)
                seen = [Seen(batch.partition, *one) for one in zip(good.offsets.tolist(), rows, strict=True)]
                seen += [Seen(one.partition, one.offset, None, one.reason, one.detail) for one in letters.letters]
                letters.letters.clear()
                yield from sorted(seen, key=lambda one: one.offset)
            if not batches:
                time.sleep(IDLE_S)
    finally:
        source.close()
