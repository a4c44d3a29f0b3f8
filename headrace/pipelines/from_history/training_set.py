"""Training sets: the examples that a learner's trainer would learn from, for use in other tools.

events ----> OrderedEvents --> EventExamples --> columns as of each example's time --> frame, or Examples
spine  ----> replay -------------------------------^   labels from the spine, or from the events that follow
"""

from collections.abc import Iterator
from typing import Any, Literal, overload

import numpy as np
import polars as pl

from headrace.errors import ConfigError, DeclarationError, SchemaError, SpineError
from headrace.features.view import events_of, plan_of
from headrace.history.log import MEMORY_ROWS
from headrace.history.replay import Replay
from headrace.history.spine import spine_times, with_times
from headrace.learners import Inputs, Label, Learner, column_of
from headrace.learners.learner import require_learner
from headrace.pipelines.examples import EVENTS, DrawnExamples, EventExamples, Examples, answer_frame
from headrace.pipelines.from_history.reading import LeftOut, OrderedEvents, open_history, read_to_end
from headrace.pipelines.joining.labelled import IS_POSITIVE, LABEL, labelled_events
from headrace.pipelines.joining.spec import label_column
from headrace.schemas import spec_of
from headrace.schemas.tables import TableLike, frame_of
from headrace.streams.intake import Intake

TIME = "event_time"
OPTIONS = ("negatives", "reference", "capacity", "seed")
"""Arguments of `EventExamples` that `training_set` takes."""
AT, LABEL_OF = "__at", "__label_of"


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
    """Examples of a learner with features as of their time, as a frame or as the inputs of its model.

    Without a spine these are the examples that `headrace.train` learns from, in its order: positives with their drawn
    negatives. With a spine they are the spine's rows, in its order, each a separate group.

    Arguments:
        learner: its label defines which events are positive.
        events: history, in the forms that `headrace.train` accepts.
        spine: a table of the columns that the inputs and views read, and `event_time`. If it has a column `label`, that
            is the label. Otherwise the events of a row's entity and candidate within the label's window after it label
            the row, as for a request: positive, negative, or `Label.absent` without an event. Several labels are
            columns `label_<name>`; a learner with several labels needs a spine.
        as_inputs: return `Examples`: `inputs`, `labels`, `log_rate`, `time_us`, `source` and `starts` of groups.
        memory_rows: largest number of events in memory.
        options: `negatives`, `reference`, `capacity` and `seed` of `EventExamples`; not with a spine.

    Returns:
        A frame with one example per row: `group` (rows ranked together), `label` (null: unknown) and `log_rate`
        Float32, `event_time`, and the source columns of the inputs: those of the event or spine, and
        `<view>.<feature>`, including lists, with the view's `_found` and `_age_s` if the inputs read them. `log_rate`
        is the offset that the learner adds to the logit in training; other tools should add it too.

    Raises:
        DeclarationError: the learner has no label that makes examples, or its inputs read a column that has a meaning
            in the frame.
        ConfigError: there is no example, or an option is unknown, or given with a spine.
        SpineError, SchemaError, SourceError: the tables do not fit, or cannot be read.
    """
    require_learner(learner)
    if unknown := [name for name in options if name not in OPTIONS]:
        raise ConfigError(f"training_set: no argument {unknown[0]}=; there are {', '.join(OPTIONS)}")
    if spine is not None or not as_inputs:
        _check_names(learner)
    if spine is not None:
        if options:
            raise ConfigError(f"training_set: {', '.join(options)} draw negatives, and a spine has its own rows")
        frame = _of_spine(learner, events, spine, memory_rows)
        return _as_examples(learner, frame) if as_inputs else frame
    maker = EventExamples(learner, **options)
    parts = list(_parts(maker, events, memory_rows))
    if not parts:
        raise ConfigError(f"learner {learner.name}: no example in this history: no event is positive")
    if as_inputs:
        return Examples.concat([maker.assemble(part) for part in parts])
    firsts = np.cumsum([0, *(len(part.valid) for part in parts[:-1])]).tolist()
    frames = [part.frame().with_columns(pl.col("group") + first) for part, first in zip(parts, firsts, strict=True)]
    return pl.concat(frames)


