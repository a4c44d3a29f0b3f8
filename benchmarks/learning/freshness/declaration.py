"""The clicks that are learned from, and the learner: which story does a reader open next?"""

from datetime import datetime
from pathlib import Path

import polars as pl

from headrace import Event, FeatureView, Label, LastN
from headrace.learners import Bag, Categorical, DeepFM, InputSpec, Learner
from pipelines import demo

ROOT = Path(__file__).resolve().parents[3]
INSTALLED = ROOT.parent / "shared" / "data" / "globo_clicks.parquet"
"""Clicks on news of globo.com (Moreira et al. 2018), which no repository may hold; `--clicks` names another place."""


class Click(Event, topic="clicks", key="reader", time="event_time"):
    """A reader opened a story."""

    event_time: datetime
    reader: int
    story: int


class ReaderActivity(FeatureView, source=Click, entity="reader"):
    """What a reader opened lately."""

    recent = LastN("story", n=10)


class NextStory(Learner):
    """A weight and a vector for each story, and a second vector for its role among those opened before."""

    views = (ReaderActivity,)
    label = Label(Click, within="1h", candidate="story")
    inputs = InputSpec(Categorical("story"), Bag("recent", "reader_activity.recent", table="opened", length=10))
    model = DeepFM(dim=16, hidden=())


def load_clicks(path: Path | None) -> tuple[str, pl.DataFrame]:
    """Name of the data, and columns `event_time`, `reader`, `story` in the order of time.

    From `path`, or from where the clicks usually lie; else the purchases of the demo's log.
    """
    path = path or (INSTALLED if INSTALLED.is_file() else None)
    if path is None:
        frame = demo.load().filter(pl.col("action") == "purchase").drop_nulls("customer_id")
        reader, story = pl.col("customer_id"), pl.col("item_id").rank("dense")
    else:
        frame = pl.read_parquet(path)
        reader, story = pl.col("user_id"), pl.col("article_id")
    at = pl.col("event_time").dt.replace_time_zone("UTC")
    clicks = frame.select(at, reader.cast(pl.Int64).alias("reader"), story.cast(pl.Int64).alias("story"))
    return path.name if path else "the retail log", clicks.sort("event_time", maintain_order=True)
