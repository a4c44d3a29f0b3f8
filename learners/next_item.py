"""NextItem: predicts which item a customer buys next."""

import numpy as np
from numpy.typing import NDArray

from features.customer import CustomerActivity
from features.item import ItemActivity
from headrace import Bag, Categorical, DeepFM, Dense, Derived, InputSpec, Label, Learner, Match, col
from headrace.learners import Adagrad, Adam
from headrace.learners.input_spec import Columns
from schemas.retail import Engagement


def price_gap(columns: Columns) -> NDArray[np.float64]:
    """Log of the item's usual price over that of the customer's purchases, (B,)."""
    return columns["item_activity.log_price_360d"] - columns["customer_activity.log_price_360d"]


def quantity_gap(columns: Columns) -> NDArray[np.float64]:
    """Log of the item's usual quantity over the customer's, (B,)."""
    return columns["item_activity.log_quantity_360d"] - columns["customer_activity.log_quantity_360d"]


class NextItem(Learner):
    """A DeepFM over the item, the customer and the customer's last hundred items.

    The table `bought` has a second vector for each item, for its role in the list of bought items, so the factorisation
    machine learns which items are bought together.
    """

    views = (CustomerActivity, ItemActivity)
    label = Label(Engagement, within="1d", positive=col("action") == "purchase", candidate="item_id")
    inputs = InputSpec(
        Categorical("item", "item_id"),
        Categorical("customer", "customer_id"),
        Bag("recent", "customer_activity.recent", table="bought", length=100),
        Match("bought_before", "item_id", "customer_activity.recent"),
        Match("bought_lately", "item_id", "customer_activity.recent", kind="recency"),
        Dense("sold_1d", "item_activity.bought_1d", transform="log1p"),
        Dense("sold_7d", "item_activity.bought_7d", transform="log1p"),
        Dense("sold_30d", "item_activity.bought_30d", transform="log1p"),
        Dense("sold_360d", "item_activity.bought_360d", transform="log1p"),
        Dense("returned", "item_activity.cancel_rate_30d"),
        Dense("price", "item_activity.log_price_360d"),
        Dense("quantity", "item_activity.log_quantity_360d"),
        Dense("bought_1d", "customer_activity.bought_1d", transform="log1p"),
        Dense("bought_30d", "customer_activity.bought_30d", transform="log1p"),
        Dense("bought_360d", "customer_activity.bought_360d", transform="log1p"),
        Dense("spent_30d", "customer_activity.spend_30d", transform="log1p"),
        Dense("idle_days", "customer_activity.idle", transform="log1p", scale=1 / 86_400),
        Derived("price_gap", price_gap, ("item_activity.log_price_360d", "customer_activity.log_price_360d")),
        Derived(
            "quantity_gap", quantity_gap, ("item_activity.log_quantity_360d", "customer_activity.log_quantity_360d")
        ),
    )
    model = DeepFM(dim=32, hidden=(64, 32), sparse=Adagrad(lr=0.03), optimizer=Adam(lr=0.001))
