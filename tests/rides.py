"""Trams: rides and ticket checks of riders, views over them, and every feature's definition.

`python -m tests.rides` writes tests/golden/record_v3.hex and record_dedupe_v3.hex anew; do that only with a new record
version.
"""

import random
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from headrace.features import (
    Count,
    DecayedCount,
    DecayedSum,
    FeatureView,
    First,
    Last,
    LastN,
    Max,
    Mean,
    Min,
    Ratio,
    Sequence,
    Slab,
    Std,
    Sum,
    TimeSince,
    Var,
    col,
    plan_of,
)
from headrace.features.aggregations.aggregation import Cell, Windowed, aggregation
from headrace.features.argument_types import Value
from headrace.features.state.rings.cells import MAX
from headrace.schemas import Event
from tests import oracle

LARGE = 2**59 + 1
BASE_US = 1_700_000_000_000_000
GOLDEN = Path(__file__).parent / "golden" / "record_v3.hex"
GOLDEN_ONCE = Path(__file__).parent / "golden" / "record_dedupe_v3.hex"


class Ride(Event, topic="rides", key="rider", time="at", id="ride_id"):
    """A ride on a tram."""

    ride_id: str
    at: datetime
    rider: int
    line: str
    stops: int
    fare: float | None
    zone: str | None
    kind: Literal["ticket", "pass"]


class Check(Event, topic="checks", key="rider", time="at", id="check_id"):
    """A check of a ticket."""

    check_id: str
    at: datetime
    rider: int
    fine: float


@aggregation
class FloatMax(Windowed):
    """Largest value as a float, as `Max` keeps numbers with a fraction: the golden records have it of whole ones."""

    value: Value

    def cells(self):
        return (Cell(MAX, self.value),)

    def read(self, cells):
        return np.where(np.isinf(cells[0]), np.nan, cells[0])


class RiderTrips(FeatureView, source=(Ride, Check), entity="rider"):
    """Every aggregation, over two sources."""

    all = Count(windows=("10s", "10m", "24h", "lifetime"))
    tickets = Count(where=col("kind") == "ticket", source=Ride, windows=("10m", "100s"))
    odd = Count(source=Ride, windows="1h", hop="30m")
    fare = Sum("fare", source=Ride, windows=("10m", "lifetime"))
    far = Sum(col("stops") * 2, where=col("zone") == "A", source=Ride, windows="1h")
    mean = Mean("fare", source=Ride, windows=("10m", "lifetime"))
    low = Min("fare", source=Ride, windows=("10m", "24h"))
    high = FloatMax("stops", windows=("10m", "24h"), source=Ride)
    first = First("line", source=Ride)
    entry = First("stops", source=Ride, windows=("10m", "24h"))
    price = First("fare", source=Ride, windows="1h")
    zone = Last("zone", source=Ride, windows=("10m", "lifetime"))
    line = Last("line", source=Ride)
    fined = Last("fine", source=Check)
    lines = LastN("line", n=4, distinct=True, source=Ride)
    stops = LastN("stops", n=3, source=Ride)
    recent = LastN("zone", n=5, within="10m", source=Ride)
    trips = Sequence("line", "fare", "at", n=4, where=col("stops") > 1, source=Ride)
    fines = Sequence("fine", n=2, within="1h", source=Check)
    since = TimeSince(where=col("kind") == "pass", source=Ride)
    idle = TimeSince(windows="10m")
    share = Ratio("tickets", "all", prior=(1, 20))
    plain = Ratio("fare", "all")


class RiderFloats(FeatureView, source=Ride, entity="rider"):
    """What agrees to float rounding only."""

    var = Var("fare", windows=("10m", "lifetime"))
    std = Std("fare", windows="24h", ddof=0)
    fresh = DecayedCount(half_life="10m")
    spent = DecayedSum("fare", half_life="1h", where=col("kind") == "ticket")


class RiderWhole(FeatureView, source=Ride, entity="rider"):
    """Extremes of whole numbers, also beyond what a float holds, of truth values, and of some that are null."""

    high = Max(col("stops") * LARGE, windows=("10m", "24h", "lifetime"))
    low = Min(col("stops") * LARGE, where=col("zone") == "A", windows=("10m", "lifetime"))
    fewest = Min("stops", windows=("10m", "24h"))
    even = Max(col("stops") % 2 == 0, windows="1h")
    some = Max(pl.when(col("stops") > 6).then(col("stops") - 9), windows=("10m", "24h"))
    events = Count(windows=("10m", "24h"))


class RiderOnce(FeatureView, source=(Ride, Check), entity="rider", dedupe="10m"):
    """Each event once."""

    all = Count(windows=("10s", "10m", "24h", "lifetime"))
    fare = Sum("fare", source=Ride, windows="lifetime")
    lines = LastN("line", n=4, distinct=True, source=Ride)
    stops = LastN("stops", n=3, source=Ride)


