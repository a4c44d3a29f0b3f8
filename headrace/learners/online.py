"""OnlineLearner: predicts and then learns, one micro-batch at a time.

Invariant: the state is a plain dict of arrays, and the weights are a function of the declaration, the seed and the
sequence of batches. A learner that loads another learner's state continues to bitwise equal weights (on CPU, with the
same number of torch threads).

Outputs. A model's outputs are the module's outputs plus an intercept, which starts at the level of the first batch's
labels and follows it (`headrace.learners.intercept`). It follows a change of the base rate within some thousand
examples, where the optimizer's steps of the module would take millions. The loss turns outputs into predictions.

Log-rates. One model trains on examples of several sampling rates. An example whose negatives were kept at odds r times
the reference's has log_rate = -log r. The loss reads sigmoid(logit + log_rate), so `logit` stays the log-odds at the
reference rate, which is the rate of what `predict` returns. Source: King, Zeng (2001), "Logistic Regression in Rare
Events Data", Political Analysis 9, section 4.1.

Numbers are standardised by statistics of earlier rows (`headrace.learners.standardizer`).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.errors import DeclarationError, ModelError, SnapshotError
from headrace.learners.inputs import Inputs
from headrace.learners.intercept import Intercept
from headrace.learners.labels.targets import Targets, check_starts, rate_of, times_of
from headrace.learners.learner import Learner, require_learner
from headrace.learners.models.checks import are_finite
from headrace.learners.models.loss import Floats, LogRate
from headrace.learners.network import Network
from headrace.learners.per_example import Batch, Parts, example_loop
from headrace.learners.standardizer import Standardizer
from headrace.learners.state import (
    Arrays,
    FlatParameters,
    build_module,
    intercept_of,
    load_module,
    prefixed,
    table_arrays,
)
from headrace.learners.tables.embedding import TrainedLookup, Uses
from headrace.learners.tables.table import EmbeddingTable


class OnlineLearner:
    """Predicts, then learns. Not thread-safe.

    Args:
        learner: the declaration.
        seed: of all initial weights.
        threads: torch threads, for the whole process; bitwise equality holds between runs with the same number.

    Raises:
        DeclarationError: `learner` is no learner, or `seed` or `threads` is no whole number in its range.
    """

    def __init__(self, learner: type[Learner], seed: int = 0, *, threads: int = 1) -> None:
        require_learner(learner)
        for name, number, least in (("seed", seed, -(2**63)), ("threads", threads, 1)):
            if not isinstance(number, int) or isinstance(number, bool) or not least <= number < 2**63:
                raise DeclarationError(f"learner {learner.name}: {name}={number!r}; write a whole number")
        torch.set_num_threads(threads)
        self.learner = learner
        self.spec = learner.inputs
        self.steps = 0
        self.now_us = 0
        model = learner.model
        self.tables = {
            name: EmbeddingTable(name, model.dim, model.sparse, learner.tables.get(name), seed=seed)
            for name in self.spec.tables
        }
        self._lookup = TrainedLookup(self.spec, self.tables, model)
        self._module = build_module(learner, seed)
        self._parameters = FlatParameters(self._module)
        self._network = Network(model, self._module, self._lookup)
        self._numbers = Standardizer(len(self.spec.numbers))
        self._loss = model.loss
        self._intercept = Intercept(self._loss, model.outputs)
        self._rng = torch.Generator().manual_seed(seed).get_state()
        self._dense_state = model.optimizer.initial_state(self._parameters.weights.shape[1])[None]
        parts = Parts(self._lookup, self._parameters, self._numbers, self._intercept)
        self._loop = example_loop(model, self._network.by_hand, parts, self._dense_state)

    def predict(self, inputs: Inputs, log_rate: LogRate = 0.0) -> Floats:
        """Predictions (B,), or (B, K) with several outputs; changes nothing.

        They are at the reference rate, or with `log_rate`, a number, (B,) or (B, K), at the rate of each example.

        Raises:
            SchemaError: another spec assembled the inputs, or log-rates have the wrong shape, type or range.
        """
        self.learner.check_inputs(inputs)
        log_rate = rate_of(self.learner.name, self.learner.model, log_rate, len(inputs))
        outputs = self._network.score(self._lookup.find(inputs), self._numbers.transform(inputs.dense))
        return self._loss.predictions(outputs + offsets_of(self._intercept.value, log_rate))

    def learn(
        self,
        inputs: Inputs,
        labels: NDArray[Any],
        weights: NDArray[Any] | None = None,
        log_rate: LogRate = 0.0,
        event_time_us: int | NDArray[np.int64] | None = None,
        starts: NDArray[np.int64] | None = None,
    ) -> float:
        """Take one step on B examples; returns the mean of their weighted losses before the step.

        Args:
            inputs: B examples.
            labels: (B,), or (B, L) for a model of several labels; 0 or 1 with log-loss.
            weights: (B,) importance of each example, 0 to `WEIGHT_MAX`; the gradient is the sum of the weighted
                gradients divided by B.
            log_rate: log-odds offset of the examples' sampling, at most `LOG_RATE_MAX` from 0: a number or (B,), or
                with several outputs 0 or (B, K). It must be 0 if the loss is not of probabilities.
            event_time_us: a number or (B,), in microseconds since 1970; the newest becomes the last use of the ids.
            starts: (requests + 1,) first row of each request, and B. An id counts as used once per request, or without
                `starts` once per run of equal neighbours.

        Raises:
            SchemaError: another spec assembled the inputs, or labels, weights, log-rates, times or starts have the
                wrong shape, type or range. Nothing was learned then.
            ModelError: the module or the loss failed, or the loss or a gradient is not finite. No weight has changed.
        """
        return self._step(inputs, Targets(labels, weights, log_rate), event_time_us, starts, wants_predictions=False)[1]

    def predict_and_learn(
        self,
        inputs: Inputs,
        labels: NDArray[Any],
        weights: NDArray[Any] | None = None,
        log_rate: LogRate = 0.0,
        event_time_us: int | NDArray[np.int64] | None = None,
        starts: NDArray[np.int64] | None = None,
        *,
        per_example: bool = False,
    ) -> tuple[Floats, float]:
        """Predict B examples at their log-rates, then learn from them; returns the results of `predict` and `learn`.

        Faster than two calls if the model has a pass without autograd: prediction and step share one forward pass,
        except for examples with an id that gets its row in this batch.

        With `per_example` the result equals, bit for bit, B calls of one example each: each example is predicted with
        the weights after the previous one, each is a step, and `starts` has no effect. `Logistic` and `DeepFM` without
        hidden layers do so in one compiled loop, at some microseconds per example; other models take B steps.

        Raises:
            SchemaError, ModelError: as in `learn`.
        """
        if per_example:
            return self._step_each(inputs, Targets(labels, weights, log_rate), event_time_us)
        return self._step(inputs, Targets(labels, weights, log_rate), event_time_us, starts, wants_predictions=True)

    def _step_each(
        self, inputs: Inputs, targets: Targets, event_time_us: int | NDArray[np.int64] | None
    ) -> tuple[Floats, float]:
        """Take B steps of one example each, in the compiled loop if the model has one."""
        self.learner.check_inputs(inputs)
        targets.check(self.learner.name, self.learner.model, count := len(inputs))
        if count == 0:
            return self._step(inputs, targets, event_time_us, None, wants_predictions=True)
        event_times_us = times_of(self.learner.name, event_time_us, count)
        times_us = self.now_us + 1 + np.arange(count) if event_times_us is None else event_times_us
        now_us = np.maximum.accumulate(np.maximum(np.broadcast_to(times_us, count), self.now_us))

        def single(i: int) -> tuple[Floats, float]:
            example = slice(i, i + 1)
            return self._step(inputs.take(example), targets.take(example), int(now_us[i]), None, wants_predictions=True)

        if self._loop is None:
            steps = [single(i) for i in range(count)]
            return np.concatenate([predictions for predictions, _ in steps]), float(
                np.mean([loss for _, loss in steps])
            )
        steps_before = self.steps
        rates = np.broadcast_to(np.float32(targets.log_rate), count)
        batch = Batch(inputs, *targets.arrays(count), np.ascontiguousarray(rates, np.float32), now_us)
        predictions, losses = self._loop.run(batch, single)
        self.steps, self.now_us = steps_before + count, int(now_us[-1])
        return predictions, float(losses.mean())

    def _step(
        self,
        inputs: Inputs,
        targets: Targets,
        event_time_us: int | NDArray[np.int64] | None,
        starts: NDArray[np.int64] | None,
        *,
        wants_predictions: bool,
    ) -> tuple[Floats, float]:
        """Check everything, then change state in a fixed order: intercept, rows, module, tables, intercept, numbers."""
        self.learner.check_inputs(inputs)
        targets.check(self.learner.name, self.learner.model, len(inputs))
        times = times_of(self.learner.name, event_time_us, len(inputs))
        check_starts(self.learner.name, starts, len(inputs))
        if len(inputs) == 0:
            return self._loss.predictions(np.empty(targets.shape_of(self.learner.model.outputs, 0), np.float32)), 0.0
        self._tick(times)
        y, weight = targets.arrays(len(inputs))
        before = offsets = offsets_of(self._intercept.value, targets.log_rate)
        if not self._intercept.is_started:
            self._intercept.start(y, weight, targets.log_rate)
            offsets = offsets_of(self._intercept.value, targets.log_rate)
        numbers = self._numbers.transform(inputs.dense)
        known = self._lookup.find(inputs)
        uses = self._lookup.admit(known, self.now_us, starts)
        predictions, outputs = self._forward(known, uses, numbers, before if wants_predictions else None)
        z = outputs + offsets
        loss, grads = self._loss.gradients(z, y, weight)
        self._require_finite(uses, loss, grads)
        by_row, by_element = self._network.backward(grads)
        if self._network.by_hand is None:  # finite gradients may overflow in code of the user
            self._require_finite(uses, loss, self._parameters.grads, by_row, *by_element)
        self._parameters.step(self.learner.model.optimizer, self._dense_state)
        # The gradient of the summed loss: what an id learns from one example must not depend on the batch size.
        self._lookup.step(uses, by_row, by_element, float(len(inputs)))
        self._intercept.step(z, y, weight)
        self._numbers.observe(inputs.dense)
        self.steps += 1
        return predictions, loss

    def _require_finite(self, uses: Uses, loss: float, *gradients: NDArray[Any]) -> None:
        """Check a step before it is taken. A learner whose weights are damaged already goes on: the gate refuses it.

        Raises:
            ModelError: the loss or a gradient is not finite, and the weights are.
        """
        if math.isfinite(loss) and are_finite(*gradients):
            return
        if are_finite(self._parameters.weights, self._lookup.gather(uses), self._intercept.value):
            fault = f"the loss of this batch is {loss:g}" if not math.isfinite(loss) else "a gradient is not finite"
            raise ModelError(
                f"learner {self.learner.name} · step {self.steps + 1}: {fault}, so training stops before it damages "
                "the weights; lower the learning rates, or look for a division, a logarithm or a root in the model "
                "or its loss"
            )

    def _forward(
        self, known: Uses, uses: Uses, numbers: Floats, offsets: NDArray[np.float32] | None
    ) -> tuple[Floats, Floats]:
        """Predictions before the batch, if `offsets` are given, and the outputs that the step learns from.

        `known` has the rows before ids of the batch were admitted, `uses` the rows after. With autograd the prediction
        is a separate pass in eval mode. A pass by hand serves for both, except for examples with new rows.
        """
        predictions = np.empty(0, np.float32)
        by_hand = self._network.by_hand is not None
        if offsets is not None and not by_hand:
            predictions = self._loss.predictions(self._network.score(known, numbers) + offsets)
        if not by_hand:  # a pass by hand overwrites gradients instead of adding to them
            self._parameters.zero_grads()
        with nullcontext() if by_hand else self._own_rng():
            outputs = self._network.forward(uses, numbers)
        if offsets is not None and by_hand:
            predictions = self._loss.predictions(self._network.rescored(outputs, known, uses, numbers) + offsets)
        return predictions, outputs

    def expire(self) -> int:
        """Remove the rows that have expired under their tables' policies; returns the number removed."""
        return sum(table.expire(self.now_us) for table in self.tables.values())

    def state_dict(self, *, with_optimizer: bool = True) -> Arrays:
        """Copies of all arrays: `dense.<name>`, `table.<table>.<array>`, ..; with the optimizer, all training state."""
        exports = {name: table.export(with_optimizer=with_optimizer) for name, table in self.tables.items()}
        return self._rest_of_state(with_optimizer=with_optimizer) | _table_state(exports)

    def prepare_capture(self) -> bool:
        """Start to copy large tables in a thread during training; returns whether `capture` would not have to wait."""
        are_near = [table.prepare_capture() for table in self.tables.values()]
        return all(are_near)

    def capture(self) -> Callable[[], Arrays]:
        """Copy the current state; returns a function that gives it as `state_dict` does, later and in any thread.

        Tables are copied in memory order. The returned function sorts them, which takes longer than the copy. After
        `prepare_capture`, only the rows that have changed since then are left to copy.
        """
        rest = self._rest_of_state(with_optimizer=True)
        tables = {name: table.capture() for name, table in self.tables.items()}
        return lambda: rest | _table_state({name: exported() for name, exported in tables.items()})

    def _rest_of_state(self, *, with_optimizer: bool) -> Arrays:
        """Copies of all arrays except those of the tables."""
        arrays: Arrays = {f"dense.{name}": value.numpy().copy() for name, value in self._module.state_dict().items()}
        arrays["intercept"] = self._intercept.value.copy()
        arrays |= {f"numbers.{name}": array for name, array in self._numbers.state_dict().items()}
        if with_optimizer:
            arrays["optimizer.dense"] = self._dense_state.copy()
            arrays["rng"] = self._rng.numpy().copy()
            arrays["intercept_information"] = self._intercept.information.copy()
            arrays["progress"] = np.array([self.steps, self.now_us], dtype=np.int64)
        return arrays

    def load_state_dict(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Load what `state_dict` returned; without optimizer arrays, their state is initialised.

        Raises:
            SnapshotError: the arrays do not belong to this learner.
        """
        load_module(self._module, arrays, self.learner.name)
        self._intercept.load(intercept_of(arrays, self.learner), arrays.get("intercept_information"))
        self._numbers.load_state_dict(prefixed(arrays, "numbers."))
        for name, table in self.tables.items():
            table.load(table_arrays(arrays, name, self.learner.name))
        if "optimizer.dense" in arrays:
            if arrays["optimizer.dense"].shape != self._dense_state.shape:
                raise SnapshotError(f"learner {self.learner.name}: dense optimizer state of another optimizer")
            self._dense_state[:] = arrays["optimizer.dense"]
            self._rng = torch.from_numpy(np.array(arrays["rng"]))
            self.steps, self.now_us = (int(value) for value in arrays["progress"])
        else:
            self._dense_state[:] = self.learner.model.optimizer.initial_state(self._parameters.weights.shape[1])

    @contextmanager
    def _own_rng(self) -> Iterator[None]:
        """Use the learner's own state of torch's generator, as for dropout, and restore the global state afterwards."""
        outer = torch.get_rng_state()
        torch.set_rng_state(self._rng)
        try:
            yield
        finally:
            self._rng = torch.get_rng_state()
            torch.set_rng_state(outer)

    def _tick(self, times_us: NDArray[np.int64] | None) -> None:
        # Without times, each batch still counts as later than the previous one, since eviction needs an order.
        newest = self.now_us + 1 if times_us is None else int(times_us.max())
        self.now_us = max(self.now_us, newest)


def _table_state(exports: Mapping[str, Mapping[str, NDArray[Any]]]) -> Arrays:
    """Arrays of the tables by their names in a learner's state."""
    return {f"table.{name}.{key}": array for name, arrays in exports.items() for key, array in arrays.items()}


def offsets_of(intercept: NDArray[np.float32], log_rate: LogRate) -> NDArray[np.float32]:
    """Offsets to add to outputs (B, K): the intercept (K,) plus the log-rate, a number, (B,) or (B, K)."""
    rate = np.asarray(log_rate, dtype=np.float32)
    return intercept + (rate if intercept.size == 1 or rate.ndim != 1 else rate[:, None])
