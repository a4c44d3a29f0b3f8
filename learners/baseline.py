"""LinearNextItem: the baseline for `NextItem`, a linear model of its inputs."""

from headrace.learners import Learner, Logistic
from learners.next_item import NextItem


class LinearNextItem(Learner):
    """Logistic regression on the inputs of `NextItem`."""

    views = NextItem.views
    label = NextItem.label
    inputs = NextItem.inputs
    model = Logistic()
