"""DecayedCount and DecayedSum: every event counts, and its weight halves with each half-life.

The value as of t is the sum of x * 2 ** (-(t - event_time) / half_life) over all events. The state is the sum as of the
newest event's time, which is exact to float rounding in any order of events.
"""

from dataclasses import KW_ONLY
from functools import partial

import numpy as np
from numpy.typing import NDArray

from headrace.features.aggregations.aggregation import Aggregation, Cell, Cells, Output, Ring, Types, aggregation
from headrace.features.argument_types import Source, Value
from headrace.features.state.rings.cells import DECAYED, ONE


@aggregation
class DecayedCount(Aggregation):
    """Number of events, each with a weight that halves with every `half_life`; a float, 0 without events.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(recent=DecayedCount(half_life="30m"))
    {'recent': 1.7336807884578183}
    """

    _: KW_ONLY
    half_life: str
    where: Value | None = None
    source: Source = None

    def state(self, types: Types) -> Ring:
        """A decayed sum of ones."""
        return _decayed(ONE, types.span_us("half_life", self.half_life))


@aggregation
class DecayedSum(Aggregation):
    """Sum of a number, each with a weight that halves with every `half_life`; a float, 0 without events.

    Null, NaN and infinite values are ignored.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(recent=DecayedSum("value", half_life="30m"))
    {'recent': 5.098463154867936}
    """

    value: Value
    _: KW_ONLY
    half_life: str
    where: Value | None = None
    source: Source = None

    def state(self, types: Types) -> Ring:
        """A decayed sum."""
        return _decayed(self.value, types.span_us("half_life", self.half_life))


def _decayed(value: Value | int, half_life_us: int) -> Ring:
    cell = Cell(DECAYED, value, float(half_life_us))
    return Ring((cell,), (Output("float", partial(_read, half_life_us)),), of_all_time=True)


def _read(half_life_us: int, cells: Cells) -> NDArray[np.float64]:
    """Decay the sum as of the newest event to the time of the read."""
    newest_us, value, now_us = cells[0], cells[1], cells.now_us
    age_us = np.maximum(now_us - np.where(np.isinf(newest_us), now_us, newest_us), 0.0)
    return np.asarray(value * np.exp2(-age_us / float(half_life_us)), np.float64)