def inputs_of(learner: type[Learner], frame: TableLike) -> Inputs:
    """Assemble inputs of the learner's model from a table of source columns, including lists, such as a training set.

    Raises:
        DeclarationError: `learner` is no learner.
        SchemaError: `frame` is not a table, a column is missing, or its type is neither an id nor a number.
    """
    require_learner(learner)
    table = frame_of(frame)
    if table is None:
        raise SchemaError(f"frame: a {type(frame).__name__} is no table; give a frame")
    return _inputs_of(learner, table.lazy().collect())


def _inputs_of(learner: type[Learner], frame: pl.DataFrame) -> Inputs:
    missing = [name for name in learner.inputs.columns if name not in frame.columns]
    if missing:
        raise SchemaError(
            f"learner {learner.name}: the frame has no column {', '.join(missing)}; it has {', '.join(frame.columns)}"
        )
    columns = {name: column_of(frame[name]) for name in learner.inputs.columns}
    # Float32 columns stay float32, because as ids they are exact only up to 2**24.
    singles = {field.column for field in learner.inputs.categoricals if frame.schema[field.column] == pl.Float32}
    columns |= {name: frame[name].fill_null(np.nan).to_numpy() for name in singles}
    return learner.inputs.assemble(columns, frame.height)


def _check_names(learner: type[Learner]) -> None:
    """Raise if the inputs read a column whose name has another meaning in a training set."""
    taken = {"group", "label", "log_rate", *_label_columns(learner).values()} & set(learner.inputs.columns)
    if taken:
        raise DeclarationError(
            f"learner {learner.name}: its inputs read column {min(taken)!r}, which in a training set is the "
            "example's group, label or log-rate; rename the column in the event"
        )


def _parts(made: EventExamples, events: Any, memory_rows: int) -> Iterator[DrawnExamples]:
    """Yield examples piece by piece, in time order."""
    with _history(made.learner, events, memory_rows) as history:
        for piece, _ in history.pieces():
            drawn = made.read(piece)
            if drawn is not None:
                yield drawn


def _history(learner: type[Learner], events: Any, memory_rows: int) -> OrderedEvents:
    """Read all events that the learner reads."""
    labels = [label.event for label in learner.labels().values()]
    classes = list(dict.fromkeys((*events_of(map(plan_of, learner.views)), *labels)))
    history = OrderedEvents(classes, memory_rows=memory_rows)
    source = open_history(events, classes) if classes else None  # without views and labels nothing is read
    for batch in () if source is None else read_to_end(source, Intake(classes, dead_letters=LeftOut())):
        history.add(batch.event, batch.frame)
    return history


def _of_spine(learner: type[Learner], events: Any, spine: TableLike, memory_rows: int) -> pl.DataFrame:
    """The spine's rows with labels, log-rate, group and features, in the spine's order."""
    table = frame_of(spine)
    if table is None:
        raise SchemaError(f"spine: a {type(spine).__name__} is no table; give a frame")
    rows = _with_numbers(with_times(table.lazy().collect(), None), learner)
    columns = _label_columns(learner)
    if not columns and "label" not in rows.columns:
        raise ConfigError(f"learner {learner.name}: no label; give the spine a column 'label'")
    times_us = spine_times(rows, learner.name)
    order = np.argsort(times_us, kind="stable")
    rows, times_us = rows.with_columns(group=pl.Series(np.arange(rows.height)))[order], times_us[order]
    replay, rows_done = Replay(learner.views) if learner.views else None, 0
    frames: list[pl.DataFrame] = []
    open_labels = {name: label for name, label in learner.labels().items() if columns[name] not in rows.columns}
    matches: dict[str, list[pl.DataFrame]] = {name: [] for name in open_labels}
    with _history(learner, events, memory_rows) as history:
        for piece, cut_us in history.pieces():
            end = rows.height if cut_us is None else int(np.searchsorted(times_us, cut_us, "right"))
            chunk = rows[rows_done:end]
            answers = {} if replay is None else replay.advance(piece, chunk) or {}
            frames.append(pl.concat([chunk, *(answer_frame(*pair) for pair in answers.items())], how="horizontal"))
            rows_done = end
            for name, label in open_labels.items():
                matches[name].append(_matches(label, piece.get(label.event)))
    whole = pl.concat(frames)
    for name, label in open_labels.items():
        whole = _labelled(label, whole, pl.concat(matches[name]), columns[name])
    leading = ("group", *(columns.values() or ("label",)), "log_rate", TIME)
    return whole.with_columns(log_rate=pl.lit(0.0, pl.Float32)).sort("group").select(*leading, pl.exclude(*leading))


