"""First, Last, LastN, Sequence, TimeSince: what came when.

Events are ordered by (event time, event id, values), so which one is last never depends on the order of arrival. Values
are numbers, texts or times. Events whose value is null are left out; a null float inside a Sequence is NaN.

First, LastN and Sequence leave out events at or after the moment of the read. Last and TimeSince tell the newest event
that was applied, also where that one is not before the moment: the read's status is "ahead" then.
"""

from collections.abc import Sequence as Sequence_
from dataclasses import KW_ONLY, dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.features.aggregation import Cell, Source, Value, Windows
from headrace.features.answer import Column, Lists, Maybe
from headrace.features.argument_types import declared
from headrace.features.binder import Binder
from headrace.features.expressions.event_columns import DTYPE_OF_KIND, as_expr
from headrace.features.state.layout import Reading
from headrace.features.state.lists.group import read_lists
from headrace.features.state.lists.update import FLOAT
from headrace.features.state.operations import Outputs
from headrace.features.state.rings.cells import FIRST, MAX, TIME
from headrace.features.windows import LIFETIME, SECOND_US, Window, window_of

_HALF = float(2**32)


@declared
@dataclass(frozen=True, slots=True, eq=False)
class First:
    """Value of the oldest event, of all time or of each window."""

    value: Value
    _: KW_ONLY
    windows: Windows | None = None
    where: Value | None = None
    hop: str | None = None
    source: Source = None

    def bind(self, binder: Binder) -> Sequence_[Reading]:
        """One feature a window, or one for all time."""
        column, kind = binder.bits(self.value, self.source)
        flag = binder.flag(self.where, self.source, (self.value,))
        readings = []
        for window, label in _windows(binder, self.windows, self.hop):
            group, picked = binder.ring(window, (Cell(FIRST, column),), flag)
            readings.append(
                Reading(binder.feature(DTYPE_OF_KIND[kind], label), group, partial(_read_first, picked, kind))
            )
        return readings


@declared
@dataclass(frozen=True, slots=True, eq=False)
class Last:
    """Value of the newest event, of all time or of each window."""

    value: Value
    _: KW_ONLY
    windows: Windows | None = None
    where: Value | None = None
    hop: str | None = None
    source: Source = None

    def bind(self, binder: Binder) -> Sequence_[Reading]:
        """One feature a window, or one for all time; they share a list of one element."""
        column = binder.bits(self.value, self.source)
        flag = binder.flag(self.where, self.source, (self.value,))
        group = binder.list_of([column], flag, 1, strict=False, timed=True)
        return [
            Reading(binder.feature(DTYPE_OF_KIND[column[1]], label), group, partial(_read_last, window, column[1]))
            for window, label in _windows(binder, self.windows, self.hop)
        ]


@declared
@dataclass(frozen=True, slots=True, eq=False)
class LastN:
    """The `n` newest values, newest first.

    `distinct` keeps each value once, at its newest occurrence; `within` ("30d") leaves out what is older when read.
    """

    value: Value
    _: KW_ONLY
    n: int
    distinct: bool = False
    within: str | None = None
    where: Value | None = None
    source: Source = None

    def bind(self, binder: Binder) -> Sequence_[Reading]:
        """One list feature."""
        column = binder.bits(self.value, self.source)
        flag = binder.flag(self.where, self.source, (self.value,))
        group = binder.list_of([column], flag, self.n, distinct=self.distinct, timed=self.within is not None)
        feature = binder.feature(f"list[{DTYPE_OF_KIND[column[1]]}]", width=self.n)
        return (Reading(feature, group, partial(_read_list, binder.within_us(self.within), column[1], 0, False)),)


