"""Example events for the doctests of aggregations: measurements of one sensor, read at noon.

at      state  value  position
10:30   on     4.0    [2.0, 0.0]
11:10   off    2.0    [0.0, 2.0]
11:30   on     null   [4.0, 4.0]
11:50   on     5.0    [0.0, 0.0]
"""

from datetime import UTC, datetime
from typing import Any

import polars as pl

from headrace.features.aggregations.aggregation import Aggregation
from headrace.features.keys import entity_ids
from headrace.features.state.slab import Slab
from headrace.features.view import FeatureView, plan_of
from headrace.schemas import Event

_DAY_US = 1_700_006_400_000_000 // 86_400_000_000 * 86_400_000_000
_MINUTES = (630, 670, 690, 710)


class Measurement(Event, topic="measurements", key="sensor", time="at", id="number"):  # type: ignore[metaclass]
    """A measurement of one sensor."""

    number: int
    sensor: int
    at: datetime
    state: str
    value: float | None
    position: list[float]


def read_at_noon(**features: Aggregation | pl.Expr) -> dict[str, Any]:
    """Return the features `name=aggregation` of the sensor as of 12:00."""
    view = type("Sensor", (FeatureView,), features, source=Measurement, entity="sensor")
    plan = plan_of(view)
    slab = Slab(plan)
    slab.update(plan.rows(Measurement, _measurements()))
    ids, _ = entity_ids(plan, pl.DataFrame({"sensor": [1]}))
    return slab.read(slab.locate(ids), _DAY_US + 720 * 60_000_000).to_polars().row(0, named=True)


def _measurements() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "number": range(4),
            "sensor": [1] * 4,
            "at": [datetime.fromtimestamp(_DAY_US / 1e6 + minute * 60, UTC) for minute in _MINUTES],
            "state": ["on", "off", "on", "on"],
            "value": [4.0, 2.0, None, 5.0],
            "position": [[2.0, 0.0], [0.0, 2.0], [4.0, 4.0], [0.0, 0.0]],
        },
        schema_overrides={"at": pl.Datetime("us", "UTC")},
    )
