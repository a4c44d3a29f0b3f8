"""Min and Max of a number; null, NaN and infinite values are left out."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from headrace.features.aggregation import Cell, Source, Value, Windows
from headrace.features.binding import Binder
from headrace.features.kernels.cells import MAX, MIN
from headrace.features.layout import Reading


@dataclass(frozen=True, slots=True, eq=False)
class Min:
    """Smallest value; none where no event has one."""

    value: Value
    _: KW_ONLY
    windows: Windows = ()
    where: Value | None = None
    hop: str | None = None
    source: Source = None
    dtype: ClassVar[str] = "float"

    def cells(self, binder: Binder) -> Sequence[Cell]:
        """One extreme."""
        return (Cell(MIN, binder.number(self.value, self.source)),)

    def read(self, cells: NDArray[np.float64], now_us: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: ARG002
        """Cells (n, 1) -> (n,)."""
        return np.where(np.isinf(cells[:, 0]), np.nan, cells[:, 0])

    def bind(self, binder: Binder) -> Sequence[Reading]:
        """One feature a window."""
        return binder.windowed(self)


@dataclass(frozen=True, slots=True, eq=False)
class Max:
    """Largest value; none where no event has one."""

    value: Value
    _: KW_ONLY
    windows: Windows = ()
    where: Value | None = None
    hop: str | None = None
    source: Source = None
    dtype: ClassVar[str] = "float"

    def cells(self, binder: Binder) -> Sequence[Cell]:
        """One extreme."""
        return (Cell(MAX, binder.number(self.value, self.source)),)

    def read(self, cells: NDArray[np.float64], now_us: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: ARG002
        """Cells (n, 1) -> (n,)."""
        return np.where(np.isinf(cells[:, 0]), np.nan, cells[:, 0])

    def bind(self, binder: Binder) -> Sequence[Reading]:
        """One feature a window."""
        return binder.windowed(self)
