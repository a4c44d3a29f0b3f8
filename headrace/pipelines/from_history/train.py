"""Train a learner on history in one pass, and publish the first version; a live flow continues where history ends.

    history  |----- before `since`: features only -----|------- learned, in steps of event time -------|..waits..|
                                                                                                       ^ watermark
    live topic                                                     from the recorded offsets on  ------+-------->

Examples, their order and the micro-batches are those of the live flow (`TrainStep`), driven by the watermark of the
history. What the watermark does not allow yet (requests with open windows, the last step of events) is saved with the
state, and learned live. So weights equal those of one trainer that reads history and stream.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from headrace.errors import ConfigError, ModelError
from headrace.features.view import events_of, plan_of
from headrace.history.log import MEMORY_ROWS, time_of
from headrace.learners import Learner, ModelDirectory
from headrace.pipelines.examples import EventExamples
from headrace.pipelines.from_history.reading import LeftOut, OrderedEvents, open_history, read_to_end
from headrace.pipelines.train_step import TrainStep
from headrace.pipelines.trainer import Trainer
from headrace.pipelines.training.cadence import Cadence
from headrace.schemas import Event, spec_of
from headrace.streams.intake import Intake
from headrace.streams.source import EventBatch, Source
from headrace.streams.watermark import END_OF_TIME_US

CURVE_ROWS = 50_000
"""Examples between two points of the curve: a few times the window of the recent metrics at most."""

Report = Callable[[str, int, int | None, Mapping[str, Any]], object]
"""Called with the activity ("reading" or "training"), rows done, the total if known, and the recent metrics."""


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """Result of a training on history.

    Attributes:
        learner: name of the learner.
        events: number of rows of history, including those before `since`.
        examples: number of examples learned from.
        waiting: number of events that the watermark does not allow yet; a live flow learns them.
        left_out: number of bad events, which are not counted in `events`.
        seconds: duration of the training, including reading.
        figures: prequential metrics over all examples (`Prequential.snapshot`).
        curve: a row for about every 50,000 examples: `event_time`, `examples`, and the metrics of recent examples.
        version: the published version; None if there is no directory of models.
        micro_batch: rows of a micro-batch at the end: those of the cadence, or the fewest that keep up.
        positions: partition of a topic -> offset at which a live flow continues.
    """

    learner: str
    events: int
    examples: int
    waiting: int
    seconds: float
    figures: dict[str, Any]
    curve: pl.DataFrame
    version: int | None
    positions: dict[str, int] = field(default_factory=dict)
    left_out: int = 0
    micro_batch: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """The part of history to learn: events in [since, until), in microseconds; earlier events only update features.

    Raises:
        ConfigError: the span is empty.
    """

    since_us: int | None = None
    until_us: int | None = None

    def __post_init__(self) -> None:
        if self.since_us is not None and self.until_us is not None and self.since_us >= self.until_us:
            raise ConfigError(f"history from {_iso(self.since_us)} until {_iso(self.until_us)}: empty; swap the times")

    def describe(self) -> str:
        """Describe the span for messages; "" for all of history."""
        since = "" if self.since_us is None else f" from {_iso(self.since_us)}"
        return since + ("" if self.until_us is None else f" until {_iso(self.until_us)}")


def train(
    learner: type[Learner] | TrainStep,
    events: Any,
    *,
    impressions: Any = None,
    since: datetime | None = None,
    until: datetime | None = None,
    handover: Mapping[str, int] | None = None,
    topic_follows: bool = False,
    models: str | Path | None = None,
    state: str | Path | None = None,
    memory_rows: int = MEMORY_ROWS,
    intake: Mapping[str, Any] | None = None,
    report: Report = lambda *_: None,
) -> Training:
    """Train on history in one pass, with features as of each example's time, predicting each example before learning.

    The model is published through the gate as the next version. The state is saved with the offsets at which a live
    flow continues, so that no example is learned twice or lost.

    Arguments:
        learner: a learner, which is trained only on events with the defaults of `EventExamples` and `Cadence`; or a
            step, such as `make_step` of a project's `pipelines/train.py` returns.
        events: history of the events that the learner reads: a table (Polars, pandas, pyarrow, list of dicts), paths,
            globs, archives or URLs as for `headrace replay`, or a dict of these by event class.
        impressions: requests to join with the events, in the same forms; the step must have a joiner.
        since: examples are made from this time on; earlier events only update features. A naive time is UTC.
        until: events at or after this time are left out.
        handover: partition of a live topic -> first offset that history does not hold. Not needed for archives and
            topics, which provide it.
        topic_follows: the live topic holds none of these events, so it is read from its start.
        models, state: folders of published models and of the saved state for a learner without a step; None: none.
        memory_rows: largest number of events in memory; more are sorted on disk.
        intake: keyword arguments of `Intake`; by default bad events are left out and counted.
        report: called with the progress after each piece.

    Raises:
        ConfigError: the range is empty, nothing could be learned, the state has learned before, or impressions are
            given without a joiner.
        SchemaError, SourceError: `events` do not fit their declaration, or cannot be read.
        ModelError: the gate refuses the model; nothing is published or saved.
    """
    span = Span(_micros(since), _micros(until))
    step = learner if isinstance(learner, TrainStep) else default_step(learner, models, state)
    histories = [open_history(events, step.classes)]
    if impressions is not None:
        if step.joiner is None:
            raise ConfigError("impressions need a step with a joiner: give the step of your pipelines/train.py")
        histories.append(open_history(impressions, [step.joiner.spec.request]))
    return train_on(
        step,
        histories,
        span,
        handover=handover,
        topic_follows=topic_follows,
        has_requests=impressions is not None,
        memory_rows=memory_rows,
        intake=intake,
        report=report,
    )


def default_step(learner: type[Learner], models: str | Path | None, state: str | Path | None) -> TrainStep:
    """A step that learns only from events; `models` and `state` are its folders, or None.

    Raises:
        DeclarationError: the learner has no label with a candidate column.
    """
    examples = EventExamples(learner)
    directory = None if models is None else ModelDirectory(models)
    trainer = Trainer(learner, directory, cadence=Cadence(publish_s=None), events=examples)
    classes = dict.fromkeys((*events_of(map(plan_of, learner.views)), examples.label.event))
    return TrainStep(trainer, None, list(classes), state=None if state is None else Path(state))


def train_on(
    step: TrainStep,
    histories: Sequence[Source],
    span: Span,
    *,
    handover: Mapping[str, int] | None = None,
    topic_follows: bool = False,
    has_requests: bool = False,
    memory_rows: int = MEMORY_ROWS,
    intake: Mapping[str, Any] | None = None,
    report: Report = lambda *_: None,
) -> Training:
    """Train a step on opened sources; see `train`.

    Raises:
        HeadraceError: as in `train`.
    """
    classes = _classes(step, has_requests=has_requests)
    ends = {name: end for source in histories for part in source.parts() for name, end in part.ends().items()}
    options = dict(intake or {})
    left_out = options["dead_letters"] = LeftOut(options.get("dead_letters"))

    def batches() -> Iterable[EventBatch]:
        for source in histories:
            live = {name for part in source.parts() if part.has_live_offsets for name in part.partitions()}
            begin = {name: end for name, end in ends.items() if name in live}  # a topic beside its archive
            for batch in read_to_end(source, Intake(classes, **options), begin):
                if batch.partition in live:
                    ends[batch.partition] = max(ends.get(batch.partition, 0), batch.next_offset)
                yield batch

    if step.trainer.trained or step.positions():
        _refuse_trained(step, batches, span)
    where = _Where(ends, dict(handover or {}), topic_follows=topic_follows, is_cut=span.until_us is not None)
    try:
        training = _learn_history(
            step, batches(), span, where, has_requests=has_requests, memory_rows=memory_rows, report=report
        )
    except ConfigError as exc:
        if not left_out.count:
            raise
        raise ConfigError(f"{exc}{left_out.describe()}") from exc
    return replace(training, left_out=left_out.count)


@dataclass(frozen=True, slots=True)
class _Where:
    """The position at which a live flow continues: offsets from sources, given offsets, or the start of the topic."""

    told: Mapping[str, int]
    given: Mapping[str, int]
    topic_follows: bool
    is_cut: bool

    def positions(self) -> dict[str, int]:
        """Partition -> offset. A history cut at a time does not end at its sources' offsets, so these are ignored."""
        return dict(self.given) if self.is_cut else {**self.told, **self.given}

    def partition(self, topic: str) -> str:
        """Name of the history as a partition.

        If it is unknown where the topic continues, the name is one of the topic's: then a live source refuses to read
        the topic from its start, since it may hold the same events (`headrace.streams.positions`).
        """
        is_known = self.topic_follows or any(name.rpartition("/")[0] == topic for name in self.positions())
        return f"history/{topic}" if is_known else f"{topic}/history"


