"""Dead letters: payloads and rows that could not be used, with source, offset, reason and the original bytes.

Files are JSON lines, one file per process, so that many processes can write to one folder without a lock. The code that
finds a dead letter counts it with `count_letters`, once, regardless of how many places it is written to.
"""

import base64
import io
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Protocol, Self, overload

import numpy as np
import orjson
import polars as pl
import prometheus_client
from numpy.typing import NDArray

from headrace.errors import DecodeError, ServiceError
from headrace.schemas.paced_log import PacedLog

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
_log = PacedLog("dead_letters")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One payload, or row, that could not be used.

    `source` is the event's topic, `partition` and `offset` the position in it, `reason` one word by which it is
    counted, `detail` a sentence, `payload` the original bytes, `arrival_us` the arrival time. For a row of a file, or
    of a payload with several rows, `payload` is the row as a JSON object.
    """

    source: str
    partition: str
    offset: int
    reason: str
    detail: str
    payload: bytes
    arrival_us: int


class DeadLetters(Protocol):
    """A sink for dead letters, called by the threads that decode and apply, one at a time, with those of one batch."""

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Keep the letters: a `Letters`, which creates its objects on access, or any other sequence."""
        ...

    def close(self) -> None:
        """Make everything written durable, then stop."""
        ...


class Letters(Sequence[DeadLetter]):
    """Dead letters as columns, so that a flood of them creates no Python objects until they are accessed.

    `frame` has a column (n,) for each field of `DeadLetter`.
    """

    def __init__(self, frame: pl.DataFrame) -> None:
        assert frame.schema == _SCHEMA, f"{frame.schema}"
        self.frame = frame
        self._lines: bytes | None = None

    @classmethod
    def of(
        cls,
        source: str,
        partition: str,
        arrival_us: int,
        offsets: NDArray[np.int64],
        reasons: pl.Series | str,
        details: pl.Series | str,
        payloads: pl.Series,
    ) -> Self:
        """Letters of one partition: offsets and payloads (n,); reasons and details (n,), or one value for all."""
        given = {"source": source, "partition": partition, "reason": reasons, "detail": details, "payload": payloads}
        columns = {name: pl.lit(value) for name, value in (given | {"arrival_us": arrival_us}).items()}
        columns["offset"] = pl.col("offset")
        frame = pl.DataFrame({"offset": offsets})
        return cls(frame.select(columns[name].cast(dtype).alias(name) for name, dtype in _SCHEMA.items()))

    @classmethod
    def all_of(cls, letters: Sequence[DeadLetter]) -> "Letters":
        """Convert letters to columns; a `Letters` is returned unchanged. Lone surrogates become question marks."""
        if isinstance(letters, Letters):
            return letters
        rows = [[_clean(value) for value in astuple(letter)] for letter in letters]
        return cls(pl.DataFrame(rows, schema=_SCHEMA, orient="row"))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the letters of the parts."""
        return cls(pl.concat([pl.DataFrame(schema=_SCHEMA), *(part.frame for part in parts)]))

    def lines(self) -> bytes:
        """The letters as JSON lines, each as `encode_letter` writes it plus a newline; encoded once."""
        if self._lines is None:
            sink = io.BytesIO()
            self.frame.with_columns(pl.col("payload").bin.encode("base64")).write_ndjson(sink)
            self._lines = sink.getvalue()
        return self._lines

    def __len__(self) -> int:
        return self.frame.height

    def __iter__(self) -> Iterator[DeadLetter]:
        return (DeadLetter(*row) for row in self.frame.iter_rows())

    @overload
    def __getitem__(self, key: int) -> DeadLetter: ...
    @overload
    def __getitem__(self, key: slice) -> Self: ...
    def __getitem__(self, key: int | slice) -> DeadLetter | Self:
        return type(self)(self.frame[key]) if isinstance(key, slice) else DeadLetter(*self.frame.row(key))


def _clean(value: Any) -> Any:
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


def encoded(letters: Sequence[DeadLetter]) -> list[bytes]:
    """A line of JSON for each letter, without the newline."""
    return Letters.all_of(letters).lines().split(b"\n")[:-1]


def count_letters(letters: Sequence[DeadLetter]) -> None:
    """Add the letters to the metric, and log at most one line per second for each source and reason."""
    groups = Letters.all_of(letters).frame.group_by("source", "reason", maintain_order=True)
    counts = groups.agg(pl.len(), pl.col("detail").first().alias("first")).rows()
    for source, reason, count, detail in counts:
        DEAD_LETTERS.labels(event=source, reason=reason).inc(count)
        _log.add(count, detail, source=source, reason=reason)


def encode_letter(letter: DeadLetter) -> bytes:
    """Encode a letter as a line of JSON, without the newline.

    The payload is base64. Lone surrogates in texts become question marks.
    """
    [line] = encoded([letter])
    return line


def decode_letter(line: bytes) -> DeadLetter:
    """Decode a line that `encode_letter` wrote.

    Raises:
        DecodeError: the line is not a dead letter.
    """
    try:
        fields = orjson.loads(line)
        return DeadLetter(**{**fields, "payload": base64.b64decode(fields["payload"], validate=True)})
    except (ValueError, TypeError, KeyError) as exc:
        raise DecodeError(f"dead letter {line[:80]!r}: {exc}") from exc


class FileDeadLetters:
    """A folder of dead letters, as JSON lines.

    Args:
        folder: created if missing. The file name contains the process id and the time, so writers never share a file.
            The file is created with the first letter.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file: io.FileIO | None = None

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Append the letters and pass them to the operating system; a crash of this process loses none of them.

        Raises:
            ServiceError: the folder cannot be written to.
        """
        if not letters:
            return
        try:
            self._append(Letters.all_of(letters).lines())
        except OSError as exc:
            raise ServiceError(
                f"{len(letters)} dead letters cannot be written to {self.folder}: {exc.strerror}; make room there, or "
                "name another folder in HEADRACE_DEAD_LETTER_DIR"
            ) from exc

    def _append(self, text: bytes) -> None:
        if self._file is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f"letters-{time.time_ns()}-{os.getpid()}-{id(self)}.jsonl"
            self._file = (self.folder / name).open("xb", buffering=0)
        rest = memoryview(text)
        while rest:
            rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        """Sync the file to disk and close it; a later write starts a new file."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def read(folder: str | Path) -> pl.DataFrame:
    """Read all letters in a folder, by arrival: the fields of `DeadLetter` as columns, the payload as bytes.

    A last line that a crash cut short is left out.

    Raises:
        DecodeError: a complete line is not a dead letter.
    """
    letters = [
        asdict(decode_letter(line))
        for file in sorted(Path(folder).glob("letters-*.jsonl"))
        for line in file.read_bytes().split(b"\n")[:-1]
    ]
    return pl.DataFrame(letters, schema=_SCHEMA).sort("arrival_us", maintain_order=True)
