"""Learning example by example in one compiled loop: equal to B calls of one example, at some microseconds per example.

Example i is predicted with the weights after examples 0 to i - 1. A call with a batch of one costs a hundred
microseconds for any model. This loop runs the kernels of that step in sequence, so its weights equal those of B such
calls, bit for bit.

    lay out, find rows, add rows of new ids      once per chunk of examples
    read rows -> output -> loss -> gradients -> dense step -> rows' step -> intercept -> statistics      per example

It supports models with `FMPass` (linear plus products of pairs), log-loss, and the built-in optimizers. The caller
learns one by one the examples that need more than a step: the first, which starts the intercept; examples with one of
the first values of a number; and examples with an id that waits for admission, or for which another id must be evicted.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.kernels.compile import Float, kernel
from headrace.learners.inputs import Inputs
from headrace.learners.intercept import INFORMATION_MAX, Intercept
from headrace.learners.models.fm_pass import FMPass, fm_gradients, fm_outputs
from headrace.learners.models.log_loss import LogLoss, balance, log_loss_gradients
from headrace.learners.models.model import Model, Pass
from headrace.learners.standardizer import Standardizer, observe_rows, transform_rows
from headrace.learners.state import FlatParameters
from headrace.learners.tables.admission import touch_rows
from headrace.learners.tables.embedding import TrainedLookup
from headrace.learners.tables.kernels import gather, sum_gradients
from headrace.learners.tables.optimizers import Compiled, is_compiled
from headrace.learners.tables.steps import Doubles, Floats, Ints, step_dense, step_tables

Tuple = tuple[Any, ...]

CHUNK = 512
"""Examples that are looked up together."""


class Batch(NamedTuple):
    """B examples, checked; see `OnlineLearner.learn`.

    Attributes:
        inputs: the inputs of the examples.
        labels, weights, log_rates: (B,) float32.
        now_us: (B,) the newest event time up to each example.
    """

    inputs: Inputs
    labels: Floats
    weights: Floats
    log_rates: Floats
    now_us: Ints


class ExampleLoop:
    """The compiled loop of one learner. Not thread-safe.

    Args:
        parts: the parts of the learner that the loop changes.
        sparse, dense: optimizers of rows and of the module's parameters.
        by_hand: the module's pass without autograd.
        dense_state: (1, S) state of the dense optimizer.
    """

    def __init__(self, parts: "Parts", sparse: Compiled, dense: Compiled, by_hand: FMPass, dense_state: Floats) -> None:
        self._parts = parts
        self._optimizers = (sparse.kind, sparse.rates, dense.kind, dense.rates)
        self._pass = by_hand
        self._dense_state = dense_state

    def run(self, batch: Batch, single: Callable[[int], tuple[Floats, float]]) -> tuple[Floats, Doubles]:
        """Predict and learn each example in turn; returns predictions (B,) and weighted losses (B,).

        Args:
            batch: the examples.
            single: predicts and learns one example, given its index.
        """
        count = len(batch.inputs)
        predictions, losses = np.empty(count, np.float32), np.empty(count, np.float64)
        begin = 0
        while begin < count:
            end = begin + self._learn_chunk(batch, begin, predictions, losses)
            if end == begin:
                predictions[begin : begin + 1], losses[begin] = single(begin)
                end += 1
            begin = end
        return predictions, losses

    def _learn_chunk(self, batch: Batch, begin: int, predictions: Floats, losses: Doubles) -> int:
        """Learn from up to `CHUNK` examples from `begin` on, until one that the loop cannot take; returns how many."""
        parts = self._parts
        if not parts.intercept.is_started:
            return 0
        chunk = slice(begin, begin + CHUNK)
        inputs = batch.inputs.take(chunk)
        uses = parts.lookup.find(inputs)
        is_left = parts.numbers.needs_warm_up(inputs.dense) | parts.lookup.waiting(uses)
        count = int(is_left.argmax()) if is_left.any() else len(inputs)
        if count == 0:
            return 0
        if count < len(inputs):  # an id used only by later examples gets no row yet
            inputs, chunk = inputs.take(slice(count)), slice(begin, begin + count)
            uses = parts.lookup.find(inputs)
        known, uses = uses.rows, parts.lookup.add(uses)
        learn_each(
            parts.lookup.arrays,
            parts.lookup.table_of,
            (known, *uses[1:]),
            (np.ascontiguousarray(inputs.dense), *(array[chunk] for array in batch[1:])),
            (
                self._pass.head,
                self._pass.head_grads,
                parts.parameters.weights,
                self._dense_state,
                parts.parameters.grads,
            ),
            (parts.numbers.weight, parts.numbers.mean, parts.numbers.var),
            (parts.intercept.value, parts.intercept.information),
            self._optimizers,
            (predictions[chunk], losses[chunk], parts.lookup.no_elements),
        )
        parts.lookup.note_changed(uses)
        return count


class Parts(NamedTuple):
    """The parts of a learner that the loop changes."""

    lookup: TrainedLookup
    parameters: FlatParameters
    numbers: Standardizer
    intercept: Intercept


def example_loop(model: Model, by_hand: Pass | None, parts: Parts, dense_state: Floats) -> ExampleLoop | None:
    """Return the compiled loop of a learner; None if its model, loss or optimizers are not supported."""
    sparse, dense = model.sparse, model.optimizer
    is_known = type(model.loss) is LogLoss and model.outputs == 1 and len(parts.lookup.table_of) > 0
    if is_known and type(by_hand) is FMPass and is_compiled(sparse) and is_compiled(dense):
        return ExampleLoop(parts, sparse, dense, by_hand, dense_state)
    return None


@kernel
def learn_each(
    tables: Tuple,
    table_of: Ints,
    uses: Tuple,
    examples: Tuple,
    dense: Tuple,
    numbers: Tuple,
    intercept: Tuple,
    optimizers: Tuple,
    out: Tuple,
) -> None:
    """Predict and learn the examples of `uses`, one by one; the first lines name the elements of each argument.

    `known` (n,) are the rows before these examples' new ids got theirs: the first use of an id is predicted without it.
    """
    weights, states, seen, counts, _, slots = tables
    _, _, _, runs, lengths = uses
    x, labels, importance, log_rates, now_us = examples
    head, head_grads, flat_weights, flat_state, flat_grads = dense
    weight, mean, var = numbers
    value, information = intercept
    kind, rates, dense_kind, dense_rates = optimizers
    predictions, losses, no_elements = out
    own_starts, own_runs, own_rows, own_known = own = _own_layout(table_of.size, lengths)
    buffers = _buffers(table_of.size, weights[0].shape[1], x.shape[1])
    embedded, standardised, sums, by_row, z, grads, begin = buffers
    for i in range(runs.shape[1]):
        own_x, y, w = x[i : i + 1], labels[i : i + 1], importance[i : i + 1]
        transform_rows(own_x, weight, mean, var, standardised)
        is_new = _own_rows(i, uses, table_of, counts, own_starts, own_rows, own_known)
        offset = value[0] + log_rates[i]
        predictions[i] = _forward(weights, table_of, own, lengths, buffers, head, offset, is_new)
        losses[i] = log_loss_gradients(z, y, w, grads)
        fm_gradients(grads, embedded, standardised, head, head_grads, sums, by_row)
        step_dense(dense_kind, dense_rates, flat_weights, flat_state, flat_grads)
        summed = sum_gradients(slots, table_of, own_starts, own_rows, own_runs, lengths, by_row, no_elements, 1.0)
        step_tables(kind, rates, weights, states, summed[0], summed[1], summed[2])
        _touch(own_rows, own_starts, table_of, now_us[i], seen, counts)
        shift, added = balance(z, y, w, information[0])
        value[0] += np.float32(shift)
        information[0] = min(information[0] + added, max(INFORMATION_MAX, added))
        observe_rows(own_x, begin, weight, mean, var)


@kernel
def _buffers(segments: int, width: int, numbers: int) -> Tuple:
    """Buffers of one example: rows, numbers, sums of vectors, gradients of rows, output, its gradient, and zeros."""
    embedded, by_row = np.empty((1, segments, width), np.float32), np.empty((1, segments, width), np.float32)
    standardised, sums = np.empty((1, 2 * numbers), np.float32), np.empty((1, width - 1), np.float32)
    return (
        embedded,
        standardised,
        sums,
        by_row,
        np.empty(1, np.float32),
        np.empty(1, np.float32),
        np.zeros(numbers, np.int64),
    )


@kernel
def _forward(
    weights: Tuple,
    table_of: Ints,
    own: Tuple,
    lengths: Ints,
    buffers: Tuple,
    head: Tuple,
    offset: Float,
    is_new: bool,
) -> Float:
    """Predict one example with the rows before it, and leave its rows and output in `buffers` for the step."""
    own_starts, own_runs, own_rows, own_known = own
    embedded, standardised, sums, _, z, _, _ = buffers
    prediction, only = np.float32(0.0), np.zeros(1, np.int64)
    if is_new:
        gather(weights, table_of, own_starts, own_known, own_runs, lengths, only, embedded)
        fm_outputs(embedded, standardised, head, sums, z)
        prediction = _sigmoid(z[0] + offset)
    gather(weights, table_of, own_starts, own_rows, own_runs, lengths, only, embedded)
    fm_outputs(embedded, standardised, head, sums, z)
    z[0] += offset
    return prediction if is_new else _sigmoid(z[0])


@kernel
def _own_layout(segments: int, lengths: Ints) -> tuple[Ints, NDArray[np.int64], Ints, Ints]:
    """Layout of one example: starts (F + J + 1,) of its segments, runs of its bags, and two buffers for its rows.

    Segments are F fields of one id, then J bags of `lengths`.
    """
    starts, fields = np.arange(segments + 1), segments - lengths.size
    for bag in range(lengths.size):
        starts[fields + bag + 1] = starts[fields + bag] + lengths[bag]
    own_runs = np.zeros((lengths.size, 1), np.int64)
    return starts, own_runs, np.empty(starts[-1], np.int64), np.empty(starts[-1], np.int64)


@kernel
def _own_rows(
    i: int, uses: Tuple, table_of: Ints, counts: Tuple, own_starts: Ints, own_rows: Ints, own_known: Ints
) -> bool:
    """Write example `i`'s rows to `own_rows`, those before its ids' first use to `own_known`; True if they differ."""
    known, rows, starts, runs, lengths = uses
    fields, is_new = table_of.size - lengths.size, False
    for s in range(table_of.size):
        size = own_starts[s + 1] - own_starts[s]
        first = starts[s] + (i if s < fields else runs[s - fields, i] * size)
        part = slice(own_starts[s], own_starts[s + 1])
        own_rows[part] = rows[first : first + size]
        is_new |= _rows_before(own_rows[part], known[first : first + size], counts[table_of[s]], own_known[part])
    return is_new


@kernel
def _touch(own_rows: Ints, own_starts: Ints, table_of: Ints, now_us: int, seen: Tuple, counts: Tuple) -> None:
    """Count a use of each row of one example."""
    for s in range(table_of.size):
        touch_rows(own_rows[own_starts[s] : own_starts[s + 1]], now_us, seen[table_of[s]], counts[table_of[s]])


@kernel
def _rows_before(rows: Ints, known: Ints, counts: Ints, out: Ints) -> bool:
    """Write `rows` of a table to `out`, -1 for a row that is new and unused; returns whether there is one.

    `known` are the rows before the batch, `counts` the uses of each row of the table.
    """
    is_new = False
    for k in range(rows.size):
        out[k] = rows[k]
        if rows[k] >= 0 and known[k] < 0 and counts[rows[k]] == 0:
            out[k] = -1
            is_new = True
    return is_new


@kernel
def _sigmoid(z: float) -> Float:
    """Probability of log-odds, in float32."""
    half = np.float32(0.5)
    return half * (np.float32(1.0) + np.tanh(half * np.float32(z)))
