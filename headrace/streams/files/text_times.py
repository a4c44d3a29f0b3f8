"""Parsing of text columns as times: ISO 8601 in any form, a given format, or the only known format that fits.

A date that can be read in two orders, such as 03/04/2026, is an error, and so is a column in which only some values
have a zone. If values are not all written alike, the format is determined from the whole column, so that reading a file
in pieces gives the same result as reading it whole.
"""

import re
from collections.abc import Callable
from functools import cached_property
from typing import Any

import polars as pl
import pyarrow as pa

from headrace.errors import SchemaError

_ISO = r"^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(?::(\d{2})(?:[.,](\d{1,9}))?)?)? ?(Z|z|[+-]\d{2}(?::?\d{2})?)?$"
_BELOW_MICROS = r"[.,]\d{6}\d*[1-9]"
_DIRECTIVE = re.compile(r"%[-_0]?[.:#]*\d?([A-Za-z%+])")
_YEARS = frozenset("YyGgFDxcvs+")
_ISO_PROBES = [
    f"2026-02-03{clock}{zone}" for clock in ("", "T04:05", " 04:05", "T04:05:06", " 04:05:06") for zone in ("", "Z")
]
"""Texts that tell whether a format reads ISO 8601 times as others."""
_ARROW_TIMES = (pa.timestamp("us"), pa.timestamp("us", tz="UTC"))
"""Types for values all without a zone, or all with one: pyarrow reads these six times as fast as `_iso_times`."""
_NUMBER = r"^[+-]?\d+(\.\d+)?$"
_EXAMPLE = "2026-04-03T12:00:00Z"

_ORDERS = ("%d{0}%m{0}%Y", "%m{0}%d{0}%Y", "%Y{0}%m{0}%d")
_CLOCKS = ("", " %H:%M", " %H:%M:%S%.f", "T%H:%M:%S%.f", " %I:%M %p", " %I:%M:%S %p")
_OTHER_FORMATS = tuple(order.format(mark) + clock for mark in "/-." for order in _ORDERS for clock in _CLOCKS)
_YEAR_MIN = 1000


class TimeTexts:
    """A parser of one column of a file, whole or in pieces.

    `place` is named in errors. `whole` returns the whole column; it is called at most once, and only if values are not
    all written alike. `given` is the strptime format of values that are not ISO 8601.
    """

    def __init__(self, place: str, whole: Callable[[], pl.Series], given: str | None = None) -> None:
        self._place = place
        self._whole = whole
        self._given = None if given is None else TimeFormat(given)
        # A format such as %Y-%d-%m holds for every value: 2026-02-03 is no ISO 8601 time beside it.
        self._is_for_all = self._given is not None and self._given.reads_iso_otherwise()
        self._arrow: tuple[Any, ...] = () if self._is_for_all else _ARROW_TIMES

    @cached_property
    def _pattern(self) -> str | None:
        return _pattern_of(self._whole(), self._place, self._given, is_for_all=self._is_for_all)

    def parse(self, texts: pl.Series) -> pl.Series:
        """Parse some of the column's values, (n,), to times in microseconds UTC; nulls stay null.

        Raises:
            SchemaError: a value is not a time, can be read in two ways, or has digits below a microsecond.
        """
        for dtype in self._arrow:
            times = _alike(texts, dtype)
            if times is not None:
                if times.null_count() < len(times):
                    self._arrow = (dtype,)
                return times
        pattern = self._pattern  # first: it refuses values of two formats
        if self._is_for_all and pattern is not None:
            return _parsed(texts, pattern).alias(texts.name)
        times = _iso_times(texts, self._place)
        if pattern is not None:
            times = times.zip_with(times.is_not_null(), _parsed(texts, pattern))
        return times.alias(texts.name)


class TimeFormat:
    """A strptime format that a user has given, in Polars' terms (`pattern`).

    `%f` is the fraction of a second as in Python, and not nanoseconds as in Polars.

    Raises:
        SchemaError: it is no text, names no year, or reads the name of a zone, which Polars would ignore.
    """

    def __init__(self, given: str) -> None:
        if not isinstance(given, str):
            raise SchemaError(f"csv_time_format={given!r}: give a text, such as '%d.%m.%Y %H:%M'")
        self.given = given
        self.pattern = re.sub(r"%%|(\.?)%f", lambda m: m[0] if m[0] == "%%" else "%.f" if m[1] else "%6f", given)
        directives = set(_DIRECTIVE.findall(given))
        if not directives & _YEARS:
            raise SchemaError(f"csv_time_format={given!r} has no year; give all of a time, such as '%d.%m.%Y %H:%M'")
        if "Z" in directives:
            raise SchemaError(
                f"csv_time_format={given!r}: %Z, the name of a zone, does not say an offset; use %z for offsets like "
                "+0200, or, if all times are UTC, write the name as it is: '%d.%m.%Y %H:%M UTC'"
            )
        self.has_zone = bool(directives & {"z", "+"})

    def reads_iso_otherwise(self) -> bool:
        """Whether an ISO 8601 time is another moment by this format."""
        probes = pl.Series(_ISO_PROBES)
        try:
            times = _parsed(probes, self.pattern)
        except pl.exceptions.PolarsError:  # reported with the first value that needs the format
            return False
        return bool((times != _iso_times(probes, "")).any())


def _alike(texts: pl.Series, dtype: pa.DataType) -> pl.Series | None:
    """Parse ISO 8601 times that all have a zone, or all have none; None if a value has another form."""
    try:
        times = texts.to_arrow().cast(dtype)
    except pa.ArrowInvalid:
        return None
    return pl.Series(texts.name, times).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")


