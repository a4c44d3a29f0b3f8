"""Swap: replaces the live model while it serves, with no failed request and none of mixed versions.

Invariant: `Swap.live` is one reference to one frozen `LiveModel`. A request reads it once, before its first await, and
passes it down; a `LiveModel` is immutable. So exactly one version answers a request, and no lock is on its path
(storing an attribute is atomic in CPython).

    publish v8 -> notice -> loader thread: skip to the newest -> load beside v7 -> checks -> warm-up -> live = v8
                                                                     |
                                                                     +-> refused: counted, logged, v7 stays

A snapshot that fails to load, belongs to other views, or scores the probe with values that are not finite is refused
and not tried again; a newer one is. The previous models stay in memory for a rollback, which takes the same steps
without the load.

Not optimal: tables are copied whole with each snapshot, so time and memory of a swap grow with the model.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self

import numpy as np
import structlog
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge, Histogram

from headrace.clock import wall_us
from headrace.errors import SnapshotError
from headrace.learners import Follower, Inputs, Learner, ModelDirectory, Scorer

CADENCE_S = 0.5  # least time between swaps: each one occupies a core for the time of a load
COST_RATIO = 5.0  # least time between swaps, in multiples of the cost of the last one
WAIT_S = 0.25  # longest sleep between two looks at the model directory, in seconds
KEEP = 2  # previous models kept in memory for rollback
OS_RETRIES = 3  # for transient errors of a file system; a corrupt snapshot is not read again
HISTORY = 512
PROBE_APART_MAX = 1e-4  # probabilities; another number of torch threads may sum in another order

SWAPS = Counter("headrace_swaps_total", "Models that became live in this process.")
SWAP_SECONDS = Histogram(
    "headrace_swap_seconds",
    "Load, checks, warm-up and store.",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
REFUSED = Counter("headrace_swap_refused_total", "Snapshots that were not taken.", ["reason"])
REFUSED_VERSION = Gauge(
    "headrace_model_refused_version", "Version that was refused and that no newer one has replaced; 0: none."
)
LIVE_VERSION = Gauge("headrace_model_version", "Version of the live model.")

log = structlog.get_logger(__name__)


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

    def newest(self) -> int | None:
        """Version that should be live, or None while nothing was published."""
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


@dataclass(frozen=True, slots=True)
class Swapped:
    """One swap: the version that became live, when (wall time, µs), and the duration in milliseconds."""

    version: int
    previous: int | None
    swapped_us: int
    swap_ms: float
    manifest: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RefusedModel:
    """A snapshot that was not taken: its version, why, and when (wall time, µs)."""

    version: int
    reason: str
    refused_us: int


class Swap:
    """The live model of one process, and the thread that follows the published ones.

    Args:
        releases: where models come from.
        probe: returns Inputs of the shape of a real request; called before each warm-up, in the loader thread.
        fingerprints: view -> layout fingerprint that this process reads; a model of other layouts is refused.
        on_swap: called in the loader thread after each swap, one at a time; its exceptions are logged.
        cadence_s, cost_ratio: the next swap comes at least max(cadence_s, cost_ratio x the last one's cost) later.
        keep: previous models kept in memory for `rollback`.
    """

    def __init__(
        self,
        releases: Releases,
        *,
        probe: Callable[[], Inputs],
        fingerprints: Mapping[str, str] | None = None,
        on_swap: Callable[[Swapped], None] | None = None,
        cadence_s: float = CADENCE_S,
        cost_ratio: float = COST_RATIO,
        keep: int = KEEP,
    ) -> None:
        self.live: LiveModel | None = None
        self.history: deque[Swapped] = deque(maxlen=HISTORY)
        self.swaps = 0
        self.refused = 0
        self.last_refused: RefusedModel | None = None  # None again once a newer model is live
        self._releases = releases
        self._probe = probe
        self._fingerprints = dict(fingerprints or {})
        self._on_swap = on_swap
        self._cadence_s = cadence_s
        self._cost_ratio = cost_ratio
        self._kept: deque[LiveModel] = deque(maxlen=keep)
        self._settled: int | None = None  # newest version that was taken, refused or rolled back from: not tried again
        self._turn = threading.Lock()  # one swap at a time; requests never take it
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def kept(self) -> list[int]:
        """Versions in memory for `rollback`, newest first."""
        return [model.version for model in reversed(self._kept)]

    def start(self, wait_s: float = 0.0) -> Self:
        """Start the loader thread; return when a model is live or after `wait_s` seconds."""
        assert self._thread is None, "a Swap is started once"
        self._thread = threading.Thread(target=self._follow, name="headrace-swap", daemon=True)
        self._thread.start()
        if wait_s:
            self._ready.wait(wait_s)
        return self

    def close(self) -> None:
        """Stop the loader thread. The live model stays readable."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def refresh(self) -> bool:
        """Check once for a newer model and swap to it; True if the live model changed."""
        with self._turn:
            version = self._releases.newest()
            if version is None or version == self._settled:
                return False
            return self._take(version)

    def rollback(self, version: int) -> None:
        """Serve `version` again until a version newer than all known ones is published.

        Raises:
            SnapshotError: `version` is neither in memory nor loadable; the live model stays.
        """
        with self._turn:
            kept = {model.version: model for model in self._kept}.get(version)
            started = time.perf_counter()
            loaded = Loaded(kept.scorer, self._fingerprints, kept.manifest) if kept else self._releases.load(version)
            self._check(version, loaded)
            self._settled = self._releases.newest()
            self._store(version, loaded, started)
        log.warning("model_rolled_back", model_version=version, was_kept=kept is not None)

    def _follow(self) -> None:
        while not self._stop.is_set():
            cost_s = 0.0
            try:
                before = time.perf_counter()
                swapped = self.refresh()
                cost_s = time.perf_counter() - before if swapped else 0.0
                if not swapped:
                    self._releases.wait(WAIT_S)
            except Exception:
                # Whatever the directory raises, the thread goes on: without it the live model would never change again.
                log.exception("model_follow_failed")
                self._stop.wait(WAIT_S)
            if cost_s:
                self._stop.wait(max(self._cadence_s, self._cost_ratio * cost_s))

    def _take(self, version: int) -> bool:
        started = time.perf_counter()
        try:
            loaded = self._load(version)
            self._check(version, loaded)
        except Exception as exc:  # noqa: BLE001  # whatever torch or a kernel raises on a broken file is a refusal
            self._settled = version
            self.refused += 1
            REFUSED.labels(reason=type(exc).__name__).inc()
            self.last_refused = RefusedModel(version, str(exc), wall_us())
            REFUSED_VERSION.set(version)
            live = self.live.version if self.live else None
            log.warning("snapshot_refused", model_version=version, live=live, reason=str(exc), error=type(exc).__name__)
            return False
        self._settled = version
        self._store(version, loaded, started)
        self.last_refused = None
        REFUSED_VERSION.set(0)
        return True

    def _load(self, version: int) -> Loaded:
        for attempt in range(OS_RETRIES):
            try:
                return self._releases.load(version)
            except OSError as exc:
                log.warning("snapshot_read_failed", model_version=version, attempt=attempt, reason=str(exc))
                self._stop.wait(0.05 * 2**attempt)
        return self._releases.load(version)

    def _check(self, version: int, loaded: Loaded) -> None:
        for view, present in self._fingerprints.items():
            trained_on = loaded.fingerprints.get(view)
            if trained_on != present:
                raise SnapshotError(
                    f"model {version} · view {view}: trained on layout {trained_on}, this process reads {present}; "
                    "train on the present views or serve with the views of the model"
                )
        probe = self._probe()
        scores = loaded.scorer.score(probe)  # also the warm-up: the first call of a model is the slow one
        if scores.shape != (len(probe),):
            raise SnapshotError(f"model {version}: scored {len(probe)} rows into shape {scores.shape}")
        if not np.isfinite(scores).all():
            raise SnapshotError(
                f"model {version}: {int((~np.isfinite(scores)).sum())} of {len(probe)} probe scores not finite"
            )

    def _store(self, version: int, loaded: Loaded, started: float) -> None:
        previous = self.live
        model = LiveModel(version, loaded.scorer, loaded.manifest, wall_us())
        self.live = model
        seconds = time.perf_counter() - started
        kept = [*self._kept, *([previous] if previous else [])]
        self._kept = deque((model for model in kept if model.version != version), self._kept.maxlen)
        self.swaps += 1
        SWAPS.inc()
        SWAP_SECONDS.observe(seconds)
        LIVE_VERSION.set(version)
        swapped = Swapped(
            version, previous.version if previous else None, model.swapped_us, seconds * 1_000, loaded.manifest
        )
        self.history.append(swapped)
        self._ready.set()
        log.info("model_swapped", model_version=version, previous=swapped.previous, swap_ms=round(swapped.swap_ms, 2))
        if self._on_swap is not None:
            try:
                self._on_swap(swapped)
            except Exception:
                log.exception("swap_hook_failed", model_version=version)  # the hook observes; it must not undo a swap


class DirectoryReleases:
    """`Releases` from a `ModelDirectory`: verified snapshots as frozen scorers that reproduce their probe scores.

    Args:
        directory: where snapshots are published; with a Redis URL its notices wake the loader at once.
        learner: the declaration that the snapshots must belong to.
    """

    def __init__(self, directory: ModelDirectory, learner: type[Learner]) -> None:
        self._directory = directory
        self._learner = learner
        self._follower = Follower(directory)

    def newest(self) -> int | None:
        """The newest published version."""
        return self._directory.latest()

    def wait(self, timeout_s: float) -> None:
        """Return at the next notice, or after `timeout_s` seconds."""
        self._follower.wait(timeout_s)

    def load(self, version: int) -> Loaded:
        """The snapshot `version`, frozen.

        Raises:
            SnapshotError: it is missing, damaged, of another learner, or scores its probe otherwise than its learner.
        """
        scorer = Scorer(self._directory.load(version, self._learner), self._learner)
        if scorer.probe is not None and scorer.probe_scores is not None:
            apart = np.abs(scorer.predict(scorer.probe) - scorer.probe_scores).max(initial=0.0)
            if not apart <= PROBE_APART_MAX:
                raise SnapshotError(
                    f"model {version} · probe: scores are {apart:.2g} from the learner's, allowed is {PROBE_APART_MAX}"
                )
        return Loaded(scorer, scorer.manifest.views, asdict(scorer.manifest))
