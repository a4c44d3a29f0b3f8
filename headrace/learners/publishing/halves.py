"""A DeepFM in halves: the candidate's part of a score is computed once, the request's part once per request.

The first layer is linear, so it is a sum over the fields of the candidate, of the request, and of both. The
factorisation machine needs the sum of the vectors and the sum of their squares, which are also sums over fields:

    first (H,) = W x_candidate + W x_request + W x_both + bias        relu(first) -> the other layers
    pairs      = 1/2 (|s_candidate + s_request|^2 - squares_candidate - squares_request)

A request of B candidates costs B H additions for the first layer instead of B (E dim + N) H products. Fields of both
are numbers only. The result equals the whole forward pass up to the order of sums, within 1e-5 (test_resident.py).

    x (E * dim + N)  vectors of id fields and bags, then the standardised numbers and their missing-value indicators
    H  width of the first layer      B, n  rows      s (dim,)  sum of the vectors
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.kernels.compile import Int, lean_kernel
from headrace.learners.input_spec import Bag, Columns, Field, InputSpec
from headrace.learners.inputs import Inputs
from headrace.learners.models.deep_fm import DeepFM
from headrace.learners.publishing.scorer import Scorer
from headrace.learners.standardizer import Standardizer
from headrace.learners.state import prefixed
from headrace.learners.tables.embedding import Lookup

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
BLOCK_ROWS = 4_096
"""Candidates per block when their half is computed: their rows of x are 2 MB at a width of 128."""
SCORE_ROWS = 1_024
"""Candidates per block in the layers: 1 MB at a width of 256, which stays in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some fields of a spec: a spec of these fields, None if empty, and the positions of their columns in `Inputs`.

    Attributes:
        ids, bags, numbers: positions in `Inputs.ids`, `Inputs.bags` and `Inputs.dense`.
    """

    spec: InputSpec | None
    ids: Ints
    bags: Ints
    numbers: Ints

    @classmethod
    def of(cls, whole: InputSpec, fields: Sequence[Field]) -> Self:
        """The part of `whole` that consists of `fields`."""
        names = [each.name for each in fields]
        positions = [
            np.array([all_names.index(name) for name in names if name in all_names], np.int64)
            for all_names in (whole.id_names, whole.bag_names, whole.dense_names)
        ]
        return cls(InputSpec(*map(alone, fields)) if fields else None, *positions)

    def assemble(self, columns: Columns, rows: int) -> Inputs:
        """Assemble the inputs of these fields for `rows` rows."""
        if self.spec is not None:
            return self.spec.assemble(columns, rows)
        return Inputs(np.empty((rows, 0), np.int64), (), np.empty((rows, 0), np.float32))


def alone(each: Field) -> Field:
    """A copy of a field that is valid in a spec without the other fields: a bag loses its `candidate`."""
    return replace(each, candidate="") if isinstance(each, Bag) else each


@dataclass(frozen=True, slots=True)
class Half:
    """The contributions of n rows. Each row is contiguous in memory, since random access costs per contiguous span.

    rows (n, H + dim + 1): first layer before the activation (H), s (dim), linear terms minus half the squares (1).
    """

    rows: Floats
    width: int

    @property
    def first(self) -> Floats:
        """The first layer before the activation (n, H)."""
        return self.rows[:, : self.width]

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return self.rows.nbytes


class Halves:
    """One frozen model, for requests of one entity and many candidates. Immutable; any number of threads may use it.

    Construct it with `Halves.of`.
    """

    def __init__(self, scorer: Scorer, candidate: Part, request: Part, both: Part) -> None:
        weights = scorer.dense()
        whole = scorer.learner.inputs
        self._scorer = scorer
        self._constant: Floats = weights["intercept"] + weights["first_order.bias"]
        linear = sum(1 for name in weights if name.startswith("mlp.") and name.endswith(".weight"))
        layers = [(weights[f"mlp.{2 * i}.weight"], weights[f"mlp.{2 * i}.bias"]) for i in range(linear)]
        (first, self._first_bias), *rest = layers
        self._layers = [(torch.from_numpy(weight), torch.from_numpy(bias)) for weight, bias in rest]
        numbers = Standardizer(len(whole.numbers))
        numbers.load_state_dict(prefixed(weights, "numbers."))
        self._candidate, self._request, self._both = (
            _Weights(part, scorer, first, weights["first_order.weight"][0], numbers)
            for part in (candidate, request, both)
        )

    @classmethod
    def of(cls, scorer: Any, candidate: Part, request: Part, both: Part) -> "Halves | None":
        """The halves of a scorer; None if its model cannot be split, or a field of both is an id or a bag."""
        if not isinstance(scorer, Scorer) or not scorer.has_plain_layers or both.ids.size or both.bags.size:
            return None
        model = scorer.learner.model
        return cls(scorer, candidate, request, both) if isinstance(model, DeepFM) and model.hidden else None

    def of_candidates(self, inputs: Inputs) -> Half:
        """The half of n candidates, from inputs of the candidate's fields only."""
        return self._candidate.half(inputs)

    def score(self, half: Half, rows: Ints, request: Inputs, both: Inputs) -> Floats:
        """Scores (B,) of the candidates at `rows` (B,) of `half`, for one request.

        Args:
            half: result of `of_candidates`.
            rows: (B,) positions in `half`.
            request: one row of the request's fields.
            both: B rows of the fields of both.
        """
        own = self._request.half(request)
        numbers = self._both.numbers.transform(np.ascontiguousarray(both.dense))
        logits, deep = np.empty(len(rows), np.float32), torch.empty(len(rows))
        of_request = torch.from_numpy(own.first[0] + self._first_bias)
        all_rows, of_both = torch.from_numpy(half.rows), torch.from_numpy(self._both.weights)
        positions, x_both = torch.from_numpy(rows), torch.from_numpy(numbers)
        *layers, (head, head_bias) = self._layers
        for begin in range(0, len(rows), SCORE_ROWS):
            span = slice(begin, begin + SCORE_ROWS)
            block = all_rows.index_select(0, positions[span])  # (b, H + dim + 1)
            add_pairs(block.numpy(), own.rows[0], half.width, numbers[span], self._both.first_order, logits[span])
            outputs = block[:, : half.width].addmm_(x_both[span], of_both).add_(of_request).relu_()  # (b, H)
            for weight, bias in layers:
                outputs = torch.addmm(bias, outputs, weight.t()).relu_()
            torch.mv(outputs, head[0], out=deep[span])
        torch.from_numpy(logits).add_(deep).add_(head_bias)
        model = self._scorer.learner.model
        return model.score(model.loss.predictions(logits + self._constant))


