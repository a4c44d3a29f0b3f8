"""Count, Sum, Mean, Var, Std: aggregations by addition.

All but Count ignore null, NaN and infinite values, as SQL ignores null. Counts and sums of integers are exact below
2**53; the last bits of float sums depend on the order of events (1e-9 relative).
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from headrace.features.aggregations.aggregation import Cell, Cells, Windowed, aggregation
from headrace.features.argument_types import Value
from headrace.features.state.rings.cells import ADD, MOMENTS


@aggregation
class Count(Windowed):
    """Number of events; an int, 0 without events.

    >>> from headrace import col
    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(n=Count(where=col("state") == "on", windows=("1h", "lifetime")))
    {'n_1h': 2, 'n_lifetime': 3}
    """

    dtype: ClassVar[str] = "int"

    def cells(self) -> Sequence[Cell]:
        """A sum of ones."""
        return (Cell(ADD),)

    def read(self, cells: Cells) -> NDArray[np.int64]:
        """The sum."""
        return cells[0].astype(np.int64)


@aggregation
class Sum(Windowed):
    """Sum of a number; a float, 0 without events. Sums of integers are exact up to 2**53.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(total=Sum("value", windows="1h"))
    {'total_1h': 7.0}
    """

    value: Value

    def cells(self) -> Sequence[Cell]:
        """One sum."""
        return (Cell(ADD, self.value),)

    def read(self, cells: Cells) -> NDArray[np.float64]:
        """The sum."""
        return cells[0]


@aggregation
class Mean(Windowed):
    """Mean of a number; null if no event has a value.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(mean=Mean("value", windows="1h"))
    {'mean_1h': 3.5}
    """

    value: Value

    def cells(self) -> Sequence[Cell]:
        """The sum and the count of finite numbers."""
        return Cell(ADD, self.value), Cell(ADD, finite=self.value)

    def read(self, cells: Cells) -> NDArray[np.float64]:
        """Sum divided by count."""
        return _divided(cells[0], cells[1])


@aggregation
class Var(Windowed):
    """Variance of a number, with divisor count - `ddof`; null if too few events have a value.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(var=Var("value", windows="1h"))
    {'var_1h': 4.5}
    """

    value: Value
    _: KW_ONLY
    ddof: int = 1

    def problem(self) -> str | None:
        """Report a negative `ddof`."""
        return f"ddof={self.ddof}; write 0 or 1" if self.ddof < 0 else None

    def cells(self) -> Sequence[Cell]:
        """Count, mean and sum of squared deviations."""
        return (Cell(MOMENTS, self.value),)

    def read(self, cells: Cells) -> NDArray[np.float64]:
        """Sum of squared deviations divided by count - ddof."""
        return _divided(cells[2], cells[0] - self.ddof)


@aggregation
class Std(Var):
    """Standard deviation of a number, the square root of `Var`.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(std=Std("value", windows="1h", ddof=0))
    {'std_1h': 1.5}
    """

    def read(self, cells: Cells) -> NDArray[np.float64]:
        """The square root of the variance."""
        return np.sqrt(Var.read(self, cells))


def _divided(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Quotient (n,) of `part` and `whole`, NaN where `whole` is not positive."""
    out = np.full(len(part), np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out
