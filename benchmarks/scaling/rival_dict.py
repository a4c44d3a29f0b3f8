"""Plain Python: a dict of entities, for each a count by tile in a dict, one event after the other."""

import statistics
import time
from collections.abc import Iterable

import polars as pl

from benchmarks.scaling.declaration import HOP_US, HOUR_US, batches

BATCH_ROWS = 8_192
TILES = HOUR_US // HOP_US


def cost(entities: int, count: int, seed: int) -> float:
    """Nanoseconds an event, the median of `count` batches; the entities are there before."""
    state: dict[int, dict[int, int]] = {entity: {-1: 1} for entity in range(entities)}
    took_ns = []
    for frame in batches(entities, BATCH_ROWS, count, seed):
        users, times_us = frame["user_id"].to_list(), frame["event_time"].dt.epoch("us").to_list()
        started_ns = time.perf_counter_ns()
        update(state, users, times_us)
        took_ns.append((time.perf_counter_ns() - started_ns) / BATCH_ROWS)
    return statistics.median(took_ns)


def update(state: dict[int, dict[int, int]], users: list[int], times_us: list[int]) -> None:
    """Count each event in the tile of its time; a new tile drops those that no window holds any more."""
    for user, time_us in zip(users, times_us, strict=True):
        tile = time_us // HOP_US
        tiles = state.setdefault(user, {})
        if tile in tiles:
            tiles[tile] += 1
        else:
            for old in [old for old in tiles if old < tile - TILES]:
                del tiles[old]
            tiles[tile] = 1


def counts(frames: Iterable[pl.DataFrame], users: list[int], now_us: int) -> list[int]:
    """What the window holds of some users as of `now_us`, after all of `frames`."""
    state: dict[int, dict[int, int]] = {}
    for frame in frames:
        update(state, frame["user_id"].to_list(), frame["event_time"].dt.epoch("us").to_list())
    oldest = (now_us // HOP_US * HOP_US - HOUR_US) // HOP_US
    return [sum(count for tile, count in state.get(user, {}).items() if tile >= oldest) for user in users]
