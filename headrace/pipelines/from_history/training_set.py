"""Training sets: the examples that a learner's trainer would learn from, for other tools.

events ----> OrderedEvents --> EventExamples --> columns as of each example's time --> frame, or Examples
spine  ----> replay -------------------------------^   labels from the spine, or from the events that follow
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, overload

import numpy as np
import polars as pl

from headrace.errors import ConfigError, SchemaError, SpineError
from headrace.features.view import events_of, plan_of
from headrace.history.log import MEMORY_ROWS
from headrace.history.replay import Replay
from headrace.history.spine import spine_times, with_times
from headrace.learners import Inputs, Label, Learner, column_of
from headrace.pipelines.examples import EVENTS, DrawnExamples, EventExamples, Examples, answer_frame
from headrace.pipelines.from_history.reading import LeftOut, OrderedEvents, open_history, read_to_end
from headrace.pipelines.joining.labelled import IS_POSITIVE, LABEL, labelled_events
from headrace.schemas import spec_of
from headrace.schemas.tables import TableLike, frame_of
from headrace.streams.intake import Intake

TIME = "event_time"
ADDED = ("group", "label", "log_rate", TIME)
"""Columns beside those that the learner's inputs read."""


@overload
def training_set(
    learner: type[Learner], events: Any, spine: TableLike = None, *, as_inputs: Literal[False] = False, **options: Any
) -> pl.DataFrame: ...


@overload
def training_set(
    learner: type[Learner], events: Any, spine: TableLike = None, *, as_inputs: Literal[True], **options: Any
) -> Examples: ...


def training_set(
    learner: type[Learner],
    events: Any,
    spine: TableLike = None,
    *,
    as_inputs: bool = False,
    memory_rows: int = MEMORY_ROWS,
    **options: Any,
) -> pl.DataFrame | Examples:
    """Examples of a learner with their features as of their time, as a frame or as the inputs of its model.

    Without a spine these are the examples that `headrace.train` learns from, in its order: positives with their drawn
    negatives. With a spine they are its rows, in its order, each a group of its own.

    Arguments:
        learner: its label says which events are positive.
        events: history, in the forms that `headrace.train` takes.
        spine: a table of the columns that the inputs and views read, and `event_time`. Its column `label` is the label
            where it has one; else a row is positive if such an event of its entity and candidate follows within the
            label's window.
        as_inputs: return `Examples`: `inputs`, `labels`, `log_rate`, `time_us`, `source` and `starts` of groups.
        memory_rows: events in memory at a time.
        options: `negatives`, `reference`, `capacity` and `seed` of `EventExamples`; not with a spine.

    Returns:
        A frame, a row an example: `group` (rows that are ranked together), `label` and `log_rate` Float32,
        `event_time`, and the source columns of the inputs: those of the event or spine, and `<view>.<feature>`, lists
        too, with the view's `_found` and `_age_s` where the inputs read them. `log_rate` is what the learner adds to
        the logit in training, and is to be added by other tools as well (an offset).

    Raises:
        DeclarationError: the learner has no label that makes examples.
        ConfigError: there is no example, or options of drawn negatives are given with a spine.
        SpineError, SchemaError, SourceError: the tables do not fit, or cannot be read.
    """
    if spine is not None:
        if options:
            raise ConfigError(f"training_set: {', '.join(options)} draw negatives, and a spine has its own rows")
        frame = _of_spine(learner, events, spine, memory_rows)
        return _as_examples(learner, frame) if as_inputs else frame
    made = EventExamples(learner, **options)
    parts = list(_parts(made, events, memory_rows))
    if not parts:
        raise ConfigError(f"learner {learner.name}: no example in this history: no event is positive")
    if as_inputs:
        return Examples.concat([made.assemble(part) for part in parts])
    firsts = np.cumsum([0, *(len(part.valid) for part in parts[:-1])]).tolist()
    frames = [part.frame().with_columns(pl.col("group") + first) for part, first in zip(parts, firsts, strict=True)]
    return pl.concat(frames)


def inputs_of(learner: type[Learner], frame: pl.DataFrame) -> Inputs:
    """Inputs of the learner's model from a frame of their source columns, lists too, such as a replayed one.

    Raises:
        SchemaError: a column is missing, or of a type that is no id and no number.
    """
    missing = [name for name in learner.inputs.columns if name not in frame.columns]
    if missing:
        raise SchemaError(
            f"learner {learner.name}: the frame has no column {', '.join(missing)}; it has {', '.join(frame.columns)}"
        )
    return learner.inputs.assemble({name: column_of(frame[name]) for name in learner.inputs.columns}, frame.height)


def _parts(made: EventExamples, events: Any, memory_rows: int) -> Iterator[DrawnExamples]:
    """Examples piece by piece, in the order of time."""
    with _history(made.learner, events, memory_rows) as history:
        for piece, _ in history.pieces():
            drawn = made.read(piece)
            if drawn is not None:
                yield drawn


