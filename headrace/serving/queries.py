"""Queries of a ranking: its declaration, the checks of a request, and the key columns of a batch."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.features import ViewPlan, plan_of
from headrace.features.keys import hashed_keys, text_columns
from headrace.learners import Learner
from headrace.serving.refusals import Refusal

Key = int | str


@dataclass(frozen=True, slots=True)
class RankingSpec:
    """Declaration of a ranking: the learner, and the key columns of a request.

    Args:
        learner: the learner whose views and inputs are read.
        entity: key columns that a request gives once.
        candidate: key column that a request gives a list of.

    Raises:
        DeclarationError: a view has a key column that requests do not give.
    """

    learner: type[Learner]
    entity: tuple[str, ...]
    candidate: str

    def __post_init__(self) -> None:
        given = {*self.entity, self.candidate}
        for plan in map(plan_of, self.learner.views):
            if not set(plan.entity) <= given:
                raise DeclarationError(
                    f"ranking · view {plan.name}: key {', '.join(plan.entity)}; given are {', '.join(sorted(given))}"
                )

    @property
    def plans(self) -> list[ViewPlan]:
        """Plans of the learner's views, reduced to the features that its inputs read."""
        columns = [column.rpartition(".") for column in self.learner.inputs.columns]
        return [
            plan.only({name for view, _, name in columns if view == plan.name})
            for plan in map(plan_of, self.learner.views)
        ]

    @property
    def context(self) -> tuple[str, ...]:
        """Columns that a request must give in `context`."""
        given = {*self.entity, self.candidate}
        return tuple(name for name in self.learner.inputs.columns if "." not in name and name not in given)


@dataclass(frozen=True, slots=True)
class Query:
    """One entity and its candidates, as of `now_us` (microseconds UTC), with the context of the request.

    `is_now`: whether `now_us` is the service's current time, so that resident values of a moment ago may be used.
    """

    entity: Mapping[str, Key]
    candidates: Sequence[Key]
    now_us: int
    context: Mapping[str, Any] = field(default_factory=dict)
    is_now: bool = False


class QueryRules:
    """Checks queries against a spec, and tells which of them may share a batch."""

    def __init__(self, spec: RankingSpec) -> None:
        self._spec = spec
        self._entity = frozenset(spec.entity)
        self._context = spec.context
        self.text_keys = text_columns(map(plan_of, spec.learner.views))
        """Key column -> whether it is text; key columns that no view declares are absent."""
        self._undeclared = [name for name in spec.entity if name not in self.text_keys]

    def check(self, query: Query) -> None:
        """Check that `query` can be read.

        Raises:
            Refusal: 422, a key or a context value is missing or of the wrong type.
        """
        if query.entity.keys() != self._entity:
            wrong = next(iter(self._entity ^ query.entity.keys()))
            raise Refusal(
                422,
                "invalid_request",
                f"entity has the keys {sorted(query.entity)}",
                f"give exactly {', '.join(self._spec.entity)}",
                f"entity.{wrong}",
            )
        for name, value in query.entity.items():
            _require_type([value], self.text_keys.get(name), f"entity.{name}", name)
        is_text = self.text_keys.get(self._spec.candidate)
        _require_type(query.candidates, is_text, "candidates", self._spec.candidate)
        for name in self._context:
            if name not in query.context:
                raise Refusal(
                    422,
                    "invalid_request",
                    f"context has no {name!r}",
                    f"the model reads {name}: give it",
                    f"context.{name}",
                )

    def kind(self, query: Query) -> Hashable:
        """Return a value that is equal for queries that may share a batch: those whose columns have the same types."""
        kinds = [type(query.context[name]) for name in self._context]
        kinds += [type(query.entity[name]) for name in self._undeclared]
        if self._spec.candidate not in self.text_keys:
            kinds.append(type(query.candidates[0]))
        return tuple(kinds)


class KeyColumn:
    """One key column of a batch: the keys as sent, their ids (n,) for tables and their texts for the store.

    The keys are hashed once per batch, for all views and inputs.

    Args:
        sent: keys of one type.
        is_text: whether the keys are text; None: the first key decides.
    """

    def __init__(self, sent: Sequence[Key], is_text: bool | None) -> None:
        self._sent = sent
        self._is_text = isinstance(sent[0], str) if is_text is None else is_text
        self.ids, self.texts = hashed_keys(sent, is_text=self._is_text)

    @property
    def values(self) -> NDArray[Any]:
        """The keys as sent (n,): int64, or objects. Built on demand, since few declarations read them."""
        return np.asarray(list(map(str, self._sent)), dtype=object) if self._is_text else self.ids

    def spread(self, owners: NDArray[np.int64] | None, rows: int) -> pl.Series:
        """Return the values as a series of length `rows`: as they are, the only one repeated, or those at `owners`."""
        values = self.values
        if len(values) == rows:
            return pl.Series(values.tolist())
        if owners is None:
            return pl.Series(values.tolist()).new_from_index(0, rows)
        return pl.Series(values[owners].tolist())


def _require_type(values: Sequence[Key], is_text: bool | None, field: str, name: str) -> None:
    """Refuse keys that are not all text or all integers; with `is_text` None the first key decides."""
    must_be_text = isinstance(values[0], str) if is_text is None else is_text
    for i, value in enumerate(values):
        if isinstance(value, str) != must_be_text:
            where = field if len(values) == 1 and field != "candidates" else f"{field}[{i}]"
            kind = "text" if must_be_text else "an integer"
            raise Refusal(422, "invalid_request", f"{where} is {value!r}", f"{name} is {kind}: send it so", where)
