"""Field rules as column expressions: one select a batch, and Python per row only for rows that break a rule.

A rule's verdict on a value is pydantic's: NaN breaks every bound, lengths of text count characters, and nulls pass
wherever the field may be null.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.schemas.event import EventSpec
from headrace.schemas.field_types import FieldType, Rule, plain
from headrace.schemas.jsonl import rows_as_json

FUTURE_US = 600_000_000
_DETAIL_CHARS = 80


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that breaks a rule: its index, and missing, not_allowed, out_of_range or future as `reason`."""

    index: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Checked:
    """`frame` holds the good rows, in order; `kept` int64 (n_good,) are their indexes; `bad` the others, ascending."""

    frame: pl.DataFrame
    kept: NDArray[np.int64]
    bad: list[BadRow] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Check:
    """One rule at one place: `broken` is a Boolean column, true where a row breaks it."""

    reason: str
    column: str
    text: str
    broken: pl.Expr


class Quality:
    """The rules of an event, and two about its time: not before 1970, and not too far ahead of the clock.

    Args:
        spec: of the event.
        future_us: how far, in µs, an event's time may be ahead of the clock. One event from the future would push the
            present out of its entity's windows, so it is refused.

    >>> from datetime import datetime
    >>> from headrace.schemas import Event, Field, spec_of
    >>> class Reading(Event, topic="readings", key="sensor"):
    ...     event_time: datetime
    ...     sensor: int
    ...     value: float = Field(ge=0)
    >>> spec = spec_of(Reading)
    >>> frame = pl.DataFrame([[0, 0, 0], [1, 2, 3], [0.5, -1.0, None]], schema=spec.polars)
    >>> [(row.index, row.reason, row.detail) for row in Quality(spec).check(frame, now_us=0).bad]
    [(1, 'out_of_range', 'value: -1.0, wanted >= 0'), (2, 'missing', 'value: null, wanted a value')]
    """

    def __init__(self, spec: EventSpec, *, future_us: int = FUTURE_US) -> None:
        self._time = spec.time
        self._future_us = future_us
        self._checks = [check for name, found in spec.types.items() for check in _checks(name, found)]
        early = pl.col(spec.time).dt.timestamp("us") < 0
        self._checks.append(_Check("out_of_range", spec.time, "1970 or later", early))

    def check(self, frame: pl.DataFrame, now_us: int) -> Checked:
        """Part the good rows from the bad; `now_us` is the clock that the future is measured from.

        A row that breaks several rules is told by the first, in the order of the declaration.
        """
        ahead = pl.col(self._time).dt.timestamp("us") > now_us + self._future_us
        wanted = f"at most {self._future_us / 1e6:g} s ahead of the clock"
        checks = [*self._checks, _Check("future", self._time, wanted, ahead)]
        broken = [check.broken.fill_null(value=False) for check in checks]
        if not frame.select(pl.any_horizontal([one.any() for one in broken]).any()).item():
            return Checked(frame, np.arange(frame.height, dtype=np.int64))
        flags = frame.select(one.alias(str(i)) for i, one in enumerate(broken)).to_numpy()
        good = ~flags.any(axis=1)
        bad_index = np.flatnonzero(~good)
        first = flags[bad_index].argmax(axis=1)
        bad = [_bad_row(frame, int(row), checks[which]) for row, which in zip(bad_index, first, strict=True)]
        return Checked(frame.filter(pl.Series(good)), np.flatnonzero(good), bad)


def _bad_row(frame: pl.DataFrame, row: int, check: _Check) -> BadRow:
    # As JSON, because a column holds times that no Python datetime can.
    found = rows_as_json(frame.select(check.column).slice(row, 1))[0].decode().partition(":")[2].removesuffix("}")
    short = found if len(found) <= _DETAIL_CHARS else found[:_DETAIL_CHARS] + "..."
    return BadRow(row, check.reason, f"{check.column}: {short}, wanted {check.text}")


def _checks(name: str, found: FieldType) -> list[_Check]:
    return [_Check(reason, name, text, broken) for reason, text, broken in _broken(pl.col(name), found, "")]


def _broken(values: pl.Expr, found: FieldType, inside: str) -> Iterator[tuple[str, str, pl.Expr]]:
    """(reason, what is wanted, where it is broken) of every rule on `values` and below; `inside` names the place."""
    if not found.nullable:
        yield "missing", f"a value{inside}", values.is_null()
    if found.allowed is not None:
        allowed = ", ".join(map(str, found.allowed))
        yield "not_allowed", f"one of {allowed}{inside}", ~values.is_in(list(found.allowed))
    for rule in found.rules:
        text, broken = _rule(values, found, rule)
        yield "out_of_range", text + inside, broken
    if found.item is not None:
        for reason, text, broken in _broken(pl.element(), found.item, f"{inside} in each item"):
            yield reason, text, values.list.eval(broken.fill_null(value=False)).list.any()
    for name, inner in found.fields:
        for reason, text, broken in _broken(values.struct.field(name), inner, f"{inside} in {name}"):
            yield reason, text, values.is_not_null() & broken


def _rule(values: pl.Expr, found: FieldType, rule: Rule) -> tuple[str, pl.Expr]:
    bound: Any = rule.value
    match rule.name:
        case "pattern":
            return f"a text that matches {bound!r}", ~values.str.contains(bound)
        case "min_length":
            return f"a length >= {bound}", _length(values, found) < bound
        case "max_length":
            return f"a length <= {bound}", _length(values, found) > bound
        case "finite":
            return "a finite number", ~values.is_finite()
        case "multiple_of":
            return f"a multiple of {bound}", values % bound != 0
    if found.kind == "time":
        values, bound = values.dt.timestamp("us"), plain(bound)
    sign, broken = {
        "ge": (">=", values < bound),
        "gt": (">", values <= bound),
        "le": ("<=", values > bound),
        "lt": ("<", values >= bound),
    }[rule.name]
    return f"{sign} {rule.value}", (broken | values.is_nan()) if found.kind == "float" else broken


def _length(values: pl.Expr, found: FieldType) -> pl.Expr:
    match found.kind:
        case "text":
            return values.str.len_chars()
        case "bytes":
            return values.bin.size("b")
    return values.list.len()
