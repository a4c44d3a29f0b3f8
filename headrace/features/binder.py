"""From declared aggregations to a layout: what they ask for is collected here, and shared wherever it is equal.

An aggregation's `bind(binder)` names event columns (`flag`, `number`, `bits`), puts cells on rings or opens lists, and
returns its readings. Equal expressions become one column, equal cells of one (window, hop) one cell, equal lists one.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.features.aggregation import Aggregation, Cell, Source, Tallied, Value, Windowed, Windows
from headrace.features.answer import Column, Feature, Maybe
from headrace.features.argument_types import check_arguments
from headrace.features.expressions.derived import Expressions
from headrace.features.expressions.event_columns import DTYPE_OF_KIND, EventColumns, as_expr, expr_text, kind_of
from headrace.features.expressions.row_wise import row_type
from headrace.features.state.layout import RECORD_VERSION, Derived, Group, Layout, Reading
from headrace.features.state.lists.group import ListGroup
from headrace.features.state.lists.update import FLOAT, INT, TEXT
from headrace.features.state.lists.update import TIME as TIME_KIND
from headrace.features.state.rings.cells import ONE, TAKES_BITS, TIME, WIDTH
from headrace.features.state.rings.group import RingGroup
from headrace.features.state.seen import KEEP_MAX as SEEN_MAX
from headrace.features.state.tallies.group import ENTRIES_MAX, KEEP_MAX, KEEP_MIN, TallyGroup
from headrace.features.state.tallies.update import most_entries
from headrace.features.windows import LIFETIME, SECOND_US, Window, parse_span_s, window_of, written_span
from headrace.schemas import Event, spec_of


@dataclass(slots=True)
class _Ring:
    window: Window
    items: list[tuple[int, int, int, int]] = field(default_factory=list)
    params: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    width: int = 0

    def add(self, cell: Cell, flag: int, text: str) -> int:
        """First cell of what `cell` asks for."""
        if text in self.texts:
            return self.items[self.texts.index(text)][1]
        self.texts.append(text)
        self.items.append((cell.code, self.width, flag, cell.column))
        self.params.append(cell.param)
        self.width += WIDTH[cell.code]
        return self.width - WIDTH[cell.code]

    def group(self) -> RingGroup:
        text = f"ring {self.window.window_us}/{self.window.hop_us}: " + "; ".join(self.texts)
        return RingGroup.of(self.window, np.array(self.items, np.int64), np.array(self.params, np.float64), text)


class LayoutBuilder:
    """Collects what the aggregations of one view ask for."""

    def __init__(
        self,
        view: str,
        sources: tuple[type[Event], ...],
        entity: str,
        request: Mapping[str, pl.DataType] | None = None,
    ) -> None:
        self.view = view
        self.request = dict(request or {})
        self.sources = sources
        self.flags = EventColumns({source: {} for source in sources})
        self.numbers = EventColumns({source: {} for source in sources})
        self.bits = EventColumns({source: {} for source in sources})
        self._entity = entity
        self.parts: list[_Ring | Group] = []
        self.spans: dict[str, int] = {}
        """What looks back, and how far in microseconds: for `ttl`."""
        self._readings: list[Reading | Derived] = []

    @property
    def features(self) -> list[Feature]:
        """Features bound so far."""
        return [reading.feature for reading in self._readings]

    def bind(self, name: str, aggregation: Aggregation) -> None:
        """Add one attribute of the view.

        Raises:
            DeclarationError: an argument of another type than the aggregation declares, what its own rules refuse, or
                a feature name that is taken.
        """
        binder = Binder(self, name, aggregation)
        check_arguments(binder.path, aggregation)
        self._take(name, aggregation.bind(binder))

    def bind_expressions(self, declared: Mapping[str, pl.Expr]) -> None:
        """Add attributes that are expressions over other features and the request.

        Raises:
            DeclarationError: what an expression may not be, or a feature name that is taken.
        """
        expressions = Expressions(self.view, self.request)
        for name in expressions.in_order(declared):
            known = {feature.name: feature for feature in self.features}
            self._take(name, [expressions.bind(name, declared[name], known)])

    def _take(self, name: str, readings: Sequence[Reading | Derived]) -> None:
        for reading in readings:
            taken = {feature.name: feature.declared for feature in self.features}
            found = reading.feature
            if found.name in taken:
                raise DeclarationError(
                    f"view {self.view} · feature {name}: {found.name!r} is already a feature of "
                    f"{taken[found.name]!r}; rename one",
                )
            self._readings.append(reading)

    def part(self, key: object, make: Callable[[], "_Ring | Group"]) -> tuple[int, "_Ring | Group"]:
        """Number and part with this text or window; `make` builds it when it is new."""
        for index, part in enumerate(self.parts):
            if key == (part.window if isinstance(part, _Ring) else part.text):
                return index, part
        self.parts.append(make())
        return len(self.parts) - 1, self.parts[-1]

    def layout(self, dedupe_us: int = 0) -> Layout:
        """What was collected; `dedupe_us` is the span in which duplicates are known, 0 for none."""
        groups: list[Group] = []
        for part in self.parts:
            group = part.group() if isinstance(part, _Ring) else part
            groups.append(group.linked(groups) if isinstance(group, RingGroup | ListGroup) else group)
        needs_ids = bool(dedupe_us) or any(group.needs_ids for group in groups)
        columns = (len(self.flags.texts), len(self.numbers.texts), len(self.bits.texts))
        text = "\n".join([f"record {RECORD_VERSION}", self._entity, *[group.text for group in groups]])
        if needs_ids and any(spec_of(event).id is None for event in self.sources):
            text += "\nevents known by the columns that are read"  # before, by all columns of the frame at hand
        if dedupe_us:
            text += f"\ndedupe {dedupe_us} keep {SEEN_MAX}"
        return Layout(tuple(groups), tuple(self._readings), columns, needs_ids, text, self.request, dedupe_us)


class Binder:
    """What one attribute of a view may ask for."""

    def __init__(self, builder: LayoutBuilder, name: str, aggregation: Aggregation) -> None:
        self.builder = builder
        self.name = name
        self.path = f"view {builder.view} · feature {name}"
        self._aggregation = aggregation

    def feature(self, dtype: str, window: str | None = None, suffix: str = "", width: int = 0) -> Feature:
        """The feature <attribute>, <attribute>_<suffix> or <attribute>_<window>."""
        name = "_".join(part for part in (self.name, suffix, window) if part)
        kind = type(self._aggregation).__name__
        return Feature(name, f"{self.builder.view}.{name}", dtype, kind, self.name, window, width)

    def windows(self, windows: Windows, hop: str | None) -> list[Window]:
        """The windows as declared, each once.

        Raises:
            DeclarationError: none, a doubled one, or one that `window_of` refuses.
        """
        labels = [windows] if isinstance(windows, str) else list(windows)
        if not labels:
            raise DeclarationError(f'{self.path}: no windows; write windows=("1h", "24h") or windows="{LIFETIME}"')
        if len(set(labels)) < len(labels):
            raise DeclarationError(f"{self.path}: windows {labels} name one window twice; write each once")
        found = []
        for index, label in enumerate(labels):
            own_hop = None if label == LIFETIME and len(labels) > 1 else hop
            window = window_of(label, own_hop, f"{self.path} · window[{index}]")
            if window.hop_us:
                hop_text = written_span(window.hop_us // SECOND_US)
                words = f"window {label!r} of feature {self.name} with its hop of {hop_text}"
                self.builder.spans[words] = window.window_us + window.hop_us
            found.append(window)
        return found

    def within_us(self, within: str | None) -> int | None:
        """How old what is read may be, in microseconds; None: of any age.

        Raises:
            DeclarationError: no span.
        """
        if within is None:
            return None
        span_us = parse_span_s(within, f"{self.path} · within") * SECOND_US
        self.builder.spans[f"within={within!r} of feature {self.name}"] = span_us
        return span_us

    def sources(self, source: Source) -> tuple[type[Event], ...]:
        """The event classes that count: those of the view, or `source`.

        Raises:
            DeclarationError: none, or one that the view does not read.
        """
        if source is None:
            return self.builder.sources
        wanted = (source,) if isinstance(source, type) else tuple(source)
        if not wanted:
            raise DeclarationError(f"{self.path}: source=() counts nothing; leave it out, or name an event class")
        for event in wanted:
            if event not in self.builder.sources:
                names = ", ".join(known.__name__ for known in self.builder.sources)
                raise DeclarationError(
                    f"{self.path}: source {event.__name__} is none of the view's; use one of {names}"
                )
        return wanted

    def dtype(self, value: Value, source: Source, role: str = "value") -> pl.DataType:
        """The type of an expression, the same in each source.

        Raises:
            DeclarationError: a column that a source lacks, or types that differ.
        """
        expression = as_expr(value)
        found = {event: self._dtype_in(expression, event, role) for event in self.sources(source)}
        kinds = {kind_of(dtype) for dtype in found.values()}
        if len(kinds) > 1:
            types = ", ".join(f"{event.__name__}: {dtype}" for event, dtype in found.items())
            raise DeclarationError(
                f"{self.path}: {role} has several types ({types}); cast it, or limit it with source="
            )
        return next(iter(found.values()))

    def flag(
        self, where: Value | None, source: Source, present: Sequence[Value] = (), finite: Value | None = None
    ) -> int:
        """Flag column of the events that pass `where`, have no null in `present` and a finite number in `finite`.

        Raises:
            DeclarationError: `where` is no boolean, or names a column that a source lacks.
        """
        conditions = []
        if where is not None:
            dtype = self.dtype(where, source, "where")
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
        return self.builder.flags.add(text, self.sources(source), expression, self.name)

    def number(self, value: Value, source: Source) -> int:
        """Number column of `value` as float64, null as NaN.

        Raises:
            DeclarationError: it is no number.
        """
        dtype = self.dtype(value, source)
        if not (dtype.is_numeric() or dtype == pl.Boolean):
            kind = type(self._aggregation).__name__
            raise DeclarationError(
                f"{self.path}: {kind} needs a number, {as_expr(value)!s} is {dtype}; cast it, or use Last or LastN",
            )
        expression = as_expr(value)
        sources = self.sources(source)
        return self.builder.numbers.add(expr_text(expression), sources, expression.cast(pl.Float64), self.name)

    def bits(self, value: Value, source: Source) -> tuple[int, int]:
        """(bit column, kind) of `value`: whole number, float, text or time.

        Raises:
            DeclarationError: it is none of these.
        """
        dtype = self.dtype(value, source)
        kind = kind_of(dtype)
        if kind is None:
            raise DeclarationError(
                f"{self.path}: cannot keep {as_expr(value)!s} of type {dtype}; use a number, text or time"
            )
        cast: pl.DataType | type[pl.DataType] = {INT: pl.Int64, FLOAT: pl.Float64, TEXT: pl.String}.get(
            kind, pl.Datetime("us")
        )
        expression = as_expr(value).cast(cast)
        if kind == TIME_KIND:
            expression = expression.cast(pl.Int64)
        text = f"{DTYPE_OF_KIND[kind]} {expr_text(as_expr(value))}"
        return self.builder.bits.add(text, self.sources(source), expression, self.name, kind), kind

    def ring(self, window: Window, cells: Iterable[Cell], flag: int) -> tuple[int, NDArray[np.int64]]:
        """Put cells on the ring of `window`: (group, indexes of the cells (k,) in its outputs)."""
        group, part = self.builder.part(Window("", window.window_us, window.hop_us), lambda: _Ring(_unnamed(window)))
        assert isinstance(part, _Ring)
        found: list[int] = []
        for cell in cells:
            admits = flag if cell.flag is None else cell.flag
            columns = self.builder.bits if cell.code in TAKES_BITS else self.builder.numbers
            value = {ONE: "1", TIME: "time"}.get(cell.column) or columns.texts[cell.column]
            text = f"{cell.code}({cell.param!r}) {value} if {self.builder.flags.texts[admits]}"
            first = part.add(cell, admits, text)
            found += range(first, first + WIDTH[cell.code])
        return group, np.array(found, np.int64)

    def list_of(
        self,
        columns: Sequence[tuple[int, int]],
        flag: int,
        size: int,
        *,
        distinct: bool = False,
        strict: bool = True,
        timed: bool = False,
    ) -> int:
        """Open a list of `size` elements of bit columns [(column, kind), ...]; returns its group.

        `distinct` keeps equal values once, `strict` reads what is before the moment only, `timed` reads times too.
        """
        if not 1 <= size <= 10_000:
            raise DeclarationError(f"{self.path}: n={size}; a list keeps 1 to 10000 elements")
        values = ", ".join(self.builder.bits.texts[column] for column, _ in columns)
        kind = " distinct" * distinct + " newest" * (not strict)
        text = f"list {size}{kind}: {values} if {self.builder.flags.texts[flag]}"
        numbers, kinds = (np.array(part, np.int64) for part in zip(*columns, strict=True))
        group, part = self.builder.part(text, lambda: ListGroup(size, distinct, strict, flag, numbers, kinds, text))
        assert isinstance(part, ListGroup)
        if timed:
            self.builder.parts[group] = replace(part, timed=True)
        return group

    def tallies(
        self,
        aggregation: "Tallied",
        mode: int,
        keep: int,
        *,
        width: int = 0,
        key: pl.Expr | None = None,
        quantiles: Sequence[float] = (),
    ) -> list[tuple[Window, int, int]]:
        """Open a tally for each window: (window, group, kind of its keys); `key` is what is counted, else the value.

        Raises:
            DeclarationError: `keep` is not from 3 to 4096, too many for the tiles, or the value cannot be a key.
        """
        if not KEEP_MIN <= keep <= KEEP_MAX:
            raise DeclarationError(f"{self.path}: keep={keep}; write {KEEP_MIN} to {KEEP_MAX}")
        counted = aggregation.value if key is None else key
        column, kind = self.bits(counted, aggregation.source)
        flag = self.flag(aggregation.where, aggregation.source, (counted,))
        found = []
        for window in self.windows(aggregation.windows, aggregation.hop):
            what = f"{self.builder.bits.texts[column]} if {self.builder.flags.texts[flag]}"
            if most_entries(window.span, mode, keep) > ENTRIES_MAX:
                fits = keep * ENTRIES_MAX // most_entries(window.span, mode, keep)
                raise DeclarationError(
                    f"{self.path}: keep={keep} in each of the {window.tiles} hops of {window.label!r} is more than an "
                    f"entity may take; write at most keep={fits}, or a longer hop"
                )
            text = f"tally by tiles {mode} {keep} {width} {list(quantiles)} {window.window_us}/{window.hop_us}: {what}"
            group = TallyGroup(
                _unnamed(window),
                flag,
                column,
                kind,
                keep,
                mode,
                width or len(quantiles),
                np.array(quantiles, np.float64),
                text,
            )
            found.append((window, self.builder.part(text, partial(_same, group))[0], kind))
        return found

    def windowed(self, aggregation: Windowed) -> list[Reading]:
        """One reading a window of an aggregation whose state is cells."""
        flag = self.flag(aggregation.where, aggregation.source)
        cells = aggregation.cells(self)
        return self.readings(aggregation.windows, aggregation.hop, cells, flag, aggregation.dtype, aggregation.read)

    def readings(
        self,
        windows: Windows,
        hop: str | None,
        cells: Sequence[Cell],
        flag: int,
        dtype: str,
        read: Callable[[NDArray[np.float64], NDArray[np.int64]], Column | Maybe],
    ) -> list[Reading]:
        """One reading of type `dtype` a window: `read(merged cells (n, k), now_us (n,))`."""
        found = []
        for window in self.windows(windows, hop):
            group, picked = self.ring(window, cells, flag)
            found.append(Reading(self.feature(dtype, window.label), group, partial(_read_cells, read, picked)))
        return found

    def _dtype_in(self, expression: pl.Expr, event: type[Event], role: str) -> pl.DataType:
        schema = spec_of(event).polars
        unknown = [name for name in expression.meta.root_names() if name not in schema]
        if unknown:
            near = difflib.get_close_matches(unknown[0], schema, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            others = [other.__name__ for other in self.builder.sources if unknown[0] in spec_of(other).polars]
            limit = f"; or limit it with source={others[0]}" if others else ""
            raise DeclarationError(
                f"{self.path}: {role} names {unknown[0]!r}, which event {event.__name__} lacks; {hint}"
                f"there are {', '.join(schema)}{limit}",
            )
        return row_type(expression, schema, f"{self.path}: {role}", f"event {event.__name__}")


def _same(group: TallyGroup) -> TallyGroup:
    return group


def _unnamed(window: Window) -> Window:
    """Windows that differ in spelling only ("60m", "1h") share a ring."""
    return Window("", window.window_us, window.hop_us)


def _read_cells(
    read: Callable[[NDArray[np.float64], NDArray[np.int64]], Any],
    picked: NDArray[np.int64],
    outputs: tuple[NDArray[Any], ...],
    now_us: NDArray[np.int64],
) -> Any:
    return read(outputs[0][:, picked], now_us)
