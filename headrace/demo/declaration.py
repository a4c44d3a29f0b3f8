"""`Demo`: a project's declaration for `headrace demo`."""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from headrace.learners import Learner
from headrace.pipelines.train_step import TrainStep
from headrace.schemas import Event
from headrace.settings import Settings


@dataclass(frozen=True, slots=True, eq=False)
class Demo:
    """A project's log, and how to play it.

    Args:
        load: returns the log as a frame with the columns of `event`, ordered by event time.
        event: the event class of the log's rows, with columns `entity`, `candidate` and `request_id`. `request_id` is
            null in the log; the player sets it to the id of the ranking request that preceded the row.
        impression: the event that serving logs, with columns `features`, `scores` and `model_version`.
        learner: the learner to train and serve.
        make_step: creates the training step of the warm start, which the job `train` also runs.
        materialize, train: the project's dataflow modules.
        asks: expression for the rows before which a ranking may be requested; their `candidate` was chosen.
        candidates_count: candidates per request, including the chosen one.
        popularity_rows: the other candidates are drawn from this many preceding rows, that is, by popularity.
        history_share: share of the log that is history when the demo goes live.
        partitions: number of partitions of each topic.
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
