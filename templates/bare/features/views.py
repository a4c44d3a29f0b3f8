"""Views: features of a user and of an item, up to date at any time. Fill in your own features."""

from headrace import Count, FeatureView, LastN
from schemas.events import Action


class UserActivity(FeatureView, source=Action, entity="user_id"):
    """Recent actions of a user."""

    actions = Count(windows=("1h", "1d"))
    recent = LastN("item_id", n=20)


class ItemActivity(FeatureView, source=Action, entity="item_id"):
    """Number of recent actions on an item."""

    actions = Count(windows=("1h", "1d"))


VIEWS = (UserActivity, ItemActivity)
