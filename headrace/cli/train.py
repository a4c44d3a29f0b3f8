"""The command `train`: train a learner of the project on history, and then live."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headrace import project
from headrace.cli.materialize import offsets_of
from headrace.cli.progress import RowsBar
from headrace.errors import ConfigError
from headrace.learners import Learner
from headrace.pictures import check_plot
from headrace.pipelines.from_history.plot import plot_curve
from headrace.pipelines.from_history.reading import PIECE_ROWS
from headrace.pipelines.from_history.train import Training, default_step, train
from headrace.pipelines.runner import run_flow
from headrace.pipelines.train_step import TrainStep
from headrace.pipelines.wiring import intake_of
from headrace.schemas import Event, FileDeadLetters, spec_of
from headrace.settings import Settings
from headrace.streams.source import Source
from headrace.streams.urls import sources_of_urls

MODULE = "pipelines.train"
SHOWN = {
    "auc": "AUC",
    "logloss": "log-loss",
    "base_logloss": "of the base rate",
    "calibration": "calibration",
    "hit@1": "hit@1",
}
"""Figure -> its label. The log-loss of the base rate is that of a model without features."""


@dataclasses.dataclass(frozen=True, slots=True)
class TrainOptions:
    """Flags of `headrace train`; the CLI describes them."""

    impressions: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    handover: Path | None = None
    topic_follows: bool = False
    then_live: bool = False
    module: str | None = None
    plot: Path | None = None
    csv_time_format: str | None = None


def train_learner(
    name: str, urls: Sequence[str], settings: Settings, root: Path, options: TrainOptions, say: Callable[[str], object]
) -> Training:
    """Train the learner `name` of the project at `root` on `urls`; bad events go to files of dead letters.

    Raises:
        ConfigError: there is no such learner, flags are incompatible, or the offset at which the live topic should
            continue is not known.
        HeadraceError: `headrace.train` failed.
    """
    if options.plot is not None:
        check_plot(options.plot)
    learner = project.learner_named(name, root)
    step = _step_of(learner, settings, root, options, say)
    if not options.then_live and step.trainer.directory is not None:
        step.trainer.directory.stop_notices()  # training on files needs no Redis
    source = _source(urls, step.classes, settings, options)
    impressions = _impressions(step, settings, options)
    topics = {spec_of(event).topic for event in step.classes}
    if step.joiner is not None:
        topics.add(spec_of(step.joiner.spec.request).topic)
    handover = {} if options.handover is None else offsets_of(options.handover, topics)
    if options.then_live:
        _require_where([source, *([] if impressions is None else [impressions])], handover, options)
    letters = FileDeadLetters(settings.dead_letter_dir)
    try:
        with RowsBar() as bar:
            training = train(
                step,
                source,
                impressions=impressions,
                since=options.since,
                until=options.until,
                handover=handover,
                topic_follows=options.topic_follows,
                intake=intake_of(settings, letters),
                report=lambda what, done, total, figures: bar.update(
                    done, total, words=words_of(figures), description=what
                ),
            )
    finally:
        letters.close()
    if options.plot is not None:
        plot_curve(training, options.plot)
    return training


def go_live(module: str | None, say: Callable[[str], object]) -> None:
    """Run the flow of the module until it is stopped.

    Raises:
        HeadraceError: the flow failed.
    """
    name = module or MODULE
    run_flow(project.load_object(f"{name}:flow"), say=lambda line: say(f"{name} is up: {line}"))


def words_of(figures: Mapping[str, Any]) -> str:
    """Format the known figures for people.

    >>> words_of({"rows": 10, "auc": 0.71234, "logloss": 0.2})
    'AUC 0.7123 · log-loss 0.2000'
    """
    return " · ".join(f"{words} {figures[name]:.4f}" for name, words in SHOWN.items() if name in figures)


def row_of(training: Training) -> dict[str, Any]:
    """The result as one row of a table."""
    numbers = {name: value for name, value in training.figures.items() if isinstance(value, float)}
    figures = {name: round(numbers[name], 4) for name in SHOWN if name in numbers} or numbers
    names = ("events", "left_out", "examples", "waiting", "micro_batch")
    counts = {name: getattr(training, name) for name in names}
    return {"learner": training.learner, "version": training.version, **counts, **figures}


def _step_of(
    learner: type[Learner], settings: Settings, root: Path, options: TrainOptions, say: Callable[[str], object]
) -> TrainStep:
    """The step of the project's training flow if it trains this learner, else a step that learns from events only."""
    is_there = options.module is not None or (root / "pipelines" / "train.py").is_file()
    other = f"there is no {MODULE}"
    if is_there:
        module = options.module or MODULE
        make_step = project.load_object(f"{module}:make_step")
        step = make_step(settings) if callable(make_step) else make_step
        if not isinstance(step, TrainStep):
            raise ConfigError(f"{module}:make_step returns no TrainStep; write `def make_step(settings) -> TrainStep`")
        if step.trainer.learner is learner:
            return step
        other = f"{module} trains {step.trainer.learner.__name__}"
        if options.module is not None:
            raise ConfigError(f"--module: {other}, not {learner.__name__}")
    if options.then_live or options.impressions:
        flag = "--then-live" if options.then_live else "--impressions"
        raise ConfigError(
            f"{flag} needs a flow of {learner.__name__}, and {other}: write a module with make_step and flow, and name "
            "it, --module pipelines.NAME"
        )
    models, state = settings.model_dir / learner.name, settings.state_dir / learner.name
    say(f"{other}: {learner.__name__} is trained on events alone, models in {models}, state in {state}")
    return default_step(learner, models, state)


def _impressions(step: TrainStep, settings: Settings, options: TrainOptions) -> Source | None:
    if options.impressions is None:
        return None
    if step.joiner is None:
        raise ConfigError("--impressions: the training step has no joiner; give it one in make_step")
    events = [step.joiner.spec.request]
    return _source([options.impressions], events, settings, options)


def _source(urls: Sequence[str], events: Sequence[type[Event]], settings: Settings, options: TrainOptions) -> Source:
    return sources_of_urls(
        urls,
        events,
        until_end=True,
        rows_max=PIECE_ROWS,
        config=settings.kafka,
        csv_time_format=options.csv_time_format,
    )


def _require_where(histories: Sequence[Source], handover: Mapping[str, int], options: TrainOptions) -> None:
    """Raise if the offsets at which the live topic continues are not known from the history."""
    if options.until is not None:
        raise ConfigError(
            "--until and --then-live: the topic goes on where the events end, so those after --until would be lost; "
            "leave one of them out"
        )
    known = set(handover)
    for part in (part for source in histories for part in source.parts()):
        known |= set(part.ends()) | (set(part.partitions()) if part.has_live_offsets else set())
    topics = {name.partition("/")[0] for source in histories for name in source.partitions()}
    for topic in sorted(topics - {name.partition("/")[0] for name in known}):
        if not options.topic_follows:
            raise ConfigError(
                f"plain files do not say up to which offset of topic {topic!r} they reach, so the live flow would "
                f'learn their events again: give --handover FILE with {{"{topic}/0": <next offset>, ...}}, use the '
                "folder of an archive, or say --topic-follows if the topic holds none of them"
            )


def moment(text: datetime | None) -> datetime | None:
    """Convert a time from the command line to UTC; without an offset it is UTC.

    >>> moment(datetime.fromisoformat("2026-01-01T02:00:00+02:00")) == moment(datetime(2026, 1, 1))
    True
    """
    if text is None:
        return None
    return text.replace(tzinfo=UTC) if text.tzinfo is None else text.astimezone(UTC)
