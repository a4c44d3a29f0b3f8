"""Range: the difference between the largest and the smallest value."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.features.aggregations.aggregation import Cell, Cells, Windowed, aggregation
from headrace.features.argument_types import Value
from headrace.features.state.rings.cells import MAX, MIN


@aggregation
class Range(Windowed):
    """Largest value minus smallest value; a float, null if no event has a value.

    Null, NaN and infinite values are ignored.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(spread=Range("value", windows="1h"))
    {'spread_1h': 3.0}
    """

    value: Value

    def cells(self) -> Sequence[Cell]:
        """The smallest and the largest value."""
        return Cell(MIN, self.value), Cell(MAX, self.value)

    def read(self, cells: Cells) -> NDArray[np.float64]:
        """Their difference."""
        return np.where(np.isinf(cells[0]), np.nan, cells[1] - cells[0])
