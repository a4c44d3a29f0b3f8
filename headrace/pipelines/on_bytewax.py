"""The Bytewax runner: steps as operators on Bytewax's engine. No other module imports bytewax.

`dataflow_of` converts a `Flow` to a Dataflow. You may also write a Dataflow that combines these with other operators:

    flow = Dataflow("materialize")
    events = op.input("in", flow, events_in(source, (Reading,), dead_letters=letters))
    materialize("features", events, (SensorActivity,), "redis://127.0.0.1:6379")

`add_job` runs any other job of `flow`, for example `add_job("join", events, join(spec))`.

Items are batches, never single events. Every worker reads its share of the partitions. Each of W groups of shards is
one keyed state, on a separate worker. Bytewax's recovery, windows and clocks are not used: offsets are stored with the
data, and the source asks the steps downstream where to begin. `python -m bytewax.run module:flow` works, and SIGTERM
ends it cleanly.

    in (W sources) --> route (every batch to every group) --> step (W groups) --> summaries or frames
"""
# To mypy, Bytewax's base classes and decorators are Any.
# mypy: disable-error-code="misc, untyped-decorator"

import contextlib
import functools
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

from headrace.extras import require

require("bytewax", "confluent_kafka")

import bytewax.operators as op
from bytewax.dataflow import Dataflow, Operator, Stream, operator
from bytewax.errors import BytewaxRuntimeError
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main

from headrace.errors import ConfigError, HeadraceError
from headrace.features.view import FeatureView
from headrace.pipelines.flow import Flow, Job, OnStatus, Place, StoreLike
from headrace.pipelines.flow import materialize as materialize_job
from headrace.pipelines.loop import (
    APPLY,
    IDLE_S,
    TICK,
    Heartbeat,
    Step,
    discard,
    graceful_stop,
    log_line,
    pause_after,
    prepares,
    up_line,
)
from headrace.pipelines.materializer import FlushSummary
from headrace.pipelines.placing import PlacedSteps, worker_keys
from headrace.schemas import DeadLetters, Event
from headrace.streams.intake import Intake
from headrace.streams.positions import least_positions
from headrace.streams.read_ahead import ReadAhead, keep_freed_memory
from headrace.streams.source import EventBatch, Source

IN_FLIGHT_MAX = 32
"""Batches that a worker's source may be ahead of the steps, since Bytewax has no back-pressure within an epoch."""
EPOCH = timedelta(seconds=1)


def events_in(
    source: Source, events: Iterable[type[Event]], *, dead_letters: DeadLetters, **intake: Any
) -> DynamicSource[EventBatch]:
    """Input of decoded, checked batches of `events`; bad events go to `dead_letters`. `intake`: options of `Intake`."""
    make = functools.partial(Intake, tuple(events), dead_letters=dead_letters, **intake)
    return _Input(source, make, dead_letters)


def dataflow_of(flow: Flow) -> Dataflow:
    """Convert a `Flow` to a Dataflow."""
    built = Dataflow(flow.name)
    events = op.input("events", built, _Input(flow.source, flow.intake, flow.dead_letters))
    for job in flow.jobs:
        add_job(job.name, events, job)
    return built


@operator
def add_job(step_id: str, up: Stream[EventBatch], job: Job) -> Stream[Any]:
    """Run the steps of `job`, and emit what their `tick` and `finish` return.

    The steps are created when the flow starts, and the source begins at their positions.
    """
    del step_id
    inputs = _inputs(up.flow())
    first = inputs[0]
    steps = PlacedSteps(lambda group, groups: job.make(Place(group, groups, first.dead_letters, first.stop)))
    for each in inputs:
        each.readers.append((steps, job.spread))
    if (on_status := job.on_status) is not None:
        first.reports.append(lambda: on_status({"steps": [step.status() for step in steps.made]}))

    def route(items: list[EventBatch]) -> list[tuple[str, tuple[int, EventBatch]]]:
        keys = worker_keys(first.workers if job.spread else 1)
        return [(key, (group, batch)) for batch in items for group, key in enumerate(keys)]

    keyed = op.flat_map_batch("route", up, route)
    results = op.key_rm("results", op.stateful_batch("step", keyed, lambda _none: _StepLogic(steps, inputs)))
    op.output("end", results, _Out(job.out or discard, first))  # Bytewax requires an output; the caller may add more
    return results


@operator
def materialize(
    step_id: str, up: Stream[EventBatch], views: Sequence[type[FeatureView]], store: StoreLike, **options: Any
) -> Stream[FlushSummary]:
    """Keep the records of `views` in `store` up to date, as the job `flow.materialize` with its options."""
    del step_id
    return add_job("steps", up, materialize_job(views, store, **options))


@operator
def consume(
    step_id: str,
    up: Stream[EventBatch],
    make: Callable[[int, int], Step],
    *,
    spread: bool,
    on_status: OnStatus | None = None,
) -> Stream[Any]:
    """Run any `Step`, created by `make(group, groups)`; see `Job`."""
    del step_id
    return add_job("steps", up, Job("steps", lambda place: make(place.group, place.groups), spread, None, on_status))


