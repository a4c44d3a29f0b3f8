"""Aggregations as data: a class says what it keeps of an event and how it is read; `binder.py` does the rest.

    aggregation                        state of an entity                       features
    cells() or state() --------------> Ring:   a few cells a tile, merged -----> one value a window
                                       Newest: the newest n events     -------> one list, or one value a window
                                       Tally:  keys and counts a tile  -------> one or more values a window
    combine()          --------------> nothing                         -------> made of features read before

Most aggregations are a `Windowed` with `cells` and `read`: see aggregations/sums.py. The cells' algebra (init, update,
merge) is in state/rings/cells.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar, dataclass_transform

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.features.answer import Column, Feature, Maybe
from headrace.features.argument_types import Source, Value, Windows, declared
from headrace.features.state.layout import Known
from headrace.features.state.operations import Outputs
from headrace.features.state.rings.cells import ONE
from headrace.features.windows import Window

T = TypeVar("T")


@dataclass_transform(frozen_default=True, eq_default=False)
def aggregation(cls: type[T]) -> type[T]:
    """Class decorator of aggregations: a frozen dataclass whose constructor names wrong arguments and shows right ones.

    Arguments are checked against their annotations when the view is made.
    """
    return declared(dataclass(frozen=True, slots=True, eq=False)(cls))


@dataclass(frozen=True, slots=True)
class Cell:
    """Cells of one code of state/rings/cells.py, updated with every event that `where` admits.

    Attributes:
        code: ADD, MIN, MAX, FIRST, MOMENTS, DECAYED, INT_MIN or INT_MAX.
        value: what an event brings: a column or expression, or ONE, or TIME, the event's time in microseconds.
        param: the code's parameter: the half-life of DECAYED in microseconds.
        finite: a number that must be finite for the event to count here, beside `where`.
    """

    code: int
    value: Value | int = ONE
    param: float = 0.0
    finite: Value | None = None


@dataclass(frozen=True, slots=True)
class Cells:
    """Merged cells of one window as n reads see them; `cells[k]` is number k of `values`, (n,).

    Attributes:
        values: (n, k) float64, in the order of the declared cells; a code with several cells has several columns.
        now_us: (n,) int64, the moments of the reads.
        window: the window to read; a state of all time is not limited to it.
    """

    values: NDArray[np.float64]
    now_us: NDArray[np.int64]
    window: Window

    def __getitem__(self, index: int) -> NDArray[np.float64]:
        return self.values[:, index]


@dataclass(frozen=True, slots=True)
class Arrays:
    """A list's or a tally's answers to n reads; `outputs` are the group's arrays, the rest is as in `Cells`."""

    outputs: Outputs
    now_us: NDArray[np.int64]
    window: Window


@dataclass(frozen=True, slots=True)
class Output:
    """One feature of a state: `read` makes its column (n,) of the `Cells` or `Arrays` of n reads.

    `suffix` is put behind the attribute's name; `width` is the most elements of a list.
    """

    dtype: str
    read: Callable[[Any], Column | Maybe]
    suffix: str = ""
    width: int = 0


