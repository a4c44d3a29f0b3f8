"""Our steps as Bytewax operators, and Bytewax's runner. Nothing else imports bytewax.

    flow = Dataflow("materialize")
    events = op.input("in", flow, events_in(source, (Reading,), dead_letters=letters))
    materialize("features", events, (SensorActivity,), "redis://127.0.0.1:6379")

Items are batches, never single events. Every worker reads its share of the partitions; each of W groups of shards is
one keyed state, on a worker of its own. Bytewax's recovery, windows and clocks stay unused: offsets live with the data,
and the source asks the steps downstream where to begin. `python -m bytewax.run module:flow` works, and SIGTERM ends it
cleanly.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import bytewax.operators as op
import polars as pl
import structlog
from bytewax.dataflow import Dataflow, Operator, Stream, operator
from bytewax.errors import BytewaxRuntimeError
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.run import cli_main

from headrace.clock import Clock
from headrace.errors import ConfigError, HeadraceError
from headrace.features.store import OnlineStore
from headrace.features.view import FeatureView, events_of, plan_of
from headrace.pipelines.join_spec import JoinSpec
from headrace.pipelines.join_step import IDLE_S as PARTITION_IDLE_S
from headrace.pipelines.join_step import JoinStep
from headrace.pipelines.joiner import Joiner
from headrace.pipelines.loop import IDLE_S, Step, graceful_stop, pause_after, prepares
from headrace.pipelines.materializer import CATCH_UP_S, FLUSH_S, FlushSummary, Materializer
from headrace.pipelines.placing import MakeStep, PlacedSteps
from headrace.pipelines.worker_keys import worker_keys
from headrace.schemas import DeadLetters, Event
from headrace.schemas.codecs.registry import SchemaRegistry
from headrace.streams.intake import FUTURE_US, Intake
from headrace.streams.memory import keep_freed_memory
from headrace.streams.positions import least_positions
from headrace.streams.read_ahead import ReadAhead
from headrace.streams.source import Batch, EventBatch, Source, described

log = structlog.get_logger(__name__)

IN_FLIGHT_MAX = 32
"""Batches a worker's source may be ahead of the steps: within an epoch Bytewax bounds nothing between workers."""
EPOCH = timedelta(seconds=1)

StoreLike = OnlineStore | str | Callable[[], OnlineStore]
STATUS_S = 0.5
"""Interval of the figures that a flow shows of itself."""
OnStatus = Callable[[Mapping[str, Any]], object]
"""Takes {"steps": [figures of each step]}; called twice a second by the input of worker 0, also when nothing flows."""


def batches(source: Source) -> DynamicSource[Batch]:
    """Input of raw batches, for steps that decode by themselves."""
    return _Input(source, lambda: None, None)


def events_in(
    source: Source,
    events: Iterable[type[Event]],
    *,
    dead_letters: DeadLetters,
    clock: Clock | None = None,
    future_us: int = FUTURE_US,
    registry: SchemaRegistry | None = None,
) -> DynamicSource[EventBatch]:
    """Input of decoded and checked batches of `events`; what is bad goes to `dead_letters`."""
    known = tuple(events)
    make = functools.partial(
        Intake, known, dead_letters=dead_letters, clock=clock, future_us=future_us, registry=registry
    )
    return _Input(source, make, dead_letters)


