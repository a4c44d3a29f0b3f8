"""Lookup of a batch: from inputs to the table rows that a model reads, and from gradients back to the tables.

    ids (B, F) ---- rows ------------> embedded[:, :F]   (B, F, W) --+
    bag j (B, L) -- rows (R, L) mean -> embedded[:, F+j]  (B, W)   --+-> module -> logits -> loss -> grads -> tables
                        +- elements (R, L, W), if the model reads them +

Equal consecutive bags, such as those of one request's candidates, are looked up and pooled once: R bags for B rows. A
step first sums the gradients of all uses of an id, in the order of the batch; then each row takes one optimizer step.

All ids of a batch are in one flat array, so that each stage is one kernel call for any number of fields:

    [ field 0: B ids | field 1: B ids | ... | bag 0: R x L ids | bag 1: R x L ids | ... ]     `starts` (F + J + 1,)
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.learners.input_spec import InputSpec
from headrace.learners.inputs import PAD, Inputs
from headrace.learners.models.model import Fields, Model
from headrace.learners.tables import admission, kernels
from headrace.learners.tables.optimizers import is_compiled
from headrace.learners.tables.steps import step_tables
from headrace.learners.tables.table import EmbeddingTable

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

_NO_BAGS = (np.empty((0, 0), np.int64),)
"""Placeholder for models without bags: a kernel cannot index an empty tuple."""
_NO_REQUESTS = np.zeros(1, np.int64)
"""First examples of requests, if there are no requests."""


class Table(Protocol):
    """A table that can be read."""

    @property
    def weights(self) -> Floats:
        """Weights (rows, W)."""
        ...

    @property
    def lines(self) -> Ints:
        """The map from ids to rows, in the form of `IdMap.table`."""
        ...


class Uses(NamedTuple):
    """The ids of a batch and their rows at one moment, -1 without a row; see the module docstring.

    Attributes:
        ids, rows: (n,).
        starts: (F + J + 1,) first element of each field and bag, and n.
        runs: (J, B) index of each example's bag among the R bags.
        lengths: (J,) L of each bag.
    """

    ids: Ints
    rows: Ints
    starts: Ints
    runs: Ints
    lengths: Ints

    @property
    def examples(self) -> int:
        """Number of examples, B."""
        return int(self.runs.shape[1])

    def differs(self, other: "Uses") -> Ints:
        """Examples, ascending, with an id that has another row in `other`, a lookup of the same batch."""
        if self.rows is other.rows:
            return np.empty(0, np.int64)
        return np.flatnonzero(self.examples_with(self.rows != other.rows))

    def examples_with(self, mask: Bools) -> Bools:
        """Mask (B,) of the examples with an id that is marked in `mask` (n,)."""
        having = np.empty(self.examples, np.bool_)
        kernels.mark_examples(mask, self.starts, self.runs, self.lengths, having)
        return having

    def bag_rows(self, bag: int) -> Ints:
        """Rows (R, L) of a bag's elements."""
        first = len(self.starts) - 1 - len(self.lengths) + bag
        return self.rows[self.starts[first] : self.starts[first + 1]].reshape(-1, int(self.lengths[bag]))


