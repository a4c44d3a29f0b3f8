"""From inputs to the rows a model reads, and from its gradients back to the tables.

    ids (B, F) ---- rows ------------> embedded[:, :F]   (B, F, W) --+
    bag j (B, L) -- rows (R, L) mean -> embedded[:, F+j]  (B, W)   --+-> module -> logits -> loss -> grads -> tables
                        +- elements (R, L, W), with attention  ------+

Equal consecutive bags (the candidates of one request) are looked up and pooled once: R bags for B rows. In a step the
gradients of all uses of an id are added up first, in the order of the batch; then each row takes one optimizer step.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.learners import kernels
from headrace.learners.input_spec import InputSpec
from headrace.learners.inputs import Inputs
from headrace.learners.models.model import Fields
from headrace.learners.table import EmbeddingTable


class Lookup(Protocol):
    """A table that can be read."""

    @property
    def weights(self) -> NDArray[np.float32]:
        """(rows, W)."""
        ...

    def locate(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of each id, -1 without one; any shape."""
        ...


@dataclass(frozen=True, slots=True)
class Bags:
    """The R distinct bags (R, L) of B rows, and which of them each row has (B,)."""

    ids: NDArray[np.int64]
    run: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Gathered:
    """A batch, looked up: arrays for the module, and the rows they came from.

    `id_rows` F x (B,), `bag_rows` J x (R, L), `runs` J x (B,), `elements` J x (R, L, W) with R = 0 where nobody
    attends.
    """

    embedded: NDArray[np.float32]
    elements: tuple[NDArray[np.float32], ...]
    id_rows: tuple[NDArray[np.int64], ...]
    bag_rows: tuple[NDArray[np.int64], ...]
    runs: tuple[NDArray[np.int64], ...]

    def fields(self, dense: NDArray[np.float32], *, grad: bool = False) -> Fields:
        """As tensors that share memory with the arrays; with `grad` as leaves that collect gradients."""
        return Fields(
            torch.from_numpy(self.embedded).requires_grad_(grad),
            torch.from_numpy(np.ascontiguousarray(dense)),
            tuple(torch.from_numpy(part).requires_grad_(grad) for part in self.elements),
            tuple(torch.from_numpy(rows >= 0) for rows in self.bag_rows),
            tuple(torch.from_numpy(run) for run in self.runs),
        )


def distinct_bags(inputs: Inputs) -> tuple[Bags, ...]:
    """Each bag of `inputs` without its consecutive repetitions; a broadcast one is recognised without a look."""
    out = []
    for bag in inputs.bags:
        run = np.zeros(len(bag), dtype=np.int64)
        if len(bag) and bag.strides[0] == 0:
            out.append(Bags(np.ascontiguousarray(bag[:1]), run))
            continue
        own = np.ascontiguousarray(bag)
        count = kernels.runs(own, run)
        firsts = np.flatnonzero(np.diff(run, prepend=-1))
        out.append(Bags(own if count == len(own) else own[firsts], run))
    return tuple(out)


def gather(
    spec: InputSpec,
    tables: Mapping[str, Lookup],
    inputs: Inputs,
    bags: tuple[Bags, ...],
    *,
    width: int,
    attention: bool,
) -> Gathered:
    """Look up `inputs`, whose `bags` are `distinct_bags(inputs)`; `width` is W. Reads the tables only."""
    id_count = len(spec.categoricals)
    embedded = np.empty((len(inputs), id_count + len(bags), width), dtype=np.float32)
    id_rows = tuple(tables[field.table].locate(inputs.ids[:, f]) for f, field in enumerate(spec.categoricals))
    bag_rows = tuple(tables[field.table].locate(bag.ids) for field, bag in zip(spec.bags, bags, strict=True))
    for f, rows in enumerate(id_rows):
        kernels.gather(tables[spec.categoricals[f].table].weights, rows, f, embedded)
    elements, scratch = [], np.empty(width, dtype=np.float64)
    for j, (field, rows, bag) in enumerate(zip(spec.bags, bag_rows, bags, strict=True)):
        kernels.pool(tables[field.table].weights, rows, bag.run, id_count + j, scratch, embedded)
        shape = rows.shape if attention and field.candidate else (0, 0)
        part = np.empty((*shape, width), dtype=np.float32)
        if part.size:
            kernels.gather_elements(tables[field.table].weights, rows, part)
        elements.append(part)
    return Gathered(embedded, tuple(elements), id_rows, bag_rows, tuple(bag.run for bag in bags))


def admit(
    spec: InputSpec,
    tables: Mapping[str, EmbeddingTable],
    inputs: Inputs,
    bags: tuple[Bags, ...],
    now_us: int,
    starts: NDArray[np.int64] | None = None,
) -> None:
    """Count the uses of ids in a training batch, and give rows to ids that have earned one.

    An id, or a bag, that consecutive rows share is used once: a request's user beside ten candidates. `starts`
    (requests + 1,) tells requests apart whose ids are equal; without it equal neighbours count as one request.
    """
    first = np.zeros(len(inputs), dtype=bool)
    first[:1] = True
    if starts is not None:
        first[starts[:-1][np.diff(starts) > 0]] = True
    begins = first[:, None] | (np.diff(inputs.ids, axis=0, prepend=inputs.ids[:1]) != 0)
    for name, table in tables.items():
        used = [inputs.ids[begins[:, f], f] for f, field in enumerate(spec.categoricals) if field.table == name]
        used += [bag.ids.reshape(-1) for field, bag in zip(spec.bags, bags, strict=True) if field.table == name]
        table.admit(np.concatenate(used), now_us)


def step(
    spec: InputSpec, tables: Mapping[str, EmbeddingTable], gathered: Gathered, fields: Fields, scale: float
) -> None:
    """One optimizer step of every row in the batch, by `scale` times the gradients that `fields` collected."""
    assert fields.embedded.grad is not None, "step comes after backward"
    grads = fields.embedded.grad.numpy()
    element_grads = [None if part.grad is None else part.grad.numpy() for part in fields.elements]
    for name, table in tables.items():
        columns = [f for f, field in enumerate(spec.categoricals) if field.table == name]
        bags = [j for j, field in enumerate(spec.bags) if field.table == name]
        id_rows, bag_rows = gathered.id_rows, gathered.bag_rows
        unique = np.empty(sum(id_rows[f].size for f in columns) + sum(bag_rows[j].size for j in bags), dtype=np.int64)
        count = 0
        for rows in (*(id_rows[f] for f in columns), *(bag_rows[j] for j in bags)):
            count = table.claim(rows.reshape(-1), unique, count)
        total, scratch = np.zeros((count, table.width), dtype=np.float64), np.empty(table.width, dtype=np.float64)
        for f in columns:
            kernels.add_gradients(id_rows[f], table.slots, grads, f, scale, total)
        for j in bags:
            column = len(spec.categoricals) + j
            kernels.add_pooled(bag_rows[j], gathered.runs[j], table.slots, grads, column, scale, scratch, total)
            by_element = element_grads[j]
            if by_element is not None and by_element.size:
                kernels.add_elements(bag_rows[j], table.slots, by_element, scale, total)
        table.release(unique[:count])
        table.step(unique[:count], total)
