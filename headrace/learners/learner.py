"""A learner: its declaration, and the machine that predicts and then learns, one micro-batch at a time.

    class NextThing(Learner):
        views = (ReaderActivity, ThingActivity)
        label = Label(Reading, within="10m", candidate="thing")
        inputs = InputSpec(Categorical("thing"), Dense("reads", "thing_activity.reads_1h", transform="log1p"))
        model = DeepFM(dim=16, hidden=(64, 32))

Invariant: the state is a plain dict of arrays, and weights are a function of the declaration, the seed and the
sequence of batches: a learner that loads the state of another goes on to bitwise equal weights (on CPU, with the same
number of torch threads).

Log-rates. Examples of several samplings train one model. An example whose negatives were kept at odds r times the
reference's has log_rate = -log r: the loss reads sigmoid(logit + log_rate), so `logit` stays the log-odds at the
reference rate, and that is what `predict` returns. Source: King, Zeng (2001), "Logistic Regression in Rare Events
Data", Political Analysis 9, section 4.1.

The logit is the module's output plus an intercept. The first batch sets it to the log-odds of its base rate; then each
batch moves it by damped Newton steps, which follow a base rate that changes within some thousand examples, where the
optimizer's steps of the module would take millions. See `headrace.learners.intercept`.

Numbers reach the module standardised by the rows before them (`headrace.learners.standardizer`).
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from headrace.errors import DeclarationError, SchemaError, SnapshotError
from headrace.features import FeatureView, ViewPlan, plans_of
from headrace.learners.input_spec import InputSpec
from headrace.learners.input_types import check_fields
from headrace.learners.inputs import Inputs
from headrace.learners.intercept import Intercept
from headrace.learners.label import Label
from headrace.learners.models.model import Model
from headrace.learners.network import Network, sigmoid
from headrace.learners.standardizer import Standardizer
from headrace.learners.tables import kernels
from headrace.learners.tables.embedding import TrainedLookup
from headrace.learners.tables.table import EmbeddingTable, TablePolicy

Arrays = dict[str, NDArray[Any]]


class Learner:
    """Base of learner declarations; subclass it, do not make instances.

    Attributes:
        views: views whose features `inputs` reads; a single view may stand alone.
        label: what makes an example positive; None where labels come ready.
        inputs: the fields of the model.
        model: the model's declaration.
        tables: embedding table -> policy; tables that are not named have the default one.
        name: of the learner; the class name in snake_case unless given.

    Raises:
        DeclarationError: inputs or model are missing, a column names no feature of the views or one of a type that its
            field cannot read, a policy names no table, or an attribute is of another kind.
    """

    views: ClassVar[tuple[type[FeatureView], ...]] = ()
    label: ClassVar[Label | None] = None
    inputs: ClassVar[InputSpec]
    model: ClassVar[Model]
    tables: ClassVar[Mapping[str, TablePolicy]] = {}
    name: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        cls._check_parts()
        if unknown := set(cls.tables) - set(cls.inputs.tables):
            raise DeclarationError(
                f"learner {cls.name} · tables {sorted(unknown)}: inputs use {', '.join(cls.inputs.tables)}"
            )
        check_fields(cls.name, cls.inputs, cls._plans())

    @classmethod
    def _check_parts(cls) -> None:
        """Raise where an attribute is missing or of another kind; one view alone is taken for a tuple of it."""
        for needed in ("inputs", "model"):
            if not hasattr(cls, needed):
                raise DeclarationError(f"learner {cls.name}: no {needed}; declare `{needed} = ...`")
        if isinstance(cls.views, type):
            cls.views = (cls.views,)
        kinds = {
            "views": (cls.views, isinstance(cls.views, tuple | list), "a tuple of views, such as (UserActivity,)"),
            "label": (cls.label, cls.label is None or isinstance(cls.label, Label), "a Label(...), or leave it out"),
            "inputs": (cls.inputs, isinstance(cls.inputs, InputSpec), "an InputSpec(...)"),
            "model": (cls.model, _is_model(cls.model), "a model, such as DeepFM()"),
            "tables": (cls.tables, isinstance(cls.tables, Mapping), 'a dict, such as {"item": TablePolicy()}'),
        }
        for name, (value, fits, wanted) in kinds.items():
            if not fits:
                found = f"the class {value.__name__}; call it" if isinstance(value, type) else repr(value)
                raise DeclarationError(f"learner {cls.name}: {name} is {found}; write {wanted}")
        for table, policy in cls.tables.items():
            if not isinstance(policy, TablePolicy):
                raise DeclarationError(f"learner {cls.name} · table {table!r}: {policy!r}; write a TablePolicy(...)")

    @classmethod
    def fingerprints(cls) -> dict[str, str]:
        """Layout fingerprint of each view, by the view's name."""
        return {plan.name: plan.fingerprint for plan in cls._plans()}

    @classmethod
    def _plans(cls) -> list[ViewPlan]:
        return plans_of(cls.views, f"learner {cls.name}") if cls.views else []


