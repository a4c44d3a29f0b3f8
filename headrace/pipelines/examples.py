"""Training examples from two sources: joined requests, and events with features as of their time.

    joined request   features bytes (what the model read), labels            -> inputs as served   log-rate 0
    event (positive) replay -> as-of read of it and of k drawn negatives     -> inputs assembled   log-rate log(ref / k)

A request, or a positive with its negatives, is a group: rows that are ranked together and never split.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import structlog
from numpy.typing import NDArray
from prometheus_client import Counter
from safetensors.numpy import load_file, save_file

from headrace.errors import DeclarationError, DecodeError, SchemaError
from headrace.features import Answer, Lists, plan_of
from headrace.history.replay import Replay
from headrace.learners import Inputs, Label, Learner, RecentPopularity, column_of, columns_of, log_rate
from headrace.learners.input_spec import Column
from headrace.pipelines.joining.labelled import IS_POSITIVE, LABEL, labelled_events
from headrace.pipelines.joining.spec import IS_FIRST, LATE_SHARE, POSITIVE_WEIGHT, label_column
from headrace.schemas import Event, spec_of

REQUESTS, EVENTS, LATE = 0, 1, 2  # `Examples.source`; late are positives after the request was learned
SOURCES = ("requests", "events", "late_labels")
NEGATIVES = 9  # drawn for each positive

SKIPPED = Counter("headrace_requests_skipped_total", "Joined requests that could not be trained on.", ["reason"])
KEYLESS = Counter(
    "headrace_positives_without_key_total", "Positive events without an entity or a candidate: no example.", ["learner"]
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """n rows in groups; group g is rows `starts[g]` to `starts[g + 1]`.

    `labels` (n,) or (n, L) float32, NaN where one of several is unknown, `log_rate` (n,) float32, `time_us` (n,) int64
    event time, `source` (n,) int64, `starts` (groups + 1,) int64. `early` (n, 2) float32 are the share of positives
    that is still to come and the weight of a positive; None: labels are final.
    """

    inputs: Inputs
    labels: NDArray[np.float32]
    log_rate: NDArray[np.float32]
    time_us: NDArray[np.int64]
    source: NDArray[np.int64]
    starts: NDArray[np.int64]
    early: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def weights(self, predict: Callable[[Inputs, NDArray[np.float32]], NDArray[np.float32]]) -> NDArray[Any] | None:
        """Importance (n,) by the policy; None: all 1. `predict` gives probabilities of inputs at their log-rates.

        See `headrace.learners.labels.policy`.
        """
        if self.early is None:
            return None
        p, (late_share, weight) = predict(self.inputs, self.log_rate).astype(np.float64), self.early.T
        real = (1 - p) / np.maximum(1 - p * (1 - late_share), 1e-9)
        return np.asarray(np.where(self.labels > 0.5, weight, real), np.float32)

    def groups(self, first: int, last: int) -> "Examples":
        """Groups [first, last)."""
        rows = slice(int(self.starts[first]), int(self.starts[last]))
        starts = self.starts[first : last + 1] - self.starts[first]
        arrays = (self.labels[rows], self.log_rate[rows], self.time_us[rows], self.source[rows])
        early = None if self.early is None else self.early[rows]
        return Examples(self.inputs.take(rows), *arrays, starts, early)

    def by_step(self, step_us: int) -> "dict[int, Examples]":
        """Groups by their event time // `step_us`, each in order; groups must be in the order of time."""
        numbers = self.time_us[self.starts[:-1]] // step_us
        firsts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 1))
        edges = [*firsts.tolist(), len(numbers)]
        return {int(numbers[first]): self.groups(first, end) for first, end in pairwise(edges)}

    @staticmethod
    def concat(parts: "list[Examples]") -> "Examples":
        """All groups of `parts`, in order; at least one part."""
        if len(parts) == 1:
            return parts[0]
        ends = np.cumsum([0, *(len(part) for part in parts)])
        starts = [np.zeros(1, dtype=np.int64), *(p.starts[1:] + e for p, e in zip(parts, ends, strict=False))]
        return Examples(
            Inputs.concat([part.inputs for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.log_rate for part in parts]),
            np.concatenate([part.time_us for part in parts]),
            np.concatenate([part.source for part in parts]),
            np.concatenate(starts),
            None if all(part.early is None for part in parts) else np.concatenate([p.early_or_final for p in parts]),
        )

    @property
    def early_or_final(self) -> NDArray[np.float32]:
        """`early`, or what it is for final labels: nothing to come, and a weight of 1."""
        return np.tile(np.array([0, 1], np.float32), (len(self), 1)) if self.early is None else self.early

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """The examples as plain arrays."""
        early = {} if self.early is None else {"early": self.early}
        return early | {
            "inputs": np.frombuffer(self.inputs.to_bytes(), dtype=np.uint8),
            "labels": self.labels,
            "log_rate": self.log_rate,
            "time_us": self.time_us,
            "source": self.source,
            "starts": self.starts,
        }

    @staticmethod
    def of_state(arrays: Mapping[str, NDArray[Any]], fingerprint: str) -> "Examples":
        """The examples that `state_dict` wrote."""
        names = ("labels", "log_rate", "time_us", "source", "starts")
        inputs = Inputs.from_bytes(arrays["inputs"].tobytes(), fingerprint)
        labels, log_rate, time_us, source, starts = (arrays[name] for name in names)
        return Examples(inputs, labels, log_rate, time_us, source, starts, arrays.get("early"))


