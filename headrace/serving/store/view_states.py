"""What readers of each view get, for a replica: looked at once a second, logged when it changes, told by the probes.

    active       this replica's version
    replaced     another version; this replica's records stay as they are until they are dropped
    absent       no version: Redis was emptied, or nothing was materialized yet. Every record is missing, and answers
                 are made of the values of a missing record
    unreadable   this replica's version was dropped, or Redis has another number of shards: rankings are refused

An absent view does not make a replica unready: all replicas of a store would leave at once, and a new project may rank
before its first event.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Literal, get_args

import structlog
from prometheus_client import Gauge

from headrace.errors import LayoutError, StoreError, StoreUnavailableError
from headrace.features import ViewPlan
from headrace.features.store import OnlineStore
from headrace.serving.refusals import STORE_FAULT, log_store_fault

LOOK_S = 1.0
"""Seconds between two looks."""

VIEW_STATE = Gauge(
    "headrace_view_state",
    "1 for the state of a view's records in this replica: active; replaced: readers elsewhere get another version; "
    "absent: nothing is materialized, every record is missing; unreadable: every ranking is refused.",
    ["view", "state"],
)
ViewState = Literal["active", "replaced", "absent", "unreadable"]

log = structlog.get_logger(__name__)


class ViewStates:
    """The states of `plans` in `store`. Thread-safe.

    Args:
        is_away: whether the store is known to hang; it is not looked at then.

    Attributes:
        last: state of each view at the last look; empty before the first one.
        fault: why the store of the last look cannot be read, although it answers; None if it can.
    """

    def __init__(self, store: OnlineStore, plans: Iterable[ViewPlan], is_away: Callable[[], bool]) -> None:
        self.last: dict[str, ViewState] = {}
        self.fault: StoreError | None = None
        self._store = store
        self._plans = list(plans)
        self._is_away = is_away
        self._looking = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def problems(self) -> list[str]:
        """Why rankings are refused at present, without addresses; for callers."""
        if self.fault is not None:
            return ["the store has another number of shards than this replica"]
        unreadable = [name for name, state in self.last.items() if state == "unreadable"]
        return [f"view {name}: readers get another version than this replica's" for name in unreadable]

    @property
    def degraded(self) -> list[str]:
        """What answers lack at present, although they are given: a sentence for each view without records."""
        return [
            f"view {name}: nothing is materialized in the store, so every record is missing"
            for name, state in self.last.items()
            if state == "absent"
        ]

    def look(self) -> dict[str, ViewState]:
        """Return the state of each view, set the gauge, and log what has changed since the last look.

        Raises:
            StoreUnavailableError: the store does not answer.
        """
        with self._looking:
            fault = self._shards_fault()
            seen = {plan.name: self._state(plan, fault) for plan in self._plans}
            before, self.last, self.fault = self.last, {name: state for name, (state, _) in seen.items()}, fault
        for name, (state, reason) in seen.items():
            for each in get_args(ViewState):
                VIEW_STATE.labels(view=name, state=each).set(state == each)
            if state != before.get(name, "active"):
                say = log.info if state == "active" else log.warning
                say("view_state_changed", view=name, state=state, before=before.get(name), reason=reason)
        return self.last

    def _shards_fault(self) -> StoreError | None:
        try:
            self._store.require_shards()
        except StoreUnavailableError:
            raise
        except StoreError as exc:
            return exc
        return None

    def _state(self, plan: ViewPlan, fault: StoreError | None) -> tuple[ViewState, str]:
        """Return the state of a view, and why it is not active."""
        if fault is not None:
            return "unreadable", str(fault)
        if self._store.active(plan.name) is None:
            return "absent", "nothing is materialized, every record is missing: run its flow, or `headrace backfill`"
        try:
            is_replaced = self._store.require_readable(plan)
        except LayoutError as exc:
            return "unreadable", str(exc)
        if is_replaced:
            return "replaced", "this version's records stay as they are until `headrace features drop`"
        return "active", ""

    def start(self) -> None:
        """Look once in `LOOK_S` seconds, in a thread, until `close`."""
        self._thread = threading.Thread(target=self._run, name="headrace-views", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._closed.wait(LOOK_S):
            if self._is_away():
                continue
            try:
                self.look()
            except StoreError as exc:
                log_store_fault(exc)
            except Exception:
                log.exception("view_states_failed")  # the thread must not end, or the states would only age
            else:
                STORE_FAULT.succeeded()
