"""Engagements of one label that may label a request, each once."""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from headrace.pipelines.joining.labelled import IS_POSITIVE, LABEL
from headrace.pipelines.joining.rows_by_time import RowsByTime
from headrace.pipelines.joining.spec import JoinSpec
from headrace.schemas import spec_of

TIME = "__time"
"""Event time of an engagement in microseconds."""


class Engagements:
    """Rows of `JoinSpec.engagement` with a label. Not thread-safe.

    Args:
        spec: the join of the label.
        step_us: length of a slice in microseconds of event time.
        rows_max: largest number of rows in memory.
        name: name of the rows in messages and checkpoints.
        spill: folder for rows beyond the limit; None: a temporary folder.
    """

    def __init__(self, spec: JoinSpec, step_us: int, *, rows_max: int, name: str, spill: Path | None) -> None:
        event = spec_of(spec.engagement)
        self._id = str(event.id)
        self.columns = list(dict.fromkeys([*spec.engagement_entity, spec.candidate, self._id]))
        marks = {"appended_us": pl.Int64(), LABEL: pl.Float32(), IS_POSITIVE: pl.Boolean(), TIME: pl.Int64()}
        self.schema = pl.Schema({**{column: event.polars[column] for column in self.columns}, **marks})
        self.rows = RowsByTime(name, self.schema, pl.col(TIME), step_us, rows_max=rows_max, spill=spill)
        self._step_us = step_us

    def add(self, frame: pl.DataFrame) -> None:
        """Add rows with the columns of `schema`."""
        self.rows.add(frame.select(self.schema.names()))

    def drop_before(self, time_us: int) -> None:
        """Drop slices that end at or before a time, in microseconds."""
        self.rows.drop(self.rows.due(time_us // self._step_us))

    def once(self, first_us: int, before_us: int, count: Callable[[str, int], None]) -> pl.DataFrame:
        """Engagements of the slices from `first_us` up to `before_us`, for each id only the first by time.

        Duplicates are removed permanently and counted, as "duplicate_engagements".
        """
        first, before = first_us // self._step_us, -(-before_us // self._step_us)
        numbers = [number for number in self.rows.due(before) if number >= first]
        rows = self.rows.read(numbers)
        once = rows.sort(TIME, self._id).unique(self._id, keep="first", maintain_order=True)
        if once.height < rows.height:
            count("duplicate_engagements", rows.height - once.height)
            self.rows.drop(numbers)
            self.rows.add(once)
        return once