def _history(learner: type[Learner], events: Any, memory_rows: int) -> OrderedEvents:
    """All events that the learner reads."""
    label = [] if learner.label is None else [learner.label.event]
    classes = list(dict.fromkeys((*events_of(map(plan_of, learner.views)), *label)))
    history = OrderedEvents(classes, memory_rows=memory_rows)
    for batch in read_to_end(open_history(events, classes), Intake(classes, dead_letters=LeftOut())):
        history.add(batch.event, batch.frame)
    return history


def _of_spine(learner: type[Learner], events: Any, spine: TableLike, memory_rows: int) -> pl.DataFrame:
    """The spine's rows with label, log-rate, group and features, in the spine's order."""
    table = frame_of(spine)
    if table is None:
        raise SchemaError(f"spine: a {type(spine).__name__} is no table; give a frame")
    rows = _with_numbers(with_times(table.lazy().collect(), None))
    times_us = spine_times(rows, learner.name)
    order = np.argsort(times_us, kind="stable")
    rows, times_us = rows.with_columns(group=pl.Series(np.arange(rows.height)))[order], times_us[order]
    walk, answered = Replay(learner.views), 0
    frames: list[pl.DataFrame] = []
    matches: list[pl.DataFrame] = []
    with _history(learner, events, memory_rows) as history:
        for piece, cut_us in history.pieces():
            end = rows.height if cut_us is None else int(np.searchsorted(times_us, cut_us, "right"))
            part = rows[answered:end]
            answers = walk.advance(piece, part) or {}
            frames.append(pl.concat([part, *(answer_frame(*pair) for pair in answers.items())], how="horizontal"))
            answered = end
            if learner.label is not None and "label" not in rows.columns:
                matches.append(_positives(learner.label, piece.get(learner.label.event)))
    whole = pl.concat(frames)
    if "label" not in whole.columns:
        whole = _labelled(learner, whole, matches)
    return whole.with_columns(log_rate=pl.lit(0.0, pl.Float32)).sort("group").select(*ADDED, pl.exclude(*ADDED))


def _with_numbers(rows: pl.DataFrame) -> pl.DataFrame:
    """The spine with its column `label`, where it has one, as Float32."""
    if "label" not in rows.columns:
        return rows
    try:
        return rows.with_columns(pl.col("label").cast(pl.Float32))
    except pl.exceptions.PolarsError as exc:
        raise SpineError(
            f"spine: column label is {rows.schema['label']}, not a number; make it one, as in "
            'label=(col("label") == "yes").cast(pl.Float32), or leave it out to label rows by what follows'
        ) from exc


def _positives(label: Label, frame: pl.DataFrame | None) -> pl.DataFrame:
    spec = spec_of(label.event)
    rows = pl.DataFrame(schema=spec.polars) if frame is None else frame
    positive = labelled_events(rows, label)[0].filter(IS_POSITIVE)
    return positive.select(*_match_columns(label), pl.col(spec.time).dt.epoch("us").alias("__at"), label=LABEL)


def _match_columns(label: Label) -> list[str]:
    """Columns that a row and the event that labels it have in common."""
    return list(dict.fromkeys((*spec_of(label.event).key, *([label.candidate] if label.candidate else []))))


def _labelled(learner: type[Learner], rows: pl.DataFrame, matches: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """`rows` with `label`: whether a positive event of the same entity and candidate lies in [time, time + within)."""
    if learner.label is None:
        raise ConfigError(f"learner {learner.name}: no label; give the spine a column 'label'")
    columns = _match_columns(learner.label)
    missing = [name for name in columns if name not in rows.columns]
    if missing:
        raise ConfigError(
            f"spine: no column {', '.join(missing)}, by which {learner.label.event.__name__} labels its rows; add it, "
            "or a column 'label'"
        )
    following = pl.concat(matches).sort("__at")
    keys = [f"__key{number}" for number in range(len(columns))]
    try:
        keyed = rows.with_columns(
            *(pl.col(c).cast(following.schema[c]).alias(key) for c, key in zip(columns, keys, strict=True)),
            pl.col(TIME).dt.epoch("us").alias("__at"),
        )
    except pl.exceptions.InvalidOperationError as exc:
        types = ", ".join(f"{name} {following.schema[name]}" for name in columns)
        raise SchemaError(f"spine: {', '.join(columns)} do not fit those of the events, {types}: {exc}") from exc
    following = following.rename(dict(zip(columns, keys, strict=True)))
    within_us = learner.label.within_us - 1  # an event at the end of the window is outside
    joined = keyed.join_asof(
        following, on="__at", by=keys, strategy="forward", tolerance=within_us, check_sortedness=False
    )
    return joined.with_columns(pl.col("label").fill_null(0.0)).drop("__at", *keys)


def _as_examples(learner: type[Learner], frame: pl.DataFrame) -> Examples:
    count = frame.height
    return Examples(
        inputs_of(learner, frame),
        frame["label"].to_numpy(),
        frame["log_rate"].to_numpy(),
        frame[TIME].dt.epoch("us").to_numpy(),
        np.full(count, EVENTS, dtype=np.int64),
        np.arange(count + 1),
    )
