"""Headrace: one pass over events and spine rows together."""

from pathlib import Path

import polars as pl

from benchmarks.replay.declaration import UserOrders
from headrace import replay


def answer(orders: Path, spine: Path) -> pl.DataFrame:
    """The spine's row numbers and the features as of its times, in the spine's order."""
    found = replay(UserOrders, orders, spine)
    return found.drop("user_id", "event_time").rename(lambda name: name.removeprefix("user_orders."))
