"""Views: what is known of a user and of an item at any moment. Fill in your own features."""

from headrace import Count, FeatureView, LastN
from schemas.events import Action


class UserActivity(FeatureView, source=Action, entity="user_id"):
    """What a user did lately."""

    actions = Count(windows=("1h", "1d"))
    recent = LastN("item_id", n=20)


class ItemActivity(FeatureView, source=Action, entity="item_id"):
    """How much is done with an item."""

    actions = Count(windows=("1h", "1d"))


VIEWS = (UserActivity, ItemActivity)
