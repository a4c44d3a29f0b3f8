"""A small domain for tests of the pipelines: passages through doors, and signs that were shown and followed."""

import time
from datetime import datetime
from typing import Literal

import numpy as np
import polars as pl

from headrace.pipelines.joining.spec import JoinSpec
from headrace.schemas import DeadLetter, Event, Field, spec_of
from headrace.streams.source import Batch, EventBatch, Source

START_US = 1_700_000_000_000_000
WITHIN_S = 32


class Passage(Event, topic="passages", key="door", time="at", id="passage_id"):
    """Somebody went through a door."""

    passage_id: str
    at: datetime
    door: int
    way: Literal["in", "out"]
    seconds: float = Field(ge=0, le=86_400)


class Shown(Event, topic="shown", key="visitor", time="at", id="request_id"):
    """Signs that were shown to a visitor."""

    request_id: str
    at: datetime
    visitor: int
    signs: list[int]
    features: bytes


class Followed(Event, topic="followed", key="guest", time="moment", id="follow_id"):
    """A visitor followed a sign, or only read it."""

    follow_id: str
    moment: datetime
    guest: int
    sign: int
    how: str


FOLLOWED = JoinSpec(
    request=Shown,
    engagement=Followed,
    candidates="signs",
    candidate="sign",
    positive=pl.col("how") == "walked",
    within_us=WITHIN_S * 1_000_000,
)


def passage_of(topic: str, codec: str = "avro") -> type[Event]:
    """The event `Passage` on another topic."""

    class Passage(Event, topic=topic, key="door", time="at", id="passage_id", codec=codec):
        passage_id: str
        at: datetime
        door: int
        way: Literal["in", "out"]
        seconds: float = Field(ge=0, le=86_400)

    return Passage


def views_of(event: type[Event], dedupe: str | None = None) -> tuple[type, type]:
    """Two views of passages: by door, and by door and way."""
    from headrace.features import Count, FeatureView, LastN, Sum, col

    class DoorUse(FeatureView, source=event, entity="door", dedupe=dedupe):
        passages = Count(windows=("10m", "lifetime"))
        ins = Count(where=col("way") == "in", windows="lifetime")
        seconds = Sum("seconds", windows="lifetime")
        recent = LastN("passage_id", n=5)

    class WayUse(FeatureView, source=event, entity=("door", "way"), dedupe=dedupe):
        passages = Count(windows="lifetime")

    return DoorUse, WayUse


def door_use(frame: pl.DataFrame) -> pl.DataFrame:
    """What `DoorUse` must hold after `frame`, by the definition, sorted by door."""
    recent = pl.col("passage_id").sort_by("at", "passage_id", descending=True).head(5).sort()
    return (
        frame.group_by("door")
        .agg(
            pl.len().cast(pl.Float64).alias("passages_lifetime"),
            (pl.col("way") == "in").sum().cast(pl.Float64).alias("ins_lifetime"),
            pl.col("seconds").sum().alias("seconds_lifetime"),
            recent.alias("recent"),
        )
        .sort("door")
    )


def read_doors(store, event: type[Event], frame: pl.DataFrame, dedupe: str | None = None) -> pl.DataFrame:
    """The same from the store, for the doors in `frame`."""
    found = store.read(views_of(event, dedupe)[0], frame.select("door").unique().sort("door"), now=START_US + 10**12)
    numbers = pl.col("passages_lifetime", "ins_lifetime", "seconds_lifetime").cast(pl.Float64)
    return found.select("door", numbers, pl.col("recent").list.sort())


def passages(n: int, *, doors: int = 50, seed: int = 0, span_us: int = 3_600_000_000) -> pl.DataFrame:
    """(n,) passages, nearly in event order; seconds are whole, so that sums are exact."""
    rng = np.random.default_rng(seed)
    at_us = START_US + np.sort(rng.integers(0, span_us, n)) + rng.integers(0, 20_000_000, n)
    return pl.DataFrame(
        {
            "passage_id": [f"p{seed}-{i}" for i in range(n)],
            "at": pl.Series(at_us).cast(pl.Datetime("us", "UTC")),
            "door": rng.zipf(1.3, n) % doors,
            "way": np.where(rng.random(n) < 0.5, "in", "out"),
            "seconds": rng.integers(0, 100, n).astype(float),
        }
    )


class Shelf:
    """Dead letters kept in a list."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []

    def write(self, letters) -> None:
        self.letters += letters

    def close(self) -> None:
        pass


def drain(source: Source, *, seconds: float = 60.0, rows: int | None = None) -> list[Batch]:
    """Everything until the source is exhausted, or `rows` payloads or rows have come."""
    found: list[Batch] = []
    deadline = time.monotonic() + seconds
    while not source.exhausted and (rows is None or sum(len(b.offsets) for b in found) < rows):
        assert time.monotonic() < deadline, f"only {sum(len(b.offsets) for b in found)} after {seconds} s"
        found += source.poll()
        time.sleep(0.001)
    return found


def as_batch(event: type[Event], frame: pl.DataFrame, first: int = 0, partition: str = "", **more) -> EventBatch:
    """Rows of one partition, at consecutive offsets from `first`."""
    offsets = np.arange(first, first + frame.height)
    name = partition or f"{spec_of(event).topic}/0"
    return EventBatch(
        event, name, offsets, first + frame.height, frame, more.pop("appended_us", None), START_US, **more
    )
