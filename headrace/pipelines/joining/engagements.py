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
        """Engagements of the slices from `first_us` up to `before_us`, for each id of a slice only the first by time.

        Duplicates are removed permanently and counted, as "duplicate_engagements".
        """
        first, before = first_us // self._step_us, -(-before_us // self._step_us)
        numbers = [number for number in self.rows.due(before) if number >= first]
        rows = self.rows.read(numbers)
        once = once_a_step(rows, self._id, pl.col(TIME), self._step_us)
        if once.height < rows.height:
            count("duplicate_engagements", rows.height - once.height)
            self.rows.drop(numbers)
            self.rows.add(once)
        return once


def once_a_step(rows: pl.DataFrame, id_column: str, time_us: pl.Expr, step_us: int) -> pl.DataFrame:
    """Sort rows by time, then id, and keep each id once in a step of event time.

    Steps are compared one by one, since a call may have one of them or many: which rows stay must not depend on that.
    """
    keyed = rows.with_columns(time_us.alias("__at"), (time_us // step_us).alias("__step")).sort("__at", id_column)
    once = keyed.unique(("__step", id_column), keep="first", maintain_order=True)
    if once.height < keyed.height:  # of rows with equal time and id the first by their values, not by arrival
        values = [name for name, dtype in rows.schema.items() if not dtype.is_nested()]
        ordered = keyed.sort("__at", id_column, *values, maintain_order=True)
        once = ordered.unique(("__step", id_column), keep="first", maintain_order=True)
    return once.drop("__at", "__step")
