"""Payloads or rows that cannot be used, as columns, so that a flood of them does not create a Python object each."""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar, overload

import numpy as np
import polars as pl
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class BadPayload:
    """A payload without a row. `reason` is undecodable, wrong_type or missing; `index` is its 0-based index."""

    index: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: its index, the reason in one word (`missing`, `wrong_type`, ...) and a sentence."""

    index: int
    reason: str
    detail: str


One = TypeVar("One", bound=BadPayload | BadRow)


class Rejects(Sequence[One]):
    """A sequence of rejects that creates its objects on access.

    Args:
        make: the class of the objects, called with index, reason and detail.
        indexes: int64 (n,), ascending.
        reasons, details: (n,) strings.
    """

    def __init__(
        self, make: Callable[[int, str, str], One], indexes: NDArray[np.int64], reasons: pl.Series, details: pl.Series
    ) -> None:
        assert len(indexes) == len(reasons) == len(details), f"{len(indexes)}, {len(reasons)}, {len(details)}"
        self.make = make
        self.indexes = indexes
        self.reasons = reasons
        self.details = details

    @classmethod
    def none(cls, make: Callable[[int, str, str], One]) -> Self:
        """An empty sequence. Nearly every batch has one, so it is cheap."""
        return cls(make, _NO_INDEX, _NO_TEXT, _NO_TEXT)

    @classmethod
    def of(cls, make: Callable[[int, str, str], One], rejects: Sequence[One]) -> Self:
        """Convert a sequence of objects to columns; a `Rejects` is returned unchanged."""
        if isinstance(rejects, cls):
            return rejects
        if not rejects:
            return cls.none(make)
        index = np.array([one.index for one in rejects], np.int64)
        reasons, details = [one.reason for one in rejects], [one.detail for one in rejects]
        return cls(make, index, pl.Series(reasons, dtype=pl.String), pl.Series(details, dtype=pl.String))

    @classmethod
    def same(
        cls, make: Callable[[int, str, str], One], index: NDArray[np.int64], reason: str, detail: str | pl.Series
    ) -> Self:
        """Rejects that share one reason."""
        details = detail if isinstance(detail, pl.Series) else pl.repeat(detail, len(index), eager=True)
        return cls(make, index, pl.repeat(reason, len(index), dtype=pl.String, eager=True), details.cast(pl.String))

    @classmethod
    def merged(cls, make: Callable[[int, str, str], One], parts: Sequence[Self]) -> Self:
        """Merge several sequences into one, by ascending index; no index may occur twice."""
        some = [part for part in parts if len(part)]
        if len(some) < 2:
            return some[0] if some else cls.none(make)
        index = np.concatenate([part.indexes for part in some])
        order = np.argsort(index, kind="stable")
        reason, detail = pl.concat([part.reasons for part in some]), pl.concat([part.details for part in some])
        return cls(make, index[order], reason[order], detail[order])

    def at(self, index: NDArray[np.int64]) -> Self:
        """A copy with other indexes (n,), such as those in the batch of which this sequence covers a part."""
        return type(self)(self.make, index, self.reasons, self.details)

    def __len__(self) -> int:
        return len(self.indexes)

    def __iter__(self) -> Iterator[One]:
        return map(self.make, self.indexes.tolist(), self.reasons.to_list(), self.details.to_list())

    @overload
    def __getitem__(self, key: int) -> One: ...
    @overload
    def __getitem__(self, key: slice) -> Self: ...
    def __getitem__(self, key: int | slice) -> One | Self:
        if isinstance(key, slice):
            return type(self)(self.make, self.indexes[key], self.reasons[key], self.details[key])
        return self.make(int(self.indexes[key]), self.reasons[key], self.details[key])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Rejects({list(self[:10])!r}{', ...' if len(self) > 10 else ''})"


_NO_INDEX = np.empty(0, np.int64)
_NO_TEXT = pl.Series([], dtype=pl.String)
