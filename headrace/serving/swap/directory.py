"""Models from a model directory, fully verified before they may answer requests."""

import os
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict

import numpy as np

from headrace.errors import SnapshotError
from headrace.learners import Follower, Learner, ModelDirectory, Scorer, Snapshot
from headrace.serving.swap.models import Loaded

PROBE_APART_MAX = 1e-4
"""Largest difference of probabilities: torch may sum in another order with another number of threads."""
FINITE_ROWS = 1 << 18
"""Numbers checked in one call, which releases the GIL."""


class DirectoryReleases:
    """`Releases` from a `ModelDirectory`: verified snapshots as frozen scorers that reproduce their probe scores.

    Args:
        directory: the directory of published snapshots; if it has a Redis URL, notices wake the loader at once.
        learner: the declaration that the snapshots must belong to.
        on_load: called in the loader thread with each loaded scorer, before it goes live.
    """

    def __init__(
        self, directory: ModelDirectory, learner: type[Learner], on_load: Callable[[Scorer], None] | None = None
    ) -> None:
        self._directory = directory
        self._on_load = on_load
        self._learner = learner
        self._follower = Follower(directory)

    def versions(self) -> Sequence[int]:
        """Return the published versions, ascending."""
        return self._directory.versions()

    def state_of(self, version: int) -> Hashable:
        """Return names, sizes and times of the version's files; empty if they vanish meanwhile."""
        try:
            stats = [(entry.name, entry.stat()) for entry in os.scandir(self._directory.folder(version))]
        except OSError:
            return ()
        return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))

    def wait(self, timeout_s: float) -> None:
        """Return at the next notice, or after `timeout_s` seconds."""
        self._follower.wait(timeout_s)

    def load(self, version: int) -> Loaded:
        """Load the snapshot `version` as a frozen model. Raises the errors of `verified_scorer`."""
        scorer = verified_scorer(self._directory, version, self._learner)
        if self._on_load is not None:
            self._on_load(scorer)
        return Loaded(scorer, scorer.manifest.views, asdict(scorer.manifest))


def verified_scorer(directory: ModelDirectory, version: int, learner: type[Learner]) -> Scorer:
    """Load the snapshot `version` of `directory` as a frozen model.

    Raises:
        SnapshotError: it is missing, damaged or of another learner, has a number that is not finite, or does not
            reproduce the learner's scores of its probe.
    """
    snapshot = directory.load(version, learner)
    _require_finite(snapshot, version)
    scorer = Scorer(snapshot, learner)
    if scorer.probe is not None and scorer.probe_scores is not None:
        apart = np.abs(scorer.predict(scorer.probe) - scorer.probe_scores).max(initial=0.0)
        if not apart <= PROBE_APART_MAX:
            raise SnapshotError(
                f"model {version} · probe: scores are {apart:.2g} from the learner's, allowed is {PROBE_APART_MAX}"
            )
    return scorer


def _require_finite(snapshot: Snapshot, version: int) -> None:
    """Raise SnapshotError if any float of the snapshot, tables included, is not finite as float32."""
    for name, array in snapshot.arrays.items():
        if not np.issubdtype(array.dtype, np.floating):
            continue
        flat = array.reshape(-1)
        with np.errstate(over="ignore"):
            bad = sum(
                int((~np.isfinite(flat[begin : begin + FINITE_ROWS].astype(np.float32, copy=False))).sum())
                for begin in range(0, len(flat), FINITE_ROWS)
            )
        if bad:
            raise SnapshotError(f"model {version} · {name}: {bad} of {len(flat)} numbers are not finite")
