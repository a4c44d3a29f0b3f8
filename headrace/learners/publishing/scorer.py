"""Scorer: one snapshot, frozen, for inference from any number of threads.

Invariant: it is immutable and shares no memory with the learner. An id without a row reads as zeros.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace.errors import DeclarationError, SnapshotError
from headrace.features import IdMap
from headrace.learners.inputs import Inputs
from headrace.learners.labels.targets import rate_of
from headrace.learners.learner import Learner
from headrace.learners.models.loss import Floats, LogRate
from headrace.learners.network import Network
from headrace.learners.online import offsets_of
from headrace.learners.publishing.snapshot import Manifest, Snapshot, probe_of
from headrace.learners.standardizer import Standardizer
from headrace.learners.state import build_module, intercept_of, load_module, prefixed, table_arrays
from headrace.learners.tables.embedding import Lookup


class FrozenTable:
    """Read-only rows by id."""

    def __init__(self, ids: NDArray[np.int64], weights: NDArray[np.float32]) -> None:
        self._map = IdMap(len(ids))
        self._map.get_or_add(ids)  # ids are distinct, so ids[i] gets row i
        self.weights = weights

    @property
    def lines(self) -> NDArray[np.int64]:
        """The map from ids to rows, in the form of `IdMap.table`."""
        return self._map.table


class Scorer:
    """A frozen model.

    Args:
        snapshot: source of the arrays; its tables are shared, not copied, and must not be written to.
        learner: the declaration of the snapshot's learner.

    Attributes:
        version, manifest: of the snapshot.
        probe: the probe batch; None if the snapshot has none.
        probe_scores: the learner's predictions (n,) or (n, K) for `probe`.

    Raises:
        SnapshotError: arrays are missing or have other shapes than the model's.
    """

    def __init__(self, snapshot: Snapshot, learner: type[Learner]) -> None:
        self.manifest: Manifest = snapshot.manifest
        self.version = snapshot.manifest.version
        self.learner = learner
        self._module = build_module(learner)
        load_module(self._module, snapshot.arrays, learner.name)
        self._intercept = intercept_of(snapshot.arrays, learner)
        self._numbers = Standardizer(len(learner.inputs.numbers))
        self._numbers.load_state_dict(prefixed(snapshot.arrays, "numbers."))
        self._module.eval()
        self._module.requires_grad_(requires_grad=False)
        self.tables = {name: _frozen(snapshot.arrays, name, learner) for name in learner.inputs.tables}
        self._lookup = Lookup(learner.inputs, self.tables, learner.model)
        self._network = Network(learner.model, self._module, self._lookup)
        self.probe, self.probe_scores = probe_of(snapshot.arrays, learner.inputs.fingerprint)

    def predict(self, inputs: Inputs, log_rate: LogRate = 0.0) -> Floats:
        """Predictions (B,), or (B, K) with several outputs, equal to those of `OnlineLearner.predict`.

        Raises:
            SchemaError: another spec assembled the inputs, or log-rates have the wrong shape, type or range.
        """
        self.learner.check_inputs(inputs)
        log_rate = rate_of(self.learner.name, self.learner.model, log_rate, len(inputs))
        outputs = self._network.score(self._lookup.find(inputs), self._numbers.transform(inputs.dense))
        return self.learner.model.loss.predictions(outputs + offsets_of(self._intercept, log_rate))

    def score(self, inputs: Inputs, log_rate: LogRate = 0.0) -> Floats:
        """Scores (B,) to rank by: the predictions of a model of one output, or what its `score` computes from several.

        They are at the reference sampling rate, or with `log_rate` at another rate.

        Raises:
            SchemaError: another spec assembled the inputs.
            DeclarationError: the model's `score` has another shape.
        """
        model = self.learner.model
        scores = model.score(self.predict(inputs, log_rate))
        if np.shape(scores) != (len(inputs),):
            raise DeclarationError(
                f"model {type(model).__name__}: `score` returned {np.shape(scores)} for {len(inputs)} examples; "
                "return one score for each"
            )
        return scores

    @property
    def has_plain_layers(self) -> bool:
        """Whether the model has a pass without autograd, as models of plain layers without attention do."""
        return self._network.by_hand is not None

    def dense(self, *, buffers: bool = True) -> dict[str, NDArray[Any]]:
        """Copies of the module's parameters; with `buffers` also its buffers, the intercept and numbers' statistics."""
        named = self._module.state_dict() if buffers else dict(self._module.named_parameters())
        arrays: dict[str, NDArray[Any]] = {name: value.numpy().copy() for name, value in named.items()}
        if buffers:
            arrays |= {f"numbers.{name}": array for name, array in self._numbers.state_dict().items()}
            arrays["intercept"] = self._intercept.copy()
        return arrays


def _frozen(arrays: Mapping[str, NDArray[Any]], name: str, learner: type[Learner]) -> FrozenTable:
    saved = table_arrays(arrays, name, learner.name)
    ids, weights = saved["ids"], np.require(saved["weights"], np.float32, ["C", "W"])
    if weights.shape != (len(ids), learner.model.dim + 1):
        raise SnapshotError(f"table {name}: weights {weights.shape}, expected {(len(ids), learner.model.dim + 1)}")
    return FrozenTable(np.require(ids, np.int64, ["C", "W"]), weights)
