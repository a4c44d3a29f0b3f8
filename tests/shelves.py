"""A seeded stream of labelled examples with a known truth, for the tests of learners."""

from dataclasses import dataclass

import numpy as np

from headrace.learners import Bag, Categorical, DeepFM, Dense, InputSpec, Learner, Match

SPEC = InputSpec(
    Categorical("book"),
    Categorical("shop"),
    Bag("recent", table="book", length=6, candidate="book"),
    Dense("age", transform="log1p"),
    Dense("price", transform="signed_log1p"),
    Match("seen", candidate="book", column="recent", kind="recency"),
)


class Shelf(Learner):
    inputs = SPEC
    model = DeepFM(dim=4, hidden=(16,))


@dataclass
class Lists:
    values: np.ndarray
    lengths: np.ndarray


class Stream:
    """Click odds depend on the book, its presence in the recent list, and the price."""

    def __init__(self, seed=0, books=200, base=-2.0):
        self.rng = np.random.default_rng(seed)
        self.taste = np.random.default_rng(99).normal(0, 1.5, books)
        self.books = books
        self.base = base

    def columns(self, rows):
        rng = self.rng
        return {
            "book": rng.integers(0, self.books, rows),
            "shop": rng.integers(0, 5, rows),
            "recent": Lists(rng.integers(0, self.books, (rows, 6)), rng.integers(0, 7, rows)),
            "age": rng.exponential(5.0, rows),
            "price": rng.normal(0, 1, rows),
        }

    def batch(self, rows=256):
        columns = self.columns(rows)
        inputs = SPEC.assemble(columns, rows)
        seen = inputs.dense[:, 2] > 0
        logit = self.base + self.taste[columns["book"]] + 2.0 * seen - columns["price"]
        truth = 1 / (1 + np.exp(-logit))
        return inputs, (self.rng.random(rows) < truth).astype(np.float32), truth
