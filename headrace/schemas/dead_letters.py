"""What could not be used is kept: source, place, reason and the bytes themselves.

Files are JSON lines, one file a process, so that many processes write into one folder without a lock. Whoever finds
what is bad counts it with `count_letters`, once, however many places it is written to.
"""

import base64
import io
import os
import time
from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import orjson
import polars as pl
import prometheus_client
import structlog

from headrace.errors import DecodeError

DEAD_LETTERS = prometheus_client.Counter(
    "headrace_dead_letters_total", "Payloads and rows that could not be used.", ["event", "reason"]
)
_SCHEMA = {
    "source": pl.String(),
    "partition": pl.String(),
    "offset": pl.Int64(),
    "reason": pl.String(),
    "detail": pl.String(),
    "payload": pl.Binary(),
    "arrival_us": pl.Int64(),
}
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One payload, or row, that could not be used.

    `source` is the event's topic, `partition` and `offset` where it stood there, `reason` one word that is counted,
    `detail` a sentence, `payload` its bytes as they came (the JSON of the row where there were none), `arrival_us` the
    time it came.
    """

    source: str
    partition: str
    offset: int
    reason: str
    detail: str
    payload: bytes
    arrival_us: int


class DeadLetters(Protocol):
    """Where dead letters go. Called by the threads that decode and apply, one at a time, with what one batch has."""

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Keep the letters."""
        ...

    def close(self) -> None:
        """Make everything written durable, and stop."""
        ...


def count_letters(letters: Sequence[DeadLetter]) -> None:
    """Add the letters to the metric and log one line a source and reason."""
    for (source, reason), count in Tally((letter.source, letter.reason) for letter in letters).items():
        DEAD_LETTERS.labels(event=source, reason=reason).inc(count)
        _log.warning("dead_letters", source=source, reason=reason, count=count)


def encode_letter(letter: DeadLetter) -> bytes:
    """One line of JSON without its end; the payload is base64."""
    return orjson.dumps({**asdict(letter), "payload": base64.b64encode(letter.payload).decode()})


def decode_letter(line: bytes) -> DeadLetter:
    """The letter that `encode_letter` wrote.

    Raises:
        DecodeError: the line is not such a letter.
    """
    try:
        found = orjson.loads(line)
        return DeadLetter(**{**found, "payload": base64.b64decode(found["payload"], validate=True)})
    except (ValueError, TypeError, KeyError) as exc:
        raise DecodeError(f"dead letter {line[:80]!r}: {exc}") from exc


class FileDeadLetters:
    """Letters in a folder, as JSON lines.

    Args:
        folder: made when it is not there. This object's file has the process id and the time in its name, so writers
            never share one. It appears with the first letter.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file: io.BufferedWriter | None = None

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Append the letters and hand them to the operating system; a crash of this process loses none of them."""
        if not letters:
            return
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = (self.folder / f"letters-{time.time_ns()}-{os.getpid()}-{id(self)}.jsonl").open("xb")
        self._file.write(b"".join(encode_letter(letter) + b"\n" for letter in letters))
        self._file.flush()

    def flush(self) -> None:
        """Make everything written survive a power cut."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush, and let go of the file; a later write starts a new one."""
        if self._file is not None:
            self.flush()
            self._file.close()
            self._file = None


def read(folder: str | Path) -> pl.DataFrame:
    """All letters in a folder, by arrival: the fields of `DeadLetter` as columns, the payload as bytes.

    A last line that a crash cut short is left out.

    Raises:
        DecodeError: a whole line is no letter.
    """
    letters = [
        asdict(decode_letter(line))
        for file in sorted(Path(folder).glob("letters-*.jsonl"))
        for line in file.read_bytes().split(b"\n")[:-1]
    ]
    return pl.DataFrame(letters, schema=_SCHEMA).sort("arrival_us", maintain_order=True)
