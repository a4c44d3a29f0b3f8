"""Examples of joined requests: the inputs that the model was served with, and the labels that came after."""

from dataclasses import dataclass

import numpy as np
import polars as pl
import structlog
from numpy.typing import NDArray

from headrace.errors import DecodeError, SchemaError
from headrace.learners import Inputs, Learner
from headrace.pipelines.examples.groups import LATE, REQUESTS, SKIPPED, Examples
from headrace.pipelines.joining.spec import IS_FIRST, LATE_SHARE, POSITIVE_WEIGHT, label_column

log = structlog.get_logger(__name__)


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
