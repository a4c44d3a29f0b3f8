"""Dead letters of events that one view leaves out: too late, or an expression of the view failed."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.features.event_rows import FailedRows
from headrace.schemas import Letters, spec_of
from headrace.schemas.row_json import json_rows
from headrace.streams.files.line_positions import row_numbers
from headrace.streams.source import EventBatch


def too_late_letters(view_name: str, batch: EventBatch, index: NDArray[np.int64]) -> Letters:
    """A dead letter for each too late row `index` (m,) of the batch, with the event as JSON."""
    detail = (
        f"view {view_name}: too late: outside every window that would include it, relative to its entity's newest event"
    )
    return _view_letters(batch, index, "too_late", detail)


def failed_letters(view_name: str, batch: EventBatch, failed: FailedRows) -> Letters:
    """A dead letter for each row of `failed`, rows an expression has no value for, with the event as JSON."""
    details = np.empty(len(failed), object)
    for cause in np.unique(failed.causes).tolist():
        here = np.flatnonzero(failed.causes == cause)
        details[here] = failed.expressions[cause].details(batch.frame[failed.index[here]])
    described = pl.Series([f"view {view_name} · {detail}" for detail in details], dtype=pl.String)
    return _view_letters(batch, failed.index, "expression_failed", described)


def _view_letters(batch: EventBatch, index: NDArray[np.int64], reason: str, details: pl.Series | str) -> Letters:
    """Dead letters of rows `index` (m,) of the batch, which one view does not use."""
    payloads = json_rows(batch.frame[index]).cast(pl.Binary)
    columns = (row_numbers(batch.partition, batch.offsets[index]), reason, details, payloads)
    return Letters.of(spec_of(batch.event).topic, batch.partition, batch.arrival_us, *columns)
