"""What both sides update: views of 1 to 50 windowed values over one event, and seeded batches of events."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from headrace.features import Count, FeatureView, Max, Mean, Min, Sum
from headrace.schemas import Event

START_US = 1_700_000_000_000_000
HOUR_US = 3_600_000_000
WINDOW, HOP, HOP_US = "1h", "10m", 600_000_000
"""The entity sweep's: 7 tiles, so that 10 million entities fit in memory."""
WINDOWS = ("10m", "30m", "1h", "2h", "6h", "12h", "24h", "2d", "4d", "7d")
KINDS = (Count, Sum, Mean, Min, Max)
FEATURES_MAX = len(WINDOWS) * len(KINDS)


class Visit(Event, topic="visits", key="user_id", time="event_time"):
    """Somebody stayed for a while."""

    event_time: datetime
    user_id: int
    seconds: float


class Visits(FeatureView, source=Visit, entity="user_id"):
    """One windowed count."""

    visits = Count(windows=WINDOW, hop=HOP)


def view_of(features: int) -> type[FeatureView]:
    """A view of 1 to 50 windowed values: every window's count first, then sums, and so on."""
    pairs = [(kind, window) for kind in KINDS for window in WINDOWS][:features]
    declared: dict[str, Any] = {"__doc__": f"{features} windowed values."}
    for kind in KINDS:
        windows = tuple(window for found, window in pairs if found is kind)
        if windows:
            column = () if kind is Count else ("seconds",)
            declared[kind.__name__.lower()] = kind(*column, windows=windows)
    return type(f"VisitsBy{features}", (FeatureView,), declared, source=Visit, entity="user_id")


def batches(entities: int, rows: int, count: int, seed: int) -> Iterator[pl.DataFrame]:
    """`count` batches of `rows` events in order of time, an hour in all, entities drawn evenly: no help from caches."""
    rng = np.random.default_rng(seed)
    step_us = max(1, HOUR_US // (rows * count))
    for number in range(count):
        yield pl.DataFrame(
            {
                "event_time": START_US + (number * rows + np.arange(rows)) * step_us,
                "user_id": rng.integers(0, entities, rows),
                "seconds": rng.integers(0, 600, rows).astype(float),
            }
        ).cast({"event_time": pl.Datetime("us", "UTC")})


def everyone(entities: int, rows: int, seed: int) -> Iterator[pl.DataFrame]:
    """Every entity once, in random order, before the first batch: their records exist when time is taken."""
    order = np.random.default_rng(seed).permutation(entities)
    for start in range(0, entities, rows):
        ids = order[start : start + rows]
        yield pl.DataFrame({"event_time": START_US - 1, "user_id": ids, "seconds": 0.0}).cast(
            {"event_time": pl.Datetime("us", "UTC")}
        )
