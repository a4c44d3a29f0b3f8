"""River models with the predict and learn methods of `OnlineLearner`, as baselines, one example at a time.

An example becomes a dict: numbers by name, ids as "name=id": 1.0, bag ids as "name=id": 1 / (ids in the bag). What is
missing has no key. It takes about 50 µs per example with a logistic regression on a dozen features. There are no
snapshots, so it is for comparison, not for serving.
"""

import inspect
import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DeclarationError, SchemaError
from headrace.learners.input_spec import InputSpec
from headrace.learners.inputs import PAD, Inputs
from headrace.learners.labels.targets import Targets, rate_of
from headrace.learners.models.checks import running
from headrace.learners.models.log_loss import log_losses
from headrace.learners.models.logistic import Logistic


class RiverClassifier(Protocol):
    """The methods used of a River classifier or pipeline."""

    def predict_proba_one(self, x: dict[str, float]) -> dict[Any, float]:
        """Probability of each class."""
        ...

    def learn_one(self, x: dict[str, float], y: bool, **kwargs: Any) -> Any:
        """Take one step."""
        ...


_BINARY = Logistic()
"""A model of one label with log-loss, whose limits of labels, weights and log-rates apply to River models too."""


class RiverLearner:
    """Predicts, then learns, with a River model.

    Args:
        spec: the input spec.
        model: any binary River classifier or pipeline.
        weighted: whether `learn_one` of the model takes a weight `w`; needed for weights and log-rates.

    Raises:
        DeclarationError: `model` is no classifier, or takes no weight although `weighted` is True.
    """

    def __init__(self, spec: InputSpec, model: RiverClassifier, *, weighted: bool = True) -> None:
        self.spec = spec
        self.model = model
        self._weighted = weighted
        self._name = f"on River {type(model).__name__}"
        if isinstance(model, type) or not (hasattr(model, "predict_proba_one") and hasattr(model, "learn_one")):
            given = f"the class {model.__name__}; call it" if isinstance(model, type) else f"a {type(model).__name__}"
            raise DeclarationError(f"RiverLearner: model is {given}; write a River classifier or a pipeline of one")
        if weighted and not _takes_weight(model):
            raise DeclarationError(f"learner {self._name}: its learn_one takes no weight w; set weighted=False")

    def predict(self, inputs: Inputs, log_rate: float | NDArray[np.floating[Any]] = 0.0) -> NDArray[np.float32]:
        """Probabilities (B,); changes nothing.

        Raises:
            SchemaError: another spec assembled the inputs, or log-rates have the wrong shape, type or range.
            ModelError: the model failed.
        """
        self._check_inputs(inputs)
        rate = np.asarray(rate_of(self._name, _BINARY, log_rate, len(inputs)))
        p = np.array([self._predict_one(x) for x in self._rows(inputs)], dtype=np.float64)
        p = p.clip(1e-12, 1 - 1e-12)
        shifted: NDArray[np.float64] = p / (p + (1 - p) * np.exp(-rate))
        return shifted.astype(np.float32)

    def learn(
        self,
        inputs: Inputs,
        labels: NDArray[Any],
        weights: NDArray[Any] | None = None,
        log_rate: float | NDArray[np.floating[Any]] = 0.0,
        event_time_us: int | NDArray[np.int64] | None = None,
        starts: NDArray[np.int64] | None = None,
    ) -> float:
        """Take B steps; returns the mean of the losses before each step.

        A negative counts exp(log_rate) times, which restores the odds. `event_time_us` and `starts` have no effect.

        Raises:
            SchemaError: weights or log-rates are given for a model that takes no weight; or as for `OnlineLearner`.
            ModelError: the model failed.
        """
        del event_time_us, starts
        self._check_inputs(inputs)
        targets = Targets(labels, weights, log_rate)
        targets.check(self._name, _BINARY, len(inputs))
        y, weight = targets.arrays(len(inputs))
        importance = np.where(y > 0.5, 1.0, np.exp(np.asarray(targets.log_rate, np.float64))) * weight
        if not self._weighted and (importance != 1.0).any():
            raise SchemaError(
                "river model without weights: weights and log_rate cannot be learnt from; set weighted=True"
            )
        losses = np.zeros(len(inputs))
        for i, x in enumerate(self._rows(inputs)):
            losses[i] = log_losses(np.array([self._predict_one(x)]), y[i : i + 1])[0]
            extra = {"w": float(importance[i])} if self._weighted else {}
            with running(f"learner {self._name}: learn_one"):
                self.model.learn_one(x, bool(y[i] > 0.5), **extra)
        return float(losses.mean()) if len(inputs) else 0.0

    def _predict_one(self, x: dict[str, float]) -> float:
        with running(f"learner {self._name}: predict_proba_one"):
            return float(self.model.predict_proba_one(x).get(True, 0.0))

    def _check_inputs(self, inputs: Inputs) -> None:
        if inputs.fingerprint != self.spec.fingerprint:
            raise SchemaError(
                f"learner {self._name}: inputs of spec {inputs.fingerprint}, it reads {self.spec.fingerprint}; "
                "assemble with its own InputSpec"
            )

    def _rows(self, inputs: Inputs) -> list[dict[str, float]]:
        names = self.spec.dense_names
        rows = [
            {name: value for name, value in zip(names, row, strict=True) if not math.isnan(value)}
            for row in inputs.dense.tolist()
        ]
        for name, column in zip(self.spec.id_names, inputs.ids.T.tolist(), strict=True):
            for row, value in zip(rows, column, strict=True):
                if value != PAD:
                    row[f"{name}={value}"] = 1.0
        for name, bag in zip(self.spec.bag_names, inputs.bags, strict=True):
            for row, values in zip(rows, bag.tolist(), strict=True):
                present = [value for value in values if value != PAD]
                for value in present:
                    row[f"{name}={value}"] = row.get(f"{name}={value}", 0.0) + 1.0 / len(present)
        return rows


def _takes_weight(model: Any) -> bool:
    """Whether `learn_one` of a model, or of a pipeline's last step, takes `w`."""
    while steps := getattr(model, "steps", None):
        model = list(steps.values())[-1]
    parameters = inspect.signature(model.learn_one).parameters.values()
    return any(each.name == "w" or each.kind is each.VAR_KEYWORD for each in parameters)
