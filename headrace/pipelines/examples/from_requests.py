"""Examples from joined requests: the inputs that the model read when serving, and the labels that followed."""

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
    """Column names of joined requests; `scores` and `shadow` are None if they are not logged.

    With several labels the name of each label follows `labels`, as in `labels_click`.
    """

    time: str = "event_time"
    features: str = "features"
    labels: str = "labels"
    scores: str | None = "scores"
    shadow: str | None = None


def requests_to_examples(frame: pl.DataFrame, learner: type[Learner], columns: RequestColumns) -> Examples | None:
    """Examples from joined requests, one request per row of `frame`; None if no request is usable.

    A request is skipped and counted, by reason, instead of stopping the stream, if its features were packed with
    another spec, are damaged or missing, or if its labels are not one per candidate or not allowed by the model's loss.
    A candidate whose labels are all null (unknown) is left out.

    Raises:
        SchemaError: `frame` lacks one of `columns`.
    """
    names = [label_column(columns.labels, name) for name in learner.labels() or ("",)]
    if lacking := [name for name in (columns.time, columns.features, *names) if name not in frame.columns]:
        raise SchemaError(
            f"requests of learner {learner.name}: no column {', '.join(lacking)}; there are "
            f"{', '.join(frame.columns)}: name the columns with RequestColumns"
        )
    inputs, labels, usable = [], [], []
    for number, (packed, *listed) in enumerate(frame.select(columns.features, *names).iter_rows()):
        try:
            rows, label = _labelled_rows(_unpacked(packed, learner), listed, learner)
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
    """The labels of a request are not one per row, or not allowed by the loss."""


REASONS = {_LabelsError: "labels", DecodeError: "damaged", SchemaError: "other_spec"}
"""Reasons for which a request is skipped, by error."""


def _unpacked(packed: bytes | None, learner: type[Learner]) -> Inputs:
    """The inputs that a request was answered with.

    Raises:
        DecodeError: they are missing or damaged.
        SchemaError: they are of another spec.
    """
    if not packed:
        raise DecodeError("packed inputs: the request has none")
    return Inputs.from_bytes(packed, learner.inputs.fingerprint)


def _labelled_rows(
    rows: Inputs, listed: list[list[float | None] | None], learner: type[Learner]
) -> tuple[Inputs, NDArray[np.float32]]:
    """The rows with a label, and their labels (n,) or (n, L), NaN where one of several is unknown.

    Raises:
        _LabelsError: there is not one label per row, or the model's loss does not allow a label.
    """
    if any(labels is None or len(labels) != len(rows) for labels in listed):
        raise _LabelsError
    label = np.array(listed, dtype=np.float32).T  # null becomes NaN
    is_known = np.asarray(~np.isnan(label).all(axis=1))
    if not is_known.all():
        rows, label = rows.take(is_known), label[is_known]
    label = label[:, 0] if len(listed) == 1 else label
    if not learner.model.loss.is_allowed(label).all():
        raise _LabelsError
    return rows, label
