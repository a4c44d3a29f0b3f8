"""Count, Sum, Mean, Var, Std: what adds up.

Null, NaN and infinite values are left out by all but Count, as SQL leaves out null. Counts and sums of whole numbers
are exact below 2**53; float sums depend on the order of events in their last bits (1e-9 relative).
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.features.aggregation import Cell, Source, Value, Windows
from headrace.features.argument_types import declared
from headrace.features.binder import Binder
from headrace.features.state.layout import Reading
from headrace.features.state.rings.cells import ADD, MOMENTS


@declared
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Count:
    """Number of events; int, 0 where none."""

    windows: Windows = ()
    where: Value | None = None
    hop: str | None = None
    source: Source = None
    dtype: ClassVar[str] = "int"

    def cells(self, binder: Binder) -> Sequence[Cell]:  # noqa: ARG002
        """One sum of ones."""
        return (Cell(ADD),)

    def read(self, cells: NDArray[np.float64], now_us: NDArray[np.int64]) -> NDArray[np.int64]:  # noqa: ARG002
        """Cells (n, 1) -> (n,)."""
        return cells[:, 0].astype(np.int64)

    def bind(self, binder: Binder) -> Sequence[Reading]:
        """One feature a window."""
        return binder.windowed(self)


@declared
@dataclass(frozen=True, slots=True, eq=False)
class Sum:
    """Sum of a number, a float; 0 where none. Sums of whole numbers are exact up to 2**53."""

    value: Value
    _: KW_ONLY
    windows: Windows = ()
    where: Value | None = None
    hop: str | None = None
    source: Source = None
    dtype: ClassVar[str] = "float"

    def cells(self, binder: Binder) -> Sequence[Cell]:
        """One sum."""
        return (Cell(ADD, binder.number(self.value, self.source)),)

    def read(self, cells: NDArray[np.float64], now_us: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: ARG002
        """Cells (n, 1) -> (n,)."""
        return cells[:, 0]

    def bind(self, binder: Binder) -> Sequence[Reading]:
        """One feature a window."""
        return binder.windowed(self)


@declared
@dataclass(frozen=True, slots=True, eq=False)
class Mean:
    """Mean of a number; none where no event has one."""

    value: Value
    _: KW_ONLY
    windows: Windows = ()
    where: Value | None = None
    hop: str | None = None
    source: Source = None
    dtype: ClassVar[str] = "float"

    def cells(self, binder: Binder) -> Sequence[Cell]:
        """A sum, and the count of numbers."""
        number = binder.number(self.value, self.source)
        return Cell(ADD, number), Cell(ADD, flag=binder.flag(self.where, self.source, finite=self.value))

    def read(self, cells: NDArray[np.float64], now_us: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: ARG002
        """Cells (n, 2) -> (n,)."""
        return _divided(cells[:, 0], cells[:, 1])

    def bind(self, binder: Binder) -> Sequence[Reading]:
        """One feature a window."""
        return binder.windowed(self)


@declared
@dataclass(frozen=True, slots=True, eq=False)
class Var:
    """Variance of a number, divided by count - `ddof`; none where too few events have one."""

    value: Value
    _: KW_ONLY
    windows: Windows = ()
    where: Value | None = None
    hop: str | None = None
    source: Source = None
    ddof: int = 1
    dtype: ClassVar[str] = "float"

    def cells(self, binder: Binder) -> Sequence[Cell]:
        """Count, mean and squared deviations."""
        return _moments(binder, self)

    def read(self, cells: NDArray[np.float64], now_us: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: ARG002
        """Cells (n, 3) -> (n,)."""
        return _divided(cells[:, 2], cells[:, 0] - self.ddof)

    def bind(self, binder: Binder) -> Sequence[Reading]:
        """One feature a window."""
        return binder.windowed(self)


@declared
@dataclass(frozen=True, slots=True, eq=False)
class Std:
    """Standard deviation of a number, the root of `Var`."""

    value: Value
    _: KW_ONLY
    windows: Windows = ()
    where: Value | None = None
    hop: str | None = None
    source: Source = None
    ddof: int = 1
    dtype: ClassVar[str] = "float"

    def cells(self, binder: Binder) -> Sequence[Cell]:
        """Count, mean and squared deviations."""
        return _moments(binder, self)

    def read(self, cells: NDArray[np.float64], now_us: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: ARG002
        """Cells (n, 3) -> (n,)."""
        return np.sqrt(_divided(cells[:, 2], cells[:, 0] - self.ddof))

    def bind(self, binder: Binder) -> Sequence[Reading]:
        """One feature a window."""
        return binder.windowed(self)


def _moments(binder: Binder, declared: Var | Std) -> Sequence[Cell]:
    if declared.ddof < 0:
        raise DeclarationError(f"{binder.path}: ddof={declared.ddof}; write 0 or 1")
    return (Cell(MOMENTS, binder.number(declared.value, declared.source)),)


def _divided(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Part / whole, NaN where whole is not positive: (n,)."""
    out = np.full(len(part), np.nan)
    np.divide(part, whole, out=out, where=whole > 0)
    return out
