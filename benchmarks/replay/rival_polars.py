"""Polars, no row at a time: as-of joins on running sums, and a window's maximum from tiles.

Count, sum and mean are differences of running sums at both ends of the window. A maximum has no difference: it is that
of the window's whole hops (`rolling` over the hops' maxima) and that of the begun hop (a running maximum, joined
as-of). The newest items are a slice of the sorted events that ends at the last one before the row.
"""

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.replay.declaration import HOP_US, NEWEST_COUNT, WINDOW_US, WINDOWS


def answer(orders: Path, spine: Path) -> pl.DataFrame:
    """The same frame as ours."""
    events = _times(pl.read_parquet(orders)).sort("user_id", "t").with_columns(at=pl.int_range(pl.len()))
    running = events.select(
        "user_id",
        "t",
        "at",
        count=pl.int_range(1, pl.len() + 1).over("user_id"),
        total=pl.col("amount").cum_sum().over("user_id"),
    ).sort("t")
    rows = _times(pl.read_parquet(spine))
    head = _before(rows.select("row", "user_id", "t"), running)
    found = [head.select("row").sort("row")]
    for window in WINDOWS:
        start = pl.col("t") // HOP_US[window] * HOP_US[window] - WINDOW_US[window]
        tail = _before(rows.select("row", "user_id", t=start), running)
        both = head.join(tail, on="row", suffix="_tail", how="left").sort("row")
        count, total = pl.col("count") - pl.col("count_tail"), pl.col("total") - pl.col("total_tail")
        found.append(
            both.select(
                count.alias(f"orders_{window}"),
                total.alias(f"total_{window}"),
                (total / count).alias(f"average_{window}"),
            )
        )
        found.append(_largest(events, rows, window))
    values = pl.concat(found, how="horizontal").with_columns(_newest(events, head.sort("row")))
    wanted = [f"{name}_{window}" for name in ("orders", "total", "average", "largest") for window in WINDOWS]
    return values.select("row", *wanted, "recent")


def _times(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(t=pl.col("event_time").dt.epoch("us"))


def _before(rows: pl.DataFrame, running: pl.DataFrame) -> pl.DataFrame:
    """Running values of each row's user before the row's time, zeros where there is none."""
    joined = rows.sort("t").join_asof(running, on="t", by="user_id", allow_exact_matches=False, check_sortedness=False)
    return joined.with_columns(pl.col("count", "total").fill_null(0)).drop("user_id", "t")


def _largest(events: pl.DataFrame, rows: pl.DataFrame, window: str) -> pl.DataFrame:
    hop, length = HOP_US[window], WINDOW_US[window]
    hops = events.group_by("user_id", tile=pl.col("t") // hop * hop).agg(pl.col("amount").max())
    asked = rows.select("user_id", tile=pl.col("t") // hop * hop).unique()
    whole = (
        pl.concat([hops, asked.with_columns(amount=pl.lit(None, pl.Float64))])
        .group_by("user_id", "tile")
        .agg(pl.col("amount").max())
        .sort("user_id", "tile")
        .rolling("tile", period=f"{length}i", closed="left", group_by="user_id")
        .agg(whole=pl.col("amount").max())
    )
    begun = events.select(
        "user_id",
        "t",
        tile=pl.col("t") // hop * hop,
        begun=pl.col("amount").cum_max().over("user_id", pl.col("t") // hop),
    ).sort("t")
    joined = (
        rows.select("row", "user_id", "t", tile=pl.col("t") // hop * hop)
        .sort("t")
        .join_asof(begun, on="t", by=["user_id", "tile"], allow_exact_matches=False, check_sortedness=False)
        .join(whole, on=["user_id", "tile"], how="left")
        .sort("row")
    )
    return joined.select(pl.max_horizontal("begun", "whole").alias(f"largest_{window}"))


def _newest(events: pl.DataFrame, head: pl.DataFrame) -> pl.Series:
    counts = np.minimum(head["count"].to_numpy(), NEWEST_COUNT)
    last = head["at"].fill_null(0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(counts)])
    back = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    items = events["item_id"].to_numpy()[np.repeat(last, counts) - back]
    return pl.Series("recent", pl.from_arrow(pa.LargeListArray.from_arrays(offsets, items)))
