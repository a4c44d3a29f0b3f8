"""The learner: the features it reads, the event that makes a candidate positive, and the model. Fill in your own."""

from features.views import VIEWS
from headrace import Categorical, Dense, InputSpec, Label, Learner, Match
from headrace.learners import Logistic
from schemas.events import Action

ENTITY = ("user_id",)
"""Key columns that a request has once; of the label's candidate column it has a list of values."""


class Ranking(Learner):
    """Predicts which item a user acts on next."""

    views = VIEWS
    label = Label(Action, within="5m", candidate="item_id")
    inputs = InputSpec(
        Categorical("item", "item_id"),
        Dense("popular", "item_activity.actions_1d", transform="log1p"),
        Match("seen_before", "item_id", "user_activity.recent"),
    )
    model = Logistic()