@operator
def materialize(
    step_id: str,
    up: Stream[EventBatch],
    views: Sequence[type[FeatureView]],
    store: StoreLike,
    *,
    flush_s: tuple[float, float] = FLUSH_S,
    catch_up_s: float = CATCH_UP_S,
    records_max: int | None = None,
    on_status: OnStatus | None = None,
) -> Stream[FlushSummary]:
    """Keep the records of `views` in `store` up to date; hands on one `FlushSummary` a flush and group.

    `store` is a store, its URL, or a function that opens it; the latter two connect when the flow starts. Events that
    are too late for a view go to the dead letters of the flow's input. `records_max` bounds the records of each view in
    memory, of all workers together; others are fetched from the store when an event of theirs comes.
    """
    del step_id
    open_store = _opener(store)
    first = _inputs(up.flow())[0]

    def make(group: int, groups: int) -> Materializer:
        return Materializer(
            views,
            open_store(),
            owner=(group, groups),
            flush_s=flush_s,
            catch_up_s=catch_up_s,
            records_max=None if records_max is None else max(records_max // groups, 1),
            dead_letters=first.dead_letters,
            stop=first.stop,
        )

    return consume("steps", up, make, spread=True, on_status=on_status)


def materialize_flow(
    source: Source, views: Sequence[type[FeatureView]], store: StoreLike, intake: Mapping[str, Any], **options: Any
) -> Dataflow:
    """The flow from `source` to the records of `views`; `intake` as for `events_in`, `options` for `materialize`."""
    flow = Dataflow("materialize")
    events = op.input("events", flow, events_in(source, events_of(map(plan_of, views)), **intake))
    materialize("views", events, views, store, **options)
    return flow


@operator
def join_examples(
    step_id: str,
    up: Stream[EventBatch],
    spec: JoinSpec,
    *,
    state: str | Path | None = None,
    idle_s: float | None = PARTITION_IDLE_S,
) -> Stream[pl.DataFrame]:
    """Hand on frames of labelled requests, in order: one joiner for the whole flow, its state in the folder `state`."""
    del step_id

    def make(_group: int, _groups: int) -> JoinStep:
        return JoinStep(Joiner(spec), state=state, idle_s=idle_s)

    return consume("steps", up, make, spread=False)


@operator
def parquet_out(step_id: str, up: Stream[pl.DataFrame], folder: str | Path) -> None:
    """Write each frame to a Parquet file of its own in `folder`. After a crash rows may be there twice."""
    del step_id
    op.output("files", up, _Parquet(Path(folder)))


@operator
def consume(
    step_id: str,
    up: Stream[EventBatch],
    make: MakeStep,
    *,
    spread: bool,
    on_status: OnStatus | None = None,
) -> Stream[Any]:
    """Run any `Step`: one a worker, each given every batch (`spread`), or one for the whole flow.

    The steps are made when the flow starts, and the source begins where they stand. Hands on what `tick` and `finish`
    return. `on_status` is given the figures of the steps.
    """
    del step_id
    inputs, steps = _inputs(up.flow()), PlacedSteps(make)
    for found in inputs:
        found.readers.append((steps, spread))
    if on_status is not None:
        inputs[0].heartbeats.append(lambda: on_status({"steps": [step.status() for step in steps.made]}))

    def route(items: list[EventBatch]) -> list[tuple[str, tuple[int, EventBatch]]]:
        keys = worker_keys(inputs[0].workers if spread else 1)
        return [(key, (group, batch)) for batch in items for group, key in enumerate(keys)]

    keyed = op.flat_map_batch("route", up, route)
    results = op.key_rm("results", op.stateful_batch("step", keyed, lambda _none: _StepLogic(steps, inputs)))
    op.output("end", results, _Discard())  # Bytewax wants an output; an author may add others
    return results


def run(flow: Dataflow, workers: int = 1, *, say: Callable[[str], object] | None = None) -> None:
    """Run `flow` until its sources end, or SIGTERM or SIGINT arrives; then everything applied is flushed.

    `say` is given one line for each input, once it has read something or has waited for it: from where, and what its
    steps write; default: a log line.

    Raises:
        ConfigError: `flow` is no dataflow, or has no input of ours.
        HeadraceError: the error that a source or step failed with, in place of Bytewax's own. Nothing is flushed then.
    """
    if not isinstance(flow, Dataflow):
        raise ConfigError(f"flow is of type {type(flow).__name__}, not a Dataflow of bytewax")
    os.environ["RUST_BACKTRACE"] = "0"  # a failed step is raised as itself: the engine's trace of it is noise
    failure = _Failure()
    with graceful_stop() as stopping:
        for found in _inputs(flow):
            found.stop, found.failure, found.say = stopping, failure, say or found.say
        try:
            cli_main(flow, workers_per_process=workers, epoch_interval=EPOCH)
        except BaseException as exc:
            if not _is_bytewax(exc):
                raise
            failure.note(_original(exc))
        finally:
            for found in _inputs(flow):
                found.failure = None
    if failure.first is not None:
        raise failure.first  # out of the handler: what caused it stays its cause


class _Failure:
    """The first error of our inputs and steps under `run`, which ends the flow by itself once it is noted.

    An error that Bytewax sees becomes a panic of its engine, which writes to stderr before anybody can say a word.
    """

    def __init__(self) -> None:
        self.first: BaseException | None = None
        self._lock = threading.Lock()

    def note(self, exc: BaseException) -> None:
        """Keep an error, unless there is one."""
        with self._lock:
            self.first = self.first or exc


class _Input(DynamicSource[Any]):
    """A source spread over the workers. It knows the flow's steps, which tell it where to begin."""

    def __init__(
        self, source: Source, make_intake: Callable[[], Intake | None], dead_letters: DeadLetters | None
    ) -> None:
        self.source = source
        self.dead_letters = dead_letters
        self.stop = _process_stop()
        self.failure: _Failure | None = None
        self.readers: list[tuple[PlacedSteps, bool]] = []
        self.heartbeats: list[Callable[[], object]] = []
        self.say: Callable[[str], object] = _log_line
        self.workers = 1
        self.partitions: list[str] = []
        self._make_intake = make_intake

    @property
    def has_failed(self) -> bool:
        """Whether the flow must end, here or elsewhere, without a flush."""
        return self.failure is not None and self.failure.first is not None

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Keep an error from Bytewax where `run` will raise it; else let it through."""
        try:
            yield
        except StopIteration:
            raise
        except Exception as exc:
            if self.failure is None:
                raise
            self.failure.note(exc)

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_Part":
        """Called by Bytewax once a worker and run, on the worker's thread, before any batch."""
        del step_id
        with self.noting():
            return self._opened(worker_index, worker_count)
        return _Part(self, None, ())

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
        if intake is not None:
            intake.warm_up()
        decode: Callable[[Batch], Any] = intake.decode if intake else _as_it_is
        made = chain.from_iterable(steps.made for steps, _ in self.readers)
        ahead = ReadAhead(share, decode, pause_after, prepare=prepares(made) if intake else ())
        written = [described(steps.made[0]) for steps, _ in self.readers]
        line = f"reads {described(self.source)}; writes {', '.join(written) or 'nothing'}"
        return _Part(self, ahead, self.heartbeats, line) if worker_index == 0 else _Part(self, ahead, [])


class _Part(StatelessSourcePartition[Any]):
    """One worker's share of a source; without `ahead` it could not be opened. `line` is said once it reads."""

    def __init__(
        self,
        owner: _Input,
        ahead: ReadAhead[Any] | None,
        heartbeats: Sequence[Callable[[], object]],
        line: str | None = None,
    ) -> None:
        self._line = line
        self._opened_s = time.monotonic()
        self._owner = owner
        self._ahead = ahead
        self._in_flight: weakref.WeakSet[Any] = weakref.WeakSet()  # freed once every step is done with it
        self._pause_s: float | None = None
        self._heartbeats = heartbeats
        self._beat_s = 0.0

    def next_batch(self) -> list[Any]:
        """Called by Bytewax when the last items are on their way and `next_awake` has passed; must not block."""
        with self._owner.noting():
            if self._ahead is not None and not self._owner.has_failed:
                return self._next(self._ahead)
        raise StopIteration

    def _next(self, ahead: ReadAhead[Any]) -> list[Any]:
        if self._heartbeats and time.monotonic() - self._beat_s >= STATUS_S:
            self._beat_s = time.monotonic()
            for beat in self._heartbeats:
                beat()
        if self._owner.stop.is_set():
            ahead.stop()
        if ahead.exhausted:
            raise StopIteration
        found = ahead.poll() if len(self._in_flight) < IN_FLIGHT_MAX else []
        if self._line is not None and (found or time.monotonic() - self._opened_s > STATUS_S):
            self._owner.say(self._line)
            self._line = None
        self._pause_s = None if found else IDLE_S
        if self._owner.workers > 1:
            self._in_flight.update(found)
        return found

    def next_awake(self) -> datetime | None:
        """A few milliseconds ahead after a poll that brought nothing."""
        return None if self._pause_s is None else datetime.now(UTC) + timedelta(seconds=self._pause_s)

    def close(self) -> None:
        """Called by Bytewax at the end of the share, also after a failure."""
        if self._ahead is not None:
            self._ahead.close()


def _log_line(line: str) -> None:
    log.info("flow_up", detail=line)


def _as_it_is(batch: Batch) -> Batch:
    return batch


class _StepLogic(op.StatefulBatchLogic[Any, Any, None]):
    """One group's step. Bytewax does not tell it its key, so it learns its group from the first batch."""

    def __init__(self, steps: PlacedSteps, inputs: Sequence[_Input]) -> None:
        self._steps = steps
        self._inputs = inputs
        self._step: Step | None = None

    def on_batch(self, values: list[tuple[int, EventBatch]]) -> tuple[Sequence[Any], bool]:
        """Called with all batches that wait for this group."""
        return self._done(lambda: self._take(values))

    def on_notify(self) -> tuple[Sequence[Any], bool]:
        """Called when `notify_at` has passed, sometimes without need."""
        return self._done(lambda: self._step.tick() if self._step else ())

    def on_eof(self) -> tuple[Sequence[Any], bool]:
        """Called once when all sources have ended or were asked to stop; after a failure nothing is flushed."""
        return self._done(lambda: self._step.finish() if self._step else ())

    def notify_at(self) -> datetime | None:
        """Wall time of the step's next due moment."""
        due_s = None if self._step is None or self._inputs[0].has_failed else self._step.due_s
        return None if due_s is None else datetime.now(UTC) + timedelta(seconds=max(0.0, due_s - time.monotonic()))

    def _take(self, values: list[tuple[int, EventBatch]]) -> Sequence[Any]:
        if self._step is None:
            self._step = self._steps.made[values[0][0]]
            self._step.expect([name for found in self._inputs for name in found.partitions])
        for _, batch in values:
            self._step.apply(batch)
        return self._step.tick()

    def _done(self, act: Callable[[], Sequence[Any]]) -> tuple[Sequence[Any], bool]:
        with self._inputs[0].noting():
            if not self._inputs[0].has_failed:
                return act(), self.RETAIN
        return (), self.RETAIN

    def snapshot(self) -> None:
        """Nothing: state and offsets are in the step's own store."""


class _Parquet(DynamicSink[pl.DataFrame]):
    """Output of frames, one file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_ParquetFiles":
        del step_id, worker_index, worker_count
        return _ParquetFiles(self._folder)


class _ParquetFiles(StatelessSinkPartition[pl.DataFrame]):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def write_batch(self, items: list[pl.DataFrame]) -> None:
        for frame in items:
            name = f"{time.time_ns()}.parquet"
            frame.write_parquet(self._folder / f".{name}")
            (self._folder / f".{name}").rename(self._folder / name)


class _Discard(DynamicSink[Any]):
    """Output that keeps nothing."""

    def build(self, step_id: str, worker_index: int, worker_count: int) -> "_Nowhere":
        del step_id, worker_index, worker_count
        return _Nowhere()


class _Nowhere(StatelessSinkPartition[Any]):
    def write_batch(self, items: list[Any]) -> None:
        del items


def _inputs(flow: Dataflow) -> list[_Input]:
    """Our inputs anywhere in the flow."""

    def walk(steps: Sequence[Operator]) -> Iterator[_Input]:
        for step in steps:
            source = getattr(step, "source", None)
            if isinstance(source, _Input):
                yield source
            yield from walk(step.substeps)

    found = list(walk(flow.substeps))
    if not found:
        raise ConfigError(
            f"flow {flow.flow_id!r} has no input made by `events_in` or `batches`: our steps need one to start from"
        )
    return found


def _opener(store: StoreLike) -> Callable[[], OnlineStore]:
    """A function that opens the store once, from whichever worker asks first."""
    if isinstance(store, OnlineStore):
        return lambda: store
    lock = threading.Lock()
    connect = functools.partial(OnlineStore.open, store) if isinstance(store, str) else store
    once = functools.cache(connect)

    def opened() -> OnlineStore:
        with lock:
            return once()

    return opened


def _is_bytewax(exc: BaseException) -> bool:
    """Whether Bytewax itself raised; a panic of its engine is a BaseException of a module that cannot be imported."""
    return isinstance(exc, BytewaxRuntimeError) or type(exc).__name__ == "PanicException"


def _original(exc: BaseException) -> BaseException:
    """The error of ours that `exc` was made from, else the first that is not Bytewax's."""
    chain = [exc]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(deeper)
    ours = (found for found in chain if isinstance(found, HeadraceError))
    return next(ours, next((found for found in chain if not _is_bytewax(found)), exc))


@functools.cache
def _bytewax_run_stop() -> threading.Event:
    """The stop flag of a process started as `python -m bytewax.run`, which else dies of SIGTERM without a flush."""
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