def _label_columns(learner: type[Learner]) -> dict[str, str]:
    """Column of each label, by label name."""
    return {name: label_column("label", name) for name in learner.labels()}


def _with_numbers(rows: pl.DataFrame, learner: type[Learner]) -> pl.DataFrame:
    """The spine with its label columns, if it has them, as Float32."""
    for column in {"label", *_label_columns(learner).values()} & set(rows.columns):
        try:
            rows = rows.with_columns(pl.col(column).cast(pl.Float32).fill_nan(None))
        except pl.exceptions.PolarsError as exc:
            raise SpineError(
                f"spine: column {column} is {rows.schema[column]}, not a number; make it one, as in "
                f'{column}=(col("{column}") == "yes").cast(pl.Float32), or leave it out to label rows by what follows'
            ) from exc
    return rows


def _matches(label: Label, frame: pl.DataFrame | None) -> pl.DataFrame:
    """Events with a label: the columns that they share with a row, time, label, and whether they are positive."""
    spec = spec_of(label.event)
    rows = pl.DataFrame(schema=spec.polars) if frame is None else frame
    labelled = labelled_events(rows, label)[0]
    return labelled.select(
        *_match_columns(label), pl.col(spec.time).dt.epoch("us").alias(AT), pl.col(LABEL).alias(LABEL_OF), IS_POSITIVE
    )


def _match_columns(label: Label) -> list[str]:
    """Columns in which a row and the event that labels it must agree."""
    return list(dict.fromkeys((*spec_of(label.event).key, *([label.candidate] if label.candidate else []))))


def _labelled(label: Label, rows: pl.DataFrame, matches: pl.DataFrame, column: str) -> pl.DataFrame:
    """Add `column`: the label of each row from events of the same entity and candidate in [time, time + within).

    The first positive event counts, otherwise a negative event gives 0, otherwise `Label.absent` applies.
    """
    columns = _match_columns(label)
    missing = [name for name in columns if name not in rows.columns]
    if missing:
        raise ConfigError(
            f"spine: no column {', '.join(missing)}, by which {label.event.__name__} labels its rows; add it, "
            "or a column 'label'"
        )
    keys = [f"__key{number}" for number in range(len(columns))]
    try:
        keyed = rows.with_columns(
            *(pl.col(c).cast(matches.schema[c]).alias(key) for c, key in zip(columns, keys, strict=True)),
            pl.col(TIME).dt.epoch("us").alias(AT),
        )
    except pl.exceptions.InvalidOperationError as exc:
        types = ", ".join(f"{name} {matches.schema[name]}" for name in columns)
        raise SchemaError(f"spine: {', '.join(columns)} do not fit those of the events, {types}: {exc}") from exc
    following = matches.rename(dict(zip(columns, keys, strict=True))).sort(AT)
    for number, is_positive in enumerate((True, False)):
        keyed = keyed.join_asof(
            following.filter(pl.col(IS_POSITIVE) == is_positive).select(
                AT, *keys, pl.col(LABEL_OF).alias(f"__{number}")
            ),
            on=AT,
            by=keys,
            strategy="forward",
            tolerance=label.within_us - 1,  # the window excludes its end
            check_sortedness=False,
        )
    absent = None if label.absent == "unknown" else 0.0
    value = pl.coalesce("__0", "__1", pl.lit(absent, pl.Float32)).alias(column)
    return keyed.with_columns(value).drop(AT, *keys, "__0", "__1")


def _as_examples(learner: type[Learner], frame: pl.DataFrame) -> Examples:
    """Examples from the rows with a label, each a separate group."""
    columns = list(_label_columns(learner).values()) or ["label"]
    known = frame.filter(~pl.all_horizontal(pl.col(columns).is_null()))
    labels = known.select(pl.col(columns).cast(pl.Float32).fill_null(np.nan)).to_numpy()
    count = known.height
    loss = learner.model.loss
    allowed = loss.is_allowed(labels[:, 0] if len(columns) == 1 else labels)
    if not allowed.all():
        wrong = labels[~allowed.reshape(labels.shape)][0]
        raise SpineError(
            f"spine: {', '.join(columns)}: {wrong:g}; for learner {learner.name} write {loss.label_values}"
        )
    return Examples(
        _inputs_of(learner, known),
        labels[:, 0] if len(columns) == 1 else labels,
        known["log_rate"].to_numpy(),
        known[TIME].dt.epoch("us").to_numpy(),
        np.full(count, EVENTS, dtype=np.int64),
        np.arange(count + 1),
    )
