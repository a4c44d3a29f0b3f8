"""Events of an online shop: purchases and cancellations, and the rankings shown to customers."""

from datetime import datetime
from typing import Literal

from headrace import Event, Field


class Engagement(Event, topic="engagements", key="customer_id", time="event_time", id="event_id"):
    """A purchase or cancellation of an item: one line of an invoice.

    Guests have no customer id. `request_id` is the ranking that led to the purchase, null if there was none.
    """

    event_id: str = Field(min_length=1)
    event_time: datetime
    customer_id: int | None
    item_id: str = Field(min_length=1, max_length=200)
    action: Literal["purchase", "cancel"]
    quantity: int = Field(ge=1, le=1_000_000)
    unit_price: float = Field(ge=0, le=100_000)
    country: str
    request_id: str | None = None


class Impression(Event, topic="impressions", key="customer_id", time="event_time", id="request_id"):
    """A ranking as served: the candidates, their scores and the features used to compute them."""

    request_id: str = Field(min_length=1)
    event_time: datetime
    customer_id: int
    item_ids: list[str]
    scores: list[float]
    frozen_scores: list[float]
    model_version: int
    features: bytes