def _rides(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["class"] == "Ride"]


def _is(events: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    return [event for event in events if all(event.get(name) == value for name, value in values.items())]


def _definitions() -> dict[str, Any]:
    o = oracle
    found: dict[str, Any] = {"all_lifetime": lambda e, t: o.count(o.before(e, t))}
    for span in ("10s", "10m", "24h"):
        found[f"all_{span}"] = lambda e, t, w=span: o.count(o.window(e, w, t))
    for span in ("10m", "100s"):
        found[f"tickets_{span}"] = lambda e, t, w=span: o.count(_is(o.window(e, w, t), kind="ticket"))
    found["odd_1h"] = lambda e, t: o.count(_rides(o.window(e, "1h", t, hop="30m")))
    found["fare_10m"] = lambda e, t: o.total(_rides(o.window(e, "10m", t)), "fare")
    found["fare_lifetime"] = lambda e, t: o.total(_rides(o.before(e, t)), "fare")
    found["far_1h"] = lambda e, t: float(sum(2 * x["stops"] for x in _rides(o.window(e, "1h", t)) if x["zone"] == "A"))
    found["mean_10m"] = lambda e, t: o.mean(_rides(o.window(e, "10m", t)), "fare")
    found["mean_lifetime"] = lambda e, t: o.mean(_rides(o.before(e, t)), "fare")
    for span in ("10m", "24h"):
        found[f"low_{span}"] = lambda e, t, w=span: o.least(_rides(o.window(e, w, t)), "fare")
        found[f"high_{span}"] = lambda e, t, w=span: o.most(_rides(o.window(e, w, t)), "stops")
        found[f"entry_{span}"] = lambda e, t, w=span: o.first(_rides(o.window(e, w, t)), "stops")
    found["first"] = lambda e, t: o.first(_rides(o.before(e, t)), "line")
    found["price_1h"] = lambda e, t: o.first(_rides(o.window(e, "1h", t)), "fare")
    found["zone_lifetime"] = lambda e, t: o.last(_rides(o.before(e, t)), "zone")
    found["zone_10m"] = lambda e, t: o.last(_rides(o.window(e, "10m", t)), "zone")
    found["line"] = lambda e, t: o.last(_rides(o.before(e, t)), "line")
    found["fined"] = lambda e, t: o.last(_is(o.before(e, t), **{"class": "Check"}), "fine")
    found["lines"] = lambda e, t: o.last_distinct(_rides(o.before(e, t)), "line", 4)
    found["stops"] = lambda e, t: o.last_n(_rides(o.before(e, t)), "stops", 3)
    found["recent"] = lambda e, t: _within(e, t, 600, "zone", 5)
    for value in ("line", "fare", "at"):
        found[f"trips_{value}"] = lambda e, t, v=value: o.sequence(
            [x for x in _rides(o.before(e, t)) if x["stops"] > 1], {"at": "time"}.get(v, v), 4
        )
    found["fines"] = lambda e, t: _within(e, t, 3_600, "fine", 2, "Check")[::-1]
    found["since"] = lambda e, t: o.since(_is(o.before(e, t), kind="pass"), t)
    found["idle_10m"] = lambda e, t: o.since(o.window(e, "10m", t), t)
    found["share_10m"] = lambda e, t: o.ratio(found["tickets_10m"](e, t), found["all_10m"](e, t), (1, 20))
    for span in ("10m", "lifetime"):
        found[f"plain_{span}"] = lambda e, t, w=span: o.ratio(found[f"fare_{w}"](e, t), found[f"all_{w}"](e, t))
    return found


def _within(events: list[dict[str, Any]], now_us: int, span_s: int, value: str, n: int, of: str = "Ride") -> list[Any]:
    """The newest n, and of these what is not older than the span."""
    held = _is(oracle.before(events, now_us), **{"class": of})
    times = oracle.last_n(
        [{**event, value: None if event[value] is None else event["time"]} for event in held], value, n
    )
    young = sum(time >= now_us - span_s * oracle.SECOND_US for time in times)
    return oracle.last_n(held, value, n)[:young]


TRIPS = _definitions()
ONCE = {
    name: TRIPS[name] for name in ("all_10s", "all_10m", "all_24h", "all_lifetime", "fare_lifetime", "lines", "stops")
}
FLOATS = {
    "var_10m": lambda e, t: oracle.variance(oracle.window(e, "10m", t), "fare"),
    "var_lifetime": lambda e, t: oracle.variance(oracle.before(e, t), "fare"),
    "std_24h": lambda e, t: oracle.deviation(oracle.window(e, "24h", t), "fare", 0),
    "fresh": lambda e, t: oracle.decayed(oracle.before(e, t), "10m", t),
    "spent": lambda e, t: oracle.decayed(_is(oracle.before(e, t), kind="ticket"), "1h", t, "fare"),
}


def _wholes() -> dict[str, Any]:
    def most(value, pick=lambda _: True, best=max):
        return lambda e, t, w: best((value(x) for x in oracle.window(e, w, t) if pick(x)), default=None)

    features = {
        "high": (most(lambda x: x["stops"] * LARGE), ("10m", "24h")),
        "low": (most(lambda x: x["stops"] * LARGE, lambda x: x["zone"] == "A", min), ("10m",)),
        "fewest": (most(lambda x: x["stops"], best=min), ("10m", "24h")),
        "even": (most(lambda x: int(x["stops"] % 2 == 0)), ("1h",)),
        "some": (most(lambda x: x["stops"] - 9, lambda x: x["stops"] > 6), ("10m", "24h")),
        "events": (lambda e, t, w: len(oracle.window(e, w, t)), ("10m", "24h")),
    }
    found = {
        f"{name}_{span}": lambda e, t, f=define, w=span: f(e, t, w)
        for name, (define, spans) in features.items()
        for span in spans
    }
    found["high_lifetime"] = lambda e, t: max((x["stops"] * LARGE for x in oracle.before(e, t)), default=None)
    found["low_lifetime"] = lambda e, t: min(
        (x["stops"] * LARGE for x in oracle.before(e, t) if x["zone"] == "A"), default=None
    )
    return found


WHOLES = _wholes()


def ride(number: int, time_us: int, rider: int, rng: random.Random) -> dict[str, Any]:
    """An event of either class; fares are quarters, so that their sums are exact."""
    if rng.random() < 0.2:
        return {"class": "Check", "id": f"c{number}", "time": time_us, "rider": rider, "fine": rng.choice([40.5, 60.0])}
    return {
        "class": "Ride",
        "id": f"r{number}",
        "time": time_us,
        "rider": rider,
        "line": rng.choice(["1", "2", "9é", "", "a much longer line name, of more than 32 bytes"]),
        "stops": rng.randrange(-2, 9),
        "fare": rng.choice([None, float("nan"), float("inf"), *(x / 4 for x in range(-8, 40))]),
        "zone": rng.choice([None, "A", "B", "C"]),
        "kind": rng.choice(["ticket", "pass"]),
    }


def frames(events: list[dict[str, Any]]) -> dict[type[Event], pl.DataFrame]:
    """The events as one frame a class."""
    rides = [event for event in events if event["class"] == "Ride"]
    checks = [event for event in events if event["class"] == "Check"]
    time = pl.Datetime("us", "UTC")
    shared = {"time": pl.Int64, "rider": pl.Int64, "id": pl.String}
    ride_schema = {"line": pl.String, "stops": pl.Int64, "fare": pl.Float64, "zone": pl.String, "kind": pl.String}
    return {
        Ride: pl.DataFrame(rides, schema={**shared, **ride_schema}).select(
            pl.col("id").alias("ride_id"), pl.col("time").cast(time).alias("at"), pl.exclude("id", "time")
        ),
        Check: pl.DataFrame(checks, schema={**shared, "fine": pl.Float64}).select(
            pl.col("id").alias("check_id"), pl.col("time").cast(time).alias("at"), pl.exclude("id", "time")
        ),
    }


def add(slab: Slab, events: list[dict[str, Any]]) -> int:
    """Bring events into a slab as one batch a class; returns the late ones."""
    return sum(
        slab.update(slab.plan.rows(event, frame))
        for event, frame in frames(events).items()
        if event in slab.plan.sources and frame.height
    )


def golden_records(view: type[FeatureView] = RiderTrips, span_s: int = 7_200) -> list[str]:
    """Packed records of three riders, in hex: one without events, two with some."""
    rng = random.Random(7)
    slab = Slab(plan_of(view))
    add(slab, [ride(i, BASE_US + rng.randrange(span_s) * 1_000_000, i % 2, rng) for i in range(24)])
    rows = slab.add(*_keys([0, 1, 2]))
    return [blob.hex() for blob in slab.pack(rows, sequence=3, arrival_us=BASE_US + 1)]


def _keys(riders: list[int]) -> tuple[Any, list[bytes]]:
    from headrace.features import entity_ids

    return entity_ids(plan_of(RiderTrips), pl.DataFrame({"rider": riders}))


if __name__ == "__main__":
    GOLDEN.write_text("\n".join([plan_of(RiderTrips).fingerprint, *golden_records()]) + "\n")
    GOLDEN_ONCE.write_text("\n".join([plan_of(RiderOnce).fingerprint, *golden_records(RiderOnce, 900)]) + "\n")
