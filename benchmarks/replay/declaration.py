"""What all sides answer: 3 windows of 4 aggregations, the newest 50 items, seeded events and spine rows."""

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from headrace.features import Count, FeatureView, LastN, Max, Mean, Sum
from headrace.schemas import Event

START_US = 1_700_000_000_000_000
SPAN_US = 14 * 86_400_000_000
WINDOWS = ("1h", "24h", "7d")
WINDOW_US = {"1h": 3_600_000_000, "24h": 86_400_000_000, "7d": 604_800_000_000}
HOP_US = {"1h": 120_000_000, "24h": 3_600_000_000, "7d": 21_600_000_000}
"""The hops that the windows get: the largest step that fits 24 times; a window ends at one, see `headrace.features`."""
NEWEST_COUNT = 50
NAMES = ("orders", "total", "average", "largest")


class Order(Event, topic="orders", key="user_id", time="event_time", id="order_id"):
    """Somebody bought something."""

    order_id: int
    event_time: datetime
    user_id: int
    item_id: int
    amount: float


class UserOrders(FeatureView, source=Order, entity="user_id"):
    """12 windowed values and a list."""

    orders = Count(windows=WINDOWS)
    total = Sum("amount", windows=WINDOWS)
    average = Mean("amount", windows=WINDOWS)
    largest = Max("amount", windows=WINDOWS)
    recent = LastN("item_id", n=NEWEST_COUNT)


def make(events: int, spine_rows: int, users: int, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Orders in order of time, users by a power law, whole amounts, times distinct; spine rows of the same users.

    Whole amounts make sums exact, so that all sides must agree to the last bit but for the division of a mean.
    """
    rng = np.random.default_rng(seed)
    times = START_US + np.cumsum(rng.integers(1, max(2, 2 * SPAN_US // events), events))
    orders = pl.DataFrame(
        {
            "order_id": np.arange(events),
            "event_time": pl.Series(times).cast(pl.Datetime("us", "UTC")),
            "user_id": rng.zipf(1.2, events) % users,
            "item_id": rng.integers(0, 50_000, events),
            "amount": rng.integers(0, 1_000, events).astype(float),
        }
    )
    moments = np.sort(rng.integers(times[0], times[-1], spine_rows))
    spine = pl.DataFrame(
        {
            "row": np.arange(spine_rows),
            "user_id": rng.zipf(1.2, spine_rows) % users,
            "event_time": pl.Series(moments).cast(pl.Datetime("us", "UTC")),
        }
    )
    return orders, spine


def write(folder: Path, orders: pl.DataFrame, spine: pl.DataFrame) -> tuple[Path, Path]:
    """Both as Parquet, which every side reads."""
    orders.write_parquet(folder / "orders.parquet")
    spine.write_parquet(folder / "spine.parquet")
    return folder / "orders.parquet", folder / "spine.parquet"
