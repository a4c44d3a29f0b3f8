"""Headrace: predict and learn in one call."""

from collections.abc import Iterator

import numpy as np

from headrace.learners import Categorical, DeepFM, InputSpec, Learner, Logistic, OnlineLearner

SPEC = InputSpec(Categorical("user"), Categorical("thing"))


class Linear(Learner):
    """A weight an id."""

    inputs = SPEC
    model = Logistic()


class Pairs(Learner):
    """A vector an id as well."""

    inputs = SPEC
    model = DeepFM(dim=16, hidden=())


class Deep(Learner):
    """An MLP on the vectors as well."""

    inputs = SPEC
    model = DeepFM(dim=16, hidden=(64, 32))


LEARNERS = {"Headrace logistic": Linear, "Headrace FM": Pairs, "Headrace DeepFM 64-32": Deep}
PER_EXAMPLE = (Linear, Pairs)
"""Those with a compiled loop: it takes this many examples a call."""
LOOP_ROWS = 4_096


def scores(learner: type[Learner], ids: np.ndarray, labels: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """Probabilities, part by part, each before its labels were learned."""
    online = OnlineLearner(learner)
    per_example = rows == 1 and learner in PER_EXAMPLE
    inputs = SPEC.assemble({"user": ids[:, 0], "thing": ids[:, 1]}, len(ids))
    step = LOOP_ROWS if per_example else rows
    for start in range(0, len(ids), step):
        part = slice(start, start + step)
        yield online.predict_and_learn(inputs.take(part), labels[part], per_example=per_example)[0]
