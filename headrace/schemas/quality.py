"""Field rules as column expressions: one select per batch, and a few more if rows break a rule.

Rules decide as pydantic does: NaN breaks every bound, lengths of text count characters, a multiple of a float may be
off by 1e-9, times lie in the years 1 to 9999, and nulls pass if the field is optional.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.schemas.conform import is_far
from headrace.schemas.event import EventSpec
from headrace.schemas.fields import FieldType, plain
from headrace.schemas.rejects import BadRow, Rejects
from headrace.schemas.row_json import value_texts
from headrace.schemas.rules import Rule
from headrace.schemas.time_units import TIME_UNITS, UNIT_NAMES, UNITS_PER_S, TimeUnit, likely_units

FUTURE_US = 600_000_000
"""Microseconds that an event may be ahead of the clock, to allow for 10 minutes of clock skew."""
_MULTIPLE_TOLERANCE = 1e-9  # pydantic's, absolute
_INT_MIN, _INT_MAX = -(2**63), 2**63 - 1
_HINTED_US = 631_152_000_000_000  # 1990: a unit is suggested only if the time is then in 1990 or later


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a check.

    `frame` has the good rows, in order; `kept` int64 (n_good,) are their indexes; `bad` are the other rows, ascending.
    """

    frame: pl.DataFrame
    kept: NDArray[np.int64]
    bad: Rejects[BadRow]


@dataclass(frozen=True, slots=True)
class _Check:
    """One rule of one column: `broken` is a Boolean column, true where a row breaks the rule."""

    reason: str
    column: str
    text: str
    broken: pl.Expr