def run(flow: Dataflow, workers: int = 1, *, say: Callable[[str], object] | None = None) -> None:
    """Run `flow` until its sources end, or SIGTERM or SIGINT arrives; then everything applied is flushed.

    `say` gets one line for each input, once it reads or waits for input: what it reads and what its steps write. The
    default logs the line.

    Raises:
        ConfigError: `flow` is not a Dataflow, or has no input from `events_in`.
        HeadraceError: the original error of a source or step, instead of Bytewax's. Nothing is flushed then.
    """
    if not isinstance(flow, Dataflow):
        raise ConfigError(f"flow is of type {type(flow).__name__}, not a Dataflow of bytewax")
    os.environ["RUST_BACKTRACE"] = "0"  # the original error is raised, so the engine's trace is noise
    failure = _Failure()
    with graceful_stop() as stopping:
        for each in _inputs(flow):
            each.stop, each.failure, each.say = stopping, failure, say or each.say
        try:
            cli_main(flow, workers_per_process=workers, epoch_interval=EPOCH)
        except BaseException as exc:
            if not _is_bytewax(exc):
                raise
            failure.note(_original(exc))
        finally:
            for each in _inputs(flow):
                each.failure = None
    if failure.first is not None:
        raise failure.first  # outside the handler, so that its own cause is kept


class _Failure:
    """The first error of an input or step under `run`. Noting an error ends the flow.

    An error that reaches Bytewax becomes a panic of its engine, which writes to stderr first.
    """

    def __init__(self) -> None:
        self.first: BaseException | None = None
        self._lock = threading.Lock()

    def note(self, exc: BaseException) -> None:
        """Keep an error if it is the first."""
        with self._lock:
            self.first = self.first or exc


class _Input(DynamicSource[Any]):
    """A source spread over the workers. It asks the flow's steps where to begin."""

    def __init__(self, source: Source, make_intake: Callable[[], Intake], dead_letters: DeadLetters) -> None:
        self.source = source
        self.dead_letters = dead_letters
        self.stop = _process_stop()
        self.failure: _Failure | None = None
        self.readers: list[tuple[PlacedSteps, bool]] = []
        self.reports: list[Callable[[], object]] = []
        self.say: Callable[[str], object] = log_line
        self.workers = 1
        self.partitions: list[str] = []
        self._make_intake = make_intake

    @property
    def has_failed(self) -> bool:
        """Whether a part of the flow has failed, so that it must end without a flush."""
        return self.failure is not None and self.failure.first is not None

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Context that notes errors if `run` will raise them, hiding them from Bytewax; otherwise they propagate."""
        try:
            yield
        except StopIteration:
            raise
        except Exception as exc:
            if self.failure is None:
                raise
            self.failure.note(exc)

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_Part":
        """Open a worker's share. Bytewax calls it once per worker and run, on the worker's thread, before any batch."""
        del step_id
        with self.noting():
            return self._opened(worker_index, worker_count)
        return _Part(self, None, None)

    def _opened(self, worker_index: int, worker_count: int) -> "_Part":
        self.workers = worker_count
        share = self.source.share(worker_index, worker_count)
        asker = (id(self), worker_index)
        share.seek(
            least_positions(
                steps.positions(asker, worker_count if is_spread else 1) for steps, is_spread in self.readers
            )
        )
        self.partitions = share.partitions()
        keep_freed_memory()
        intake = self._make_intake()
        intake.warm_up()
        steps = chain.from_iterable(placed.made for placed, _ in self.readers)
        ahead = ReadAhead(share, intake.decode, pause_after, prepare=prepares(steps))
        if worker_index != 0:
            return _Part(self, ahead, None)
        firsts = [placed.made[0] for placed, _ in self.readers]
        return _Part(self, ahead, Heartbeat(up_line(self.source, firsts), self.say, self.reports))


class _Part(StatelessSourcePartition[Any]):
    """One worker's share of a source; `ahead` is None if it could not be opened. Worker 0 has the heartbeat."""

    def __init__(self, owner: _Input, ahead: ReadAhead[Any] | None, heartbeat: Heartbeat | None) -> None:
        self._owner = owner
        self._ahead = ahead
        self._heartbeat = heartbeat
        self._in_flight: weakref.WeakSet[Any] = weakref.WeakSet()  # a batch is freed once every step has processed it
        self._pause_s: float | None = None

    def next_batch(self) -> list[Any]:
        """Next batches. Bytewax calls it when the last are emitted and `next_awake` has passed; it must not block."""
        with self._owner.noting():
            if self._ahead is not None and not self._owner.has_failed:
                return self._next(self._ahead)
        raise StopIteration

    def _next(self, ahead: ReadAhead[Any]) -> list[Any]:
        if self._owner.stop.is_set():
            ahead.stop()
        if ahead.exhausted:
            raise StopIteration
        batches = ahead.poll() if len(self._in_flight) < IN_FLIGHT_MAX else []
        if self._heartbeat is not None:
            self._heartbeat.beat(has_read=bool(batches), waits=ahead.has_polled)
        self._pause_s = None if batches else IDLE_S
        if self._owner.workers > 1:
            self._in_flight.update(batches)
        return batches

    def next_awake(self) -> datetime | None:
        """Time of the next poll, after the pause of the last poll; None: at once."""
        return None if self._pause_s is None else datetime.now(UTC) + timedelta(seconds=self._pause_s)

    def close(self) -> None:
        """Close the source. Called by Bytewax at the end of the share, also after a failure."""
        if self._ahead is not None:
            self._ahead.close()


