"""River: a logistic regression on sparse dicts, one example at a time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from river import linear_model, optim

OPTIMIZERS: dict[str, Any] = {
    "River logistic, SGD": lambda: optim.SGD(0.1),
    "River logistic, Adagrad": lambda: optim.AdaGrad(0.2),
}


def scores(name: str, ids: np.ndarray, labels: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """Probabilities, `rows` at a time, each before its label was learned. The dicts are made within the time."""
    model = linear_model.LogisticRegression(optimizer=OPTIMIZERS[name]())
    for start in range(0, len(ids), rows):
        out = []
        for (user, thing), label in zip(
            ids[start : start + rows].tolist(), labels[start : start + rows].tolist(), strict=True
        ):
            x = {("user", user): 1.0, ("thing", thing): 1.0}
            out.append(model.predict_proba_one(x)[True])
            model.learn_one(x, label > 0)
        yield np.array(out)
