"""Metrics and log lines for skipped events, failed features, reads ahead and damaged records."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import structlog
from prometheus_client import Counter

from headrace.features.answer import Answer
from headrace.features.event_rows import FailedRows

ROWS_FAILED = Counter(
    "headrace_rows_failed_total", "Event rows left out, for which an expression of the view has no value", ["view"]
)
FEATURES_FAILED = Counter(
    "headrace_features_failed_total",
    "Values of a feature that are null, since its expression failed",
    ["view", "feature"],
)
READS_AHEAD = Counter(
    "headrace_reads_ahead_total", "Records read as of a moment at or before their newest event", ["view"]
)
RECORDS_DAMAGED = Counter(
    "headrace_records_damaged_total", "Records that could not be read, so that their entities had none", ["view"]
)
LINE_S = 1.0
"""Minimum seconds between two log lines of one view and feature; the counters are exact."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Line:
    due_s: float = 0.0
    count: int = 0


_lines: dict[tuple[str, str], _Line] = {}
_lock = threading.Lock()


def count_failed_features(view: str, feature: str, count: int, detail: str) -> None:
    """Count values of a feature whose expression failed, and log them at most once a second."""
    FEATURES_FAILED.labels(view, feature).inc(count)
    if count := _due((view, feature), count):
        log.warning("feature_expression_failed", view=view, feature=feature, count=count, detail=detail)


def count_damaged(view: str, count: int, key: bytes, detail: str) -> None:
    """Count records that could not be read, and log one of their keys at most once a second."""
    RECORDS_DAMAGED.labels(view).inc(count)
    if count := _due((view, "!damaged"), count):
        log.error("records_damaged", view=view, count=count, key=key.decode(errors="replace"), detail=detail)


def _due(line_of: tuple[str, str], count: int) -> int:
    """Number of cases to log now, including those suppressed so far; 0 if the last line is less than LINE_S old."""
    with _lock:
        line = _lines.setdefault(line_of, _Line())
        line.count += count
        now_s = time.monotonic()
        if now_s < line.due_s:
            return 0
        line.due_s, count, line.count = now_s + LINE_S, line.count, 0
    return count


def count_ahead(view: str, answer: Answer) -> None:
    """Count the records of an answer that hold an event at or after the time of the read."""
    count = int(np.count_nonzero(answer.ahead))
    if count:
        READS_AHEAD.labels(view).inc(count)


def count_failed_rows(view: str, failed: Sequence[FailedRows]) -> int:
    """Count events that a view leaves out; returns their number."""
    count = sum(map(len, failed))
    if count:
        ROWS_FAILED.labels(view).inc(count)
    return count


class FailedEvents:
    """Events left out by a pass over history, counted by view; `log` writes one line per view."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._details: dict[str, str] = {}

    def add(self, view: str, failed: Sequence[FailedRows]) -> None:
        """Count the events of one frame."""
        count = count_failed_rows(view, failed)
        if count:
            self.counts[view] = self.counts.get(view, 0) + count
            first = next(part for part in failed if len(part))
            self._details.setdefault(view, first.expressions[int(first.causes[0])].summary)

    def log(self) -> None:
        """Log how many events were left out, with the error of the first."""
        for view, count in self.counts.items():
            log.warning(
                "events_left_out", view=view, reason="expression_failed", count=count, detail=self._details[view]
            )