class _Weights:
    """The weights of some fields.

    Attributes:
        weights: (P, H) of the first layer, one row for each of the fields' columns of x.
        first_order: (2 D,) of the fields' numbers.
        numbers: statistics of the fields' numbers.
    """

    def __init__(self, fields: Part, scorer: Scorer, first: Floats, first_order: Floats, numbers: Standardizer) -> None:
        whole, dim = scorer.learner.inputs, scorer.learner.model.dim
        vectors = np.concatenate([fields.ids, len(whole.categoricals) + fields.bags])
        width, all_numbers = (len(whole.categoricals) + len(whole.bags)) * dim, len(whole.numbers)
        of_vectors = (vectors[:, None] * dim + np.arange(dim)).reshape(-1)
        of_numbers = np.concatenate([fields.numbers, all_numbers + fields.numbers])
        self.weights = np.ascontiguousarray(first[:, np.concatenate([of_vectors, width + of_numbers])].T)
        self.first_order = np.ascontiguousarray(first_order[of_numbers])
        self.numbers = Standardizer(len(fields.numbers))
        for name in ("weight", "mean", "var"):
            getattr(self.numbers, name)[:] = getattr(numbers, name)[fields.numbers]
        self._dim = dim
        self._lookup = Lookup(fields.spec, scorer.tables, scorer.learner.model) if fields.spec else None

    def half(self, inputs: Inputs) -> Half:
        """The contributions of the rows of `inputs`."""
        count = len(inputs)
        width = self.weights.shape[1]
        made = Half(np.empty((count, width + self._dim + 1), np.float32), width)
        weights = torch.from_numpy(self.weights)
        for begin in range(0, count, BLOCK_ROWS):
            cut = slice(begin, begin + BLOCK_ROWS)
            block = inputs.take(cut)
            numbers = self.numbers.transform(np.ascontiguousarray(block.dense))
            x = np.empty((len(block), len(self.weights)), np.float32)
            add_up(self._rows(block), numbers, self.first_order, x, made.rows[cut], width)
            torch.from_numpy(made.first[cut]).copy_(torch.mm(torch.from_numpy(x), weights))
        return made

    def _rows(self, block: Inputs) -> Floats:
        """Table rows (n, E, W) of a block."""
        if self._lookup is None:
            return np.empty((len(block), 0, self._dim + 1), np.float32)
        return self._lookup.gather(self._lookup.find(block))


@lean_kernel
def add_up(embedded: Floats, numbers: Floats, first_order: Floats, x: Floats, rows: Floats, width: Int) -> None:
    """Fill `x` (n, P), and `rows` (n, H + dim + 1) from column `width` on: s, and linear terms minus half the squares.

    embedded (n, E, dim + 1), numbers (n, 2 D), first_order (2 D,). O(n P); sums run in float64.
    """
    dim = rows.shape[1] - width - 1
    for i in range(x.shape[0]):
        total = np.float64(0.0)
        for j in range(dim):
            rows[i, width + j] = 0.0
        for e in range(embedded.shape[1]):
            for j in range(dim):
                v = embedded[i, e, j]
                x[i, e * dim + j] = v
                rows[i, width + j] += v
                total -= 0.5 * np.float64(v) * v
            total += embedded[i, e, dim]
        for j in range(numbers.shape[1]):
            x[i, embedded.shape[1] * dim + j] = numbers[i, j]
            total += np.float64(first_order[j]) * numbers[i, j]
        rows[i, width + dim] = total


@lean_kernel
def add_pairs(rows: Floats, request: Floats, width: Int, numbers: Floats, first_order: Floats, logits: Floats) -> None:
    """Write logits without the MLP to `logits` (B,), from candidates' `rows` (B, H + dim + 1) and the request's row.

    request (H + dim + 1,), numbers (B, 2 C) of the fields of both, first_order (2 C,) their weights. O(B (dim + C)).
    """
    last = rows.shape[1] - 1
    for i in range(rows.shape[0]):
        total = np.float64(rows[i, last]) + request[last]
        for c in range(first_order.size):
            total += np.float64(first_order[c]) * numbers[i, c]
        for j in range(width, last):
            s = np.float64(rows[i, j]) + request[j]
            total += 0.5 * s * s
        logits[i] = total
