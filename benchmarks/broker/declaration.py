"""What both sides read: the event, view and log of benchmarks/materialize, on a topic; and the same in Arrow blocks."""

import polars as pl

from benchmarks.materialize.declaration import Engagement, UserActivity
from headrace.pipelines import TopicWriter
from headrace.schemas import Event

PARTITIONS = 4
SLICE_ROWS = 50_000
"""Rows that are encoded at a time while a log is published."""


class EngagementBlock(
    Engagement, topic="engagement-blocks", key="user_id", time="event_time", id="event_id", codec="arrow"
):
    """The same event, many in a message."""


class UserActivityOfBlocks(UserActivity, source=EngagementBlock, entity="user_id"):
    """The same view."""


def publish(bootstrap: str, topic: str, event: type[Event], log: pl.DataFrame, rows: int = SLICE_ROWS) -> int:
    """Write a log to `topic`, `rows` a time (a message each where the codec holds many); returns the messages."""
    writer = TopicWriter(bootstrap, event, topic=topic)
    sent = sum(writer.write(part) for part in log.iter_slices(rows))
    writer.close()
    return sent
