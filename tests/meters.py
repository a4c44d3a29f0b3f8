"""A small domain for tests of the store: readings of meters, and logs of them as batches with offsets."""

from datetime import UTC, datetime
from typing import Literal

import numpy as np
import polars as pl

from headrace.features import Count, FeatureView, LastN, Sum, col
from headrace.schemas import Event, Field
from headrace.streams.source import EventBatch

START_US = 1_700_000_000_000_000
SPAN_US = 6 * 3_600_000_000


class Reading(Event, topic="readings", key="meter", time="at", id="reading_id"):
    """One reading."""

    reading_id: str
    at: datetime
    meter: int
    site: str
    kind: Literal["power", "heat"]
    watts: float = Field(ge=0)


class MeterLoad(FeatureView, source=Reading, entity="meter"):
    """What one meter saw."""

    readings = Count(windows=("10m", "1h", "lifetime"))
    watts = Sum("watts", windows=("1h", "lifetime"))
    heats = Count(where=col("kind") == "heat", windows="1h")
    recent = LastN("site", n=5)


class SiteKind(FeatureView, source=Reading, entity=("site", "kind")):
    """What one kind of meter at one site saw."""

    readings = Count(windows=("10m", "lifetime"))
    meters = LastN("meter", n=3, distinct=True)


class BriefLoad(FeatureView, source=Reading, entity="meter", ttl="1s"):
    """Kept for a second."""

    readings = Count(windows="lifetime")


def log_frame(n: int, *, meters: int = 500, seed: int = 0, partitions: int = 4) -> pl.DataFrame:
    """(n,) readings, nearly in event order, with `_partition` and `_offset`; watts are whole, so sums are exact."""
    rng = np.random.default_rng(seed)
    at_us = START_US + np.sort(rng.integers(0, SPAN_US, n)) + rng.integers(0, 30_000_000, n)
    meter = rng.zipf(1.3, n) % meters
    partition = meter % partitions
    frame = pl.DataFrame(
        {
            "reading_id": [f"r{i}" for i in range(n)],
            "at": pl.Series(at_us).cast(pl.Datetime("us", "UTC")),
            "meter": meter,
            "site": (meter % 37).astype(str),
            "kind": np.where(rng.random(n) < 0.3, "heat", "power"),
            "watts": rng.integers(0, 1000, n).astype(float),
            "_partition": partition,
        }
    )
    return frame.with_columns(
        pl.int_range(pl.len()).over("_partition").alias("_offset"),
        pl.format("readings/{}", "_partition").alias("_partition"),
    )


def batches(frame: pl.DataFrame, size: int, starts: dict[str, int] | None = None) -> list[EventBatch]:
    """The log in batches of `size` rows of one partition, the partitions taking turns, from `starts` on."""
    turns: list[tuple[int, str, EventBatch]] = []
    for (partition,), part in sorted(frame.partition_by("_partition", as_dict=True, maintain_order=True).items()):
        for turn, first in enumerate(range((starts or {}).get(partition, 0), part.height, size)):
            rows = part[first : first + size]
            offsets = rows["_offset"].to_numpy()
            event_frame = rows.drop("_partition", "_offset")
            batch = EventBatch(Reading, partition, offsets, int(offsets[-1]) + 1, event_frame, None, START_US)
            turns.append((turn, partition, batch))
    return [batch for _, _, batch in sorted(turns, key=lambda item: item[:2])]


def at(seconds: float) -> datetime:
    """A moment after the start of the log."""
    return datetime.fromtimestamp(START_US / 1e6 + seconds, UTC)
