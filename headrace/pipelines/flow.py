"""Flow: a description of a pipeline, independent of its runner, with a source, its events, and jobs that process them.

    @dataflow
    def flow() -> Flow:
        settings = load_settings()
        source = kafka_source(settings, EVENTS)
        return Flow("materialize", source, EVENTS, [materialize(VIEWS, ...)], **intake_of(settings))

`runner` runs it under Bytewax, on several workers, or in the plain loop, with equal results.
"""

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from headrace.atomic import open_file
from headrace.clock import Clock
from headrace.features.store import OnlineStore
from headrace.features.view import FeatureView, events_of, plan_of
from headrace.pipelines.join_step import IDLE_S, JoinStep
from headrace.pipelines.joiner import Joiner
from headrace.pipelines.joining.spec import JoinSpec
from headrace.pipelines.loop import Step
from headrace.pipelines.materializer import Materializer
from headrace.schemas import DeadLetters, Event
from headrace.schemas.codecs.registry import SchemaRegistry
from headrace.schemas.quality import FUTURE_US
from headrace.streams.intake import Intake
from headrace.streams.source import Source

StoreLike = OnlineStore | str | Callable[[], OnlineStore]
"""A store, its URL, or a function that opens it. A URL or function connects when the flow starts."""


OnStatus = Callable[[Mapping[str, Any]], object]
"""Receives {"steps": [status of each step]}; the flow's first input calls it twice a second, also without events."""


@dataclass(frozen=True, slots=True)
class Place:
    """The position of a step in a flow, and the flow's objects that it may use.

    The step is number `group` of `groups`, each of which gets every batch. The flow's input writes bad events to
    `dead_letters`. `stop` is set when the flow is asked to stop.
    """

    group: int = 0
    groups: int = 1
    dead_letters: DeadLetters | None = None
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """One kind of step in a flow, independent of the runner.

    Args:
        name: of the operator, unique in the flow.
        make: creates a step; called once per run for each group, when the flow starts.
        spread: one step per worker, each of which gets every batch; otherwise one step for the whole flow.
        out: called with each result of the steps, on the thread of the step.
        on_status: called with the status of the steps.
    """

    name: str
    make: Callable[[Place], Step]
    spread: bool = False
    out: Callable[[Any], object] | None = None
    on_status: OnStatus | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Flow:
    """A source whose events go to some jobs. Nothing connects before the flow runs.

    `dead_letters` gets bad events; `clock`, `future_us` and `registry` are passed to `Intake`.
    """

    name: str
    source: Source
    events: Sequence[type[Event]]
    jobs: Sequence[Job]
    dead_letters: DeadLetters
    clock: Clock | None = None
    future_us: int = FUTURE_US
    registry: SchemaRegistry | None = None

    def intake(self) -> Intake:
        """A new intake, which decodes and checks the events."""
        return Intake(
            self.events,
            dead_letters=self.dead_letters,
            clock=self.clock,
            future_us=self.future_us,
            registry=self.registry,
        )


def materialize(
    views: Sequence[type[FeatureView]],
    store: StoreLike,
    *,
    records_max: int | None = None,
    on_status: OnStatus | None = None,
    out: Callable[[Any], object] | None = None,
    **cadence: Any,
) -> Job:
    """Job that keeps the records of `views` in `store` up to date; `out` gets a `FlushSummary` per flush and group.

    Events that are too late for a view go to the dead letters of the flow. `records_max` limits the records in memory
    per view, over all workers; other records are fetched from the store when one of their events arrives. `cadence`:
    `flush_s` and `catch_up_s` of `Materializer`.
    """
    open_store = _opener(store)

    def make(place: Place) -> Materializer:
        return Materializer(
            views,
            open_store(),
            owner=(place.group, place.groups),
            records_max=None if records_max is None else max(records_max // place.groups, 1),
            dead_letters=place.dead_letters,
            stop=place.stop,
            **cadence,
        )

    return Job("views", make, spread=True, out=out, on_status=on_status)


def join(
    spec: JoinSpec,
    *,
    state: str | Path | None = None,
    idle_s: float | None = IDLE_S,
    out: Callable[[pl.DataFrame], object] | None = None,
) -> Job:
    """Job that joins labels to requests with one joiner; `out` gets frames in order. `state` is the state's folder."""
    return Job("join", lambda _place: JoinStep(Joiner(spec), state=state, idle_s=idle_s), out=out)


def frames_to(folder: str | Path) -> Callable[[pl.DataFrame], object]:
    """An `out` that writes each frame to a separate Parquet file. After a crash rows may be written twice."""
    target = Path(folder)

    def write(frame: pl.DataFrame) -> None:
        target.mkdir(parents=True, exist_ok=True)
        with open_file(target / f"{time.time_ns()}.parquet") as file:
            frame.write_parquet(file)

    return write


def materialize_flow(
    source: Source, views: Sequence[type[FeatureView]], store: StoreLike, intake: Mapping[str, Any], **options: Any
) -> Flow:
    """The flow from `source` to the records of `views`; `intake` as for `Flow`, `options` for `materialize`."""
    events = events_of(map(plan_of, views))
    return Flow("materialize", source, events, [materialize(views, store, **options)], **intake)


def _opener(store: StoreLike) -> Callable[[], OnlineStore]:
    """A function that opens the store once, when the first worker calls it."""
    if isinstance(store, OnlineStore):
        return lambda: store
    lock = threading.Lock()
    once = functools.cache(functools.partial(OnlineStore.open, store) if isinstance(store, str) else store)

    def opened() -> OnlineStore:
        with lock:
            return once()

    return opened