class Lookup:
    """Reads the rows of batches from tables.

    Args:
        spec: the input spec.
        tables: tables by name.
        model: its `dim` is the length of a row's vector; `reads_elements` selects bags whose elements are looked up.

    Attributes:
        width: W of a row.
        table_of: (F + J,) number of the table of each field and bag.
        no_elements: max(J, 1) empty arrays, for kernels that take gradients by the elements of bags.
    """

    def __init__(self, spec: InputSpec, tables: Mapping[str, Table], model: Model) -> None:
        self._tables = [tables[name] for name in spec.tables]
        self._fields = len(spec.categoricals)
        number_of = {name: number for number, name in enumerate(spec.tables)}
        names = [*(field.table for field in spec.categoricals), *(bag.table for bag in spec.bags)]
        self.table_of = np.array([number_of[name] for name in names], np.int64)  # of each field and bag
        self.width = model.dim + 1
        self.no_elements = tuple(np.empty((0, 0, self.width), np.float32) for _ in range(max(len(spec.bags), 1)))
        self._reads_elements = [model.reads_elements(bag) for bag in spec.bags]

    def find(self, inputs: Inputs) -> Uses:
        """Lay out the ids of a batch and look up their rows. Read-only."""
        examples = len(inputs)
        # A broadcast bag is one row for all examples, so no comparison is needed.
        bags = [np.ascontiguousarray(bag[:1] if bag.strides[0] == 0 else bag) for bag in inputs.bags]
        lengths = np.array([bag.shape[1] for bag in bags], np.int64)
        starts, runs = np.empty(len(self.table_of) + 1, np.int64), np.empty((len(bags), examples), np.int64)
        ids = np.empty(inputs.ids.size + sum(bag.size for bag in bags), np.int64)
        count = kernels.lay_out(np.ascontiguousarray(inputs.ids), tuple(bags) or _NO_BAGS, starts, runs, ids)
        return Uses(ids[:count], self._rows_of(ids[:count], starts), starts, runs, lengths)

    def refreshed(self, uses: Uses) -> Uses:
        """Look up the ids of `uses` again, as their rows may have changed."""
        return Uses(uses.ids, self._rows_of(uses.ids, uses.starts), uses.starts, uses.runs, uses.lengths)

    def gather(self, uses: Uses, examples: Ints | None = None) -> Floats:
        """Rows of the id fields and means of the bags, (n, F + J, W); zeros for an id without a row.

        `examples` (n,), ascending, selects examples; None selects all.
        """
        picked = np.arange(uses.examples) if examples is None else examples
        out = np.empty((len(picked), len(self.table_of), self.width), np.float32)
        if not self._tables:
            return out
        weights = tuple(table.weights for table in self._tables)
        kernels.gather(weights, self.table_of, uses.starts, uses.rows, uses.runs, uses.lengths, picked, out)
        return out

    def fields(self, uses: Uses, dense: Floats, *, grad: bool = False) -> Fields:
        """A batch as tensors; with `grad` they are leaves that collect gradients."""
        elements = [self._elements(uses, bag) for bag in range(len(uses.lengths))]
        return Fields(
            torch.from_numpy(self.gather(uses)).requires_grad_(grad),
            torch.tensor(dense),  # a copy, as the module may change it in place
            tuple(torch.from_numpy(rows).requires_grad_(grad) for rows in elements),
            tuple(torch.from_numpy(uses.bag_rows(bag) >= 0) for bag in range(len(uses.lengths))),
            tuple(torch.from_numpy(run) for run in uses.runs),
        )

    def _rows_of(self, ids: Ints, starts: Ints) -> Ints:
        rows = np.empty(len(ids), np.int64)
        if self._tables:
            kernels.find(tuple(table.lines for table in self._tables), self.table_of, starts, ids, rows)
        return rows

    def _elements(self, uses: Uses, bag: int) -> Floats:
        """Rows of a bag's elements (R, L, W); R = 0 if the model does not read them."""
        rows = uses.bag_rows(bag) if self._reads_elements[bag] else np.empty((0, 0), np.int64)
        out = np.empty((*rows.shape, self.width), np.float32)
        if out.size:
            kernels.gather_elements(self._tables[self.table_of[self._fields + bag]].weights, rows, out)
        return out


