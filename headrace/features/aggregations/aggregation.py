"""Declarative aggregations: a class states what to keep of each event and how to read it; `binder.py` binds it.

    aggregation                        state of an entity                       features
    cells() or state() --------------> Ring:   a few cells per tile, merged ---> one value per window
                                       Newest: the newest n events     -------> one list, or one value per window
                                       Tally:  keys and counts per tile -----> one or more values per window
    combine()          --------------> nothing                         -------> computed from other features

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
    """Class decorator for aggregations: a frozen dataclass whose constructor reports wrong arguments with an example.

    Argument types are checked against the annotations when the view is defined.
    """
    return declared(dataclass(frozen=True, slots=True, eq=False)(cls))


@dataclass(frozen=True, slots=True)
class Cell:
    """The cells of one code (see state/rings/cells.py), updated with every event that `where` admits.

    Attributes:
        code: ADD, MIN, MAX, FIRST, MOMENTS, DECAYED, INT_MIN or INT_MAX.
        value: the event's value: a column or expression, ONE, or TIME (the event time in microseconds).
        param: the code's parameter: the half-life of DECAYED in microseconds.
        finite: a number that must also be finite for the event to count.
    """

    code: int
    value: Value | int = ONE
    param: float = 0.0
    finite: Value | None = None


@dataclass(frozen=True, slots=True)
class Cells:
    """Merged cells of one window for n reads; `cells[k]` is column k of `values`, (n,).

    Attributes:
        values: (n, k) float64, in the order of the declared cells; a code with several cells has several columns.
        now_us: (n,) int64, the times of the reads.
        window: the window to read; the cells of an `of_all_time` state are not limited to it.
    """

    values: NDArray[np.float64]
    now_us: NDArray[np.int64]
    window: Window

    def __getitem__(self, index: int) -> NDArray[np.float64]:
        return self.values[:, index]


@dataclass(frozen=True, slots=True)
class Arrays:
    """Results of n reads of a list or tally: the group's arrays (`outputs`); other attributes as in `Cells`."""

    outputs: Outputs
    now_us: NDArray[np.int64]
    window: Window


@dataclass(frozen=True, slots=True)
class Output:
    """One feature of a state: `read` turns the `Cells` or `Arrays` of n reads into its column (n,).

    `suffix` is appended to the attribute's name; `width` is the maximum length of a list.
    """

    dtype: str
    read: Callable[[Any], Column | Maybe]
    suffix: str = ""
    width: int = 0


@dataclass(frozen=True, slots=True)
class Ring:
    """Cells in each tile of each window. Equal cells of one view and window are stored once.

    Attributes:
        present: values that must not be null for an event to count.
        where: replaces the aggregation's own `where`.
        of_all_time: keep a single, permanent tile instead of one ring per window; `read` gets the window.
    """

    cells: Sequence[Cell]
    outputs: Sequence[Output]
    present: Sequence[Value] = ()
    where: Value | None = None
    of_all_time: bool = False


@dataclass(frozen=True, slots=True)
class Newest:
    """The given values of the newest `n` events. Equal lists of one view are stored once.

    Attributes:
        present: values that must not be null for an event to count.
        distinct: keep equal values once, at their newest event.
        strict: exclude events at or after the time of the read.
        timed: `read` needs the event times.
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
    """At most `keep` keys with their counts in each tile of each window; see state/tallies.

    Attributes:
        key: the value to count.
        mode: DISTINCT, TOP or QUANTILE of state/tallies/read.py.
        width: maximum number of keys a read returns.
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
    """Types of an aggregation's values in the events of the view. A value has one type in all sources."""

    path: str
    """`view shop · feature clicks`, for error messages."""

    def dtype(self, value: Value) -> pl.DataType:
        """Polars type of a value.

        Raises:
            DeclarationError: a source lacks a column, or the sources' types differ.
        """
        ...

    def kind(self, value: Value) -> int:
        """INT, FLOAT, TEXT or TIME of state/lists/update.py: how the value is encoded in 64 bits.

        Raises:
            DeclarationError: as `dtype`, or the type has no such encoding.
        """
        ...

    def require_number(self, value: Value) -> None:
        """Check that a value is a number or a boolean.

        Raises:
            DeclarationError: as `dtype`, or it is neither.
        """
        ...

    def span_us(self, role: str, span: str, *, looks_back: bool = False) -> int:
        """Microseconds of a span such as "30d"; `role` is the argument's name, for error messages.

        With `looks_back` the values need events of that span, so a view's ttl must not be shorter.

        Raises:
            DeclarationError: `span` is not a valid span.
        """
        ...


class Aggregation:
    """An attribute of a view: state kept for each entity, or a combination of other attributes."""

    __slots__ = ()

    def problem(self) -> str | None:
        """What is wrong with the arguments and what to write instead, None if they are valid.

        Argument types have already been checked.
        """
        return None

    def state(self, types: Types) -> State:  # noqa: ARG002
        """The state to keep, and the features read from it. Called once per view."""
        raise self._lacks("state", "what it keeps and the features read from it")

    def _lacks(self, method: str, purpose: str) -> DeclarationError:
        return DeclarationError(f"{type(self).__name__} defines no `{method}`: {purpose}")


@aggregation
class Windowed(Aggregation):
    """Base of aggregations with one value per window. A subclass defines `cells` and `read`, or `state`.

    Args:
        windows: lengths such as ("10m", "24h"), or "lifetime"; one feature `<attribute>_<window>` each.
        where: a condition that events must meet, such as `col("action") == "click"`.
        hop: step by which the windows' tails move. By default it is chosen from the window's length.
        source: event classes to count, among those that the view reads. By default all of them.
    """

    _: KW_ONLY
    windows: Windows = ()
    where: Value | None = None
    hop: str | None = None
    source: Source = None
    dtype: ClassVar[str] = "float"
    """Type of the features: "float", where NaN means no value, or "int"."""

    def cells(self) -> Sequence[Cell]:
        """The cells of a tile."""
        raise self._lacks("cells", "what a tile keeps; or define `state`")

    def read(self, cells: Cells) -> Column | Maybe:  # noqa: ARG002
        """The values (n,) of merged cells."""
        raise self._lacks("read", "the value of merged cells")

    def state(self, types: Types) -> State:  # noqa: ARG002
        """A ring with `cells` in every tile, read by `read` for every window."""
        return Ring(self.cells(), (Output(self.dtype, self.read),))


@dataclass(frozen=True, slots=True)
class Combined:
    """A feature derived from others: `read` computes its column from the features read before it.

    `uses` names the features it needs, so that a reader of this feature alone computes only those. None: it may use any
    feature.
    """

    dtype: str
    window: str | None
    read: Callable[[Known], Column | Maybe]
    uses: tuple[str, ...] | None = None


class Combination(Aggregation):
    """An attribute computed from other features of the view at read time. It keeps no state."""

    __slots__ = ()

    def combine(
        self,
        path: str,  # noqa: ARG002
        features: Mapping[str, Sequence[Feature]],  # noqa: ARG002
    ) -> Sequence[Combined]:
        """Return the attribute's features.

        `features` are those of the view's other attributes; `path` names this attribute in error messages.

        Raises:
            DeclarationError: it names a feature that the view lacks or that has the wrong type.
        """
        raise self._lacks("combine", "its features")
