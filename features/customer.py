"""Features of a customer."""

from headrace import Count, FeatureView, LastN, Mean, Ratio, Sequence, Sum, TimeSince, col
from schemas.retail import Engagement

PURCHASE = col("action") == "purchase"


class CustomerActivity(FeatureView, source=Engagement, entity="customer_id"):
    """Purchases and cancellations of one customer, from the last day to the last year."""

    bought = Count(where=PURCHASE, windows=("1d", "30d", "360d"))
    cancelled = Count(where=col("action") == "cancel", windows=("30d", "360d"))
    cancel_rate = Ratio("cancelled", "bought", prior=(1, 20))
    spend = Sum(col("quantity") * col("unit_price"), where=PURCHASE, windows=("30d", "360d"))
    log_price = Mean(col("unit_price").clip(0.01).log(), where=PURCHASE, windows="360d")
    log_quantity = Mean(col("quantity").log(), where=PURCHASE, windows="360d")
    idle = TimeSince(where=PURCHASE)
    recent = LastN("item_id", n=100, distinct=True, where=PURCHASE)
    history = Sequence("item_id", "quantity", "event_time", n=20, where=PURCHASE)