class _StepLogic(op.StatefulBatchLogic[Any, Any, None]):
    """The step of one group. Bytewax does not pass the key, so it learns its group from the first batch."""

    def __init__(self, steps: PlacedSteps, inputs: Sequence[_Input]) -> None:
        self._steps = steps
        self._inputs = inputs
        self._step: Step | None = None

    def on_batch(self, values: list[tuple[int, EventBatch]]) -> tuple[Sequence[Any], bool]:
        """Apply batches. Called with all batches that wait for this group."""
        return self._done(lambda: self._take(values))

    def on_notify(self) -> tuple[Sequence[Any], bool]:
        """Do what is due. Called when `notify_at` has passed, sometimes early."""
        return self._done(lambda: self._tick(self._step) if self._step else ())

    def on_eof(self) -> tuple[Sequence[Any], bool]:
        """Flush. Called once when all sources have ended or were asked to stop; after a failure nothing is flushed."""
        return self._done(lambda: self._step.finish() if self._step else ())

    def notify_at(self) -> datetime | None:
        """Wall time at which the step is due next."""
        due_s = None if self._step is None or self._inputs[0].has_failed else self._step.due_s
        return None if due_s is None else datetime.now(UTC) + timedelta(seconds=max(0.0, due_s - time.monotonic()))

    def _take(self, values: list[tuple[int, EventBatch]]) -> Sequence[Any]:
        if self._step is None:
            self._step = self._steps.made[values[0][0]]
            self._step.expect([name for each in self._inputs for name in each.partitions])
        for _, batch in values:
            with APPLY.time():
                self._step.apply(batch)
        return self._tick(self._step)

    def _tick(self, step: Step) -> Sequence[Any]:
        with TICK.time():
            return step.tick()

    def _done(self, act: Callable[[], Sequence[Any]]) -> tuple[Sequence[Any], bool]:
        with self._inputs[0].noting():
            if not self._inputs[0].has_failed:
                return act(), self.RETAIN
        return (), self.RETAIN

    def snapshot(self) -> None:
        """Return nothing, since state and offsets are in the step's own store."""


class _Out(DynamicSink[Any]):
    """Output that calls a function with each result."""

    def __init__(self, out: Callable[[Any], object], errors_to: _Input) -> None:
        self._out = out
        self._errors_to = errors_to

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_Calls":
        del step_id, worker_index, worker_count
        return _Calls(self._out, self._errors_to)


class _Calls(StatelessSinkPartition[Any]):
    def __init__(self, out: Callable[[Any], object], errors_to: _Input) -> None:
        self._out = out
        self._errors_to = errors_to

    def write_batch(self, items: list[Any]) -> None:
        with self._errors_to.noting():
            for item in items:
                self._out(item)


def _inputs(flow: Dataflow) -> list[_Input]:
    """All inputs of `events_in` in the flow, at any depth."""

    def walk(steps: Sequence[Operator]) -> Iterator[_Input]:
        for step in steps:
            source = getattr(step, "source", None)
            if isinstance(source, _Input):
                yield source
            yield from walk(step.substeps)

    inputs = list(walk(flow.substeps))
    if not inputs:
        raise ConfigError(f"flow {flow.flow_id!r} has no input made by `events_in`: our steps need one to start from")
    return inputs


def _is_bytewax(exc: BaseException) -> bool:
    """Whether an error is Bytewax's own. Its engine's panic is a BaseException of a module that cannot be imported."""
    return isinstance(exc, BytewaxRuntimeError) or type(exc).__name__ == "PanicException"


def _original(exc: BaseException) -> BaseException:
    """The HeadraceError that caused `exc`, or the first cause that is not Bytewax's."""
    causes = [exc]
    while (deeper := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(deeper)
    ours = (each for each in causes if isinstance(each, HeadraceError))
    return next(ours, next((each for each in causes if not _is_bytewax(each)), exc))


@functools.cache
def _bytewax_run_stop() -> threading.Event:
    """The stop flag of a `python -m bytewax.run` process, which would otherwise die of SIGTERM without a flush."""
    stop = threading.Event()

    def ask(number: int, _frame: Any) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    return stop


def _process_stop() -> threading.Event:
    started_as = getattr(sys.modules.get("__main__"), "__spec__", None)
    is_runner = started_as is not None and started_as.name == "bytewax.run"
    if is_runner and threading.current_thread() is threading.main_thread():
        return _bytewax_run_stop()
    return threading.Event()
