"""Min and Max of a number; null, NaN and infinite values are left out.

Whole numbers and truth values are kept as 64-bit integers, so that the answer is a value that came, to the last digit;
other numbers as float64.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.features.aggregation import Cell, Source, Value, Windows
from headrace.features.answer import Maybe
from headrace.features.argument_types import declared
from headrace.features.binder import Binder
from headrace.features.state.layout import Reading
from headrace.features.state.rings.cells import INT_MAX, INT_MIN, MAX, MIN


@declared
@dataclass(frozen=True, slots=True, eq=False)
class Min:
    """Smallest value, an int of whole numbers, else a float; none where no event has one."""

    value: Value
    _: KW_ONLY
    windows: Windows = ()
    where: Value | None = None
    hop: str | None = None
    source: Source = None
    codes: ClassVar[tuple[int, int]] = (MIN, INT_MIN)

    def bind(self, binder: Binder) -> Sequence[Reading]:
        """One feature a window."""
        return _bind(binder, self)


@declared
@dataclass(frozen=True, slots=True, eq=False)
class Max:
    """Largest value, an int of whole numbers, else a float; none where no event has one."""

    value: Value
    _: KW_ONLY
    windows: Windows = ()
    where: Value | None = None
    hop: str | None = None
    source: Source = None
    codes: ClassVar[tuple[int, int]] = (MAX, INT_MAX)

    def bind(self, binder: Binder) -> Sequence[Reading]:
        """One feature a window."""
        return _bind(binder, self)


def _bind(binder: Binder, declared: Min | Max) -> Sequence[Reading]:
    dtype, (code, whole_code) = binder.dtype(declared.value, declared.source), declared.codes
    if dtype.is_integer() or dtype == pl.Boolean:
        cell = Cell(whole_code, binder.bits(declared.value, declared.source)[0])
        flag = binder.flag(declared.where, declared.source, (declared.value,))
        return binder.readings(declared.windows, declared.hop, [cell], flag, "int", _read_whole)
    cell = Cell(code, binder.number(declared.value, declared.source))
    flag = binder.flag(declared.where, declared.source)
    return binder.readings(declared.windows, declared.hop, [cell], flag, "float", _read)


def _read(cells: NDArray[np.float64], now_us: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: ARG001
    """Cells (n, 1) -> (n,)."""
    return np.where(np.isinf(cells[:, 0]), np.nan, cells[:, 0])


def _read_whole(cells: NDArray[np.float64], now_us: NDArray[np.int64]) -> Maybe:  # noqa: ARG001
    """Halves (n, 2) -> (n,)."""
    empty = np.isinf(cells[:, 0])
    upper, lower = np.where(empty[:, None], 0.0, cells).astype(np.int64).T
    return Maybe((upper << 32) + lower, empty)
