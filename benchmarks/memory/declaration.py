"""What both sides keep of a customer: 30 windowed values, 10 over each of three windows."""

from headrace import Count, FeatureView, Max, Mean, Min, Sum, col
from schemas.retail import Engagement

PURCHASE = col("action") == "purchase"
WINDOWS = ("7d", "30d", "360d")


class Customer(FeatureView, source=Engagement, entity="customer_id"):
    """How much, how often and how dear, from the last week to the last year."""

    bought = Count(where=PURCHASE, windows=WINDOWS)
    cancelled = Count(where=col("action") == "cancel", windows=WINDOWS)
    spend = Sum(col("quantity") * col("unit_price"), where=PURCHASE, windows=WINDOWS)
    refund = Sum(col("quantity") * col("unit_price"), where=col("action") == "cancel", windows=WINDOWS)
    pieces = Sum("quantity", where=PURCHASE, windows=WINDOWS)
    price = Mean("unit_price", where=PURCHASE, windows=WINDOWS)
    cheapest = Min("unit_price", where=PURCHASE, windows=WINDOWS)
    dearest = Max("unit_price", where=PURCHASE, windows=WINDOWS)
    most_pieces = Max("quantity", where=PURCHASE, windows=WINDOWS)
    dear_pieces = Sum("quantity", where=PURCHASE & (col("unit_price") >= 5), windows=WINDOWS)
