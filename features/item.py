"""Features of an item."""

from headrace import Count, FeatureView, Mean, Ratio, col
from schemas.retail import Engagement

PURCHASE = col("action") == "purchase"


class ItemActivity(FeatureView, source=Engagement, entity="item_id"):
    """Purchases and cancellations of one item, including those of guests, from the last day to the last year."""

    bought = Count(where=PURCHASE, windows=("1d", "7d", "30d", "360d"))
    cancelled = Count(where=col("action") == "cancel", windows=("30d", "360d"))
    cancel_rate = Ratio("cancelled", "bought", prior=(1, 50))
    log_price = Mean(col("unit_price").clip(0.01).log(), where=PURCHASE, windows="360d")
    log_quantity = Mean(col("quantity").log(), where=PURCHASE, windows="360d")
