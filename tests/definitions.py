"""What every aggregation means: one entry each, from which the tests of the law, of replay and of packing are made.

A new aggregation is added to `DEFINITIONS`: an instance over the rides of tests/rides.py, and for every feature it
gives what a read must give, as a function of the rider's rides and the moment. Functions are in tests/oracle.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from headrace.features import (
    Count,
    CountBy,
    DecayedCount,
    DecayedSum,
    Distinct,
    FeatureView,
    First,
    Last,
    LastN,
    Max,
    Mean,
    Min,
    Quantile,
    Range,
    Rate,
    Ratio,
    Sequence,
    Std,
    Sum,
    TimeSince,
    TopK,
    Var,
    VectorMean,
    col,
)
from tests import oracle
from tests.rides import Ride

Define = Callable[[list[oracle.Event], int], Any]


@dataclass(frozen=True)
class Definition:
    """An aggregation, and its features: ending of the name -> definition.

    `rounds`: float rounding depends on the order of events, so the packed bytes may. `error` is the relative error that
    the aggregation allows itself. `beside` are attributes that it is made of.
    """

    aggregation: Any
    features: dict[str, Define]
    rounds: bool = False
    error: float = 0.0
    beside: dict[str, Any] = field(default_factory=dict)

    @property
    def view(self) -> type[FeatureView]:
        """A view of this aggregation, as attribute `it`, over the rides."""
        attributes = {**self.beside, "it": self.aggregation}
        return type("Defined", (FeatureView,), attributes, source=Ride, entity="rider")

    def holds(self, row: dict[str, Any], events: list[oracle.Event], now_us: int) -> bool:
        """Whether a read's row is what the definition gives for the entity's events."""
        for ending, define in self.features.items():
            ours, expected = row["it" + "_" * bool(ending) + ending], define(events, now_us)
            near = self.error and None not in (ours, expected) and abs(ours - expected) <= self.error * abs(expected)
            if not near and not oracle.same(oracle.plain(ours), oracle.plain(expected), 1e3):
                return False
        return True


def windowed(define: Callable[[list[oracle.Event]], Any], *spans: str, prefix: str = "") -> dict[str, Define]:
    """A definition over the events of each window, or of all time."""
    return {
        prefix + span: lambda events, now_us, span=span: define(
            oracle.before(events, now_us) if span == "lifetime" else oracle.window(events, span, now_us)
        )
        for span in spans
    }


def of_all_time(define: Callable[[list[oracle.Event]], Any], ending: str = "") -> dict[str, Define]:
    """A definition over all events before the read."""
    return {ending: lambda events, now_us: define(oracle.before(events, now_us))}


def _top(events: list[oracle.Event], k: int) -> list[tuple[int, int]]:
    counts = oracle.frequencies(events, "stops")
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:k]


def _per_second(total: Callable[[list[oracle.Event]], float], span: str) -> dict[str, Define]:
    return windowed(lambda events: total(events) / oracle.seconds(span), span)


SHORT, LONG = ("10m", "24h"), ("10m", "lifetime")

DEFINITIONS = [
    Definition(
        Count(windows=LONG, where=col("kind") == "pass"),
        windowed(lambda e: oracle.count([x for x in e if x["kind"] == "pass"]), *LONG),
    ),
    Definition(
        CountBy("stops", windows="24h"),
        {
            **windowed(lambda e: [value for value, _ in _top(e, 32)], "24h"),
            **windowed(lambda e: [count for _, count in _top(e, 32)], "24h", prefix="count_"),
        },
    ),
    Definition(
        DecayedCount(half_life="10m"), {"": lambda e, t: oracle.decayed(oracle.before(e, t), "10m", t)}, rounds=True
    ),
    Definition(
        DecayedSum("fare", half_life="1h"),
        {"": lambda e, t: oracle.decayed(oracle.before(e, t), "1h", t, "fare")},
        rounds=True,
    ),
    Definition(Distinct("line", windows=SHORT), windowed(lambda e: oracle.distinct(e, "line"), *SHORT)),
    Definition(First("stops", windows=SHORT), windowed(lambda e: oracle.first(e, "stops"), *SHORT)),
    Definition(Last("zone", windows=LONG), windowed(lambda e: oracle.last(e, "zone"), *LONG)),
    Definition(LastN("line", n=4, distinct=True), of_all_time(lambda e: oracle.last_distinct(e, "line", 4))),
    Definition(LastN("stops", n=3), of_all_time(lambda e: oracle.last_n(e, "stops", 3))),
    Definition(Max("fare", windows=SHORT), windowed(lambda e: oracle.most(e, "fare"), *SHORT)),
    Definition(Max("stops", windows=SHORT), windowed(lambda e: max((x["stops"] for x in e), default=None), *SHORT)),
    Definition(Mean("fare", windows=LONG), windowed(lambda e: oracle.mean(e, "fare"), *LONG)),
    Definition(Min("fare", windows=SHORT), windowed(lambda e: oracle.least(e, "fare"), *SHORT)),
    Definition(
        Quantile("fare", q=0.5, windows="24h", error=0.01),
        windowed(lambda e: oracle.quantile(e, "fare", 0.5), "24h", prefix="p50_"),
        error=0.0101,
    ),
    Definition(Range("fare", windows=LONG), windowed(lambda e: oracle.spread(e, "fare"), *LONG)),
    Definition(Rate(windows="10m"), _per_second(oracle.count, "10m")),
    Definition(Rate("fare", windows="24h"), _per_second(lambda e: oracle.total(e, "fare"), "24h")),
    Definition(
        Ratio("low", "all", prior=(1, 3)),
        windowed(lambda e: oracle.ratio(sum(x["stops"] < 3 for x in e), len(e), (1, 3)), "24h"),
        beside={"low": Count(where=col("stops") < 3, windows="24h"), "all": Count(windows="24h")},
    ),
    Definition(
        Sequence("stops", "fare", n=4),
        {
            **of_all_time(lambda e: oracle.sequence(e, "stops", 4), "stops"),
            **of_all_time(lambda e: oracle.sequence(e, "fare", 4), "fare"),
        },
    ),
    Definition(
        Std("fare", windows="24h", ddof=0), windowed(lambda e: oracle.deviation(e, "fare", 0), "24h"), rounds=True
    ),
    Definition(Sum("fare", windows=LONG), windowed(lambda e: oracle.total(e, "fare"), *LONG)),
    Definition(TimeSince(windows="24h"), {"24h": lambda e, t: oracle.since(oracle.window(e, "24h", t), t)}),
    Definition(
        TopK("stops", k=2, windows="24h"),
        {
            **windowed(lambda e: [value for value, _ in _top(e, 2)], "24h"),
            **windowed(lambda e: [count for _, count in _top(e, 2)], "24h", prefix="count_"),
        },
    ),
    Definition(Var("fare", windows=LONG), windowed(lambda e: oracle.variance(e, "fare"), *LONG), rounds=True),
    Definition(
        VectorMean(pl.concat_list("stops", "fare"), dim=2, windows="24h"),
        windowed(lambda e: oracle.vector_mean([{"v": [x["stops"], x["fare"]]} for x in e], "v", 2), "24h"),
    ),
]


def name_of(definition: Definition) -> str:
    """For the ids of tests."""
    return type(definition.aggregation).__name__
