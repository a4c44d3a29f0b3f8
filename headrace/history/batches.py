"""A log for `verify` as batches: tables with their partitions and offsets, or the batches themselves."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import polars as pl

from headrace.errors import SchemaError
from headrace.features.view import ViewPlan
from headrace.schemas import Event
from headrace.schemas.tables import TableLike, frame_of
from headrace.streams.source import EventBatch

Log: TypeAlias = TableLike | Mapping[type[Event], TableLike] | Iterable[EventBatch]
"""A log: batches, or a table per event class (one table for a view of one source) with `_partition` and `_offset`.
Batches are iterated once or twice."""


def batches_of(plans: Sequence[ViewPlan], events: Log) -> Iterable[EventBatch]:
    """The log of `plans` as batches, which can be iterated twice.

    Raises:
        SchemaError: it is no table, lacks offsets, or no view reads it.
    """
    frame = frame_of(events)
    if frame is not None:
        [plan] = plans
        if len(plan.sources) != 1:
            names = ", ".join(event.__name__ for event in plan.sources)
            raise SchemaError(f"view {plan.name} has several sources: give a frame for each, as a dict of {names}")
        events = {plan.sources[0]: frame}
    if not isinstance(events, Mapping):
        return list(events) if isinstance(events, Iterator) else events
    parts: list[EventBatch] = []
    for event, table in events.items():
        frame = _eager(table, event)
        if not any(event in plan.sources for plan in plans):
            raise SchemaError(f"view {', '.join(plan.name for plan in plans)} does not read {event.__name__}")
        lacking = [name for name in ("_partition", "_offset") if name not in frame.columns]
        if lacking:
            raise SchemaError(
                f"log of {event.__name__}: column {' and '.join(lacking)} is missing; they say which rows count"
            )
        for (partition,), part in frame.partition_by("_partition", as_dict=True, maintain_order=True).items():
            offsets = part["_offset"].cast(pl.Int64).to_numpy()
            rows = part.drop("_partition", "_offset")
            parts.append(EventBatch(event, str(partition), offsets, int(offsets.max()) + 1, rows, None, 0))
    return parts


def _eager(table: TableLike, event: type[Event]) -> pl.DataFrame:
    frame = frame_of(table)
    if frame is None:
        raise SchemaError(f"log of {event.__name__}: a {type(table).__name__} is no table; give a frame, or batches")
    return frame.lazy().collect()
