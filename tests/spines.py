"""Spines whose times are whole microseconds, as the oracle counts them."""

import polars as pl

from headrace.history.replay import replay


def in_time(spine: pl.DataFrame) -> pl.DataFrame:
    """The spine with its microseconds as datetimes."""
    return spine.with_columns(pl.col("event_time").cast(pl.Datetime("us", "UTC")))


def replay_micros(views, events, spine: pl.DataFrame, **options) -> pl.DataFrame:
    """`replay` of a spine in microseconds, which the result has too."""
    found = replay(views, events, spine, time_unit="us", **options)
    return found.with_columns(pl.col("event_time").dt.epoch("us").cast(pl.Int64))
