"""River models with the predict and learn methods of `OnlineLearner`, as baselines, one example at a time.

An example becomes a dict: numbers by name, ids as "name=id": 1.0, bag ids as "name=id": 1 / (ids in the bag). It takes
about 50 µs per example with a logistic regression on a dozen features. There are no snapshots, so it is for comparison,
not for serving.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.errors import SchemaError
from headrace.learners.input_spec import InputSpec
from headrace.learners.inputs import PAD, Inputs
from headrace.learners.models.log_loss import log_losses


class RiverClassifier(Protocol):
    """The methods used of a River classifier or pipeline."""

    def predict_proba_one(self, x: dict[str, float]) -> dict[Any, float]:
        """Probability of each class."""
        ...

    def learn_one(self, x: dict[str, float], y: bool, **kwargs: Any) -> Any:
        """Take one step."""
        ...


class RiverLearner:
    """Predicts, then learns, with a River model.

    Args:
        spec: the input spec.
        model: any binary River classifier or pipeline.
        weighted: whether `learn_one` of the model takes a weight `w`; needed for weights and log-rates.
    """

    def __init__(self, spec: InputSpec, model: RiverClassifier, *, weighted: bool = True) -> None:
        self.spec = spec
        self.model = model
        self._weighted = weighted

    def predict(self, inputs: Inputs, log_rate: float | NDArray[np.floating[Any]] = 0.0) -> NDArray[np.float32]:
        """Probabilities (B,); changes nothing."""
        p = np.array([self.model.predict_proba_one(x).get(True, 0.0) for x in self._rows(inputs)], dtype=np.float64)
        p = p.clip(1e-12, 1 - 1e-12)
        shifted: NDArray[np.float64] = p / (p + (1 - p) * np.exp(-np.asarray(log_rate)))
        return shifted.astype(np.float32)

    def learn(
        self,
        inputs: Inputs,
        labels: NDArray[Any],
        weights: NDArray[Any] | None = None,
        log_rate: float | NDArray[np.floating[Any]] = 0.0,
        event_time_us: int | NDArray[np.int64] | None = None,
    ) -> float:
        """Take B steps; returns the mean of the losses before each step.

        A negative counts exp(log_rate) times, which restores the odds.

        Raises:
            SchemaError: weights or log-rates are given for a model that takes no weight.
        """
        del event_time_us
        rates = np.broadcast_to(np.asarray(log_rate, dtype=np.float64), (len(inputs),))
        importance = np.where(labels > 0.5, 1.0, np.exp(rates)) * (1.0 if weights is None else weights)
        if not self._weighted and (importance != 1.0).any():
            raise SchemaError(
                "river model without weights: weights and log_rate cannot be learnt from; set weighted=True"
            )
        losses = np.zeros(len(inputs))
        for i, x in enumerate(self._rows(inputs)):
            p = np.array([self.model.predict_proba_one(x).get(True, 0.0)])
            losses[i] = log_losses(p, labels[i : i + 1])[0]
            extra = {"w": float(importance[i])} if self._weighted else {}
            self.model.learn_one(x, bool(labels[i] > 0.5), **extra)
        return float(losses.mean()) if len(inputs) else 0.0

    def _rows(self, inputs: Inputs) -> list[dict[str, float]]:
        rows = [dict(zip(self.spec.dense_names, row, strict=True)) for row in inputs.dense.tolist()]
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
