"""Bind declared aggregations to the columns, groups and readings of their view.

`bind` checks the arguments, gets the aggregation's state (aggregations/aggregation.py), and adds to the builder the
event columns of its values, the cells, list or tallies to keep, and one reading per feature. No other module interprets
aggregations.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.features.aggregations.aggregation import (
    Aggregation,
    Arrays,
    Cell,
    Cells,
    Combination,
    Newest,
    Output,
    Ring,
    Tally,
)
from headrace.features.answer import Column, Feature, Maybe
from headrace.features.argument_types import Source, Value, check_arguments
from headrace.features.expressions.derived import Expressions
from headrace.features.expressions.event_columns import DTYPE_OF_KIND, as_expr, expr_text, kind_of
from headrace.features.expressions.row_wise import row_type
from headrace.features.layout_builder import LayoutBuilder, unnamed
from headrace.features.state.layout import Derived, Group, Reading
from headrace.features.state.lists.group import ListGroup
from headrace.features.state.lists.update import FLOAT, INT, TEXT
from headrace.features.state.lists.update import TIME as TIME_KIND
from headrace.features.state.operations import Outputs
from headrace.features.state.rings.cells import ONE, TAKES_BITS, TIME
from headrace.features.state.tallies.group import ENTRIES_MAX, KEEP_MAX, KEEP_MIN, TallyGroup
from headrace.features.state.tallies.update import most_entries
from headrace.features.windows import LIFETIME, SECOND_US, Window, parse_span_s, window_of, written_span
from headrace.schemas import Event, spec_of

ELEMENTS_MAX = 10_000
"""Maximum elements of a list."""
_CAST = {INT: pl.Int64(), FLOAT: pl.Float64(), TEXT: pl.String(), TIME_KIND: pl.Datetime("us")}
_EVENT_VALUES = {ONE: "1", TIME: "time"}


def bind(builder: LayoutBuilder, name: str, aggregation: Aggregation) -> None:
    """Add one attribute of a view.

    Raises:
        DeclarationError: an argument has the wrong type or breaks the aggregation's own rules, or a feature name is
            taken.
    """
    builder.add_readings(name, Binder(builder, name, aggregation).readings())


def bind_expressions(builder: LayoutBuilder, declared: Mapping[str, pl.Expr]) -> None:
    """Add attributes that are expressions over other features and the request.

    Raises:
        DeclarationError: an expression is invalid, or a feature name is taken.
    """
    expressions = Expressions(builder.view, builder.request)
    for name in expressions.in_order(declared):
        known = {feature.name: feature for feature in builder.features}
        builder.add_readings(name, [expressions.bind(name, declared[name], known)])


class Binder:
    """Binds one attribute, and implements `Types` for its aggregation."""

    def __init__(self, builder: LayoutBuilder, name: str, aggregation: Aggregation) -> None:
        self.path = f"view {builder.view} · feature {name}"
        self._builder = builder
        self._name = name
        self._aggregation: Any = aggregation
        self._where: Value | None = getattr(aggregation, "where", None)
        self._source: Source = getattr(aggregation, "source", None)

    def readings(self) -> Sequence[Reading | Derived]:
        """Add the attribute's state to the builder and return its features.

        Raises:
            DeclarationError: as `bind`.
        """
        aggregation = self._aggregation
        check_arguments(self.path, aggregation)
        problem = aggregation.problem()
        if problem is not None:
            raise DeclarationError(f"{self.path}: {problem}")
        if isinstance(aggregation, Combination):
            return self._combined(aggregation)
        state = aggregation.state(self)
        if isinstance(state, Ring):
            return self._ring(state)
        return self._newest(state) if isinstance(state, Newest) else self._tally(state)

    # Types of values: the `Types` protocol.

    def dtype(self, value: Value, role: str = "value") -> pl.DataType:
        """See `Types.dtype`."""
        expression = as_expr(value)
        dtypes = {event: self._dtype_in(expression, event, role) for event in self._sources()}
        if len({kind_of(dtype) for dtype in dtypes.values()}) > 1:
            types = ", ".join(f"{event.__name__}: {dtype}" for event, dtype in dtypes.items())
            raise DeclarationError(
                f"{self.path}: {role} has several types ({types}); cast it, or limit it with source="
            )
        return next(iter(dtypes.values()))

    def kind(self, value: Value) -> int:
        """See `Types.kind`."""
        dtype = self.dtype(value)
        kind = kind_of(dtype)
        if kind is None:
            raise DeclarationError(
                f"{self.path}: cannot keep {as_expr(value)!s} of type {dtype}; use a number, text or time"
            )
        return kind

    def require_number(self, value: Value) -> None:
        """See `Types.require_number`."""
        dtype = self.dtype(value)
        if not (dtype.is_numeric() or dtype == pl.Boolean):
            kind = type(self._aggregation).__name__
            raise DeclarationError(
                f"{self.path}: {kind} needs a number, {as_expr(value)!s} is {dtype}; cast it, or use Last or LastN",
            )

    def span_us(self, role: str, span: str, *, looks_back: bool = False) -> int:
        """See `Types.span_us`."""
        span_us = parse_span_s(span, f"{self.path} · {role}") * SECOND_US
        if looks_back:
            self._builder.spans[f"{role}={span!r} of feature {self._name}"] = span_us
        return span_us

    # States: groups, and the features read from them.

    def _ring(self, state: Ring) -> list[Reading]:
        """One reading per output and window; all windows share one ring if the state is `of_all_time`."""
        flag = self._flag(self._where if state.where is None else state.where, state.present)
        cells = [(cell, self._column(cell)) for cell in state.cells]
        readings = []
        for window, label in self._windows():
            number, ring = self._builder.ring(window_of(LIFETIME) if state.of_all_time else window)
            picked: list[int] = []
            for cell, column in cells:
                admits = flag if cell.finite is None else self._flag(self._where, finite=cell.finite)
                text = f"{cell.code}({cell.param!r}) {self._text(cell, column)} if {self._builder.flags.texts[admits]}"
                picked += ring.add(cell.code, cell.param, admits, column, text)
            indexes = np.array(picked, np.int64)
            for output in state.outputs:
                feature = self._feature(output.dtype, label, output.suffix, output.width)
                readings.append(Reading(feature, number, partial(_read_cells, output.read, indexes, window)))
        return readings

    def _newest(self, state: Newest) -> list[Reading]:
        """One reading per output and window, all from one list."""
        columns, numbers = self._builder.bits, [self._bits(value) for value in state.values]
        kinds = [columns.kinds[number] for number in numbers]
        flag = self._flag(self._where, state.present)
        if not 1 <= state.n <= ELEMENTS_MAX:
            raise DeclarationError(f"{self.path}: n={state.n}; a list keeps 1 to {ELEMENTS_MAX} elements")
        options = " distinct" * state.distinct + " newest" * (not state.strict)
        values = ", ".join(columns.texts[number] for number in numbers)
        text = f"list {state.n}{options}: {values} if {self._builder.flags.texts[flag]}"
        arrays = np.array(numbers, np.int64), np.array(kinds, np.int64)
        group = self._builder.group(text, lambda: ListGroup(state.n, state.distinct, state.strict, flag, *arrays, text))
        if state.timed:
            self._builder.replace_group(group, _timed)
        return [
            Reading(
                self._feature(output.dtype, label, output.suffix, output.width),
                group,
                partial(_read_arrays, output.read, window),
            )
            for window, label in self._windows()
            for output in state.outputs
        ]

    def _tally(self, state: Tally) -> list[Reading]:
        """One tally per window, one reading per output and window."""
        if not KEEP_MIN <= state.keep <= KEEP_MAX:
            raise DeclarationError(f"{self.path}: keep={state.keep}; write {KEEP_MIN} to {KEEP_MAX}")
        column = self._bits(state.key)
        flag = self._flag(self._where, (state.key,))
        readings = []
        for window, label in self._windows():
            group = self._tally_group(state, window, column, flag)
            readings += [self._array_reading(output, group, window, label) for output in state.outputs]
        return readings

    def _array_reading(self, output: Output, group: int, window: Window, label: str | None) -> Reading:
        feature = self._feature(output.dtype, label, output.suffix, output.width)
        return Reading(feature, group, partial(_read_arrays, output.read, window))

    def _tally_group(self, state: Tally, window: Window, column: int, flag: int) -> int:
        bits, flags, keep, mode = self._builder.bits, self._builder.flags, state.keep, state.mode
        entries = most_entries(window.span, mode, keep)
        if entries > ENTRIES_MAX:
            raise DeclarationError(
                f"{self.path}: keep={keep} in each of the {window.tiles} hops of {window.label!r} is more than an "
                f"entity may take; write at most keep={keep * ENTRIES_MAX // entries}, or a longer hop"
            )
        text = (
            f"tally by tiles {mode} {keep} {state.width} {list(state.quantiles)} "
            f"{window.window_us}/{window.hop_us}: {bits.texts[column]} if {flags.texts[flag]}"
        )
        width, quantiles = state.width or len(state.quantiles), np.array(state.quantiles, np.float64)
        return self._builder.group(
            text,
            lambda: TallyGroup(unnamed(window), flag, column, bits.kinds[column], keep, mode, width, quantiles, text),
        )

    def _combined(self, aggregation: Combination) -> list[Derived]:
        features: dict[str, list[Feature]] = {}
        for feature in self._builder.features:
            features.setdefault(feature.declared, []).append(feature)
        return [
            Derived(self._feature(combined.dtype, combined.window), combined.read, combined.uses)
            for combined in aggregation.combine(self.path, features)
        ]

    def _feature(self, dtype: str, window: str | None, suffix: str = "", width: int = 0) -> Feature:
        """The feature <attribute>, <attribute>_<suffix> or <attribute>_<suffix>_<window>."""
        name = "_".join(word for word in (self._name, suffix, window) if word)
        full_name, kind = f"{self._builder.view}.{name}", type(self._aggregation).__name__
        return Feature(name, full_name, dtype, kind, self._name, window, width)

    def _windows(self) -> list[tuple[Window, str | None]]:
        """Windows and their labels in feature names; a lifetime window without a label if `windows` is None.

        Raises:
            DeclarationError: no windows, a duplicate, or one that `window_of` rejects.
        """
        windows, hop = getattr(self._aggregation, "windows", None), getattr(self._aggregation, "hop", None)
        if windows is None:
            return [(window_of(LIFETIME, hop, self.path), None)]
        labels = [windows] if isinstance(windows, str) else list(windows)
        if not labels:
            raise DeclarationError(f'{self.path}: no windows; write windows=("1h", "24h") or windows="{LIFETIME}"')
        if len(set(labels)) < len(labels):
            raise DeclarationError(f"{self.path}: windows {labels} name one window twice; write each once")
        declared: list[tuple[Window, str | None]] = []
        for index, label in enumerate(labels):
            its_hop = None if label == LIFETIME and len(labels) > 1 else hop
            window = window_of(label, its_hop, f"{self.path} · window[{index}]")
            if window.hop_us:
                hop_text = written_span(window.hop_us // SECOND_US)
                words = f"window {label!r} of feature {self._name} with its hop of {hop_text}"
                self._builder.spans[words] = window.window_us + window.hop_us
            declared.append((window, label))
        return declared

    # Columns of the events.

    def _sources(self) -> tuple[type[Event], ...]:
        """The event classes to count: `source`, or all of the view.

        Raises:
            DeclarationError: `source` is empty, or names a class that the view does not read.
        """
        source, known = self._source, self._builder.sources
        if source is None:
            return known
        sources = (source,) if isinstance(source, type) else tuple(source)
        if not sources:
            raise DeclarationError(f"{self.path}: source=() counts nothing; leave it out, or name an event class")
        for event in sources:
            if event not in known:
                names = ", ".join(other.__name__ for other in known)
                raise DeclarationError(
                    f"{self.path}: source {event.__name__} is none of the view's; use one of {names}"
                )
        return sources

    def _flag(self, where: Value | None, present: Sequence[Value] = (), finite: Value | None = None) -> int:
        """Flag column of the events that pass `where`, have no null in `present` and a finite number in `finite`.

        Raises:
            DeclarationError: `where` is not a boolean, or names a column that a source lacks.
        """
        conditions = []
        if where is not None:
            dtype = self.dtype(where, "where")
            if dtype != pl.Boolean:
                raise DeclarationError(
                    f'{self.path}: where is {dtype}, not Boolean; write a comparison, such as col("x") == 1'
                )
            conditions.append(as_expr(where).fill_null(value=False))
        conditions += [as_expr(value).is_not_null() for value in present]
        if finite is not None:
            conditions.append(as_expr(finite).cast(pl.Float64).is_finite().fill_null(value=False))
        text = " & ".join(expr_text(condition) for condition in conditions) or "all"
        expression = conditions[0] if conditions else pl.lit(value=True)
        for condition in conditions[1:]:
            expression &= condition
        return self._builder.flags.add(text, self._sources(), expression, self._name)

    def _column(self, cell: Cell) -> int:
        """Number or bit column that a cell reads; ONE and TIME are returned as they are."""
        if isinstance(cell.value, int):
            return cell.value
        if cell.code in TAKES_BITS:
            return self._bits(cell.value)
        self.require_number(cell.value)
        expression = as_expr(cell.value)
        return self._builder.numbers.add(
            expr_text(expression), self._sources(), expression.cast(pl.Float64), self._name
        )

    def _text(self, cell: Cell, column: int) -> str:
        columns = self._builder.bits if cell.code in TAKES_BITS else self._builder.numbers
        return _EVENT_VALUES.get(column) or columns.texts[column]

    def _bits(self, value: Value) -> int:
        """Bit column of a value: integer, float, text or time."""
        kind = self.kind(value)
        expression = as_expr(value).cast(_CAST[kind])
        if kind == TIME_KIND:
            expression = expression.cast(pl.Int64)
        text = f"{DTYPE_OF_KIND[kind]} {expr_text(as_expr(value))}"
        return self._builder.bits.add(text, self._sources(), expression, self._name, kind)

    def _dtype_in(self, expression: pl.Expr, event: type[Event], role: str) -> pl.DataType:
        schema = spec_of(event).polars
        unknown = [name for name in expression.meta.root_names() if name not in schema]
        if unknown:
            near = get_close_matches(unknown[0], schema, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            others = [other.__name__ for other in self._builder.sources if unknown[0] in spec_of(other).polars]
            limit = f"; or limit it with source={others[0]}" if others else ""
            raise DeclarationError(
                f"{self.path}: {role} names {unknown[0]!r}, which event {event.__name__} lacks; {hint}"
                f"there are {', '.join(schema)}{limit}",
            )
        return row_type(expression, schema, f"{self.path}: {role}", f"event {event.__name__}")


def _timed(group: Group) -> Group:
    assert isinstance(group, ListGroup)
    return replace(group, timed=True)


def _read_cells(
    read: Callable[[Any], Column | Maybe],
    picked: NDArray[np.int64],
    window: Window,
    outputs: Outputs,
    now_us: NDArray[np.int64],
) -> Column | Maybe:
    return read(Cells(outputs[0][:, picked], now_us, window))


def _read_arrays(
    read: Callable[[Any], Column | Maybe], window: Window, outputs: Outputs, now_us: NDArray[np.int64]
) -> Column | Maybe:
    return read(Arrays(outputs, now_us, window))
