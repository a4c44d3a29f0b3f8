"""What an aggregation is to the binder: what it declares, and the shapes that most of them have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.features.answer import Column, Maybe
from headrace.features.state.layout import Derived, Reading
from headrace.features.state.rings.cells import ONE
from headrace.schemas import Event

if TYPE_CHECKING:
    from headrace.features.binder import Binder

Value: TypeAlias = pl.Expr | str
Source: TypeAlias = type[Event] | Sequence[type[Event]] | None
Windows: TypeAlias = str | Sequence[str]


class Aggregation(Protocol):
    """What an attribute of a view must be able to do."""

    def bind(self, binder: "Binder") -> Sequence[Reading | Derived]:
        """Ask the binder for columns and state; return the features and how to read them. Called once a view."""
        ...


class Windowed(Protocol):
    """An aggregation whose state is cells on rings, one value a window."""

    dtype: ClassVar[str]

    @property
    def where(self) -> Value | None:
        """What admits an event."""
        ...

    @property
    def windows(self) -> Windows:
        """Labels."""
        ...

    @property
    def hop(self) -> str | None:
        """Hop of all windows, None: chosen."""
        ...

    @property
    def source(self) -> Source:
        """Event classes that count, None: all of the view."""
        ...

    def cells(self, binder: "Binder") -> Sequence["Cell"]:
        """The cells of one tile."""
        ...

    def read(self, cells: NDArray[np.float64], now_us: NDArray[np.int64]) -> Column | Maybe:
        """The value of merged cells (n, k), k in the order of `cells`, as of now_us (n,)."""
        ...


class Tallied(Protocol):
    """An aggregation whose state is a tally of each window."""

    @property
    def value(self) -> Value:
        """What is counted."""
        ...

    @property
    def where(self) -> Value | None:
        """What admits an event."""
        ...

    @property
    def windows(self) -> Windows:
        """Labels."""
        ...

    @property
    def hop(self) -> str | None:
        """Hop of all windows, None: chosen."""
        ...

    @property
    def source(self) -> Source:
        """Event classes that count, None: all of the view."""
        ...


@dataclass(frozen=True, slots=True)
class Cell:
    """A code of rings/cells.py: `column` an event's number (or bits), `flag` what admits it (None: `where`)."""

    code: int
    column: int = ONE
    param: float = 0.0
    flag: int | None = None
