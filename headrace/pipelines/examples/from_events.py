"""Examples from events, with features as of their time, and with negatives drawn for each positive.

A positive with its negatives is a group.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from prometheus_client import Counter
from safetensors.numpy import load_file, save_file

from headrace.errors import DeclarationError
from headrace.features import Answer, Lists, plan_of
from headrace.history.replay import Replay
from headrace.learners import Label, Learner, RecentPopularity, column_of, columns_of, log_rate
from headrace.learners.input_spec import Column
from headrace.learners.labels.targets import LOG_RATE_MAX
from headrace.learners.learner import require_learner
from headrace.pipelines.examples.groups import EVENTS, SKIPPED, Examples
from headrace.pipelines.joining.labelled import IS_POSITIVE, LABEL, labelled_events
from headrace.schemas import Event, spec_of

NEGATIVES = 9  # default number drawn for each positive
TIME = "event_time"
"""Column of an example's time, whatever name it has in the event."""

KEYLESS = Counter(
    "headrace_positives_without_key_total", "Positive events without an entity or a candidate: no example.", ["learner"]
)


class EventExamples:
    """Examples from the label's events and from negatives drawn by popularity, with features as of the event's time.

    The request columns of the spec are those of the event, with the candidate replaced for a negative. Features never
    include the event itself: at equal times the read comes first. Examples are a function of the sequence of events,
    not of how it was cut into frames, as long as cuts are between event times and these do not decrease. A positive
    without an entity or a candidate gives no example and is counted. One that lacks another column is learned with that
    value missing, as in serving. An explicit negative is a separate group, with log-rate 0.

    Negatives are drawn by popularity, so each row's log-rate corrects the popularity of its candidate (log Q): the
    logit is for candidates drawn uniformly, `reference` negatives per positive.

    Args:
        learner: its label must name the candidate's column.
        negatives: number drawn for each positive; None: 9, or 0 if the label has explicit negatives or numbers.
        reference: negatives per positive in the traffic that probabilities are meant for; None: as many as drawn.
        capacity: number of recent positives that negatives are drawn from.
        seed: seed of the draws.

    Raises:
        DeclarationError: the learner has no label with a candidate column, or the candidate is no id, or its event
            lacks a column, or `negatives`, `reference` or `seed` is no number in its range.
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
        self.learner = learner
        self.label = _label_of(learner)
        _check_numbers(learner.name, negatives=negatives, reference=reference, capacity=capacity, seed=seed)
        has_own = self.label.negative is not None or self.label.value is not None
        self._negatives = (0 if has_own else NEGATIVES) if negatives is None else negatives
        self._log_rate = log_rate(self._negatives, reference or self._negatives) if self._negatives else 0.0
        if abs(self._log_rate) > LOG_RATE_MAX / 2:  # the popularity of an item adds to it
            raise DeclarationError(f"learner {learner.name}: reference={reference}; write the negatives per positive")
        self._sampler = RecentPopularity(capacity, seed)
        # Views without the candidate in their key are read once for a positive and its negatives.
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
        self._check_columns()

    def _check_columns(self) -> None:
        """Raise if the candidate is no id, or a column has the name that examples give to the event's time."""
        spec, candidate = self._spec, self.label.candidate
        what = f"learner {self.learner.name}: column"
        if not (spec.polars[candidate].is_integer() or spec.polars[candidate] in (pl.String, pl.Boolean)):
            kind = spec.polars[candidate]
            raise DeclarationError(f"{what} {candidate!r} of {spec.name} is {kind}; a candidate is an int or a text")
        if TIME in self._columns and spec.time != TIME:
            raise DeclarationError(
                f"{what} {TIME!r} of {spec.name} is not its time, {spec.time!r}, which examples have under that name; "
                "rename the column in the event"
            )

    def observe(self, events: Mapping[type[Event], pl.DataFrame]) -> None:
        """Update features and popularity with `events`, without making examples."""
        frame = events.get(self.label.event)
        if frame is not None:
            positives = self._labelled(frame).filter(IS_POSITIVE)
            self._sampler.draw(positives[self.label.candidate].to_numpy(), 0)
        for replay in self._replays():
            replay.advance(events)

    def add(self, events: Mapping[type[Event], pl.DataFrame], served: pl.Series | None = None) -> Examples | None:
        """Examples from the labelled `events`; all events update the features. None if there is no example.

        `served` are ids, as text, of positives that are learned as part of a request: they count for popularity, but
        give no example.
        """
        drawn = self.read(events, served)
        return None if drawn is None else self.assemble(drawn)

    def read(
        self, events: Mapping[type[Event], pl.DataFrame], served: pl.Series | None = None
    ) -> "DrawnExamples | None":
        """Examples as from `add`, before their inputs are assembled; None if there are none."""
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
        """Assemble the inputs of the learner's model for drawn examples."""
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
            drawn.rows[TIME].dt.epoch("us").to_numpy()[kept],
            np.full(count, EVENTS, dtype=np.int64),
            drawn.starts,
        )

    def capture(self) -> Callable[[Path], None]:
        """Capture the replays and the sampler; returns a function that writes them into an existing folder."""
        writers, sampler = [replay.capture() for replay in self._replays()], self._sampler.state_dict()

        def write(folder: Path) -> None:
            for writer in writers:
                writer(folder / "replay")
            save_file(sampler, folder / "sampler.safetensors")

        return write

    def load(self, folder: Path) -> None:
        """Load what `capture` wrote."""
        for replay in self._replays():
            replay.load(folder / "replay")
        self._sampler.load_state_dict(load_file(folder / "sampler.safetensors"))

    def _replays(self) -> list[Replay]:
        return [replay for replay in (self._shared, self._separate) if replay is not None]

    def _labelled(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Events with a label, an entity and a candidate, in time order."""
        labelled, failed = labelled_events(frame, self.label)
        if failed:
            SKIPPED.labels("failed_label").inc(failed)
        whole = labelled.drop_nulls([self._spec.time, *self._required])
        if whole.height < labelled.height:
            KEYLESS.labels(learner=self.learner.name).inc(labelled.height - whole.height)
        return whole.sort(self._spec.time, maintain_order=True)

    def _drawn(self, frame: pl.DataFrame | None, served: pl.Series | None) -> "DrawnExamples | None":
        """The rows of examples, each event before its drawn negatives, before their features are read."""
        events = None if frame is None else self._labelled(frame)
        if events is None or events.is_empty():
            return None
        candidate, is_positive = self.label.candidate, events[IS_POSITIVE].to_numpy()
        ids = events[candidate].to_numpy()
        drawn = self._sampler.draw(ids[is_positive], self._negatives)  # explicit negatives do not count for popularity
        valid = np.ones((len(ids), 1 + self._negatives), dtype=bool)
        valid[:, 1:] = False
        valid[is_positive, 1:] = drawn.valid
        # An invalid negative is replaced by its event for the read, and dropped later.
        candidate_ids = np.repeat(ids[:, None], valid.shape[1], axis=1)
        candidate_ids[is_positive, 1:] = np.where(drawn.valid, drawn.values, candidate_ids[is_positive, 1:])
        log_rates = np.zeros(valid.shape, dtype=np.float32)
        if self._negatives:  # otherwise nothing was sampled
            log_rates[is_positive] = self._log_rate - drawn.log_popularity
        if served is not None and self._spec.id is not None:
            is_unserved = ~events[self._spec.id].cast(pl.String).is_in(served.implode()).to_numpy()
            events, valid = events.filter(is_unserved), valid[is_unserved]
            candidate_ids, log_rates = candidate_ids[is_unserved], log_rates[is_unserved]
            if events.is_empty():
                return None
        others = [column for column in self._columns if column != TIME]
        rows = events.select(pl.col(self._spec.time).alias(TIME), *others)
        repeated = rows[np.repeat(np.arange(rows.height), valid.shape[1])]
        candidates = pl.Series(candidate, candidate_ids.reshape(-1).tolist(), dtype=events.schema[candidate])
        labels = np.zeros(valid.shape, dtype=np.float32)
        labels[:, 0] = events[LABEL].to_numpy()
        return DrawnExamples(repeated.with_columns(candidates), valid, labels, log_rates)


def _check_numbers(learner: str, *, reference: Any, **whole: Any) -> None:
    """Raise unless `reference` is None or a number above 0, and the others are whole numbers, or None for negatives."""
    for name, number in whole.items():
        is_whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
        in_range = is_whole and (number >= 0 or name == "seed") and abs(number) < 2**63
        if not in_range and not (name == "negatives" and number is None):
            raise DeclarationError(
                f"learner {learner}: {name}={number!r}; write a number of at least 0, and a whole one"
            )
    if reference is not None and not (isinstance(reference, int | float) and 0 < reference < np.inf):
        raise DeclarationError(f"learner {learner}: reference={reference!r}; write a number above 0")


def _label_of(learner: type[Learner]) -> Label:
    """The single label from whose events examples are made.

    Raises:
        DeclarationError: it is no learner, or has several labels, or none with a candidate.
    """
    require_learner(learner)
    if isinstance(learner.label, Mapping):
        raise DeclarationError(
            f"learner {learner.name}: an event is an example of one label, and it has {len(learner.label)}: "
            "several are learned from requests, as a step with a joiner and no events does"
        )
    if learner.label is None or not learner.label.candidate:
        raise DeclarationError(f"learner {learner.name}: no label with candidate=, the column that negatives replace")
    return learner.label


@dataclass(frozen=True, slots=True, eq=False)
class DrawnExamples:
    """Groups of 1 + k rows: an event, then its drawn negatives; `rows` has all groups in order.

    `valid` (groups, 1 + k) marks the rows that are examples; `labels` and `log_rates` have that shape too. `separate`
    has the answers of views for each row, `shared` those for each group, by view.
    """

    rows: pl.DataFrame
    valid: NDArray[np.bool_]
    labels: NDArray[np.float32]
    log_rates: NDArray[np.float32]
    separate: dict[str, Answer] = field(default_factory=dict)
    shared: dict[str, Answer] = field(default_factory=dict)

    @property
    def starts(self) -> NDArray[np.int64]:
        """First example of each group, and the number of examples, (groups + 1,)."""
        return np.concatenate([[0], np.cumsum(self.valid.sum(axis=1))])

    def frame(self) -> pl.DataFrame:
        """The examples with their source columns, one per row; `group` counts from 0."""
        groups, repeats = self.valid.shape
        group = np.repeat(np.arange(groups), repeats)
        labels = {"group": group, "label": self.labels.reshape(-1), "log_rate": self.log_rates.reshape(-1)}
        answers = [answer_frame(view, answer) for view, answer in self.separate.items()]
        answers += [answer_frame(view, answer)[group] for view, answer in self.shared.items()]
        whole = pl.concat([pl.DataFrame(labels), self.rows, *answers], how="horizontal")
        return whole.filter(pl.Series(self.valid.reshape(-1)))


def answer_frame(view: str, answer: Answer) -> pl.DataFrame:
    """Columns `<view>.<feature>`, `<view>._found` and `<view>._age_s`, null if there is no value."""
    age_s = pl.Series(f"{view}._age_s", answer.age_s).fill_nan(None)
    return answer.to_polars(f"{view}.").with_columns(pl.Series(f"{view}._found", answer.found), age_s)


def _repeat(column: Column, times: int) -> Column:
    """A column with each row repeated `times` times."""
    if isinstance(column, np.ndarray):
        return np.repeat(column, times, axis=0)
    values: NDArray[Any] = column.values
    return Lists(np.repeat(values, times, axis=0), np.repeat(column.lengths, times))