def _learn_history(
    step: TrainStep,
    batches: Iterable[EventBatch],
    span: Span,
    where: _Where,
    *,
    has_requests: bool,
    memory_rows: int,
    report: Report,
) -> Training:
    """Train a step on decoded batches in any order, publish and save; see `train`.

    Raises:
        ConfigError: nothing could be learned.
        ModelError: the gate refuses the model.
    """
    started_s = time.monotonic()
    classes = _classes(step, has_requests=has_requests)
    with OrderedEvents(classes, until_us=span.until_us, memory_rows=memory_rows) as history:
        for batch in batches:
            history.add(batch.event, batch.frame)
            report("reading", history.rows, None, {})
        _require_rows(step, history.rows, history.span_us, span)
        curve = _learn(step, history, span, where, has_requests=has_requests, report=report)
    if not step.trainer.trained:
        name = step.trainer.learner.name
        within = ", ".join(label.within for label in step.trainer.learner.labels().values())
        raise ConfigError(
            f"learner {name}: no example in {history.rows:,} events{span.describe()}: none is positive, or none lies "
            f"a step of the label's window ({within}) before the end of history"
        )
    version = _publish(step)
    positions = where.positions()
    step.skip_to(positions)
    step.save()
    return Training(
        learner=step.trainer.learner.name,
        events=history.rows,
        examples=step.trainer.trained,
        waiting=step.waiting,
        seconds=time.monotonic() - started_s,
        figures=step.trainer.prequential.snapshot(),
        curve=pl.DataFrame(curve),
        version=version,
        positions=positions,
        micro_batch=step.trainer.micro_batch.rows,
    )


