"""DecayedCount and DecayedSum: every event counts, and counts half after each half-life.

The value as of t is the sum of x * 2 ** (-(t - event_time) / half_life) over all events. Exact to float rounding in any
order of events: the state is the sum as of the newest event's time.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.features.aggregation import Cell, Source, Value
from headrace.features.argument_types import declared
from headrace.features.binder import Binder
from headrace.features.state.layout import Reading
from headrace.features.state.operations import Outputs
from headrace.features.state.rings.cells import DECAYED, ONE
from headrace.features.windows import LIFETIME, SECOND_US, parse_span_s, window_of


@declared
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class DecayedCount:
    """Events, each weighing half after `half_life`; float, 0 where none."""

    half_life: str
    where: Value | None = None
    source: Source = None

    def bind(self, binder: Binder) -> Sequence[Reading]:
        """One feature."""
        return _bind(binder, ONE, self.half_life, self.where, self.source)


@declared
@dataclass(frozen=True, slots=True, eq=False)
class DecayedSum:
    """Sum of a number, each weighing half after `half_life`; 0 where none.

    Null, NaN and infinite values are left out.
    """

    value: Value
    _: KW_ONLY
    half_life: str
    where: Value | None = None
    source: Source = None

    def bind(self, binder: Binder) -> Sequence[Reading]:
        """One feature."""
        return _bind(binder, binder.number(self.value, self.source), self.half_life, self.where, self.source)


def _bind(binder: Binder, column: int, half_life: str, where: Value | None, source: Source) -> Sequence[Reading]:
    half_life_us = float(parse_span_s(half_life, f"{binder.path} · half_life") * SECOND_US)
    cells = (Cell(DECAYED, column, half_life_us),)
    group, picked = binder.ring(window_of(LIFETIME), cells, binder.flag(where, source))

    def read(outputs: Outputs, now_us: NDArray[np.int64]) -> NDArray[np.float64]:
        time, value = outputs[0][:, picked].T
        age_us = np.maximum(now_us - np.where(np.isinf(time), now_us, time), 0.0)
        return np.asarray(value * np.exp2(-age_us / half_life_us), np.float64)

    return (Reading(binder.feature("float"), group, read),)
