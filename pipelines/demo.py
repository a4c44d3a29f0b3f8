"""The demo of this project, run by `headrace demo` on the UCI Online Retail log (data/README.md)."""

from pathlib import Path

import polars as pl

from headrace import col
from headrace.demo import Demo
from learners.next_item import NextItem
from pipelines.train import make_step
from schemas.retail import Engagement, Impression

LOG = Path(__file__).resolve().parent.parent / "data" / "online_retail.parquet"


def load(log: Path = LOG) -> pl.DataFrame:
    """The log's invoice lines as engagements. Lines without an item are accounting corrections and left out."""
    lines = pl.scan_parquet(log).with_row_index("line").filter(col("item").is_not_null(), col("quantity") != 0)
    return (
        lines.select(
            event_id=pl.format("line-{}", col("line")),
            event_time=col("event_time").dt.replace_time_zone("UTC"),
            customer_id=col("customer_id").cast(pl.Int64),
            item_id=col("item"),
            action=pl.when(col("quantity") > 0).then(pl.lit("purchase")).otherwise(pl.lit("cancel")),
            quantity=col("quantity").abs().cast(pl.Int64),
            unit_price=col("unit_price"),
            country=col("country"),
            request_id=pl.lit(None, pl.String),
        )
        .sort("event_time", maintain_order=True)
        .collect()
    )


demo = Demo(
    load=load,
    event=Engagement,
    impression=Impression,
    learner=NextItem,
    make_step=make_step,
    entity="customer_id",
    candidate="item_id",
    request_id="request_id",
    asks=(col("action") == "purchase") & col("customer_id").is_not_null(),
)
