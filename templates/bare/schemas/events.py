"""Events: actions in your application, and the rankings served to it. Fill in your own fields."""

from datetime import datetime

from headrace import Event, Field


class Action(Event, topic="actions", key="user_id", time="event_time", id="action_id", codec="json"):
    """A user did something with an item. `request_id` is the ranking that led to it, null where there was none."""

    action_id: str = Field(min_length=1)
    event_time: datetime
    user_id: int
    item_id: str
    request_id: str | None = None


class Impression(Event, topic="impressions", key="user_id", time="event_time", id="request_id"):
    """A ranking as it was served, written by `headrace serve`: what it showed, and the features that led to it."""

    request_id: str = Field(min_length=1)
    event_time: datetime
    user_id: int
    candidates: list[str]
    scores: list[float]
    model_version: int
    features: bytes
