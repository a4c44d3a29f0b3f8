"""What flows through a topic, message by message: decoded rows, and why the others could not be decoded."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event as Flag

from headrace.schemas import DeadLetter, DeadLetters, Event, codec_for
from headrace.streams.intake import Intake
from headrace.streams.source import Source

IDLE_S = 0.02
"""Pause after a poll that brought nothing."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One row of a topic: `row` is its JSON, or None where it cannot be used, for `reason` and in `detail`."""

    partition: str
    offset: int
    row: bytes | None
    reason: str = ""
    detail: str = ""


class _Kept:
    """Dead letters of the batch at hand."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []

    def write(self, letters: Sequence[DeadLetter]) -> None:
        self.letters.extend(letters)

    def close(self) -> None:
        """Nothing is open."""


def tail(
    source: Source, event: type[Event], make_intake: Callable[[DeadLetters], Intake], stop: Flag
) -> Iterator[Seen]:
    """Rows of a topic as they come, of each partition in the order of offsets, until `stop` is set.

    `make_intake` makes what decodes and checks them, given the place where it puts rows that cannot be used.

    Raises:
        SourceError: the broker does not answer, or has no such topic.
    """
    kept = _Kept()
    intake = make_intake(kept)
    try:
        while not stop.is_set():
            batches = source.poll()
            for batch in batches:
                good = intake.decode(batch)
                rows = codec_for(event, "json").encode(good.frame)
                seen = [Seen(batch.partition, *one) for one in zip(good.offsets.tolist(), rows, strict=True)]
                seen += [Seen(one.partition, one.offset, None, one.reason, one.detail) for one in kept.letters]
                kept.letters.clear()
                yield from sorted(seen, key=lambda one: one.offset)
            if not batches:
                time.sleep(IDLE_S)
    finally:
        source.close()
