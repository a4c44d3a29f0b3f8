"""What both sides read: 20 features of a user over the event of benchmarks/materialize; and a seeded log."""

import numpy as np
import polars as pl

from benchmarks.materialize.declaration import SPAN_US, START_US, WINDOWS, Engagement
from headrace.features import Count, FeatureView, LastN, Max, Mean, Sequence, Sum, col


class UserActivity(FeatureView, source=Engagement, entity="user_id"):
    """20 features."""

    events = Count(windows=WINDOWS)
    clicks = Count(where=col("action") == "click", windows=WINDOWS)
    dwell = Sum("dwell_s", windows=WINDOWS)
    mean_dwell = Mean("dwell_s", windows=("24h", "7d"))
    longest = Max("dwell_s", windows=("24h", "7d"))
    recent = LastN("item_id", n=50)
    liked = LastN("item_id", n=20, distinct=True, where=col("action") == "like")
    history = Sequence("item_id", "dwell_s", n=20)


def make_log(events: int, users: int, seed: int) -> pl.DataFrame:
    """Events in order, users by a power law without its steepest part; times distinct to the microsecond."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / (np.arange(users) + users / 20)
    steps_us = rng.integers(1, max(2, 2 * SPAN_US // events), events)
    return pl.DataFrame(
        {
            "event_id": pl.Series(np.arange(events)).cast(pl.String),
            "event_time": pl.Series(START_US + np.cumsum(steps_us)).cast(pl.Datetime("us", "UTC")),
            "user_id": rng.choice(users, events, p=weights / weights.sum()),
            "item_id": rng.integers(0, 50_000, events),
            "action": pl.Series(["click", "like", "view"])[rng.integers(0, 3, events)],
            "dwell_s": rng.integers(0, 1_200, events) / 10,
        }
    )
