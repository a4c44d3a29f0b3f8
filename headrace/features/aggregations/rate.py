"""Rate: events, or the sum of a value, per second."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from headrace.features.aggregations.aggregation import Cell, Cells, Windowed, aggregation
from headrace.features.argument_types import Value
from headrace.features.state.rings.cells import ADD, ONE
from headrace.features.windows import LIFETIME, SECOND_US


@aggregation
class Rate(Windowed):
    """Events per second, or with `value` its sum per second; a float, 0 without events.

    It is `Count` or `Sum` divided by the window's declared length, so a window of "1h" divides by 3600 from its first
    event on. "lifetime" has no length and raises an error.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(per_s=Rate(windows="1h"), value_per_s=Rate("value", windows="1h"))
    {'per_s_1h': 0.0008333333333333334, 'value_per_s_1h': 0.0019444444444444444}
    """

    value: Value | None = None

    def problem(self) -> str | None:
        """Report a window without a length."""
        windows = (self.windows,) if isinstance(self.windows, str) else self.windows
        return f'windows={self.windows!r}; write lengths such as "1h"' if LIFETIME in windows else None

    def cells(self) -> Sequence[Cell]:
        """The sum of ones, or of the values."""
        return (Cell(ADD, ONE if self.value is None else self.value),)

    def read(self, cells: Cells) -> NDArray[np.float64]:
        """The sum divided by the window's length in seconds."""
        return cells[0] / (cells.window.window_us / SECOND_US)