@dataclass(frozen=True, slots=True)
class RequestColumns:
    """Names of the columns of joined requests; `scores` and `shadow` are None if they are not logged.

    With several labels `labels` is followed by the name of each, as in `labels_click`.
    """

    time: str = "event_time"
    features: str = "features"
    labels: str = "labels"
    scores: str | None = "scores"
    shadow: str | None = None


def requests_to_examples(frame: pl.DataFrame, learner: type[Learner], columns: RequestColumns) -> Examples | None:
    """Examples of joined requests, one a row of `frame`; None when none is usable.

    A request is skipped and counted, by reason, so that it does not stop the stream: its features were packed by
    another spec or are damaged, or its labels are not one for each row that the model's loss allows. A row whose labels
    are all null is left out: nobody knows them.
    """
    names = [label_column(columns.labels, name) for name in learner.labels() or ("",)]
    inputs, labels, usable = [], [], []
    for number, (packed, *listed) in enumerate(frame.select(columns.features, *names).iter_rows()):
        try:
            rows, label = _labelled_rows(Inputs.from_bytes(packed, learner.inputs.fingerprint), listed, learner)
        except (DecodeError, SchemaError, _LabelsError) as exc:
            reason = next(reason for kind, reason in REASONS.items() if isinstance(exc, kind))
            SKIPPED.labels(reason=reason).inc()
            log.warning("request_skipped", reason=reason, learner=learner.name)
            continue
        if len(rows):
            inputs.append(rows)
            labels.append(label)
            usable.append(number)
    if not inputs:
        return None
    sizes = np.array([len(part) for part in inputs], dtype=np.int64)
    kept, early = frame[usable], None
    if LATE_SHARE in frame.columns:
        early = np.repeat(kept.select(LATE_SHARE, POSITIVE_WEIGHT).to_numpy(), sizes, axis=0)
    is_late = ~kept[IS_FIRST].to_numpy() if IS_FIRST in frame.columns else np.zeros(len(sizes), np.bool_)
    return Examples(
        Inputs.concat(inputs),
        np.concatenate(labels),
        np.zeros(int(sizes.sum()), dtype=np.float32),
        np.repeat(kept[columns.time].dt.epoch("us").to_numpy(), sizes),
        np.repeat(np.where(is_late, LATE, REQUESTS), sizes),
        np.concatenate([[0], np.cumsum(sizes)]),
        early,
    )


