"""Events that wait for the watermark before they are learned from, and ids of engagements that labelled a request."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import orjson
import polars as pl

from headrace.pipelines.joining.rows_by_time import RowsByTime
from headrace.pipelines.joining.spec import micros
from headrace.schemas import Event, spec_of
from headrace.streams.source import EventBatch

ROWS_MAX = 20_000_000
"""Limit of waiting events in memory, and of ids of engagements that labelled a request; at most 256 MiB of each."""


class WaitingEvents:
    """Events that wait for the watermark, by class, in slices of event time.

    `_firsts` has the first offset of each partition by class and slice, so that finding it needs no file reads.
    """

    def __init__(self, events: Sequence[type[Event]], step_us: int) -> None:
        self._step_us = step_us
        self._stores = {
            event: RowsByTime(
                event.__name__,
                {**spec_of(event).polars, "__partition": pl.String(), "__offset": pl.Int64()},
                micros(spec_of(event).time),
                step_us,
                rows_max=ROWS_MAX,
            )
            for event in events
        }
        self._firsts: dict[str, dict[int, dict[str, int]]] = {event.__name__: {} for event in events}

    def keep_in(self, folder: Path) -> None:
        """Keep events in files, in one subfolder of `folder` per class."""
        for event, store in self._stores.items():
            store.keep_in(folder / event.__name__)

    @property
    def rows(self) -> int:
        """Number of all events."""
        return sum(store.rows for store in self._stores.values())

    def add(self, batch: EventBatch) -> None:
        """Add rows that have not been added before."""
        if not batch.frame.height:
            return
        origin = [pl.lit(batch.partition).alias("__partition"), pl.Series("__offset", batch.offsets, dtype=pl.Int64)]
        frame = batch.frame.with_columns(origin)
        self._stores[batch.event].add(frame)
        self._note_firsts(batch.event, frame)

    def take(self, through_us: int) -> dict[type[Event], pl.DataFrame]:
        """Remove and return the events before `through_us`, a multiple of the step, sorted by time, then id."""
        taken: dict[type[Event], pl.DataFrame] = {}
        for event, store in self._stores.items():
            spec, numbers = spec_of(event), store.due(through_us // self._step_us)
            if numbers:
                order = [spec.time, *([spec.id] if spec.id else ["__partition", "__offset"])]
                taken[event] = store.take(numbers).sort(order).drop("__partition", "__offset")
                for number in numbers:
                    self._firsts[event.__name__].pop(number, None)
        return taken

    def learned_positions(self, positions: Mapping[str, int]) -> dict[str, int]:
        """Next offset of each partition below which nothing waits; `positions` are the next offsets of added events."""
        learned = dict(positions)
        for slices in self._firsts.values():
            for firsts in slices.values():
                for partition, offset in firsts.items():
                    learned[partition] = min(learned[partition], offset)
        return learned

    def capture(self) -> Callable[[Path], None]:
        """Capture the state; returns a function that writes it into an existing folder, in any thread."""
        writers = {event.__name__: store.capture() for event, store in self._stores.items()}
        firsts = {name: [[n, dict(first)] for n, first in slices.items()] for name, slices in self._firsts.items()}

        def write(folder: Path) -> None:
            facts = {"stores": {name: writer(folder) for name, writer in writers.items()}, "firsts": firsts}
            (folder / "waiting.json").write_bytes(orjson.dumps(facts))

        return write

    def not_written(self) -> None:
        """See `RowsByTime.not_written`."""
        for store in self._stores.values():
            store.not_written()

    def load(self, folder: Path) -> None:
        """Load what `capture` wrote."""
        path = folder / "waiting.json"
        facts = orjson.loads(path.read_bytes()) if path.is_file() else {"stores": {}, "firsts": {}}
        for event, store in self._stores.items():
            name = event.__name__
            store.load(folder, facts["stores"].get(name, {}))
            self._firsts[name] = dict(facts["firsts"].get(name, ()))
            if name not in facts["firsts"]:  # from an earlier release
                self._note_firsts(event, store.read())

    def _note_firsts(self, event: type[Event], frame: pl.DataFrame) -> None:
        number = (micros(spec_of(event).time) // self._step_us).alias("__slice")
        firsts = frame.group_by(number, "__partition").agg(pl.col("__offset").min())
        for key, partition, offset in firsts.select("__slice", "__partition", "__offset").iter_rows():
            known = self._firsts[event.__name__].setdefault(key, {})
            known[partition] = min(known.get(partition, offset), offset)


def waiting_served(step_us: int) -> RowsByTime:
    """A store of ids of engagements that labelled a request, with their times."""
    return RowsByTime(
        "served", {"id": pl.String(), "time_us": pl.Int64()}, pl.col("time_us"), step_us, rows_max=ROWS_MAX
    )
