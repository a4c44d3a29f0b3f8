"""What a project says so that `headrace demo` can play its log."""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from headrace.learners import Learner
from headrace.pipelines.train_step import TrainStep
from headrace.schemas import Event
from headrace.settings import Settings


@dataclass(frozen=True, slots=True, eq=False)
class Demo:
    """A project's log and what to do with it.

    Args:
        load: gives the log as a frame with the columns of `event`, in the order of event time.
        event: what a row of the log is; `entity`, `candidate` and `request_id` are columns of it. The last is null in
            the log, and names the ranking that was asked before the row when there was one.
        impression: the event that serving logs, with columns `features`, `scores` and `model_version`.
        learner: what is trained and served, on its views.
        make_step: makes the training step, for the warm start; the job `train` runs the same.
        materialize, train: the project's dataflow modules.
        asks: the rows before which a ranking may be asked; their `candidate` is what the entity then chose.
        candidates_count: candidates of one request, the chosen one included.
        popularity_rows: the others are drawn from the candidates of this many rows before, so by recent popularity.
        history_share: the part of the log that is history when the demo goes live.
        partitions: of each topic.
    """

    load: Callable[[], pl.DataFrame]
    event: type[Event]
    impression: type[Event]
    learner: type[Learner]
    make_step: Callable[[Settings], TrainStep]
    entity: str
    candidate: str
    request_id: str
    asks: pl.Expr
    materialize: str = "pipelines.materialize"
    train: str = "pipelines.train"
    candidates_count: int = 100
    popularity_rows: int = 5_000
    history_share: float = 0.8
    partitions: int = 2
