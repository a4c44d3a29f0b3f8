"""What a swap works with: a loaded model, the live one, and where new ones come from."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from headrace.learners import Inputs


class Scores(Protocol):
    """A frozen model. Called from several threads at once."""

    def score(self, inputs: Inputs) -> NDArray[np.float32]:
        """Scores (n,) of `inputs`, to rank by."""
        ...


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded model: frozen, with the fingerprints of the views it reads, and its manifest as plain data."""

    scorer: Scores
    fingerprints: Mapping[str, str]
    manifest: Mapping[str, Any]


class Releases(Protocol):
    """Source of new models. Called by the loader thread, and by callers of `refresh`."""

    def versions(self) -> Sequence[int]:
        """Published versions, in any order; the greatest that is whole should be live."""
        ...

    def state_of(self, version: int) -> Hashable:
        """Value that differs once the files of `version` do: a version that was refused is then looked at again."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Return when something may have been published, or after `timeout_s` seconds."""
        ...

    def load(self, version: int) -> Loaded:
        """Load the model `version`, and verify its checksum.

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
        """Size of its files, about what it takes in memory; 0 where the manifest does not say."""
        files = self.manifest.get("files") or {}
        return sum(int(facts.get("bytes", 0)) for facts in files.values())
