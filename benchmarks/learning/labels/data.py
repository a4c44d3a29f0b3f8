"""Requests with labels that come late: planted ones, and those of Globo's clicks with planted delays."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.learning.freshness.declaration import load_clicks

CANDIDATES = 5
WINDOW_US = 3_600_000_000
EVERY = 10
"""Clicks to one request: fewer cover more hours."""
START_US = 1_700_000_000_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """N requests of `CANDIDATES` stories each, in the order of time.

    Attributes:
        time_us: (N,) int64.
        stories: (N, C) int64.
        labels: (N, C) bool, what each is at the end of its window.
        delay_us: (N, C) int64, when a positive comes, after the request, below `WINDOW_US`.
    """

    time_us: NDArray[np.int64]
    stories: NDArray[np.int64]
    labels: NDArray[np.bool_]
    delay_us: NDArray[np.int64]


def delays(shape: tuple[int, ...], mean_s: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Exponential delays in microseconds, of those that end within the window."""
    edge = 1 - np.exp(-WINDOW_US / 1e6 / mean_s)
    return (-mean_s * np.log1p(-rng.random(shape) * edge) * 1e6).astype(np.int64)


def planted(rows: int, mean_s: float, seed: int) -> Requests:
    """Twelve hours of 300 stories, whose log-odds walk: by 1.2 in an hour, back to -2 within some hours."""
    rng = np.random.default_rng(seed)
    minutes = 720
    level = np.empty((minutes, 300))
    level[0] = rng.normal(0, 1.5, 300)
    for minute in range(1, minutes):
        level[minute] = level[minute - 1] * 0.995 + rng.normal(0, 0.155, 300)
    time_us = START_US + np.arange(rows) * (minutes * 60_000_000) // rows
    stories = rng.integers(0, 300, (rows, CANDIDATES))
    logits = level[(time_us - START_US)[:, None] // 60_000_000, stories] - 2.0
    labels = rng.random(stories.shape) < 1 / (1 + np.exp(-logits))
    return Requests(time_us, stories, labels, delays(stories.shape, mean_s, rng))


def globo(path: Path | None, rows: int, mean_s: float, seed: int) -> Requests | None:
    """Every tenth click of Globo, each with four stories drawn by popularity until then; None without the file."""
    name, clicks = load_clicks(path)
    if "globo" not in name:
        return None
    rng = np.random.default_rng(seed)
    first = clicks["event_time"].dt.epoch("us").search_sorted(clicks["event_time"].dt.epoch("us")[0] + 129_600_000_000)
    stories = clicks["story"].to_numpy()
    numbers = first + np.arange(rows) * EVERY
    drawn = stories[numbers[:, None] - 1 - rng.integers(0, min(first, 100_000), (rows, CANDIDATES - 1))]
    shown = np.concatenate([stories[numbers][:, None], drawn], axis=1)
    order = rng.permuted(np.tile(np.arange(CANDIDATES), (rows, 1)), axis=1)
    shown = np.take_along_axis(shown, order, axis=1)
    labels = shown == stories[numbers][:, None]
    time_us = clicks["event_time"].dt.epoch("us").to_numpy()[numbers]
    delay_us = np.repeat(delays((rows, 1), mean_s, rng), CANDIDATES, axis=1)
    return Requests(time_us, shown, labels, delay_us)


def frames(requests: Requests, features: list[bytes]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The requests, and the engagements that label them, in the order of their times."""
    count = len(requests.time_us)
    ids = pl.Series(np.arange(count)).cast(pl.String)
    at = pl.Series(requests.time_us).cast(pl.Datetime("us", "UTC"))
    asked = pl.DataFrame(
        {
            "request_id": ids,
            "at": at,
            "stories": pl.Series(requests.stories, dtype=pl.Array(pl.Int64, CANDIDATES)).cast(pl.List(pl.Int64)),
            "features": pl.Series(features, dtype=pl.Binary),
        }
    )
    row, column = np.nonzero(requests.labels)
    opened = pl.DataFrame(
        {
            "open_id": pl.Series(np.arange(len(row))).cast(pl.String),
            "at": pl.Series(requests.time_us[row] + requests.delay_us[row, column]).cast(pl.Datetime("us", "UTC")),
            "request_id": ids.gather(row),
            "story": requests.stories[row, column],
        }
    )
    return asked, opened.sort("at", maintain_order=True)