@dataclass(frozen=True, slots=True)
class Ring:
    """Cells in each tile of each window; equal cells of one view and window are kept once.

    Attributes:
        present: values that must not be null for an event to count.
        where: replaces the aggregation's own `where`.
        of_all_time: keep one tile for ever, whatever the windows; `read` sees the window.
    """

    cells: Sequence[Cell]
    outputs: Sequence[Output]
    present: Sequence[Value] = ()
    where: Value | None = None
    of_all_time: bool = False


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest `n` events, some values of each; equal lists of one view are kept once.

    Attributes:
        present: values that must not be null for an event to count.
        distinct: keep equal values once, at their newest event.
        strict: leave out events at or after the moment of the read.
        timed: `read` needs the events' times.
    """

    values: Sequence[Value]
    n: int
    outputs: Sequence[Output]
    present: Sequence[Value] = ()
    distinct: bool = False
    strict: bool = True
    timed: bool = False


@dataclass(frozen=True, slots=True)
class Tally:
    """Keys and their counts in each tile of each window, at most `keep`; see state/tallies.

    Attributes:
        key: what is counted.
        mode: DISTINCT, TOP or QUANTILE of state/tallies/read.py.
        width: most keys that a read gives.
        quantiles: for QUANTILE, from 0 to 1.
    """

    key: Value
    mode: int
    keep: int
    outputs: Sequence[Output]
    width: int = 0
    quantiles: Sequence[float] = ()


State: TypeAlias = Ring | Newest | Tally


class Types(Protocol):
    """Types of an aggregation's values in the events of the view, each the same in all sources."""

    path: str
    """`view shop · feature clicks`, for errors."""

    def dtype(self, value: Value) -> pl.DataType:
        """Polars type of a value.

        Raises:
            DeclarationError: a column that a source lacks, or types that differ.
        """
        ...

    def kind(self, value: Value) -> int:
        """INT, FLOAT, TEXT or TIME of state/lists/update.py: how 64 bits keep the value.

        Raises:
            DeclarationError: as `dtype`, or it is none of these.
        """
        ...

    def require_number(self, value: Value) -> None:
        """Do nothing for numbers and truth values.

        Raises:
            DeclarationError: as `dtype`, or it is no number.
        """
        ...

    def span_us(self, role: str, span: str, *, looks_back: bool = False) -> int:
        """Microseconds of a span such as "30d"; `role` is the argument's name, for errors.

        With `looks_back` the values need events of that span, so a view's ttl must not be shorter.

        Raises:
            DeclarationError: it is no span.
        """
        ...


class Aggregation:
    """An attribute of a view that is kept for each entity, or made of such attributes."""

    __slots__ = ()

    def problem(self) -> str | None:
        """What is wrong with the arguments and what to write, if anything; types are checked before."""
        return None

    def state(self, types: Types) -> State:  # noqa: ARG002
        """What is kept, and the features read from it. Called once a view."""
        raise self._lacks("state", "what it keeps and the features read from it")

    def _lacks(self, method: str, purpose: str) -> DeclarationError:
        return DeclarationError(f"{type(self).__name__} defines no `{method}`: {purpose}")


@aggregation
class Windowed(Aggregation):
    """Base of aggregations with one value a window; a subclass gives `cells` and `read`, or another `state`.

    Args:
        windows: lengths such as ("10m", "24h"), or "lifetime"; one feature `<attribute>_<window>` each.
        where: a condition that events must meet, such as `col("action") == "click"`.
        hop: step by which the windows' tails move; chosen by the length if left out.
        source: event classes that count, of those that the view reads; all if left out.
    """

    _: KW_ONLY
    windows: Windows = ()
    where: Value | None = None
    hop: str | None = None
    source: Source = None
    dtype: ClassVar[str] = "float"
    """Type of the features: "float" with NaN for none, or "int"."""

    def cells(self) -> Sequence[Cell]:
        """What a tile keeps."""
        raise self._lacks("cells", "what a tile keeps; or define `state`")

    def read(self, cells: Cells) -> Column | Maybe:  # noqa: ARG002
        """The value (n,) of merged cells."""
        raise self._lacks("read", "the value of merged cells")

    def state(self, types: Types) -> State:  # noqa: ARG002
        """`cells` in every tile, `read` for every window."""
        return Ring(self.cells(), (Output(self.dtype, self.read),))


@dataclass(frozen=True, slots=True)
class Combined:
    """A feature made of others: `read` makes its column of the features read before.

    `uses` names those: a reader of this feature has no other computed. None: it may be any.
    """

    dtype: str
    window: str | None
    read: Callable[[Known], Column | Maybe]
    uses: tuple[str, ...] | None = None


class Combination(Aggregation):
    """An attribute made of other features of the view when it is read: it keeps nothing."""

    __slots__ = ()

    def combine(
        self,
        path: str,  # noqa: ARG002
        features: Mapping[str, Sequence[Feature]],  # noqa: ARG002
    ) -> Sequence[Combined]:
        """Its features; `features` are those of the view's other attributes, `path` names it in errors.

        Raises:
            DeclarationError: it names what the view lacks, or what does not fit.
        """
        raise self._lacks("combine", "its features")
