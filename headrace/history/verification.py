"""Result of comparing a store with its log: differences per feature, examples, and what could not be compared."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.features.answer import Answer, Column, Lists

TOLERANCE = 1e-9
"""Relative and absolute difference up to which floats count as equal."""

EXAMPLES_MAX = 20
"""Most differences that a report shows."""


@dataclass(frozen=True, slots=True, eq=False)
class Verification:
    """Outcome of a comparison.

    `features`: one row per feature: `feature`, `checked` (entities), `mismatches`. `examples`: up to `EXAMPLES_MAX`
    differences: `key`, `feature`, `expected` (replayed), `found` (stored), as text. `rows`: log rows replayed.
    `waiting`: log rows that the store has not applied yet. `earlier`: log rows before the first that the store has
    applied, as with `start=latest`; they are not replayed. `offsets`: partition -> offset before which every shard has
    applied all rows. `expired`: entities left out because Redis has expired them under the view's ttl. `beyond`: number
    of the topic's offsets past the log's end that the store has applied. `newer`: entities left out because their
    newest event is among these. `begins`: partition -> first offset of the log, if it is not 0: rows before it, which
    the store may have applied, cannot be replayed. `failed`: log rows left out, as in the live flow, because an
    expression of the view has no value for them. `ahead`: entities left out because an event of theirs was so far
    ahead of the clock when it was appended that the live flow may have made it a dead letter.
    """

    view: str
    entities: int
    rows: int
    waiting: int
    expired: int
    offsets: dict[str, int]
    features: pl.DataFrame
    examples: pl.DataFrame
    beyond: int = 0
    newer: int = 0
    begins: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    earlier: int = 0
    ahead: int = 0

    @property
    def mismatches(self) -> int:
        """Number of differing values, over all features."""
        return int(self.features["mismatches"].sum())

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return self.mismatches == 0

    def as_dict(self) -> dict[str, Any]:
        """Return all fields as plain data for JSON."""
        counts = ("entities", "rows", "waiting", "earlier", "expired", "failed", "beyond", "newer", "ahead")
        figures = {name: getattr(self, name) for name in ("view", *counts, "offsets", "begins")}
        tables = {"features": self.features.to_dicts(), "examples": self.examples.to_dicts()}
        return {**figures, "mismatches": self.mismatches, **tables}


def differences(
    expected: Answer, stored: Answer, texts: Sequence[bytes], counted: NDArray[np.bool_]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Compare replayed and stored values of the entities with key `texts` for which `counted` (n,) is true.

    Returns one row per feature, and up to `EXAMPLES_MAX` examples, with the columns that `Verification` describes.
    """
    features: list[tuple[str, int, int]] = []
    examples: list[tuple[str, str, str, str]] = []
    shown: tuple[pl.DataFrame, pl.DataFrame] | None = None
    for name, column in expected.columns.items():
        differs = _differs(column, stored.columns[name]) | (expected.found != stored.found)
        if name in expected.empty:
            differs |= expected.empty[name] != stored.empty[name]
        differs &= counted
        features.append((name, int(counted.sum()), int(differs.sum())))
        for index in np.flatnonzero(differs)[: EXAMPLES_MAX - len(examples)]:
            shown = shown or (expected.to_polars(), stored.to_polars())
            sides = (
                str(frame[name][int(index)]) if answer.found[index] else "missing"
                for answer, frame in zip((expected, stored), shown, strict=True)
            )
            examples.append((texts[index].decode(errors="replace"), name, *sides))
    return (
        pl.DataFrame(features, {"feature": pl.String, "checked": pl.Int64, "mismatches": pl.Int64}, orient="row"),
        pl.DataFrame(examples, dict.fromkeys(("key", "feature", "expected", "found"), pl.String), orient="row"),
    )


def _differs(ours: Column, theirs: Column) -> NDArray[np.bool_]:
    """Return where two columns (n,) differ; lists are compared element by element up to their length."""
    if isinstance(ours, Lists) and isinstance(theirs, Lists):
        inside = np.arange(ours.values.shape[1]) < ours.lengths[:, None]
        unequal = np.any(_unequal(ours.values, theirs.values) & inside, axis=1)
        return np.asarray(unequal | (ours.lengths != theirs.lengths), np.bool_)
    assert isinstance(ours, np.ndarray)
    assert isinstance(theirs, np.ndarray)
    return _unequal(ours, theirs)


def _unequal(ours: NDArray[Any], theirs: NDArray[Any]) -> NDArray[np.bool_]:
    if ours.dtype.kind == "f":
        return np.asarray(~np.isclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True), np.bool_)
    return np.asarray(ours != theirs, np.bool_)


def both(first: Verification, rest: Verification) -> Verification:
    """Combine the verification of some entities with that of the rest, which replayed some of the same rows again."""
    features = first.features.with_columns(
        checked=first.features["checked"] + rest.features["checked"],
        mismatches=first.features["mismatches"] + rest.features["mismatches"],
    )
    return dataclasses.replace(
        first,
        entities=first.entities + rest.entities,
        expired=first.expired + rest.expired,
        newer=first.newer + rest.newer,
        ahead=first.ahead + rest.ahead,
        features=features,
        examples=pl.concat([first.examples, rest.examples])[:EXAMPLES_MAX],
    )