class TrainedLookup(Lookup):
    """A lookup for training, which admits ids and applies gradients."""

    def __init__(self, spec: InputSpec, tables: Mapping[str, EmbeddingTable], model: Model) -> None:
        super().__init__(spec, tables, model)
        self._trained = [tables[name] for name in spec.tables]
        self._optimizer = model.sparse
        self._admits_at_once = np.array([table.policy.min_count == 1 for table in self._trained], np.bool_)
        self._segments = [np.flatnonzero(self.table_of == number).tolist() for number in range(len(spec.tables))]

    def admit(self, uses: Uses, now_us: int, starts: Ints | None = None) -> Uses:
        """Count the ids of a training batch and admit those with enough uses; returns the batch with its new rows.

        An id shared by consecutive examples counts once, such as the user of ten candidates. `starts` (requests + 1,)
        separates requests with equal ids; without it, equal neighbours count as one request.
        """
        if not self._trained:
            return uses
        requests = _NO_REQUESTS if starts is None else np.array(starts, np.int64)
        _, _, seen, counts, _, _ = self.arrays
        is_first, lacking = admission.count_uses(
            uses.ids, uses.rows, uses.starts, self.table_of, requests, uses.runs, now_us, seen, counts
        )
        if not lacking.any():
            self.note_changed(uses)
            return uses
        at_once, rows = lacking & self._admits_at_once, uses.rows.copy()
        self._admit_missing(uses, rows, is_first, at_once, now_us)
        must_refresh = False
        for table, is_lacking, is_added, segments in zip(
            self._trained, lacking.tolist(), at_once.tolist(), self._segments, strict=True
        ):
            if is_added:
                must_refresh |= table.keep_budget()
            elif is_lacking:
                parts = [slice(uses.starts[s], uses.starts[s + 1]) for s in segments]
                table.admit(np.concatenate([uses.ids[part][is_first[part]] for part in parts]), now_us)
                must_refresh = True
        admitted = self.refreshed(uses) if must_refresh else uses._replace(rows=rows)
        self.note_changed(admitted)
        return admitted

    def note_changed(self, uses: Uses) -> None:
        """Tell copies in progress that the rows of `uses` have changed. Call it after the change."""
        for table, segments in zip(self._trained, self._segments, strict=True):
            if table.is_copying:
                for s in segments:
                    table.note_changed(uses.rows[uses.starts[s] : uses.starts[s + 1]])

    def _admit_missing(self, uses: Uses, rows: Ints, is_first: Bools, admits: Bools, now_us: int) -> None:
        """Add the missing ids to the tables marked in `admits` (T,), update `rows`, and count the uses."""
        tables, full = self._trained, 0
        first_values = tuple(zip(*(table.first_values for table in tables), strict=True))
        segments = (self.table_of, uses.starts, uses.ids)
        while full >= 0:
            maps = tuple(zip(*(table.map_arrays for table in tables), strict=True))
            full = int(
                admission.admit_missing(maps, self.arrays, first_values, *segments, rows, is_first, admits, now_us)
            )
            if full >= 0:
                tables[full].make_room()

    @property
    def arrays(self) -> tuple[tuple[NDArray[Any], ...], ...]:
        """Weights, optimizer state, last use, uses, ids and scratch slots, each a tuple of one array per table."""
        return tuple(zip(*(table.arrays for table in self._trained), strict=True))

    def waiting(self, uses: Uses) -> Bools:
        """Mask (B,) of examples with an id that `add` may not add: it waits for admission, or the table is full."""
        mask = np.zeros(len(uses.ids), np.bool_)
        for table, ids, positions in self._lacking(uses):
            if table.policy.min_count > 1 or len(table) + len(ids) > table.policy.rows_max:
                mask[positions] = True
        return uses.examples_with(mask)

    def add(self, uses: Uses) -> Uses:
        """Add a row for each id of a batch without one, without counting a use; returns the batch with new rows."""
        lacking = self._lacking(uses)
        for table, ids, _ in lacking:
            table.add(ids)
        return self.refreshed(uses) if lacking else uses

    def _lacking(self, uses: Uses) -> list[tuple[EmbeddingTable, Ints, Ints]]:
        """Tables that lack rows for ids of the batch: table, distinct ids, and all their positions in the batch."""
        positions = np.flatnonzero((uses.rows < 0) & (uses.ids != PAD))
        if not positions.size:
            return []
        numbers = self.table_of[np.searchsorted(uses.starts, positions, side="right") - 1]
        parts = [(self._trained[number], positions[numbers == number]) for number in np.unique(numbers).tolist()]
        return [(table, np.unique(uses.ids[part]), part) for table, part in parts]

    def step(self, uses: Uses, grads: Floats, elements: Sequence[Floats], scale: float) -> None:
        """Take one optimizer step of every row in the batch.

        Args:
            uses: the ids and rows of the batch.
            grads: (B, F + J, W) gradients of the loss with respect to the result of `gather`.
            elements: J x (R, L, W) gradients with respect to the bags' elements, empty if the model does not read them.
            scale: factor of all gradients.
        """
        if not self._trained:
            return
        weights, states, _, _, _, slots = self.arrays
        unique, bounds, totals = kernels.sum_gradients(
            slots,
            self.table_of,
            uses.starts,
            uses.rows,
            uses.runs,
            uses.lengths,
            grads,
            tuple(elements) or self.no_elements,
            scale,
        )
        if is_compiled(self._optimizer):
            step_tables(self._optimizer.kind, self._optimizer.rates, weights, states, unique, bounds, totals)
            self.note_changed(uses)
            return
        for number, table in enumerate(self._trained):
            segment = slice(int(bounds[number]), int(bounds[number + 1]))
            table.step(unique[segment], totals[segment])