class Quality:
    """The rules of an event, including two for its time: not before `earliest`, and not too far ahead of the clock.

    Args:
        spec: of the event.
        future_us: how far, in µs, an event's time may be ahead of the clock. An event from the future would push
            current events out of its entity's windows, so it is rejected.

    Raises:
        DeclarationError: a rule cannot be checked on its field's column.

    >>> from datetime import datetime
    >>> from headrace.schemas import Event, Field, spec_of
    >>> class Reading(Event, topic="readings", key="sensor"):
    ...     event_time: datetime
    ...     sensor: int
    ...     value: float = Field(ge=0)
    >>> spec = spec_of(Reading)
    >>> now_us = 1_767_268_800_000_000
    >>> times = [now_us, now_us, now_us, now_us // 1_000]
    >>> frame = pl.DataFrame([times, [1, 2, 3, 4], [0.5, -1.0, None, 0.0]], schema=spec.polars)
    >>> bad = Quality(spec).check(frame, now_us).bad
    >>> [(row.index, row.reason, row.detail) for row in bad[:2]]
    [(1, 'out_of_range', 'value: -1.0, wanted >= 0'), (2, 'missing', 'value: null, wanted a value')]
    >>> bad[2].reason, bad[2].detail.partition("; ")[2]
    ('implausible_time', '1767268800000 looks like milliseconds; declare time_unit="ms"')
    """

    def __init__(self, spec: EventSpec, *, future_us: int = FUTURE_US) -> None:
        self._time = spec.time
        self._unit: TimeUnit = spec.time_unit or "us"
        self._hinted_us = max(_HINTED_US, spec.earliest_us)
        self._future_us = future_us
        self._checks = [
            _Check(reason, name, text, broken)
            for name, field in spec.types.items()
            for reason, text, broken in _broken(pl.col(name), field, "", is_bounded=name == spec.time)
        ]
        floor = np.datetime64(spec.earliest_us, "us").item().isoformat().removesuffix("T00:00:00")
        early = pl.col(spec.time).dt.timestamp("us") < spec.earliest_us
        self._checks.append(_Check("implausible_time", spec.time, f"{floor} or later", early))
        _refuse_uncheckable(self._checks, spec)

    def check(self, frame: pl.DataFrame, now_us: int) -> Checked:
        """Separate good rows from bad ones; `now_us` is the current time for the rule about the future.

        A row that breaks several rules is reported with the first one in declared order.
        """
        latest_us = now_us + self._future_us
        ahead = pl.col(self._time).dt.timestamp("us") > latest_us
        wanted = f"at most {self._future_us / 1e6:g} s ahead of the clock"
        checks = [*self._checks, _Check("future", self._time, wanted, ahead)]
        broken = [check.broken.fill_null(value=False) for check in checks]
        if not frame.select(pl.any_horizontal([one.any() for one in broken]).any()).item():
            return Checked(frame, np.arange(frame.height, dtype=np.int64), Rejects.none(BadRow))
        flags = frame.select(one.alias(str(i)) for i, one in enumerate(broken)).to_numpy()
        good = ~flags.any(axis=1)
        index = np.flatnonzero(~good)
        first = flags[index].argmax(axis=1)
        bad = [self._bad(frame, index[first == which], checks[which], latest_us) for which in np.unique(first)]
        return Checked(frame.filter(pl.Series(good)), np.flatnonzero(good), Rejects.merged(BadRow, bad))

    def _bad(self, frame: pl.DataFrame, index: NDArray[np.int64], check: _Check, latest_us: int) -> Rejects[BadRow]:
        """Rejects for the rows at `index`, which break `check` first."""
        values = frame[check.column][index]
        detail = f"{check.column}: " + value_texts(values) + f", wanted {check.text}"
        if check.reason in ("implausible_time", "future"):
            detail += self._unit_hints(values.cast(pl.Int64).to_numpy(), latest_us)
        return Rejects.same(BadRow, index, check.reason, detail)

    def _unit_hints(self, times_us: NDArray[np.int64], latest_us: int) -> pl.Series:
        """For each time, a hint to declare another unit, if the original number is plausible in it; else empty."""
        per_unit, per_us = UNITS_PER_S[self._unit], UNITS_PER_S["us"]
        factor, divisor = max(per_unit // per_us, 1), max(per_us // per_unit, 1)
        is_exact = (times_us >= -_INT_MAX // factor) & (times_us <= _INT_MAX // factor)
        numbers = np.where(is_exact, times_us, 0) * factor // divisor
        units = likely_units(numbers)
        is_plausible = np.zeros(len(numbers), np.bool_)
        for index, unit in enumerate(TIME_UNITS):
            low, high = (limit_us * UNITS_PER_S[unit] // per_us for limit_us in (self._hinted_us, latest_us))
            is_plausible |= (units == index) & (unit != self._unit) & (numbers >= low) & (numbers <= high)
        names = pl.Series(UNIT_NAMES.values())[np.maximum(units, 0)]
        hint = pl.format('; {} looks like {}; declare time_unit="{}"', "number", "name", "unit")
        named = pl.DataFrame({"number": numbers, "name": names, "unit": pl.Series(TIME_UNITS)[np.maximum(units, 0)]})
        return named.select(pl.when(pl.Series(is_plausible)).then(hint).otherwise(pl.lit(""))).to_series()


def _refuse_uncheckable(checks: Sequence[_Check], spec: EventSpec) -> None:
    """Reject checks that fail on every frame of the event, so that the error is not left to the flow.

    Raises:
        DeclarationError: names event and field.
    """
    empty = pl.DataFrame(schema=spec.polars)
    for check in checks:
        try:
            empty.select(check.broken)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, TypeError) as exc:
            raise DeclarationError(
                f"event {spec.name}.{check.column}: the rule {check.text!r} cannot be checked: {exc}"
            ) from exc


def _broken(
    values: pl.Expr, field: FieldType, inside: str, *, is_bounded: bool = False
) -> Iterator[tuple[str, str, pl.Expr]]:
    """Yield (reason, allowed values, where broken) for every rule on `values` and nested fields.

    `inside` names the nested field. `is_bounded`: a time that has its own lower and upper bound.
    """
    if not field.nullable:
        yield "missing", f"a value{inside}", values.is_null()
    if field.kind == "time" and not is_bounded:
        yield "out_of_range", f"a time of the years 1 to 9999{inside}", is_far(values)
    if field.allowed is not None:
        allowed = ", ".join(map(str, field.allowed))
        possible = [value for value in field.allowed if field.kind != "int" or _INT_MIN <= value <= _INT_MAX]
        yield "not_allowed", f"one of {allowed}{inside}", ~values.is_in(possible)
    for rule in field.rules:
        text, where = _rule(values, field, rule)
        yield "out_of_range", text + inside, where
    if field.item is not None:
        for reason, text, where in _broken(pl.element(), field.item, f"{inside} in each item"):
            yield reason, text, values.list.eval(where.fill_null(value=False)).list.any()
    for name, inner in field.fields:
        for reason, text, where in _broken(values.struct.field(name), inner, f"{inside} in {name}"):
            yield reason, text, values.is_not_null() & where


def _rule(values: pl.Expr, field: FieldType, rule: Rule) -> tuple[str, pl.Expr]:
    bound: Any = rule.value
    match rule.name:
        case "pattern":
            return f"a text that matches {bound!r}", ~values.str.contains(bound)
        case "min_length":
            return f"a length >= {bound}", _length(values, field) < bound
        case "max_length":
            return f"a length <= {bound}", _length(values, field) > bound
        case "finite":
            return "a finite number", ~values.is_finite()
        case "multiple_of":
            return f"a multiple of {bound}", _is_no_multiple(values, field, bound)
    if field.kind == "time":
        values, bound = values.dt.timestamp("us"), plain(bound)
    if field.kind == "int":
        bound = min(max(bound, _INT_MIN - 1), _INT_MAX + 1)  # Polars has no literal of more than 128 bits
        bound = (math.floor if rule.name in ("gt", "le") else math.ceil)(bound)  # it compares with a float as floats
    sign, broken = {
        "ge": (">=", values < bound),
        "gt": (">", values <= bound),
        "le": ("<=", values > bound),
        "lt": ("<", values >= bound),
    }[rule.name]
    return f"{sign} {rule.value}", (broken | values.is_nan()) if field.kind == "float" else broken


def _is_no_multiple(values: pl.Expr, field: FieldType, divisor: float) -> pl.Expr:
    """Whether a value is not a multiple of `divisor`.

    Source: pydantic's own test for floats, found by experiment and verified by a property test.
    """
    if field.kind == "float":
        # Polars divides by a scalar by multiplying with its inverse, which may be off by a bit; by a column it divides.
        divisors = values * 0.0 + float(divisor)
        nearest = (values / divisors).round() * float(divisor)
        return values.is_finite() & ((nearest - values).abs() > _MULTIPLE_TOLERANCE)
    return values % divisor != 0 if divisor <= _INT_MAX else values != 0


def _length(values: pl.Expr, field: FieldType) -> pl.Expr:
    match field.kind:
        case "text":
            return values.str.len_chars()
        case "bytes":
            return values.bin.size("b")
    return values.list.len()