def _learn(
    step: TrainStep, history: OrderedEvents, span: Span, where: _Where, *, has_requests: bool, report: Report
) -> list[dict[str, Any]]:
    """Train the step on the pieces of history; returns the points of the curve."""
    offsets: dict[str, int] = {}
    curve: list[dict[str, Any]] = []
    last_us, done = 0, 0
    recent: Mapping[str, Any] = {}
    for piece, cut_us in history.pieces():
        done += sum(frame.height for frame in piece.values())
        for event, frame in piece.items():
            if frame.height:
                last_us = max(last_us, int(frame.select(time_of(event).last()).item()))
        for event, frame in _observe_before(step, piece, span).items():
            partition = where.partition(spec_of(event).topic)
            first = offsets.get(partition, 0)
            offsets[partition] = end = first + frame.height
            step.add(EventBatch(event, partition, np.arange(first, end), end, frame, None, 0))
        # The final watermark is that of a live flow, which does not know that no events follow.
        watermark_us = last_us if cut_us is None else cut_us
        step.advance(watermark_us - step.lateness_us, awaits_requests=has_requests)
        if step.trainer.trained >= CURVE_ROWS * len(curve) + CURVE_ROWS or cut_us is None:
            recent = step.trainer.prequential.snapshot()["recent"]
            curve.append(_point(last_us, step.trainer.trained, recent))
        report("training", done, history.rows, recent)
    return curve


def _observe_before(
    step: TrainStep, piece: dict[type[Event], pl.DataFrame], span: Span
) -> dict[type[Event], pl.DataFrame]:
    """Update features with the events before the span; returns the events in the span."""
    if span.since_us is None:
        return piece
    early = {event: frame.filter(time_of(event) < span.since_us) for event, frame in piece.items()}
    if step.events:
        step.trainer.observe_events({event: frame for event, frame in early.items() if event in step.events})
    return {event: frame[early[event].height :] for event, frame in piece.items()}


def _point(time_us: int, examples: int, recent: Mapping[str, Any]) -> dict[str, Any]:
    numbers = {name: value for name, value in recent.items() if name != "rows"}
    return {"event_time": datetime.fromtimestamp(time_us / 1e6, UTC), "examples": examples, **numbers}


def _publish(step: TrainStep) -> int | None:
    """Publish through the gate; returns the new version, or None without a directory."""
    if step.trainer.directory is None:
        return None
    verdict = step.trainer.publish()
    if not verdict.passed:
        raise ModelError(f"the model of this history is refused: {'; '.join(verdict.reasons)}")
    return step.trainer.directory.latest()


def _classes(step: TrainStep, *, has_requests: bool) -> list[type[Event]]:
    request = [step.joiner.spec.request] if step.joiner is not None and has_requests else []
    return list(dict.fromkeys((*step.classes, *request)))


def _refuse_trained(step: TrainStep, batches: Callable[[], Iterable[EventBatch]], span: Span) -> None:
    """Raise, since the state has learned before; if history has no events in the span, that error comes first.

    With a span, all of history is read to check that.
    """
    if span.describe():
        rows, edges_us = 0, None
        for batch in batches():
            if batch.event in step.classes and batch.frame.height:
                times = batch.frame.select(first=time_of(batch.event).min(), last=time_of(batch.event).max()).row(0)
                edges_us = times if edges_us is None else (min(edges_us[0], times[0]), max(edges_us[1], times[1]))
                rows += batch.frame.filter(time_of(batch.event) < (span.until_us or END_OF_TIME_US)).height
        _require_rows(step, rows, edges_us, span)
    read = ", ".join(f"{name} up to {offset:,}" for name, offset in sorted(step.positions().items())) or "nothing"
    begin = "give a new step" if step.state_folder is None else f"delete the folder {step.state_folder}"
    raise ConfigError(
        f"learner {step.trainer.learner.name}: its state has learned from {step.trainer.trained:,} examples "
        f"already ({read}); history would be learned twice; {begin} to begin anew, or go on live"
    )


def _require_rows(step: TrainStep, rows: int, edges_us: tuple[int, int] | None, span: Span) -> None:
    """Raise if none of the `rows` before the span's end can be learned; history spans `edges_us`."""
    first_us, last_us = edges_us or (0, 0)
    is_late = span.since_us is not None and span.since_us > last_us
    if rows and not is_late:
        return
    names = ", ".join(event.__name__ for event in step.classes)
    if edges_us is None:
        raise ConfigError(f"learner {step.trainer.learner.name}: no events of {names} in this history")
    raise ConfigError(
        f"learner {step.trainer.learner.name}: no events of {names}{span.describe()}; history has "
        f"{_iso(first_us)} to {_iso(last_us)}"
    )


def _micros(moment: datetime | None) -> int | None:
    if moment is None:
        return None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e6)


def _iso(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