@declared
class Sequence:
    """The `n` newest events in order of time, some values of each.

    Features are `<name>_<value>`, or `<name>` for a single value. Values are column names or expressions (named by
    `.alias`). `within` ("30d") leaves out what is older when read.
    """

    def __init__(
        self,
        *values: Value,
        n: int,
        within: str | None = None,
        where: Value | None = None,
        source: Source = None,
    ) -> None:
        self.values = values
        self.n = n
        self.within = within
        self.where = where
        self.source = source

    def bind(self, binder: Binder) -> Sequence_[Reading]:
        """One list feature a value."""
        if not self.values:
            raise DeclarationError(f'{binder.path}: no values; write Sequence("column", ..., n={self.n})')
        columns = [binder.bits(value, self.source) for value in self.values]
        present = [value for value, (_, kind) in zip(self.values, columns, strict=True) if kind != FLOAT]
        flag = binder.flag(self.where, self.source, present)
        group = binder.list_of(columns, flag, self.n, timed=self.within is not None)
        within_us = binder.within_us(self.within)
        readings = []
        for index, (value, (_, kind)) in enumerate(zip(self.values, columns, strict=True)):
            suffix = as_expr(value).meta.output_name() if len(self.values) > 1 else ""
            feature = binder.feature(f"list[{DTYPE_OF_KIND[kind]}]", suffix=suffix, width=self.n)
            readings.append(Reading(feature, group, partial(_read_list, within_us, kind, index, True)))
        return readings


@declared
@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TimeSince:
    """Seconds since the newest event, of all time or of each window; none where there is none."""

    where: Value | None = None
    windows: Windows | None = None
    hop: str | None = None
    source: Source = None

    def bind(self, binder: Binder) -> Sequence_[Reading]:
        """One feature a window, or one for all time; they share one cell."""
        group, picked = binder.ring(window_of(LIFETIME), (Cell(MAX, TIME),), binder.flag(self.where, self.source))
        return [
            Reading(binder.feature("float", label), group, partial(_read_since, window, picked))
            for window, label in _windows(binder, self.windows, self.hop)
        ]


def _windows(binder: Binder, windows: Windows | None, hop: str | None) -> list[tuple[Window, str | None]]:
    if windows is None:
        return [(window_of(LIFETIME, hop, binder.path), None)]
    return [(window, window.label) for window in binder.windows(windows, hop)]


def _typed(bits: NDArray[np.int64], kind: int, empty: NDArray[np.bool_]) -> Column | Maybe:
    """Bits (n,) as values of their kind."""
    if kind == FLOAT:
        return np.where(empty, np.nan, np.ascontiguousarray(bits).view(np.float64))
    return Maybe(np.where(empty, 0, bits), empty)


def _read_first(picked: NDArray[np.int64], kind: int, outputs: Outputs, now_us: NDArray[np.int64]) -> Column | Maybe:
    """The oldest event's value; if that event is not before now, none is."""
    cells = outputs[0][:, picked]
    empty = np.asarray(cells[:, 0] >= now_us)
    high, low = np.where(empty[:, None], 0.0, cells[:, 3:5]).astype(np.int64).T
    return _typed((high << 32) | low, kind, empty)


def _read_last(window: Window, kind: int, outputs: Outputs, now_us: NDArray[np.int64]) -> Column | Maybe:
    times, values, counts, *_ = outputs
    empty = (counts == 0) | (times[:, 0] < window.start_us(now_us))
    return _typed(values[:, 0, 0], kind, empty)


def _read_since(
    window: Window, picked: NDArray[np.int64], outputs: Outputs, now_us: NDArray[np.int64]
) -> NDArray[np.float64]:
    newest_us = outputs[0][:, picked[0]]
    missing = np.isinf(newest_us) | (newest_us < window.start_us(now_us))
    return np.where(missing, np.nan, np.maximum(now_us - newest_us, 0.0) / SECOND_US)


def _lengths(within_us: int | None, outputs: Outputs, now_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Elements (n,) that are not too old; they are the first of each row, newest first."""
    times, _, counts, *_ = outputs
    if within_us is None:
        return counts
    held = np.arange(times.shape[1]) < counts[:, None]
    return np.asarray((held & (times >= (now_us - within_us)[:, None])).sum(axis=1), np.int64)


def _read_list(
    within_us: int | None, kind: int, column: int, reverses: bool, outputs: Outputs, now_us: NDArray[np.int64]
) -> Lists:
    lengths = _lengths(within_us, outputs, now_us)
    bits = read_lists(outputs, column, lengths, reverses=reverses)
    return Lists(bits.view(np.float64) if kind == FLOAT else bits, lengths)
