"""Min and Max of a number, ignoring null, NaN and infinite values.

Integers and booleans are stored as 64-bit integers, so the result is one of the values to the last digit. Other numbers
are stored as float64.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.features.aggregations.aggregation import Cell, Cells, Output, Ring, Types, Windowed, aggregation
from headrace.features.answer import Maybe
from headrace.features.argument_types import Value
from headrace.features.state.rings.cells import INT_MAX, INT_MIN, MAX, MIN


@aggregation
class Min(Windowed):
    """Smallest value; an int for integers and booleans, else a float; null if no event has a value.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(low=Min("value", windows="1h"))
    {'low_1h': 2.0}
    """

    value: Value

    def state(self, types: Types) -> Ring:
        """The smallest value of each tile."""
        return _extreme(self.value, types, MIN, INT_MIN)


@aggregation
class Max(Windowed):
    """Largest value; an int for integers and booleans, else a float; null if no event has a value.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(high=Max("value", windows=("15m", "lifetime")))
    {'high_15m': 5.0, 'high_lifetime': 5.0}
    """

    value: Value

    def state(self, types: Types) -> Ring:
        """The largest value of each tile."""
        return _extreme(self.value, types, MAX, INT_MAX)


def _extreme(value: Value, types: Types, code: int, whole_code: int) -> Ring:
    dtype = types.dtype(value)
    if dtype.is_integer() or dtype == pl.Boolean:
        return Ring((Cell(whole_code, value),), (Output("int", _read_whole),), present=(value,))
    return Ring((Cell(code, value),), (Output("float", _read),))


def _read(cells: Cells) -> NDArray[np.float64]:
    return np.where(np.isinf(cells[0]), np.nan, cells[0])


def _read_whole(cells: Cells) -> Maybe:
    """Integers from their two halves, see state/rings/cells.py."""
    empty = np.isinf(cells[0])
    upper, lower = np.where(empty[:, None], 0.0, cells.values).astype(np.int64).T
    return Maybe((upper << 32) + lower, empty)
