"""Reading history in its various forms, and sorting its events by time, on disk if there are many.

    URLs, paths, archives, topics --.
                                    +--> Source --> Intake --> OrderedEvents (sorted on disk if many) --> pieces
    frames, lists of dicts ---------'

A piece has all events before its cut that no earlier piece had, so features as of a time are exact.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from headrace.errors import SchemaError
from headrace.history.external_sort import Sorter, merged
from headrace.history.log import MEMORY_ROWS, time_of
from headrace.history.replay import cut_events
from headrace.schemas import DeadLetter, DeadLetters, Event, spec_of
from headrace.schemas.tables import frame_of
from headrace.streams.intake import Intake
from headrace.streams.source import Batch, EventBatch, MergedSource, Source
from headrace.streams.urls import sources_of_urls

PIECE_ROWS = 16_384
"""Events per piece: more take more memory as examples, fewer cost more calls."""
POLL_S = 0.003


class LeftOut:
    """Counts dead letters and passes them to `then`, if given; the bad events stay in the history."""

    def __init__(self, then: DeadLetters | None = None) -> None:
        self.count = 0
        self._first: DeadLetter | None = None
        self._then = then

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Count dead letters, and pass them on."""
        self.count += len(letters)
        self._first = self._first or next(iter(letters), None)
        if self._then is not None:
            self._then.write(letters)

    def describe(self) -> str:
        """The number of bad events and the reason for the first, for messages; "" if there were none."""
        if self._first is None:
            return ""
        return f"; {self.count:,} bad events were left out, the first for {self._first.reason}: {self._first.detail}"

    def close(self) -> None:
        """Close `then`."""
        if self._then is not None:
            self._then.close()


class FrameSource(Source):
    """The rows of one frame, as one partition."""

    def __init__(self, event: type[Event], frame: pl.DataFrame) -> None:
        self._event = event
        self._rows = frame
        self._next: int | None = 0

    def describe(self) -> str:
        """Name the event and the number of rows."""
        return f"{self._event.__name__} from a frame of {self._rows.height:,} rows"

    @property
    def exhausted(self) -> bool:
        """Whether the frame has been read."""
        return self._next is None

    def partitions(self) -> list[str]:
        """The single partition."""
        return [f"{spec_of(self._event).topic}/frame"]

    def share(self, index: int, count: int) -> Self:
        """The whole frame for the first reader, nothing for others."""
        del count
        return type(self)(self._event, self._rows if index == 0 else self._rows.clear())

    def seek(self, positions: Mapping[str, int]) -> None:
        """Continue from a row."""
        self._next = positions.get(self.partitions()[0], 0)

    def poll(self) -> list[Batch]:
        """Return all remaining rows."""
        if self._next is None:
            return []
        end = self._rows.height
        rows, offsets = self._rows[self._next :], np.arange(self._next, end)
        self._next = None
        return [Batch(spec_of(self._event).topic, self.partitions()[0], offsets, end, frame=rows, ended=True)]

    def close(self) -> None:
        """Do nothing, since nothing is open."""


def open_history(events: Any, classes: Sequence[type[Event]], **options: Any) -> Source:
    """Open a history as a source; see `headrace.train` for the forms of `events`.

    `options` are those of `sources_of_urls`.

    Raises:
        SchemaError: `events` is not a table, path or source, or is one table for several classes.
        ConfigError: a URL is not valid.
    """
    if hasattr(events, "poll"):
        source: Source = events
        return source
    if isinstance(events, Mapping) and all(isinstance(name, type) for name in events):
        known = {event: table for event, table in events.items() if event in classes}
        sources = [_source_of(table, [event], **options) for event, table in known.items()]
        if not sources:
            names = ", ".join(event.__name__ for event in classes)
            raise SchemaError(f"events: no table of {names}; give one, such as {{{classes[0].__name__}: frame}}")
        return sources[0] if len(sources) == 1 else MergedSource(sources)
    return _source_of(events, classes, **options)


def _source_of(events: Any, classes: Sequence[type[Event]], **options: Any) -> Source:
    """A source from a table of one class, or from paths or URLs of several classes."""
    frame = frame_of(events)
    if frame is None:
        return sources_of_urls(_urls(events), classes, until_end=True, **options)
    if len(classes) > 1:
        names = ", ".join(event.__name__ for event in classes)
        raise SchemaError(f"events: the learner reads {names}; give a dict with a table of each")
    return FrameSource(classes[0], frame.lazy().collect())


def _urls(paths: Any) -> list[str]:
    listed = [paths] if isinstance(paths, str | Path) else paths
    if not isinstance(listed, Sequence) or not listed or not all(isinstance(path, str | Path) for path in listed):
        raise SchemaError(
            f"events: a {type(paths).__name__} is no history; give a frame, paths or URLs, or a dict of these by event"
        )
    return [str(path) for path in listed]


def read_to_end(source: Source, intake: Intake, positions: Mapping[str, int] | None = None) -> Iterator[EventBatch]:
    """Yield the valid rows of a source that ends, from `positions` on (partition -> offset), then close it."""
    source.seek(positions or {})
    try:
        while not source.exhausted:
            batches = source.poll()
            yield from map(intake.decode, batches)
            if not batches:
                time.sleep(POLL_S)
    finally:
        source.close()


class OrderedEvents:
    """Events of some classes, read once in time order. A context manager.

    Args:
        classes: event classes; other events are left out.
        until_us: events at or after this time are left out; None: no limit.
        memory_rows: largest number of events in memory; more are sorted on disk.
    """

    def __init__(
        self, classes: Sequence[type[Event]], *, until_us: int | None = None, memory_rows: int = MEMORY_ROWS
    ) -> None:
        self.rows = 0
        self.span_us: tuple[int, int] | None = None
        self._until_us = until_us
        self._memory_rows = memory_rows
        self._room = tempfile.TemporaryDirectory(prefix="headrace-")
        budget = max(memory_rows // max(len(classes), 1), 1)
        self._sorters = {event: Sorter(time_of(event), budget, partial(self._folder, event)) for event in classes}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._room.cleanup()

    def add(self, event: type[Event], frame: pl.DataFrame) -> None:
        """Add rows, in any order."""
        if event not in self._sorters or frame.is_empty():
            return
        first, last = frame.select(time_of(event).min().alias("first"), time_of(event).max().alias("last")).row(0)
        known = self.span_us or (first, last)
        self.span_us = min(known[0], first), max(known[1], last)
        if self._until_us is not None and last >= self._until_us:
            frame = frame.filter(time_of(event) < self._until_us)
        self.rows += frame.height
        self._sorters[event].add(frame)

    def pieces(self, rows: int = PIECE_ROWS) -> Iterator[tuple[dict[type[Event], pl.DataFrame], int | None]]:
        """Yield (frames by class, end time): about `rows` rows before the end time, which is None for the last."""
        blocks = {event: sorter.blocks() for event, sorter in self._sorters.items()}
        times = {event: time_of(event) for event in blocks}
        for frames, cut in merged(blocks, times, max(self._memory_rows // 4, 1)):
            for piece, inner in cut_events(frames, rows):
                yield piece, cut if inner is None else inner

    def _folder(self, event: type[Event]) -> Path:
        folder = Path(self._room.name) / spec_of(event).name
        folder.mkdir(exist_ok=True)
        return folder
