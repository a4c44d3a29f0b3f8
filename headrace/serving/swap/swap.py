"""Swap: replaces the live model while it serves, without failed requests or answers of mixed versions.

Invariant: `Swap.live` is one reference to one frozen `LiveModel`. A request reads it once, before its first await, and
passes it down; a `LiveModel` is immutable. So exactly one version answers a request, and requests take no lock (storing
an attribute is atomic in CPython).

    publish v8 -> notice -> loader thread: skip to the newest -> load beside v7 -> checks -> warm-up -> live = v8
                                                                     |
                                                                     +-> refused: counted, logged, v7 stays

A snapshot is refused if it fails to load, has a number that is not finite, belongs to other views, or scores the probe
with NaN or infinity. It is tried again once its files have changed, or every `RETRY_S` if this machine could not read
it (disk, memory). Instead, the newest valid version that is newer than the live model is taken, and later any newer
one. So a process starts with the newest valid version.

The live version never falls: if the folder of the newest version vanishes (a prune, a mount that comes and goes) the
live model stays, and this is logged and reported. Only `rollback` returns to an older version, from memory if it is
kept there.

Not optimal: tables are copied whole with each snapshot, so time and memory of a swap grow with the model.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import structlog
from prometheus_client import Counter, Gauge, Histogram

from headrace.clock import wall_us
from headrace.errors import HeadraceError, SnapshotError
from headrace.learners import Inputs
from headrace.serving.swap.live_folder import LiveFolder
from headrace.serving.swap.models import LiveModel, Loaded, Releases

CADENCE_S = 0.5  # least time between swaps: each one occupies a core while it loads
COST_RATIO = 5.0  # least time between swaps, in multiples of the cost of the last one
WAIT_S = 0.25  # longest sleep between two reads of the model directory, in seconds
KEEP = 2  # previous models kept in memory, for rollback and for requests that name their version
KEEP_BYTES_MAX = 1_000_000_000  # limit for the files of the previous models: beyond it the oldest are dropped
OS_RETRIES = 3  # immediate retries after file system errors; a corrupt snapshot is not read again
RETRY_S = 5.0  # between two attempts to load a version that this machine could not read
HISTORY = 512

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
LOOKS_FAILED = Counter("headrace_model_looks_failed_total", "Looks at the model directory that failed.")
LIVE_VERSION = Gauge("headrace_model_version", "Version of the live model.")
NEWEST_VERSION = Gauge("headrace_model_newest_version", "Newest version in the model directory; 0: there is none.")
LOOKED = Gauge("headrace_model_looked_timestamp_seconds", "When the model directory was last read, seconds since 1970.")
UNPUBLISHED = Gauge(
    "headrace_model_unpublished",
    "1 while the live version is newer than every version in the model directory, or its folder holds another model.",
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Swapped:
    """One swap: the version that became live, the time (wall clock, µs), and the duration in milliseconds."""

    version: int
    previous: int | None
    swapped_us: int
    swap_ms: float
    manifest: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RefusedModel:
    """A snapshot that was refused: its version, the reason, and the time (wall clock, µs)."""

    version: int
    reason: str
    refused_us: int


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A refused version, the state of its files then, and when it is tried again even if they are unchanged."""

    model: RefusedModel
    state: Hashable
    retry_s: float


