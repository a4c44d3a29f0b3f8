"""A catalogue: many candidates as of one moment, in columns. Immutable: a refresh builds a new one.

row     id -> row (IdMap)    text    inputs of the candidate's fields    columns that other fields read    records
0       4741855839676419641  tea     ids, bags, dense float32            float64, int64, lists             exists, age
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.features import Answer, IdMap, Lists
from headrace.learners.input_spec import Column
from headrace.learners.inputs import Inputs
from headrace.learners.publishing.halves import Half

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Records:
    """Facts (n,) of n records of a view: whether each exists, its newest event's age in µs, and whether it is ahead."""

    exists: NDArray[np.bool_]
    age_us: Ints
    ahead: NDArray[np.bool_]

    @classmethod
    def of(cls, answer: Answer) -> "Records":
        """Return the facts of an answer."""
        return cls(answer.found, answer.age_us, answer.ahead)

    def take(self, rows: Ints, later_us: int = 0) -> "Records":
        """Select the records `rows`, with ages increased by `later_us`."""
        exists = self.exists[rows]
        return Records(exists, np.where(exists, self.age_us[rows] + later_us, -1), self.ahead[rows])


@dataclass(frozen=True, slots=True)
class CandidateRows:
    """Values of n candidates that depend on the candidate alone.

    Attributes:
        inputs: (n,) inputs of the candidate's fields.
        columns: (n,) features of the candidate's views that other fields read.
        records: (n,) facts of the records, by view.
    """

    inputs: Inputs
    columns: Mapping[str, Column]
    records: Mapping[str, Records]

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        arrays: list[Any] = [self.inputs.ids, *self.inputs.bags, self.inputs.dense]
        for column in self.columns.values():
            arrays += [column] if isinstance(column, np.ndarray) else [column.values, column.lengths]
        return int(sum(array.nbytes for array in arrays)) + 10 * len(self) * len(self.records)

    def take(self, rows: Ints, later_us: int = 0) -> "CandidateRows":
        """Select the candidates `rows`, with the ages of their records increased by `later_us`."""
        columns = {name: taken(column, rows) for name, column in self.columns.items()}
        records = {view: some.take(rows, later_us) for view, some in self.records.items()}
        return CandidateRows(self.inputs.take(rows), columns, records)

    @staticmethod
    def concat(parts: "Sequence[CandidateRows]") -> "CandidateRows":
        """Concatenate `parts`, of which there is at least one."""
        if len(parts) == 1:
            return parts[0]
        columns = {name: _joined([part.columns[name] for part in parts]) for name in parts[0].columns}
        records = {
            view: Records(
                *(
                    np.concatenate([getattr(part.records[view], name) for part in parts])
                    for name in ("exists", "age_us", "ahead")
                )
            )
            for view in parts[0].records
        }
        return CandidateRows(Inputs.concat([part.inputs for part in parts]), columns, records)


@dataclass(slots=True)
class Catalogue:
    """Candidates as of `as_of_us`, in event time. Immutable but for `used`, set by requests, and `halves`, a cache.

    Attributes:
        ids, texts: (n,) keys, in the order of the rows.
        rows: the candidates' values.
        read_s: `time.monotonic` when reading began.
        used: (n,) whether a request has read the row since the catalogue was built.
        used_s: (n,) `time.monotonic` of the last refresh before which the row had been used.
        halves: scorer -> its half for the candidates; see `publishing/halves.py`.
    """

    ids: Ints
    texts: Sequence[bytes]
    rows: CandidateRows
    as_of_us: int
    read_s: float
    used: NDArray[np.bool_]
    used_s: NDArray[np.float64]
    halves: dict[Any, Half | None] = field(default_factory=dict)
    map: IdMap = field(init=False)

    def __post_init__(self) -> None:
        self.map = IdMap(len(self.ids))
        self.map.get_or_add(self.ids)  # ids are distinct, so row i gets index i

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """Memory of all arrays, plus an estimate for the texts."""
        halves = sum(half.nbytes for half in self.halves.values() if half is not None)
        texts = sum(map(len, self.texts)) + 41 * len(self.texts)
        return self.rows.nbytes + self.map.nbytes + texts + 17 * len(self) + halves


@dataclass(frozen=True, slots=True)
class Hit:
    """The candidates of a batch looked up in a catalogue.

    Attributes:
        rows: (R,) row of each candidate, -1 if it is not resident.
        absent: (a,) positions of candidates that are not resident.
        age_us: event time from the catalogue's moment to the request's, in µs.
    """

    catalogue: Catalogue
    rows: Ints
    absent: Ints
    age_us: int

    def columns(self) -> dict[str, Column]:
        """Return the columns (R,) that other fields read; all candidates must be resident."""
        return {name: taken(column, self.rows) for name, column in self.catalogue.rows.columns.items()}

    def records(self) -> dict[str, Records]:
        """Return the facts (R,) of the records by view; all candidates must be resident."""
        return {view: some.take(self.rows, self.age_us) for view, some in self.catalogue.rows.records.items()}

    def completed(self, absent: CandidateRows) -> CandidateRows:
        """Return all candidates (R,), given the absent ones (a,) that were read from the store."""
        is_resident = self.rows >= 0
        resident = self.catalogue.rows.take(self.rows[is_resident], self.age_us)
        order = np.empty(len(self.rows), np.int64)
        order[is_resident] = np.arange(len(resident))
        order[self.absent] = len(resident) + np.arange(len(absent))
        return CandidateRows.concat([resident, absent]).take(order)


def taken(column: Column, rows: Ints) -> Column:
    """Select the elements `rows` of a column."""
    return column[rows] if isinstance(column, np.ndarray) else Lists(column.values[rows], column.lengths[rows])


def _joined(columns: Sequence[Column]) -> Column:
    """Concatenate columns of one kind; lists are padded to the widest."""
    if isinstance(columns[0], np.ndarray):
        return np.concatenate([np.asarray(column) for column in columns])
    lists = [column for column in columns if not isinstance(column, np.ndarray)]
    width = max(some.values.shape[1] for some in lists)
    padded: list[NDArray[Any]] = [np.pad(some.values, ((0, 0), (0, width - some.values.shape[1]))) for some in lists]
    return Lists(np.concatenate(padded), np.concatenate([some.lengths for some in lists]))
