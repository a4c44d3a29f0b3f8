"""What both sides do: one event, a view of 12 windowed values and two lists, 50 and 20 long, and a seeded log."""

from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from headrace.features import Count, FeatureView, LastN, Sequence, Sum, col
from headrace.schemas import Event, Field

START_US = 1_700_000_000_000_000
SPAN_US = 8 * 86_400_000_000
WINDOWS = ("10m", "1h", "24h", "7d")
NEWEST_COUNT, SEQUENCE_COUNT = 50, 20


class Engagement(Event, topic="engagements", key="user_id", time="event_time", id="event_id"):
    """Somebody did something with something."""

    event_id: str
    event_time: datetime
    user_id: int
    item_id: int
    action: Literal["click", "like", "view"]
    dwell_s: float = Field(ge=0, le=86_400)


class UserActivity(FeatureView, source=Engagement, entity="user_id"):
    """12 windowed values and two lists."""

    events = Count(windows=WINDOWS)
    clicks = Count(where=col("action") == "click", windows=WINDOWS)
    dwell = Sum("dwell_s", windows=WINDOWS)
    recent = LastN("item_id", n=NEWEST_COUNT)
    history = Sequence("item_id", "dwell_s", n=SEQUENCE_COUNT)


def write_log(folder: Path, events: int, users: int, seed: int) -> Path:
    """A Parquet log in event order: users by a power law, whole dwell seconds, times distinct to the microsecond."""
    rng = np.random.default_rng(seed)
    steps_us = rng.integers(1, max(2, 2 * SPAN_US // events), events)
    frame = pl.DataFrame(
        {
            "event_id": pl.Series(np.arange(events)).cast(pl.String),
            "event_time": pl.Series(START_US + np.cumsum(steps_us)).cast(pl.Datetime("us", "UTC")),
            "user_id": rng.zipf(1.2, events) % users,
            "item_id": rng.integers(0, 50_000, events),
            "action": pl.Series(["click", "like", "view"])[rng.integers(0, 3, events)],
            "dwell_s": rng.integers(0, 120, events).astype(float),
        }
    )
    path = folder / f"log-{events}.parquet"
    frame.write_parquet(path)
    return path
