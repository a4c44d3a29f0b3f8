"""Headrace: batches of decoded events into a slab."""

import statistics
import time

import polars as pl

from benchmarks.scaling.declaration import Visit, batches, everyone
from headrace.features import FeatureView, Slab, entity_ids, plan_of

BATCH_ROWS = 65_536


def cost(view: type[FeatureView], entities: int, count: int, seed: int) -> tuple[float, Slab]:
    """Nanoseconds an event, the median of `count` batches, and the slab; its entities are there before."""
    plan = plan_of(view)
    slab = Slab(plan, capacity=entities)
    for frame in everyone(entities, BATCH_ROWS, seed):
        slab.update(plan.rows(Visit, frame))
    took_ns = []
    for frame in batches(entities, BATCH_ROWS, count, seed):
        rows = plan.rows(Visit, frame)
        started_ns = time.perf_counter_ns()
        slab.update(rows)
        took_ns.append((time.perf_counter_ns() - started_ns) / BATCH_ROWS)
    return statistics.median(took_ns), slab


def read(slab: Slab, users: list[int], now_us: int) -> dict[str, list]:
    """Features of some users as of `now_us`, by name."""
    ids, _ = entity_ids(slab.plan, pl.DataFrame({"user_id": users}))
    return slab.read(slab.locate(ids), now_us).to_polars("").to_dict(as_series=False)
