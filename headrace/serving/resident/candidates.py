"""Resident candidates: a catalogue that is filled on demand and refreshed periodically.

    start    scan of the store for at most FILL_S seconds -> catalogue          request   id in the catalogue -> its row
    clock    every refresh_s: known + requested since, most recently used       else -> read from the store, as without
             first, within the budget -> store -> the next catalogue                    a catalogue, noted for the next

A refresh reads all records again and evaluates windows as of its time, so a resident value is at most one refresh old,
and answers state its age. There is no feed of changed records: a window changes without an event, so every refresh must
decode all records anyway, which is three quarters of the cost of a read (measured). Refreshes take at most the share
DUTY of a core: if one takes long, the next comes later.

While the store is unreachable the last catalogue stays in use, and its age grows. A request that sets `event_time` is
always read from the store, as of that time.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge, Histogram

from headrace.clock import Clock
from headrace.errors import HeadraceError, LayoutError
from headrace.features import ids_of_texts
from headrace.features.keys import NULL_ID, text_columns
from headrace.features.store import OnlineStore
from headrace.features.store.reader import ViewRead
from headrace.learners import columns_of
from headrace.learners.publishing.halves import Half, Halves
from headrace.schemas.fault_log import FaultLog
from headrace.serving.queries import RankingSpec
from headrace.serving.resident.catalogue import CandidateRows, Catalogue, Hit
from headrace.serving.resident.split_inputs import SplitInputs

Ints = NDArray[np.int64]

FILL_S = 5.0
"""Longest scan of the store at startup, in seconds; candidates that it did not reach are added on demand."""
DUTY = 0.1
"""Largest share of the time that refreshes take."""
COSTS_KEPT = 3
"""Refresh durations that are kept. The shortest is taken as the cost, since a longer one may have waited for Redis."""
AGE_S = 1.0
"""Seconds between two updates of the gauge of the age."""
READ_ROWS = 8_192
"""Records read at a time: their answers take some MB in addition to the budget."""
ROW_BYTES_GUESS = 1_000
"""Assumed memory of a candidate until the first catalogue shows the actual size."""
WANTED_MAX = 1_000_000
"""Candidates that may wait for the next refresh; further ones are noted when they are requested again."""
STALE_REFRESHES = 10
"""A catalogue this many refresh intervals old, in event time, is not used while the store answers."""
SCORERS = 2
"""Models whose halves are kept: the live one, and the previous one or the one that is being loaded."""

CANDIDATES = Counter(
    "headrace_resident_candidates_total", "Candidates answered from memory, or read from the store.", ["source"]
)
ROWS = Gauge("headrace_resident_rows", "Candidates whose features are kept in this process.")
BYTES = Gauge("headrace_resident_bytes", "Memory of the resident candidates, of one catalogue.")
AGE = Gauge("headrace_resident_age_seconds", "Seconds since the resident features were read.")
LEFT_OUT = Gauge("headrace_resident_over_budget", "Candidates that the last refresh left out for lack of memory.")
FAILED = Counter("headrace_resident_refresh_failed_total", "Refreshes that failed.", ["reason"])
SECONDS = Histogram(
    "headrace_resident_refresh_seconds", "One refresh.", buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
)

log = structlog.get_logger(__name__)


class ResidentCandidates:
    """Values that depend on the candidate alone, for one ranking. Thread-safe.

    Args:
        spec: the ranking.
        store: the store that records are read from.
        clock: gives the event time as of which windows are evaluated.
        budget_bytes: memory of two catalogues, since a refresh holds two at a time.
        refresh_s: seconds between two refreshes; see DUTY.
    """

    def __init__(
        self, spec: RankingSpec, store: OnlineStore, clock: Clock, *, budget_bytes: int, refresh_s: float
    ) -> None:
        self.split = SplitInputs(spec)
        self.catalogue: Catalogue | None = None
        plans = spec.plans
        self._candidate = spec.candidate
        self._is_text = text_columns(plans).get(spec.candidate)  # None: the type differs between views
        is_known = self._is_text is not None
        self._plans = [plan for plan in plans if is_known and self.split.kinds[plan.name] == "candidate"]
        self._store = store
        self._clock = clock
        self._budget_bytes = budget_bytes
        self._refresh_s = refresh_s
        self._interval_s = refresh_s
        self._costs_s: deque[float] = deque(maxlen=COSTS_KEPT)
        self._row_bytes = float(ROW_BYTES_GUESS)
        self._is_away = False  # the store did not answer the last refresh
        self._wanted: dict[int, bytes] = {}  # id -> text, guarded by _noting
        self._noting = threading.Lock()
        self._refreshing = threading.Lock()
        self._halving = threading.Lock()
        self._halves: deque[tuple[Any, Halves | None]] = deque(maxlen=SCORERS)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._fault = FaultLog("resident_refreshed_again")
        AGE.set_function(self.age_s)

    @property
    def covers_all_views(self) -> bool:
        """Whether requests for resident candidates need no data from the store."""
        return set(self.split.kinds.values()) == {"candidate"}

    def age_s(self) -> float:
        """Return the seconds since the catalogue was read; NaN without a catalogue."""
        catalogue = self.catalogue
        return time.monotonic() - catalogue.read_s if catalogue is not None else float("nan")

    def start(self) -> None:
        """Start the thread that refreshes, unless it is running."""
        if self._thread is not None:
            return
        self._thread = threading.Thread(target=self._run, name="headrace-resident", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread. The catalogue stays readable."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def look_up(self, ids: Ints, texts: Sequence[bytes], now_us: int) -> Hit | None:
        """Look up the candidates `ids` (R,) with key `texts` for a request as of now; absent ones are noted.

        Returns None if there is no catalogue, or it is too far from `now_us`.
        """
        catalogue = self.catalogue
        if catalogue is None or not self._is_current(catalogue, now_us):
            self._note(ids, texts, np.arange(len(ids)))
            CANDIDATES.labels(source="store").inc(len(ids))
            return None
        rows = catalogue.map.get(ids)
        absent = np.flatnonzero(rows < 0)
        if absent.size:
            self._note(ids, texts, absent)
            catalogue.used[rows[rows >= 0]] = True
            CANDIDATES.labels(source="store").inc(len(absent))
        else:
            catalogue.used[rows] = True
        CANDIDATES.labels(source="resident").inc(len(ids) - len(absent))
        return Hit(catalogue, rows, absent, max(now_us - catalogue.as_of_us, 0))

    def prepare(self, scorer: Any) -> None:
        """Compute the candidates' half of a model for the resident candidates, before the model goes live."""
        catalogue = self.catalogue
        if catalogue is not None:
            self.half(scorer, catalogue)

    def half(self, scorer: Any, catalogue: Catalogue) -> tuple[Halves, Half] | None:
        """Return a model in halves, and the half of the catalogue's candidates; None if it cannot be split.

        The first caller computes the half unless `prepare` has done so: 1 us a candidate.
        """
        half = catalogue.halves.get(scorer)
        halves = self._halves_of(scorer)
        if halves is None:
            return None
        if half is None:
            with self._halving:
                half = catalogue.halves.get(scorer)
                if half is None:
                    half = halves.of_candidates(catalogue.rows.inputs)
                    while len(catalogue.halves) >= SCORERS:
                        del catalogue.halves[next(iter(catalogue.halves))]
                    catalogue.halves[scorer] = half
        return halves, half

    def _halves_of(self, scorer: Any) -> Halves | None:
        for one, halves in tuple(self._halves):
            if one is scorer:
                return halves
        with self._halving:
            made = Halves.of(scorer, self.split.candidate, self.split.request, self.split.both)
            self._halves.append((scorer, made))
            return made

    def fill(self, within_s: float = FILL_S) -> None:
        """Scan the store for entities for at most `within_s` seconds, and refresh.

        Raises:
            StoreUnavailableError: Redis does not answer.
            LayoutError: a view was changed and its new version is not active yet.
        """
        until_s, texts = time.monotonic() + within_s, dict[bytes, None]()
        for plan in self._plans:
            for key in self._store.views.scan_records(plan):
                texts[key.split(b":", 4)[4]] = None
                if time.monotonic() > until_s or len(texts) >= self._rows_max():
                    break
        if texts and self._plans:
            words = list(texts)
            self._note(ids_of_texts(self._plans[0], words), words, np.arange(len(words)))
        self.refresh()

    def refresh(self) -> None:
        """Read the candidates again: those known and those requested since, most recently used first.

        Raises:
            StoreUnavailableError: Redis does not answer; the last catalogue stays.
            LayoutError: a view was changed and its new version is not active yet; the refreshing thread then drops the
                catalogue.
        """
        with self._refreshing:
            started_s = time.monotonic()
            ids, texts, used_s = self._chosen(started_s)
            if not len(ids) or not self._plans:
                return
            as_of_us = self._clock.now_us()
            cuts = [slice(i, i + READ_ROWS) for i in range(0, len(ids), READ_ROWS)]
            parts = [self._read(ids[cut], texts[cut], as_of_us) for cut in cuts]
            rows = CandidateRows.concat(parts)
            used = np.zeros(len(ids), np.bool_)
            made = Catalogue(ids, texts, rows, as_of_us, started_s, used, used_s)
            for scorer, _ in tuple(self._halves):
                self.half(scorer, made)
            self._row_bytes = made.nbytes / len(made)
            self.catalogue = made
            self._is_away = False
            seconds = time.monotonic() - started_s
            self._costs_s.append(seconds)
            if len(self._costs_s) > 1:  # the first loads kernels
                self._interval_s = max(self._refresh_s, min(self._costs_s) / DUTY)
            SECONDS.observe(seconds)
            ROWS.set(len(made))
            BYTES.set(made.nbytes)

    def _run(self) -> None:
        while not self._is_closed_after(self._interval_s):
            try:
                self.refresh()
                self._fault.succeeded()
            except LayoutError as exc:
                self.catalogue = None  # requests then read the store, which reports what is wrong
                self._failed(exc)
            except HeadraceError as exc:
                self._is_away = True
                self._failed(exc)
            except Exception:
                FAILED.labels(reason="unexpected").inc()
                log.exception("resident_refresh_failed")  # the thread must not end, or the catalogue would only age

    def _is_closed_after(self, seconds: float) -> bool:
        """Wait, and return whether `close` was called; meanwhile the gauge of the age is kept up to date.

        Replicas that share a port export the gauge's last value from a file, not that of its function.
        """
        until_s = time.monotonic() + seconds
        while not self._closed.wait(min(max(until_s - time.monotonic(), 0.0), AGE_S)):
            AGE.set(self.age_s())
            if time.monotonic() >= until_s:
                return False
        return True

    def _failed(self, exc: HeadraceError) -> None:
        FAILED.labels(reason=type(exc).__name__).inc()
        self._fault.failed("resident_refresh_failed", str(exc), age_s=round(self.age_s(), 3))

    def _is_current(self, catalogue: Catalogue, now_us: int) -> bool:
        age_us = abs(now_us - catalogue.as_of_us)
        return self._is_away or age_us <= STALE_REFRESHES * 1e6 * max(self._refresh_s, self._interval_s)

    def _rows_max(self) -> int:
        return max(int(self._budget_bytes / (2 * self._row_bytes)), 1)

    def _note(self, ids: Ints, texts: Sequence[bytes], positions: Ints) -> None:
        room = min(WANTED_MAX, self._rows_max())
        with self._noting:
            for i in positions.tolist():
                if len(self._wanted) >= room:
                    return
                if ids[i] != NULL_ID:
                    self._wanted[int(ids[i])] = texts[i]

    def _chosen(self, now_s: float) -> tuple[Ints, list[bytes], NDArray[np.float64]]:
        """Choose the candidates of the next catalogue, the most recently used: ids, texts and times of last use."""
        with self._noting:
            wanted, self._wanted = self._wanted, {}
        catalogue = self.catalogue
        if catalogue is not None:
            known = catalogue.map.get(np.fromiter(wanted, np.int64, len(wanted))) >= 0
            wanted = {key: text for (key, text), is_known in zip(wanted.items(), known, strict=True) if not is_known}
        ids = np.fromiter(wanted, np.int64, len(wanted))
        texts, used_s = list(wanted.values()), np.full(len(wanted), now_s)
        if catalogue is not None:
            last_s = np.where(catalogue.used, now_s, catalogue.used_s)
            ids, used_s = np.concatenate([catalogue.ids, ids]), np.concatenate([last_s, used_s])
            texts = [*catalogue.texts, *texts]
        rows_max = self._rows_max()
        LEFT_OUT.set(max(len(ids) - rows_max, 0))
        if len(ids) > rows_max:
            kept = np.sort(np.argsort(-used_s, kind="stable")[:rows_max])
            ids, texts, used_s = ids[kept], [texts[i] for i in kept.tolist()], used_s[kept]
        return ids, texts, used_s

    def _read(self, ids: Ints, texts: Sequence[bytes], as_of_us: int) -> CandidateRows:
        answers = self._store.answers([ViewRead(plan, ids, texts, as_of_us) for plan in self._plans])
        by_view = dict(zip((plan.name for plan in self._plans), answers, strict=True))
        keys: NDArray[Any] = ids
        if self._candidate in self.split.raw and self._is_text:
            keys = np.array([text.decode() for text in texts], dtype=object)
        return self.split.rows_of(by_view, columns_of(by_view, {self._candidate: keys}), len(ids))
