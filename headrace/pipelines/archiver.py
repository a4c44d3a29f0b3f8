"""Archiver: copies a log to Parquet files by event day, for backfills and analysis after the broker has deleted it.

    <folder>/<topic>/2024-05-01/<partition>.<first offset>-<next offset>.parquet       names: files/archive_names
                                              the event's columns, and `_offset`
    <folder>/<topic>/offsets.json                                                      committed next offsets

Each event is in exactly one file. A flush first writes its files, each under a temporary name until it is complete and
on disk, and then the offsets, by one rename. Files past the committed offsets are in progress or left from a crash:
readers skip them, and the next archiver deletes them before it writes those rows again. The folder of a topic has one
writer. Overlapping files of two writers would hold events twice, so readers refuse them.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import structlog
from prometheus_client import Counter, Gauge, Histogram

from headrace.atomic import PARTIAL, claim, open_file, release, write_file
from headrace.errors import ServiceError
from headrace.schemas import Event, spec_of
from headrace.streams.files.archive_names import OFFSET_COLUMN, OFFSETS, archive_name, named_rows, parse_offsets
from headrace.streams.positions import Positions, positions_of
from headrace.streams.source import EventBatch

log = structlog.get_logger(__name__)

FLUSH_S = 60.0
"""Seconds between flushes. Small files are slow to read, but after a crash up to this much is read again."""
ROWS_MAX = 1_000_000
"""Number of buffered rows that triggers a flush."""

ARCHIVED = Counter("headrace_archived_rows_total", "Rows written to the archive", ["topic"])
WAITING_ROWS = Gauge("headrace_archive_waiting_rows", "Rows in memory that wait for the next flush of the archive")
FLUSH_SECONDS = Histogram(
    "headrace_archive_flush_seconds",
    "Time of one flush of the archive: files, then offsets",
    buckets=(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)


class Archiver:
    """A `Step` that archives every event in `folder`.

    Raises:
        SourceError: committed offsets are damaged.
        ServiceError: from `apply`, another process archives the topic into the folder.
    """

    def __init__(self, folder: str | Path, *, flush_s: float = FLUSH_S, rows_max: int = ROWS_MAX) -> None:
        self.folder = Path(folder)
        self._flush_s = flush_s
        self._rows_max = rows_max
        self._batches: list[EventBatch] = []
        self._rows = 0
        self._since_s = time.monotonic()
        self._positions: dict[str, int] = {}
        self._begun: set[str] = set()
        for committed in self.folder.glob(f"*/{OFFSETS}"):
            self._positions |= self._committed(committed.parent.name)
        for topic_folder in self.folder.glob("*/"):
            self._clean(topic_folder)

    def describe(self) -> str:
        """Name the archive."""
        return f"the archive {self.folder}"

    def positions(self) -> Positions:
        """Next offset of each archived partition."""
        return positions_of("the archive", dict(self._positions))

    def expect(self, partitions: Sequence[str]) -> None:
        """Do nothing."""

    def apply(self, batch: EventBatch) -> None:
        """Buffer new rows until the next flush."""
        self._begin(spec_of(batch.event).topic)
        known = self._positions.get(batch.partition, 0)
        if batch.next_offset <= known:
            return
        batch = batch.since(known)
        if not self._batches:
            self._since_s = time.monotonic()
        self._batches.append(batch)
        self._rows += batch.frame.height
        WAITING_ROWS.set(self._rows)
        self._positions[batch.partition] = batch.next_offset

    @property
    def due_s(self) -> float | None:
        """Monotonic time of the next flush."""
        return self._since_s + self._flush_s if self._batches else None

    def tick(self) -> list[Path]:
        """Flush if it is time; returns the files written."""
        due_s = self.due_s
        return (
            self.finish() if due_s is not None and (time.monotonic() >= due_s or self._rows >= self._rows_max) else []
        )

    def status(self) -> dict[str, Any]:
        """Positions, and the number of buffered rows."""
        return {"positions": self.positions(), "waiting_rows": self._rows}

    @FLUSH_SECONDS.time()
    def finish(self) -> list[Path]:
        """Write the buffered rows, then the offsets."""
        written: list[Path] = []
        by_partition: dict[tuple[type[Event], str], list[EventBatch]] = {}
        for batch in self._batches:
            by_partition.setdefault((batch.event, batch.partition), []).append(batch)
        for (event, partition), batches in by_partition.items():
            written += self._write(event, partition, batches)
        for topic in {spec_of(event).topic for event, _ in by_partition}:
            self._commit(topic)
        self._batches.clear()
        self._rows = 0
        WAITING_ROWS.set(0)
        return written

    def _write(self, event: type[Event], partition: str, batches: Sequence[EventBatch]) -> list[Path]:
        spec = spec_of(event)
        frame = pl.concat([batch.frame for batch in batches])
        if frame.is_empty():
            return []
        frame = frame.with_columns(pl.Series(OFFSET_COLUMN, np.concatenate([batch.offsets for batch in batches])))
        first = next(int(batch.offsets[0]) for batch in batches if len(batch.offsets))
        name = archive_name(partition, first, batches[-1].next_offset)
        written = []
        days = frame.with_columns(pl.col(spec.time).dt.date().alias("__day"))
        for (day,), part in days.partition_by("__day", as_dict=True, include_key=False, maintain_order=True).items():
            path = self.folder / spec.topic / str(day) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_file(path) as file:
                part.write_parquet(file)
            written.append(path)
        ARCHIVED.labels(spec.topic).inc(frame.height)
        return written

    def _commit(self, topic: str) -> None:
        folder = self.folder / topic
        folder.mkdir(parents=True, exist_ok=True)
        offsets = {name: offset for name, offset in self._positions.items() if name.startswith(f"{topic}/")}
        write_file(folder / OFFSETS, orjson.dumps(offsets))

    def _begin(self, topic: str) -> None:
        """Lock the folder of a topic against other archivers."""
        if topic in self._begun:
            return
        claim(self.folder / topic)
        if any(self._positions.get(name) != offset for name, offset in self._committed(topic).items()):
            raise ServiceError(f"archive {self.folder / topic}: another process went on with it; start again")
        self._begun.add(topic)

    def _clean(self, folder: Path) -> None:
        """Delete files left by a crash in the folder of a topic, unless another process is archiving that topic."""
        if not self._uncommitted(folder):
            return
        try:
            is_new = claim(folder)
        except ServiceError as exc:
            log.info("archive_written_elsewhere", detail=str(exc))
            return
        for path in self._uncommitted(folder):  # again: the writer may have committed in between
            log.warning("uncommitted_archive_file_deleted", path=str(path))
            path.unlink()
        if is_new:
            release(folder)

    def _uncommitted(self, folder: Path) -> list[Path]:
        """Files of a topic past its committed offsets, and incomplete files."""
        offsets = self._committed(folder.name)
        named = [(path, named_rows(folder.name, path.name)) for path in folder.glob("*/*.parquet")]
        past = [path for path, rows in named if rows and rows[1] >= offsets.get(rows[0], 0)]
        return [*past, *folder.glob(f"*/*.parquet{PARTIAL}")]

    def _committed(self, topic: str) -> dict[str, int]:
        """Next offset of each archived partition of a topic."""
        path = self.folder / topic / OFFSETS
        return parse_offsets(path.read_bytes(), str(self.folder)) if path.is_file() else {}