def are_numbers(texts: pl.Series) -> bool:
    """Whether every value is a bare number, which is not a time without a unit."""
    values = texts.drop_nulls()
    return bool(len(values)) and bool(values.str.contains(_NUMBER).all())


def as_numbers(texts: pl.Series) -> pl.Series:
    """Convert texts that `are_numbers` to integers if all are whole, else to floats."""
    return texts.cast(pl.Float64 if texts.str.contains(".", literal=True).any() else pl.Int64)


def _pattern_of(texts: pl.Series, place: str, given: TimeFormat | None, *, is_for_all: bool) -> str | None:
    """The strptime format of the values (n,) that are not ISO 8601, or of all; None if all are ISO 8601."""
    values = texts.drop_nulls().unique(maintain_order=True)
    is_iso = values.str.contains(_ISO) & (not is_for_all)
    zoned = values.str.extract(_ISO, 5).is_not_null()
    pattern = None
    if not is_iso.all():
        others = values.filter(~is_iso)
        if given is not None:
            pattern = _given_format(others, given, place)
            zoned = (zoned & is_iso) | (~is_iso & given.has_zone)
        elif len(others) < len(values):
            raise SchemaError(
                f"{place}: {values.filter(is_iso)[0]!r} and {others[0]!r} are of two formats; write ISO 8601 "
                f"throughout, as {_EXAMPLE}"
            )
        else:
            pattern = _only_format(others, place)
        _refuse_below_micros(others, place)
    if zoned.any() and not zoned.all():
        raise SchemaError(
            f"{place}: {values.filter(zoned)[0]!r} has a zone and {values.filter(~zoned)[0]!r} has none; write all "
            "of them with a zone, such as a Z at the end for UTC"
        )
    _refuse_unread(values.filter(is_iso), _iso_times(values.filter(is_iso), place), place)
    return pattern


def _given_format(values: pl.Series, given: TimeFormat, place: str) -> str:
    try:
        times = _parsed(values, given.pattern)
    except pl.exceptions.PolarsError as exc:
        problem = str(exc).partition("\n")[0]
        raise SchemaError(f"{place}: csv_time_format={given.given!r} is no format of times: {problem}") from exc
    _refuse_unread(values, times, place, f"neither ISO 8601 nor {given.given!r}")
    return given.pattern


def _only_format(values: pl.Series, place: str) -> str:
    """The format that fits every value; several formats are accepted if they give the same times."""
    readings: list[tuple[str, pl.Series]] = []
    for pattern in _OTHER_FORMATS:
        times = _parsed(values, pattern)
        if not times.null_count() and times.dt.year().min() >= _YEAR_MIN:  # type: ignore[operator]
            readings.append((pattern, times))
    if not readings:
        numbers = values.str.contains(_NUMBER)
        if numbers.any():
            raise SchemaError(
                f"{place}: {values.filter(numbers)[0]!r} is a bare number and {values.filter(~numbers)[0]!r} is not; "
                f"write all of them as numbers of the event's time_unit, or all as ISO 8601, as {_EXAMPLE}"
            )
        raise SchemaError(
            f"{place}: {values[0]!r} is no ISO 8601 time; write it as {_EXAMPLE}, or give the format of all of them, "
            "such as --csv-time-format '%d.%m.%Y %H:%M' (in Python csv_time_format=)"
        )
    pattern, times = readings[0]
    for other, others in readings[1:]:
        differs = times != others
        if differs.any():
            raise SchemaError(
                f"{place}: {values.filter(differs)[0]!r} can be read as {times.filter(differs)[0]:%Y-%m-%d} and as "
                f"{others.filter(differs)[0]:%Y-%m-%d}; give the format, --csv-time-format {pattern!r} or "
                f"{other!r} (in Python csv_time_format=), or write ISO 8601"
            )
    return pattern


def _parsed(texts: pl.Series, pattern: str) -> pl.Series:
    """Parse values with a strptime format to microseconds UTC; null if a value has another format."""
    times = texts.str.to_datetime(pattern, time_unit="us", strict=False)
    zone = getattr(times.dtype, "time_zone", None)
    return times.dt.replace_time_zone("UTC") if zone is None else times.dt.convert_time_zone("UTC")


def _iso_times(texts: pl.Series, place: str) -> pl.Series:
    """Parse ISO 8601 times in any form; null if a value is not one."""
    parts = texts.str.extract_groups(_ISO).struct.unnest()
    date, clock, seconds, fraction, zone = (parts[name] for name in parts.columns)
    _refuse_below_micros(texts, place)
    micros = fraction.fill_null("0").str.pad_end(6, "0").str.slice(0, 6)
    offset = zone.str.to_uppercase().replace("Z", "+0000").fill_null("+0000").str.replace(":", "").str.pad_end(5, "0")
    whole = date + "T" + clock.fill_null("00:00") + ":" + seconds.fill_null("00") + "." + micros + offset
    return _parsed(whole, "%Y-%m-%dT%H:%M:%S%.f%z").alias(texts.name)


def _refuse_below_micros(values: pl.Series, place: str) -> None:
    lost = values.str.contains(_BELOW_MICROS).fill_null(value=False)
    if lost.any():
        raise SchemaError(f"{place}: {values.filter(lost)[0]!r} has digits below a microsecond; cut or round it")


def _refuse_unread(values: pl.Series, times: pl.Series, place: str, problem: str = "no time that there is") -> None:
    unread = times.is_null()
    if unread.any():
        raise SchemaError(f"{place}: {values.filter(unread)[0]!r} is {problem}; correct it")
