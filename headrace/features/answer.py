"""The result of a read: a numeric column for each feature, or a data frame.

`found` marks entities that have a record, `age_us` is the age of its newest event, `ahead` marks records whose newest
event is not before the time of the read, and `empty` marks integer values that stand for "no value".
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from headrace.features.state.lists.update import copy_lists
from headrace.features.state.rings.update import EMPTY
from headrace.kernels.texts import POOL

NEVER = EMPTY
"""Newest event time of a record without events."""


@dataclass(frozen=True, slots=True)
class Feature:
    """A feature of a view.

    Attributes:
        dtype: int, float, text, time, or list[...] of these.
        declared: the attribute of the view that declares it.
        window: the window as written, None without a window.
        width: maximum length of a list, 0 for a single value.
    """

    name: str
    full_name: str
    dtype: str
    aggregation: str
    declared: str
    window: str | None = None
    width: int = 0


@dataclass(frozen=True, slots=True)
class Lists:
    """Lists of up to N elements: values (n, N) int64 or float64, zero beyond lengths (n,) int64.

    Contiguous lists have values (sum of lengths,) instead, list after list, as a data frame stores them.
    """

    values: NDArray[np.int64] | NDArray[np.float64]
    lengths: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Maybe:
    """Integer values (n,) that may be missing: `empty` (n,) marks those, and their value is 0."""

    values: NDArray[np.int64]
    empty: NDArray[np.bool_]


Column: TypeAlias = NDArray[np.float64] | NDArray[np.int64] | Lists


@dataclass(frozen=True, slots=True)
class Answer:
    """Features of n entities.

    Attributes:
        columns: feature name -> float64 (n,), NaN where there is no value; int64 (n,); or `Lists`. Texts are their
            hashes (`hash_text`), times int64 microseconds.
        found: (n,) whether the entity has a record.
        age_us: (n,) int64 now - newest event time, at least 0; -1 where not found.
        ahead: (n,) whether the record holds an event at or after now. Features that keep no times of single events
            (counts, sums, extremes, frequencies, Last, decayed sums) may include it, and windows may lack their
            oldest hop.
        features: the declarations, in the order of `columns`.
        empty: int64 feature name -> (n,) whether its 0 means "no value", for features that can be missing.
    """

    columns: dict[str, Column]
    found: NDArray[np.bool_]
    age_us: NDArray[np.int64]
    ahead: NDArray[np.bool_]
    features: tuple[Feature, ...] = ()
    empty: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.found)

    @property
    def age_s(self) -> NDArray[np.float64]:
        """(n,) `age_us` in seconds, NaN where not found."""
        return np.where(self.found, self.age_us / 1e6, np.nan)

    def to_polars(self, prefix: str = "") -> pl.DataFrame:
        """A data frame of n rows, with columns named prefix + feature name.

        Text hashes become texts, times are in UTC, and missing values are null.
        """
        return pl.DataFrame(
            [
                column_series(
                    prefix + feature.name, feature.dtype, self.columns[feature.name], self.empty.get(feature.name)
                )
                for feature in self.features
            ]
        )


def column_series(name: str, dtype: str, column: Column, empty: NDArray[np.bool_] | None) -> pl.Series:
    """Convert a column (n,) to a series; `dtype` is a `Feature.dtype`, and missing values become null."""
    if isinstance(column, Lists):
        return _list_series(name, dtype.removeprefix("list[").removesuffix("]"), column)
    # Built from buffers: `fill_nan`, `when` and `fill_null` each start Polars' engine, 0.1 ms per column (measured).
    if empty is None or not empty.any():
        return _TYPED[dtype](column).alias(name)
    if dtype == "text":
        return POOL.texts(column.view(np.int64)).set(pl.Series(empty), None).alias(name)
    series = pl.Series(name, pa.array(column, mask=empty))
    return series.cast(_TIME) if dtype == "time" else series


def _list_series(name: str, dtype: str, lists: Lists) -> pl.Series:
    offsets = np.zeros(len(lists.lengths) + 1, np.int64)
    np.cumsum(lists.lengths, out=offsets[1:])
    words = np.require(lists.values, lists.values.dtype, ["C", "W"]).view(np.int64)
    if words.ndim == 1:
        flat = words
    else:
        flat, lengths = np.empty(int(offsets[-1]), np.int64), np.require(lists.lengths, np.int64, ["C", "W"])
        starts = np.arange(len(words)) * words.shape[1]
        copy_lists(words.reshape(-1), 1, 0, starts, lengths, False, flat, offsets)
    array = pa.LargeListArray.from_arrays(pa.array(offsets), _elements(dtype, flat))
    series = pl.Series(name, array)
    return series.cast(pl.List(_TIME)) if dtype == "time" else series


def _elements(dtype: str, flat: NDArray[np.int64]) -> pa.Array:
    if dtype == "text":
        return POOL.texts(flat).to_arrow(compat_level=pl.CompatLevel.oldest())
    if dtype == "float":
        return pa.array(flat.view(np.float64), from_pandas=True)  # NaN becomes null
    return pa.array(flat)


def _times(values: NDArray[np.int64]) -> pl.Series:
    return pl.Series(values, dtype=pl.Int64).cast(_TIME)


def _floats(values: NDArray[np.float64]) -> pl.Series:
    return pl.Series(values, dtype=pl.Float64, nan_to_null=True)


def _ints(values: NDArray[np.int64]) -> pl.Series:
    return pl.Series(values, dtype=pl.Int64)


_TIME = pl.Datetime("us", "UTC")
_TYPED: dict[str, Callable[..., pl.Series]] = {"int": _ints, "float": _floats, "text": POOL.texts, "time": _times}
