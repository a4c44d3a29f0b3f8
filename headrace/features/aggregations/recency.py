"""First, Last, LastN, Sequence, TimeSince: the oldest and newest events.

Events are ordered by (event time, event id, values), so the last event does not depend on the order of arrival. Values
are numbers, texts or times. Events whose value is null are ignored; a null float inside a Sequence is NaN.

First, LastN and Sequence exclude events at or after the time of the read. Last and TimeSince use the newest event
applied, even if it is not before that time; the read's status is then "ahead".
"""

from dataclasses import KW_ONLY
from functools import partial

import numpy as np
from numpy.typing import NDArray

from headrace.features.aggregations.aggregation import (
    Aggregation,
    Arrays,
    Cell,
    Cells,
    Newest,
    Output,
    Ring,
    Types,
    aggregation,
)
from headrace.features.answer import Column, Lists, Maybe
from headrace.features.argument_types import Source, Value, Windows, declared
from headrace.features.expressions.event_columns import DTYPE_OF_KIND, as_expr
from headrace.features.state.lists.group import read_lists
from headrace.features.state.lists.update import FLOAT
from headrace.features.state.rings.cells import FIRST, MAX, TIME
from headrace.features.windows import SECOND_US


@aggregation
class _OfAllTimeOrWindows(Aggregation):
    """Without `windows` one feature over all time, named like the attribute; otherwise one per window."""

    _: KW_ONLY
    windows: Windows | None = None
    where: Value | None = None
    hop: str | None = None
    source: Source = None


@aggregation
class First(_OfAllTimeOrWindows):
    """Value of the oldest event, over all time or in each window.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(first=First("value"), windowed=First("value", windows="1h"))
    {'first': 4.0, 'windowed_1h': 2.0}
    """

    value: Value

    def state(self, types: Types) -> Ring:
        """The oldest event's value in each tile."""
        kind = types.kind(self.value)
        output = Output(DTYPE_OF_KIND[kind], partial(_read_first, kind))
        return Ring((Cell(FIRST, self.value),), (output,), present=(self.value,))


@aggregation
class Last(_OfAllTimeOrWindows):
    """Value of the newest event, over all time or in each window.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(last=Last("value"), state=Last("state", windows="5m"))
    {'last': 5.0, 'state_5m': None}
    """

    value: Value

    def state(self, types: Types) -> Newest:
        """The newest event's value and time, one for all windows."""
        kind = types.kind(self.value)
        output = Output(DTYPE_OF_KIND[kind], partial(_read_last, kind))
        return Newest((self.value,), 1, (output,), present=(self.value,), strict=False, timed=True)


@aggregation
class LastN(Aggregation):
    """The `n` newest values, newest first.

    `distinct` keeps each value once, at its newest occurrence. `within` ("30d") excludes values older than that at the
    time of the read.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(recent=LastN("value", n=2), states=LastN("state", n=5, distinct=True))
    {'recent': [5.0, 2.0], 'states': ['on', 'off']}
    """

    value: Value
    _: KW_ONLY
    n: int
    distinct: bool = False
    within: str | None = None
    where: Value | None = None
    source: Source = None

    def state(self, types: Types) -> Newest:
        """The newest values."""
        kind = types.kind(self.value)
        read = partial(_read_list, _within_us(types, self.within), kind, 0, reverses=False)
        output = Output(f"list[{DTYPE_OF_KIND[kind]}]", read, width=self.n)
        timed = self.within is not None
        return Newest((self.value,), self.n, (output,), present=(self.value,), distinct=self.distinct, timed=timed)


@declared
class Sequence(Aggregation):
    """The given values of the `n` newest events, oldest event first.

    Features are `<name>_<value>`, or `<name>` for a single value. Values are column names or expressions (named by
    `.alias`). `within` ("30d") excludes events older than that at the time of the read.

    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(trail=Sequence("state", "value", n=2))
    {'trail_state': ['on', 'on'], 'trail_value': [None, 5.0]}
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

    def problem(self) -> str | None:
        """Report a sequence without values."""
        return None if self.values else f'no values; write Sequence("column", ..., n={self.n})'

    def state(self, types: Types) -> Newest:
        """The newest events' values."""
        kinds = [types.kind(value) for value in self.values]
        within_us = _within_us(types, self.within)
        outputs = [
            Output(
                f"list[{DTYPE_OF_KIND[kind]}]",
                partial(_read_list, within_us, kind, index, reverses=True),
                suffix=as_expr(value).meta.output_name() if len(self.values) > 1 else "",
                width=self.n,
            )
            for index, (value, kind) in enumerate(zip(self.values, kinds, strict=True))
        ]
        present = [value for value, kind in zip(self.values, kinds, strict=True) if kind != FLOAT]
        return Newest(self.values, self.n, outputs, present=present, timed=self.within is not None)


@aggregation
class TimeSince(_OfAllTimeOrWindows):
    """Seconds since the newest event, over all time or in each window; null without an event.

    >>> from headrace import col
    >>> from headrace.features.aggregations.example import read_at_noon
    >>> read_at_noon(idle=TimeSince(), off=TimeSince(where=col("state") == "off"))
    {'idle': 600.0, 'off': 3000.0}
    """

    def state(self, types: Types) -> Ring:  # noqa: ARG002
        """The newest event's time, one for all windows."""
        return Ring((Cell(MAX, TIME),), (Output("float", _read_since),), of_all_time=True)


def _within_us(types: Types, within: str | None) -> int | None:
    return None if within is None else types.span_us("within", within, looks_back=True)


def _typed(bits: NDArray[np.int64], kind: int, empty: NDArray[np.bool_]) -> Column | Maybe:
    """Decode bits (n,) as values of `kind`."""
    if kind == FLOAT:
        return np.where(empty, np.nan, np.ascontiguousarray(bits).view(np.float64))
    return Maybe(np.where(empty, 0, bits), empty)


def _read_first(kind: int, cells: Cells) -> Column | Maybe:
    """The oldest event's value; null if that event is not before the time of the read."""
    empty = np.asarray(cells[0] >= cells.now_us)
    high, low = np.where(empty[:, None], 0.0, cells.values[:, 3:5]).astype(np.int64).T
    return _typed((high << 32) | low, kind, empty)


def _read_last(kind: int, newest: Arrays) -> Column | Maybe:
    times, values, counts, *_ = newest.outputs
    empty = (counts == 0) | (times[:, 0] < newest.window.start_us(newest.now_us))
    return _typed(values[:, 0, 0], kind, empty)


def _read_since(cells: Cells) -> NDArray[np.float64]:
    newest_us, now_us = cells[0], cells.now_us
    missing = np.isinf(newest_us) | (newest_us < cells.window.start_us(now_us))
    return np.where(missing, np.nan, np.maximum(now_us - newest_us, 0.0) / SECOND_US)


def _lengths(within_us: int | None, newest: Arrays) -> NDArray[np.int64]:
    """Number (n,) of elements within the span. Rows are newest first, so these are the first of each row."""
    times, _, counts, *_ = newest.outputs
    if within_us is None:
        return counts
    in_use = np.arange(times.shape[1]) < counts[:, None]
    return np.asarray((in_use & (times >= (newest.now_us - within_us)[:, None])).sum(axis=1), np.int64)


def _read_list(within_us: int | None, kind: int, column: int, newest: Arrays, *, reverses: bool) -> Lists:
    """The values in `column` of each list, newest first, or oldest first if `reverses`."""
    lengths = _lengths(within_us, newest)
    bits = read_lists(newest.outputs, column, lengths, reverses=reverses)
    return Lists(bits.view(np.float64) if kind == FLOAT else bits, lengths)
