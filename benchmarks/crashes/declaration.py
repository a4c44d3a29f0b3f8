"""What is counted while processes are killed: readings of meters, in a log of several files, not in order of time."""

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from headrace.features import Count, FeatureView, LastN, Sum
from headrace.schemas import Event

START_US = 1_700_000_000_000_000
SPAN_US = 6 * 3_600_000_000
METERS = 3_000
FILES = 4
LATE_US = 30_000_000


class Reading(Event, topic="readings", key="meter", time="at", id="reading_id"):
    """One reading."""

    reading_id: int
    at: datetime
    meter: int
    site: int
    watts: float


class MeterLoad(FeatureView, source=Reading, entity="meter"):
    """What one meter saw."""

    readings = Count(windows=("10m", "1h", "lifetime"))
    watts = Sum("watts", windows=("1h", "lifetime"))
    recent = LastN("site", n=10)


class SiteLoad(FeatureView, source=Reading, entity="site"):
    """What one site saw: a second view, with offsets of its own."""

    readings = Count(windows=("10m", "lifetime"))
    watts = Sum("watts", windows="lifetime")


VIEWS = (MeterLoad, SiteLoad)


def write_log(folder: Path, events: int, seed: int) -> pl.DataFrame:
    """Write readings as Parquet files in `folder`; return them with `_partition`, of a topic, and `_offset`."""
    rng = np.random.default_rng(seed)
    at_us = START_US + np.sort(rng.integers(0, SPAN_US, events)) + rng.integers(0, LATE_US, events)
    frame = pl.DataFrame(
        {
            "reading_id": np.arange(events),
            "at": pl.Series(at_us).cast(pl.Datetime("us", "UTC")),
            "meter": rng.zipf(1.3, events) % METERS,
            "site": rng.integers(0, 40, events),
            "watts": rng.integers(0, 1_000, events).astype(float),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(FILES):
        frame.gather_every(FILES, index).write_parquet(folder / f"{index}.parquet")
    row = pl.int_range(pl.len())
    name = pl.concat_str(pl.lit("readings/"), (row % FILES).cast(pl.String))
    return frame.with_columns(_partition=name, _offset=row // FILES)