class Swap:
    """The live model of one process, and the thread that follows the published ones.

    Args:
        releases: the source of models.
        probe: returns Inputs of the shape of a real request; called before each warm-up, in the loader thread.
        fingerprints: view -> layout fingerprint that this process reads; models of other layouts are refused.
        on_swap: called in the loader thread after each swap, one at a time; its exceptions are logged.
        cadence_s, cost_ratio: the next swap comes at least max(cadence_s, cost_ratio x cost of the last swap) later.
        keep, keep_bytes_max: limits of the previous models kept in memory: number, and bytes of their files.

    Attributes:
        newest: newest published version when the model directory was last read, None if there was none.
        looked_us: when the model directory was last read (wall clock, µs), None before the first time.
        is_unpublished: whether the live version is newer than every published one, or its folder holds another model.
        last_refused: newest refused version that is still published and that no newer one has replaced.
        look_fault: why the last read of the model directory failed, None if it succeeded.
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
        keep_bytes_max: int = KEEP_BYTES_MAX,
    ) -> None:
        self.live: LiveModel | None = None
        self.history: deque[Swapped] = deque(maxlen=HISTORY)
        self.swaps = 0
        self.refused = 0
        self.last_refused: RefusedModel | None = None
        self.look_fault: str | None = None
        self.newest: int | None = None
        self.looked_us: int | None = None
        self.is_unpublished = False
        self._releases = releases
        self._probe = probe
        self._fingerprints = dict(fingerprints or {})
        self._on_swap = on_swap
        self._cadence_s = cadence_s
        self._cost_ratio = cost_ratio
        self._keep = keep
        self._keep_bytes_max = keep_bytes_max
        self._kept: tuple[LiveModel, ...] = ()  # oldest first; replaced as a whole, since requests read it
        self._floor = 0  # versions up to this one are no longer taken
        self._refused: dict[int, _Refusal] = {}
        self._changed_states: dict[int, Hashable] = {}  # states of refused versions whose files have changed since
        self._follow_fault = ""
        self._live_folder = LiveFolder(releases)
        self._turn = threading.Lock()  # one swap at a time; requests never take it
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def kept(self) -> list[int]:
        """Previous versions in memory, the last replaced first."""
        return [model.version for model in reversed(self._kept) if model is not self.live]

    def loaded(self, version: int) -> LiveModel | None:
        """Return the model `version` if it is live or kept in memory, else None. Never waits."""
        live = self.live
        models = self._kept if live is None else (live, *self._kept)
        return next((model for model in models if model.version == version), None)

    def start(self, wait_s: float = 0.0) -> Self:
        """Start the loader thread, and return when a model is live or after `wait_s` seconds."""
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
            versions = self._releases.versions()
            self._note_published(versions)
            self._keep_refused(versions)
            for version in sorted(versions, reverse=True):
                if version <= self._floor:
                    break
                if self._may_take(version) and self._take(version):
                    return True
            return False

    def _may_take(self, version: int) -> bool:
        """Return whether to try `version`: not refused, due for a retry, or its files changed and are stable again.

        A folder that is copied file by file is refused at first; it is not tried again before it has stopped growing.
        """
        refusal = self._refused.get(version)
        if refusal is None or time.monotonic() >= refusal.retry_s:
            return True
        state = self._releases.state_of(version)
        if state == refusal.state:
            return False
        before = self._changed_states.get(version)
        self._changed_states[version] = state
        return state == before

    def _note_published(self, versions: Sequence[int]) -> None:
        """Record the published versions, and whether the live version is newer than all of them."""
        self.newest, self.looked_us = max(versions, default=None), wall_us()
        NEWEST_VERSION.set(self.newest or 0)
        LOOKED.set(self.looked_us / 1e6)
        live = self.live
        newest = self.newest or 0
        is_unpublished = live is not None and (
            live.version > newest or (live.version == newest and not self._live_folder.holds(live))
        )
        if is_unpublished != self.is_unpublished:
            version = live.version if live else None
            event = "live_model_unpublished" if is_unpublished else "live_model_published_again"
            log.warning(event, model_version=version, newest=self.newest)
        self.is_unpublished = is_unpublished
        UNPUBLISHED.set(is_unpublished)

    def rollback(self, version: int) -> None:
        """Serve `version` again until a version newer than all known ones is published.

        Raises:
            SnapshotError: `version` is neither in memory nor loadable; the live model stays.
        """
        with self._turn:
            kept = self.loaded(version)
            started = time.perf_counter()
            loaded = Loaded(kept.scorer, self._fingerprints, kept.manifest) if kept else self._releases.load(version)
            self._check(version, loaded)
            self._floor = max(self._floor, *self._releases.versions(), version)
            self._store(version, loaded, started)
        log.warning("model_rolled_back", model_version=version, was_kept=kept is not None)

    def _follow(self) -> None:
        while not self._stop.is_set():
            pause_s = 0.0
            try:
                is_first = self.live is None
                before = time.perf_counter()
                swapped = self.refresh()
                if swapped:  # the first model's cost is that of loading kernels, and does not predict the next
                    cost_s = 0.0 if is_first else time.perf_counter() - before
                    pause_s = max(self._cadence_s, self._cost_ratio * cost_s)
                if not swapped:
                    self._releases.wait(WAIT_S)
                self._follow_fault, self.look_fault = "", None
            except Exception as exc:
                LOOKS_FAILED.inc()
                self.look_fault = _public_reason(exc)
                # The thread survives any error of the directory: without it the live model would never change again.
                if repr(exc) != self._follow_fault:  # once, not at every read
                    is_ours = not isinstance(exc, OSError)  # a directory that cannot be read needs no traceback
                    log.exception("model_follow_failed", reason=str(exc), exc_info=is_ours)
                    self._follow_fault = repr(exc)
                self._stop.wait(WAIT_S)
            if pause_s:
                self._stop.wait(pause_s)

    def _take(self, version: int) -> bool:
        started = time.perf_counter()
        state = self._releases.state_of(version)
        try:
            loaded = self._load(version)
            self._check(version, loaded)
        except Exception as exc:  # noqa: BLE001  # torch or a kernel may raise anything on a broken file
            retry_s = time.monotonic() + RETRY_S if isinstance(exc, OSError | MemoryError) else math.inf
            refusal = _Refusal(RefusedModel(version, _public_reason(exc), wall_us()), state, retry_s)
            self._set_refused({**self._refused, version: refusal})
            self.refused += 1
            REFUSED.labels(reason=type(exc).__name__).inc()
            live = self.live.version if self.live else None
            log.warning("snapshot_refused", model_version=version, live=live, reason=str(exc), error=type(exc).__name__)
            return False
        self._floor = version
        self._set_refused({refused: refusal for refused, refusal in self._refused.items() if refused > version})
        self._changed_states.clear()
        self._store(version, loaded, started)
        return True

    def _keep_refused(self, versions: Sequence[int]) -> None:
        """Forget refused versions whose folders are gone, so that one that returns is tried again."""
        if not self._refused.keys() <= set(versions):
            self._set_refused({version: self._refused[version] for version in versions if version in self._refused})

    def _set_refused(self, refused: dict[int, _Refusal]) -> None:
        self._refused = refused
        newest = max(refused, default=0)
        self.last_refused = refused[newest].model if refused else None
        REFUSED_VERSION.set(newest)

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
        kept = self._within_bounds([*self._kept, *([previous] if previous else [])], version)
        self._kept = (*kept, model)  # a version that is rolled back to stays available at every moment
        seconds = time.perf_counter() - started
        swapped = Swapped(
            version, previous.version if previous else None, model.swapped_us, seconds * 1_000, loaded.manifest
        )
        self.swaps += 1
        self.history.append(swapped)
        self.live = model  # last, so that readers of the new version see its history
        self._kept = kept
        SWAPS.inc()
        SWAP_SECONDS.observe(seconds)
        LIVE_VERSION.set(version)
        self._ready.set()
        log.info("model_swapped", model_version=version, previous=swapped.previous, swap_ms=round(swapped.swap_ms, 2))
        if self._on_swap is not None:
            try:
                self._on_swap(swapped)
            except Exception:
                log.exception("swap_hook_failed", model_version=version)  # the hook observes; it must not undo a swap

    def _within_bounds(self, models: Sequence[LiveModel], live_version: int) -> tuple[LiveModel, ...]:
        """Return the last of `models` that may stay in memory beside the live one."""
        kept: list[LiveModel] = []
        size_bytes = 0
        for model in reversed([model for model in models if model.version != live_version]):
            size_bytes += model.size_bytes
            if len(kept) == self._keep or size_bytes > self._keep_bytes_max:
                break
            kept.insert(0, model)
        return tuple(kept)


def _public_reason(exc: Exception) -> str:
    """Describe a refusal for clients: texts of errors other than ours may have paths and addresses."""
    if isinstance(exc, HeadraceError):
        return str(exc)
    words = exc.strerror if isinstance(exc, OSError) and exc.strerror else ""
    return f"{type(exc).__name__}: {words and f'{words}; '}see the replica's log"
