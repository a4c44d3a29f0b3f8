"""Types of a swap: a loaded model, the live model, and the source of new models."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.learners import Inputs


class Scores(Protocol):
    """A frozen model. Called from several threads at once."""

    def score(self, inputs: Inputs) -> NDArray[np.float32]:
        """Score `inputs` for ranking: (n,)."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded model: its frozen scorer, the fingerprints of the views it reads, and its manifest as plain data."""

    scorer: Scores
    fingerprints: Mapping[str, str]
    manifest: Mapping[str, Any]


class Releases(Protocol):
    """Source of new models. Called by the loader thread, and by callers of `refresh`."""

    def versions(self) -> Sequence[int]:
        """Return the published versions, in any order; the greatest valid one should be live."""
        ...

    def state_of(self, version: int) -> Hashable:
        """Return a value that changes when the files of `version` do; a refused version is then tried again."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Return when something may have been published, or after `timeout_s` seconds."""
        ...

    def load(self, version: int) -> Loaded:
        """Load the model `version` and verify its checksum.

        Raises:
            SnapshotError: it is incomplete, corrupt or of another learner.
        """
        ...


@dataclass(frozen=True, slots=True)
class LiveModel:
    """A model that answers requests. Immutable."""

    version: int
    scorer: Scores
    manifest: Mapping[str, Any]
    swapped_us: int

    @property
    def size_bytes(self) -> int:
        """Size of the model's files, about its size in memory; 0 if the manifest does not state it."""
        files = self.manifest.get("files") or {}
        return sum(int(facts.get("bytes", 0)) for facts in files.values())