def _is_model(value: Any) -> bool:
    """Whether a value is a declared model, not its class."""
    return not isinstance(value, type) and callable(getattr(value, "build", None)) and hasattr(value, "dim")


class OnlineLearner:
    """Predicts, then learns. One thread at a time.

    Args:
        learner: the declaration.
        seed: of all first weights.
        threads: set for all of torch in this process; bitwise equality holds between runs with the same number.
    """

    def __init__(self, learner: type[Learner], seed: int = 0, *, threads: int = 1) -> None:
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
        self._lookup = TrainedLookup(self.spec, self.tables, model.dim + 1, attention=model.attention)
        self._module = build_module(learner, seed)
        self._parameters = _Flat(self._module)
        self._network = Network(self._module, self._lookup)
        self._numbers = Standardizer(len(self.spec.numbers))
        self._intercept = Intercept()
        self._rng = torch.Generator().manual_seed(seed).get_state()
        self._dense_state = model.optimizer.initial_state(self._parameters.weights.shape[1])[None]

    def predict(self, inputs: Inputs, log_rate: float | NDArray[np.floating[Any]] = 0.0) -> NDArray[np.float32]:
        """Probabilities (B,) before learning from `inputs`; changes nothing.

        With `log_rate`, a number or (B,), at an example's own rate in place of the reference's.

        Raises:
            SchemaError: another spec assembled the inputs.
        """
        check_fingerprint(self.learner, inputs)
        logits = self._network.score(self._lookup.find(inputs), self._numbers.transform(inputs.dense))
        return sigmoid(logits + offsets_of(self._intercept.value, log_rate))

    def learn(
        self,
        inputs: Inputs,
        labels: NDArray[Any],
        weights: NDArray[Any] | None = None,
        log_rate: float | NDArray[np.floating[Any]] = 0.0,
        event_time_us: int | NDArray[np.int64] | None = None,
        starts: NDArray[np.int64] | None = None,
    ) -> float:
        """One step on B examples; returns the mean of their weighted losses, before the step.

        Args:
            inputs: B examples.
            labels: (B,) 0 or 1.
            weights: (B,) importance of each example, finite and not negative; the gradient is the sum of weighted ones
                over B.
            log_rate: log-odds offset of the examples' sampling, finite, a number or (B,).
            event_time_us: of the examples, in microseconds; the newest is when their ids were last seen.
            starts: (requests + 1,) first row of each request, and B. An id counts as used once a request; without it,
                once a run of equal neighbours.

        Raises:
            SchemaError: another spec assembled the inputs, there are not B labels or weights, or one of them, or a
                log-rate, is out of range. Nothing was learned then.
        """
        return self._learn(inputs, labels, weights, log_rate, event_time_us, starts, wants_probabilities=False)[1]

    def predict_and_learn(
        self,
        inputs: Inputs,
        labels: NDArray[Any],
        weights: NDArray[Any] | None = None,
        log_rate: float | NDArray[np.floating[Any]] = 0.0,
        event_time_us: int | NDArray[np.int64] | None = None,
        starts: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.float32], float]:
        """What `predict` gives for B examples, with their log-rates, and what `learn` gives, in that order.

        Faster than the two calls where the model's pass is written by hand: the forward pass of the step is that of the
        prediction, but for examples with an id that gets its row in this batch.

        Raises:
            SchemaError: as `learn`.
        """
        return self._learn(inputs, labels, weights, log_rate, event_time_us, starts, wants_probabilities=True)

    def _learn(
        self,
        inputs: Inputs,
        labels: NDArray[Any],
        weights: NDArray[Any] | None,
        log_rate: float | NDArray[np.floating[Any]],
        event_time_us: int | NDArray[np.int64] | None,
        starts: NDArray[np.int64] | None,
        *,
        wants_probabilities: bool,
    ) -> tuple[NDArray[np.float32], float]:
        rows = len(inputs)
        check_fingerprint(self.learner, inputs)
        _check_targets(self.learner.name, rows, labels, weights, log_rate)
        if rows == 0:
            return np.empty(0, np.float32), 0.0
        self._tick(event_time_us)
        y = np.ascontiguousarray(labels, dtype=np.float32)
        weight = np.ones(rows, np.float32) if weights is None else np.ascontiguousarray(weights, dtype=np.float32)
        before = offsets_of(self._intercept.value, log_rate)
        if not self._intercept.is_started:
            self._intercept.start(y, weight, log_rate)
        offsets = offsets_of(self._intercept.value, log_rate)
        numbers = self._numbers.transform(inputs.dense)
        known = self._lookup.find(inputs)
        uses = self._lookup.admit(known, self.now_us, starts)
        probabilities = np.empty(0, np.float32)
        if wants_probabilities and not self._network.is_by_hand:
            probabilities = sigmoid(self._network.score(known, numbers) + before)
        self._parameters.zero_grads()
        with nullcontext() if self._network.is_by_hand else self._own_rng():
            logits = self._network.forward(uses, numbers)
        if wants_probabilities and self._network.is_by_hand:
            probabilities = sigmoid(self._network.rescored(logits, known, uses, numbers) + before)
        z, grads = logits + offsets, np.empty(rows, np.float32)
        loss = kernels.log_loss(z, y, weight, grads)
        by_row, by_element = self._network.backward(grads)
        self._parameters.step(self.learner.model.optimizer, self._dense_state)
        # Of the summed loss: what an id learns from one example must not depend on how many others share the batch.
        self._lookup.step(uses, by_row, by_element, float(rows))
        self._intercept.step(z, y, weight)
        self._numbers.observe(inputs.dense)
        self.steps += 1
        return probabilities, loss

    def expire(self) -> int:
        """Remove the rows that their tables' policies call old; returns how many."""
        return sum(table.expire(self.now_us) for table in self.tables.values())

    def state_dict(self, *, with_optimizer: bool = True) -> Arrays:
        """Copies of all arrays: `dense.<name>`, `table.<table>.<array>`, and with the optimizer what learning needs."""
        arrays: Arrays = {f"dense.{name}": value.numpy().copy() for name, value in self._module.state_dict().items()}
        arrays["intercept"] = self._intercept.value.copy()
        arrays |= {f"numbers.{name}": array for name, array in self._numbers.state_dict().items()}
        for name, table in self.tables.items():
            exported = table.export(with_optimizer=with_optimizer)
            arrays |= {f"table.{name}.{key}": array for key, array in exported.items()}
        if with_optimizer:
            arrays["optimizer.dense"] = self._dense_state.copy()
            arrays["rng"] = self._rng.numpy().copy()
            arrays["intercept_information"] = self._intercept.information.copy()
            arrays["progress"] = np.array([self.steps, self.now_us], dtype=np.int64)
        return arrays

    def load_state_dict(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Become the learner that `state_dict` came from; without optimizer arrays, their state starts anew.

        Raises:
            SnapshotError: the arrays are not those of this learner.
        """
        load_module(self._module, arrays, self.learner.name)
        self._intercept.load(intercept_of(arrays, self.learner.name), arrays.get("intercept_information"))
        self._numbers.load_state_dict(prefixed(arrays, "numbers."))
        for name, table in self.tables.items():
            table.load(table_arrays(arrays, name, self.learner.name))
        if "optimizer.dense" in arrays:
            if arrays["optimizer.dense"].shape != self._dense_state.shape:
                raise SnapshotError(f"learner {self.learner.name}: dense optimizer state of another optimizer")
            self._dense_state[:] = arrays["optimizer.dense"]
            self._rng = torch.from_numpy(np.array(arrays["rng"]))
            self.steps, self.now_us = (int(value) for value in arrays["progress"])

    @contextmanager
    def _own_rng(self) -> Iterator[None]:
        """Torch's generator at this learner's place in its own sequence (dropout draws from it), then as it was."""
        outer = torch.get_rng_state()
        torch.set_rng_state(self._rng)
        try:
            yield
        finally:
            self._rng = torch.get_rng_state()
            torch.set_rng_state(outer)

    def _tick(self, event_time_us: int | NDArray[np.int64] | None) -> None:
        # Without times, batches still follow one another: eviction needs an order.
        newest = self.now_us + 1 if event_time_us is None else int(np.max(event_time_us))
        self.now_us = max(self.now_us, newest)


def build_module(learner: type[Learner], seed: int = 0) -> torch.nn.Module:
    """The learner's module with first weights by `seed`; torch's own generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return learner.model.build(learner.inputs)


def load_module(module: torch.nn.Module, arrays: Mapping[str, NDArray[Any]], name: str) -> None:
    """Copy the `dense.*` arrays into `module`.

    Raises:
        SnapshotError: names or shapes differ.
    """
    found = {key.removeprefix("dense."): array for key, array in arrays.items() if key.startswith("dense.")}
    wanted = module.state_dict()
    shapes = {key: array.shape for key, array in found.items()}
    if shapes != {key: tuple(value.shape) for key, value in wanted.items()}:
        differing = sorted(
            key for key in {*shapes, *wanted} if shapes.get(key) != getattr(wanted.get(key), "shape", None)
        )
        raise SnapshotError(f"learner {name}: dense arrays differ from the model's: {', '.join(differing)}")
    with torch.no_grad():
        for key, value in wanted.items():
            value.copy_(torch.from_numpy(np.array(found[key])))


def intercept_of(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[np.float32]:
    """A copy of the intercept (1,).

    Raises:
        SnapshotError: there is none.
    """
    if "intercept" not in arrays or arrays["intercept"].shape != (1,):
        raise SnapshotError(f"learner {name}: no intercept of shape (1,)")
    return np.array(arrays["intercept"], dtype=np.float32)


def table_arrays(arrays: Mapping[str, NDArray[Any]], table: str, learner: str) -> Arrays:
    """The arrays of one table without their prefix.

    Raises:
        SnapshotError: there are none.
    """
    found = prefixed(arrays, f"table.{table}.")
    if not {"ids", "weights"} <= set(found):
        raise SnapshotError(f"learner {learner}: no arrays of table {table!r}")
    return found


def prefixed(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Arrays:
    """The arrays whose names begin with `prefix`, without it."""
    return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}


def check_fingerprint(learner: type[Learner], inputs: Inputs) -> None:
    """Refuse inputs of another spec.

    Raises:
        SchemaError: the fingerprints differ.
    """
    if inputs.fingerprint != learner.inputs.fingerprint:
        raise SchemaError(
            f"learner {learner.name}: inputs of spec {inputs.fingerprint}, it reads {learner.inputs.fingerprint}; "
            "assemble with the learner's own InputSpec"
        )


def offsets_of(intercept: NDArray[np.float32], log_rate: float | NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """What is added to logits: the intercept (1,) and the log-rate, a number or (B,)."""
    return intercept + np.asarray(log_rate, dtype=np.float32)  # (1,) or (B,)


def _check_targets(
    name: str,
    rows: int,
    labels: NDArray[Any],
    weights: NDArray[Any] | None,
    log_rate: float | NDArray[np.floating[Any]],
) -> None:
    """Refuse what would make weights wrong for ever.

    Raises:
        SchemaError: an array has another shape than (rows,), or a value that no example can have.
    """
    for what, array in (("labels", labels), ("weights", weights)):
        if array is not None and array.shape != (rows,):
            raise SchemaError(f"learner {name} · {what} {array.shape}: wanted ({rows},)")
    given: list[tuple[str, NDArray[Any], NDArray[np.bool_], str]] = [
        ("labels", labels, (labels == 0) | (labels == 1), "0 or 1"),
        ("log_rate", np.asarray(log_rate), np.isfinite(log_rate), "a finite number"),
    ]
    if weights is not None:
        given.append(("weights", weights, np.isfinite(weights) & (weights >= 0), "a finite number of at least 0"))
    for what, values, allowed, wanted in given:
        if not allowed.all():
            raise SchemaError(f"learner {name} · {what}: {values[~allowed].reshape(-1)[0]}, wanted {wanted}")


class _Flat:
    """A module's parameters as views of one row (1, P), their gradients of another: an optimizer's step is one call."""

    def __init__(self, module: torch.nn.Module) -> None:
        parameters = list(module.parameters())
        self._flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
        self._grads = torch.zeros_like(self._flat)
        start = 0
        for parameter in parameters:
            end = start + parameter.numel()
            parameter.data = self._flat[start:end].view_as(parameter)
            parameter.grad = self._grads[start:end].view_as(parameter)
            start = end
        self.weights: NDArray[np.float32] = self._flat.numpy()[None]
        self._row = np.zeros(1, dtype=np.int64)

    def zero_grads(self) -> None:
        self._grads.zero_()

    def step(self, optimizer: Any, state: NDArray[np.float32]) -> None:
        optimizer.step(self.weights, state, self._row, self._grads.numpy()[None].astype(np.float64))
