"""A linear model of the same inputs: the baseline for `next_item`."""

from headrace.learners import Learner, Logistic
from learners.next_item import NextItem


class LinearNextItem(Learner):
    """Logistic regression on the inputs of `NextItem`."""

    views = NextItem.views
    label = NextItem.label
    inputs = NextItem.inputs
    model = Logistic()
