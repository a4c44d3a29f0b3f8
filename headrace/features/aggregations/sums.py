"""Count, Sum, Mean, Var, Std: cells that add up.

Null, NaN and infinite values are left out by all but Count, as SQL leaves out null. Counts and sums of whole numbers
are exact below 2**53; float sums depend on the order of events in their last bits (1e-9 relative).
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
    """Number of events; int, 0 where none.

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
    """Sum of a number, a float; 0 where none. Sums of whole numbers are exact up to 2**53.

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
    """Mean of a number; none where no event has one.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(mean=Mean("value", windows="1h"))
    {'mean_1h': 3.5}
    """

    value: Value

    def cells(self) -> Sequence[Cell]:
        """The sum and the count of finite numbers."""
        return Cell(ADD, self.value), Cell(ADD, finite=self.value)

    def read(self, cells: Cells) -> NDArray[np.float64]:
        """Sum over count."""
        return _divided(cells[0], cells[1])


@aggregation
class Var(Windowed):
    """Variance of a number, divided by count - `ddof`; none where too few events have one.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(var=Var("value", windows="1h"))
    {'var_1h': 4.5}
    """

    value: Value
    _: KW_ONLY
    ddof: int = 1

    def problem(self) -> str | None:
        """A negative `ddof`."""
        return f"ddof={self.ddof}; write 0 or 1" if self.ddof < 0 else None

    def cells(self) -> Sequence[Cell]:
        """Count, mean and sum of squared deviations."""
        return (Cell(MOMENTS, self.value),)

    def read(self, cells: Cells) -> NDArray[np.float64]:
        """Squared deviations over count - ddof."""
        return _divided(cells[2], cells[0] - self.ddof)


@aggregation
class Std(Var):
    """Standard deviation of a number, the root of `Var`.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(std=Std("value", windows="1h", ddof=0))
    {'std_1h': 1.5}
    """

    def read(self, cells: Cells) -> NDArray[np.float64]:
        """The root of squared deviations over count - ddof."""
        return np.sqrt(Var.read(self, cells))


def _divided(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Part / whole, NaN where whole is not positive: (n,)."""
    out = np.full(len(part), np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out
