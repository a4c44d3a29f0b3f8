"""Demo: a project's declaration for `headrace demo`."""

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from headrace.learners import Learner
from headrace.pipelines.train_step import TrainStep
from headrace.schemas import Event
from headrace.settings import Settings


@dataclass(frozen=True, slots=True, eq=False)
class Demo:
    """A project's log, and how it is played.

    Args:
        load: returns the log as a frame with the columns of `event`, in the order of event time.
        event: the event class of the log's rows; `entity`, `candidate` and `request_id` are columns of it. The last
            is null in the log; the player sets it to the id of the ranking request that preceded the row.
        impression: the event that serving logs, with columns `features`, `scores` and `model_version`.
        learner: the learner that is trained and served.
        make_step: makes the training step of the warm start; the job `train` runs the same step.
        materialize, train: the project's dataflow modules.
        asks: the rows before which a ranking may be requested; their `candidate` is the one that was chosen.
        candidates_count: candidates of one request, the chosen one included.
        popularity_rows: the others are drawn from the candidates of this many preceding rows, so by popularity.
        history_share: share of the log that is history when the demo goes live.
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
