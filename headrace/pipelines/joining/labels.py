"""Labels of requests: which of their candidates had an engagement, and when."""

import polars as pl

from headrace.pipelines.joining.engagements import TIME
from headrace.pipelines.joining.labelled import IS_POSITIVE, LABEL
from headrace.pipelines.joining.spec import LABEL_COLUMNS, JoinSpec, micros
from headrace.schemas import spec_of

GROUP_ROWS = 131_072
"""Requests labelled at a time, which limits the memory for their candidates."""


def label_requests(
    requests: pl.DataFrame,
    engagements: pl.DataFrame,
    spec: JoinSpec,
    within_us: int,
    rows_max: int = GROUP_ROWS,
) -> pl.DataFrame:
    """Add `LABEL_COLUMNS` to `requests`: the labels of their candidates, as known `within_us` after the request.

    `engagements` must have each id once. Requests are labelled `rows_max` at a time, since the intermediate frames are
    larger than the resulting labels.
    """
    pieces = list(requests.iter_slices(rows_max)) or [requests]
    return pl.concat([_label_piece(piece, engagements, spec, within_us) for piece in pieces])


def _label_piece(requests: pl.DataFrame, engagements: pl.DataFrame, spec: JoinSpec, within_us: int) -> pl.DataFrame:
    request, engagement = spec_of(spec.request), spec_of(spec.engagement)
    engagement_id = str(engagement.id)
    cells = (
        requests.select(
            *(pl.col(c).alias(f"__e{i}") for i, c in enumerate(spec.request_entity)),
            micros(request.time).alias("__t"),
            pl.col(spec.candidates).alias("__c"),
        )
        .with_row_index("__row")
        .filter(pl.col("__c").list.len() > 0)
        .explode("__c")
        .with_row_index("__cell")
    )
    right = engagements.select(
        *(pl.col(c).alias(f"__e{i}") for i, c in enumerate(spec.engagement_entity)),
        pl.col(spec.candidate).alias("__c"),
        pl.col(TIME).alias("label_times"),
        pl.col(engagement_id).alias("label_ids"),
        pl.col("appended_us").alias("label_appended_us"),
        LABEL,
        IS_POSITIVE,
    )
    keys = [*(f"__e{i}" for i in range(len(spec.request_entity))), "__c"]
    first = (
        cells.join(right, on=keys)
        .filter((pl.col("label_times") >= pl.col("__t")) & (pl.col("label_times") < pl.col("__t") + within_us))
        .sort("__cell", ~pl.col(IS_POSITIVE), "label_times", "label_ids")  # positives first
        .unique("__cell", keep="first", maintain_order=True)
        .select("__cell", "label_times", "label_ids", "label_appended_us", LABEL)
    )
    absent = pl.col(LABEL) if spec.absent_is_unknown else pl.col(LABEL).fill_null(0.0)
    lists = (
        cells.select("__row", "__cell")
        .join(first, on="__cell", how="left", maintain_order="left")
        .group_by("__row", maintain_order=True)
        .agg(
            absent.cast(spec.label_dtype).alias("labels"),
            pl.col("label_times").cast(pl.Datetime("us", "UTC")),
            "label_ids",
            "label_appended_us",
        )
    )
    whole = requests.with_row_index("__row").join(lists, on="__row", how="left", maintain_order="left")
    added = [pl.col(c).fill_null(pl.lit([], lists.schema[c])) for c in LABEL_COLUMNS]
    return whole.select(*request.polars, *added, "appended_us")


def late_labels(labelled: pl.DataFrame, spec: JoinSpec, since_us: int) -> pl.DataFrame:
    """The requests of `labelled` with a label that arrived at age `since_us` or later; other labels are null.

    If an absent label means negative, only positives count, since the candidate was learned as negative before.
    """
    time = spec_of(spec.request).time
    is_late = pl.col("label_times") >= pl.col(time) + pl.duration(microseconds=since_us)
    is_new = is_late & pl.col("labels").is_not_null() & (spec.absent_is_unknown | (pl.col("labels") > 0))
    masked = [pl.when(is_new).then(pl.col(column)).alias(column) for column in LABEL_COLUMNS]
    lists = (
        labelled.select(time, *LABEL_COLUMNS)
        .with_row_index("__row")
        .filter(pl.col("labels").list.len() > 0)
        .explode(LABEL_COLUMNS)
        .select("__row", *masked)
        .group_by("__row", maintain_order=True)
        .agg(LABEL_COLUMNS)
        .filter(pl.col("labels").list.drop_nulls().list.len() > 0)
    )
    others = labelled.with_row_index("__row").drop(LABEL_COLUMNS)
    return others.join(lists, on="__row", how="inner", maintain_order="left").select(labelled.columns)