class _LabelsError(Exception):
    """Labels of a request that are not one for each row, or that the loss does not allow."""


REASONS = {_LabelsError: "labels", DecodeError: "damaged", SchemaError: "other_spec"}
"""Why a request is skipped."""


def _labelled_rows(
    rows: Inputs, listed: list[list[float | None]], learner: type[Learner]
) -> tuple[Inputs, NDArray[np.float32]]:
    """The rows with a label, and their labels (n,) or (n, L), NaN where one of several is unknown.

    Raises:
        _LabelsError: there is not one label a row, or one that the model's loss does not allow.
    """
    label = np.array(listed, dtype=np.float32).T  # null becomes NaN
    if label.shape != (len(rows), len(listed)):
        raise _LabelsError
    is_known = np.asarray(~np.isnan(label).all(axis=1))
    if not is_known.all():
        rows, label = rows.take(is_known), label[is_known]
    label = label[:, 0] if len(listed) == 1 else label
    if not learner.model.loss.is_allowed(label).all():
        raise _LabelsError
    return rows, label


class EventExamples:
    """Examples of the label's events, and negatives from what was popular, all read as of the event's time.

    The request columns of the spec are those of the event, with the candidate replaced for a negative. Features never
    include the event itself: at equal times the read comes first. Examples are a function of the sequence of events,
    not of how it was cut into frames, as long as cuts are between event times and these do not decrease. A positive
    without an entity or a candidate gives no example and is counted; one that lacks another column is learned as it is
    served, with that value missing. An explicit negative is a group of its own, with log-rate 0.

    Negatives are drawn by popularity, so each row's log-rate corrects the popularity of its own candidate (log Q): the
    logit is that of a candidate drawn uniformly, `reference` negatives a positive.

    Args:
        learner: its label must name the candidate's column.
        negatives: drawn for each positive; None: 9, or none where the label has negatives or numbers of its own.
        reference: negatives a positive in the traffic that probabilities are meant for; None: the same as drawn.
        capacity: how many positives back negatives are drawn from.
        seed: of the draws.

    Raises:
        DeclarationError: the learner has no label with a candidate column, or its event lacks an entity column of a
            view, or `negatives` or `reference` is below 0.
    """

    def __init__(
        self,
        learner: type[Learner],
        *,
        negatives: int | None = None,
        reference: float | None = None,
        capacity: int = 100_000,
        seed: int = 0,
    ) -> None:
        if isinstance(learner.label, Mapping):
            raise DeclarationError(
                f"learner {learner.name}: an event is an example of one label, and it has {len(learner.label)}: "
                "several are learned from requests, as a step with a joiner and no events does"
            )
        if learner.label is None or not learner.label.candidate:
            raise DeclarationError(
                f"learner {learner.name}: no label with candidate=, the column that negatives replace"
            )
        self.learner = learner
        self.label: Label = learner.label
        for name, number in (("negatives", negatives), ("reference", reference)):
            if number is not None and number < 0:
                raise DeclarationError(f"learner {learner.name}: {name}={number}; write a number of at least 0")
        has_own = self.label.negative is not None or self.label.value is not None
        self._negatives = (0 if has_own else NEGATIVES) if negatives is None else negatives
        self._log_rate = log_rate(self._negatives, reference or self._negatives) if self._negatives else 0.0
        self._sampler = RecentPopularity(capacity, seed)
        # Views that a negative shares with its positive are read once for both.
        shared = [view for view in learner.views if self.label.candidate not in plan_of(view).entity]
        separate = [view for view in learner.views if view not in shared]
        self._shared = Replay(shared) if shared else None
        self._separate = Replay(separate) if separate else None
        self._spec = spec_of(self.label.event)
        entity = [column for view in learner.views for column in plan_of(view).entity]
        self._required = list(dict.fromkeys([*entity, self.label.candidate]))
        self._columns = list(
            dict.fromkeys([*self._required, *(column for column in learner.inputs.columns if "." not in column)])
        )
        missing = [column for column in self._columns if column not in self._spec.polars]
        if missing:
            raise DeclarationError(
                f"learner {learner.name}: event {self._spec.name} has no column {', '.join(missing)}"
            )

    def observe(self, events: Mapping[type[Event], pl.DataFrame]) -> None:
        """Update views and popularity with `events`, without making examples."""
        frame = events.get(self.label.event)
        if frame is not None:
            positives = self._labelled(frame).filter(IS_POSITIVE)
            self._sampler.draw(positives[self.label.candidate].to_numpy(), 0)
        for replay in self._replays():
            replay.advance(events)

    def add(self, events: Mapping[type[Event], pl.DataFrame], served: pl.Series | None = None) -> Examples | None:
        """Examples of the positives in `events`, which all update the views; None when there is no positive.

        `served` are ids of positives that are learned as part of a request: they count as popular, but give no example.
        """
        drawn = self.read(events, served)
        return None if drawn is None else self.assemble(drawn)

    def read(
        self, events: Mapping[type[Event], pl.DataFrame], served: pl.Series | None = None
    ) -> "DrawnExamples | None":
        """Examples as `add` makes them, before their inputs are assembled; None when there is none."""
        drawn = self._drawn(events.get(self.label.event), served)
        if drawn is None:
            for replay in self._replays():
                replay.advance(events)
            return None
        if self._separate is not None:
            drawn.separate.update(self._separate.advance(events, drawn.rows) or {})
        if self._shared is not None:
            firsts = drawn.rows[:: drawn.valid.shape[1]]
            drawn.shared.update(self._shared.advance(events, firsts) or {})
        return drawn

    def assemble(self, drawn: "DrawnExamples") -> Examples:
        """The examples, with the inputs of the learner's model."""
        columns: dict[str, Column] = {name: column_of(drawn.rows[name]) for name in self._columns}
        columns |= columns_of(drawn.separate)
        repeats = drawn.valid.shape[1]
        columns |= {name: _repeat(column, repeats) for name, column in columns_of(drawn.shared).items()}
        inputs = self.learner.inputs.assemble(columns, drawn.rows.height)
        kept = drawn.valid.reshape(-1)
        count = int(kept.sum())
        return Examples(
            inputs.take(kept),
            drawn.labels.reshape(-1)[kept],
            drawn.log_rates.reshape(-1)[kept],
            drawn.rows["event_time"].dt.epoch("us").to_numpy()[kept],
            np.full(count, EVENTS, dtype=np.int64),
            drawn.starts,
        )

    def capture(self) -> Callable[[Path], None]:
        """Take the records of the replays and the sampler; what is returned writes them into an existing folder."""
        writers, sampler = [replay.capture() for replay in self._replays()], self._sampler.state_dict()

        def write(folder: Path) -> None:
            for writer in writers:
                writer(folder / "replay")
            save_file(sampler, folder / "sampler.safetensors")

        return write

    def load(self, folder: Path) -> None:
        """Take over what `capture` wrote."""
        for replay in self._replays():
            replay.load(folder / "replay")
        self._sampler.load_state_dict(load_file(folder / "sampler.safetensors"))

    def _replays(self) -> list[Replay]:
        return [replay for replay in (self._shared, self._separate) if replay is not None]

    def _labelled(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Events with a label, an entity and a candidate, in the order of time."""
        labelled, failed = labelled_events(frame, self.label)
        if failed:
            SKIPPED.labels("failed_label").inc(failed)
        whole = labelled.drop_nulls([self._spec.time, *self._required])
        if whole.height < labelled.height:
            KEYLESS.labels(learner=self.learner.name).inc(labelled.height - whole.height)
        return whole.sort(self._spec.time, maintain_order=True)

    def _drawn(self, frame: pl.DataFrame | None, served: pl.Series | None) -> "DrawnExamples | None":
        """The rows of examples, each event before its drawn negatives, not read yet."""
        events = None if frame is None else self._labelled(frame)
        if events is None or events.is_empty():
            return None
        candidate, is_positive = self.label.candidate, events[IS_POSITIVE].to_numpy()
        ids = events[candidate].to_numpy()
        drawn = self._sampler.draw(ids[is_positive], self._negatives)  # an explicit negative is no positive elsewhere
        valid = np.ones((len(ids), 1 + self._negatives), dtype=bool)
        valid[:, 1:] = False
        valid[is_positive, 1:] = drawn.valid
        # An invalid negative is read like its event, and dropped later.
        every = np.repeat(ids[:, None], valid.shape[1], axis=1)
        every[is_positive, 1:] = np.where(drawn.valid, drawn.values, every[is_positive, 1:])
        log_rates = np.zeros(valid.shape, dtype=np.float32)
        if self._negatives:  # else nothing was sampled
            log_rates[is_positive] = self._log_rate - drawn.log_popularity
        if served is not None and self._spec.id is not None:
            is_alone = ~events[self._spec.id].is_in(served.implode()).to_numpy()
            events, valid = events.filter(is_alone), valid[is_alone]
            every, log_rates = every[is_alone], log_rates[is_alone]
            if events.is_empty():
                return None
        rows = events.select(pl.col(self._spec.time).alias("event_time"), *self._columns)
        repeated = rows[np.repeat(np.arange(rows.height), valid.shape[1])]
        replaced = pl.Series(candidate, every.reshape(-1).tolist(), dtype=events.schema[candidate])
        labels = np.zeros(valid.shape, dtype=np.float32)
        labels[:, 0] = events[LABEL].to_numpy()
        return DrawnExamples(repeated.with_columns(replaced), valid, labels, log_rates)


@dataclass(frozen=True, slots=True, eq=False)
class DrawnExamples:
    """Groups of 1 + k rows: an event, then its drawn negatives; `rows` has them one after the other.

    `valid` (groups, 1 + k) says which rows are examples; `labels` and `log_rates` are of that shape too. `separate` are
    answers of views for each row, `shared` those for each group, by view.
    """

    rows: pl.DataFrame
    valid: NDArray[np.bool_]
    labels: NDArray[np.float32]
    log_rates: NDArray[np.float32]
    separate: dict[str, Answer] = field(default_factory=dict)
    shared: dict[str, Answer] = field(default_factory=dict)

    @property
    def starts(self) -> NDArray[np.int64]:
        """First example of each group, and their number: (groups + 1,)."""
        return np.concatenate([[0], np.cumsum(self.valid.sum(axis=1))])

    def frame(self) -> pl.DataFrame:
        """The examples with their columns as they were read, a row each; `group` counts from 0."""
        groups, repeats = self.valid.shape
        group = np.repeat(np.arange(groups), repeats)
        labels = {"group": group, "label": self.labels.reshape(-1), "log_rate": self.log_rates.reshape(-1)}
        answers = [answer_frame(view, answer) for view, answer in self.separate.items()]
        answers += [answer_frame(view, answer)[group] for view, answer in self.shared.items()]
        whole = pl.concat([pl.DataFrame(labels), self.rows, *answers], how="horizontal")
        return whole.filter(pl.Series(self.valid.reshape(-1)))


def answer_frame(view: str, answer: Answer) -> pl.DataFrame:
    """Columns `<view>.<feature>`, `<view>._found` and `<view>._age_s`, null where there is no value."""
    age_s = pl.Series(f"{view}._age_s", np.where(answer.age_us < 0, np.nan, answer.age_us / 1e6)).fill_nan(None)
    return answer.to_polars(f"{view}.").with_columns(pl.Series(f"{view}._found", answer.found), age_s)


def _repeat(column: Column, times: int) -> Column:
    """A column with each row repeated `times` times."""
    if isinstance(column, np.ndarray):
        return np.repeat(column, times, axis=0)
    return Lists(np.repeat(column.values, times, axis=0), np.repeat(column.lengths, times))
