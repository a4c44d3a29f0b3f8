"""Ranker: reads, assembles and scores one entity and many candidates. Plain Python, called from several threads.

    entity's views      one MGET a view, 1 row   --+
    candidates' views   one MGET a view, B rows  --+-> InputSpec.assemble -> Inputs (B rows) -> scorer -> (B,) scores
    request's columns   keys, context            --+

The entity's features are read once and broadcast: its columns have one row until the inputs are assembled. A view with
the candidate's column among its keys has one row a candidate, any other belongs to the entity.

Invariant: `score` uses only the scorer passed to it; it never reads the live model.
"""

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import DeclarationError
from headrace.features import Answer, ViewPlan, entity_ids, plan_of, read_packed
from headrace.features.keys import hashed_keys, text_columns
from headrace.features.store import OnlineStore
from headrace.learners import Derived, Inputs, Learner, columns_of
from headrace.serving.refusals import Refusal
from headrace.serving.swap import Scores

RESIDENT_MAX = 200_000  # candidate records kept in memory per view; at 256 B each 50 MB
PROBE_ROWS = 100

Key = int | str


@dataclass(frozen=True, slots=True)
class RankingSpec:
    """Declaration of a ranking: the learner, and the key columns of a request.

    Args:
        learner: whose views and inputs are read.
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
    def context(self) -> tuple[str, ...]:
        """Columns that a request must give in `context`."""
        given = {*self.entity, self.candidate}
        return tuple(name for name in self.learner.inputs.columns if "." not in name and name not in given)


@dataclass(frozen=True, slots=True)
class ViewFound:
    """Records of one view in one request.

    Attributes:
        asked, found: records that were requested, and that exist.
        age_us: age of their newest event in µs, None without one.
        ahead: records with an event at or after the request's time.
    """

    asked: int
    found: int
    age_us: int | None
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores (B,) of all candidates in the request's order, the inputs they came from, and what was read."""

    scores: NDArray[np.float32]
    inputs: Inputs
    views: Mapping[str, ViewFound]
    status: str
    entity_age_us: int | None


class Ranker:
    """Scores candidates with features as of the request's time.

    Args:
        spec: the declaration.
        store: the online store that is read.
        candidate_ttl_s: seconds of wall time for which a candidate's record is cached; 0: always fetched. Windows are
            read as of the request's time either way.
    """

    def __init__(self, spec: RankingSpec, store: OnlineStore, *, candidate_ttl_s: float = 0.0) -> None:
        self.spec = spec
        self.store = store
        self._reads = [_ViewRead.of(plan_of(view), spec, candidate_ttl_s) for view in spec.learner.views]
        self._text_keys = text_columns(map(plan_of, spec.learner.views))
        derived = [field for field in spec.learner.inputs.fields if isinstance(field, Derived)]
        self._raw = {column for field in derived for column in field.columns}  # read as sent, not as ids

    @property
    def fingerprints(self) -> dict[str, str]:
        """View -> layout fingerprint; a model must be trained on the same."""
        return {read.plan.name: read.plan.fingerprint for read in self._reads}

    def read(
        self, entity: Mapping[str, Key], candidates: Sequence[Key], now_us: int, context: Mapping[str, Any]
    ) -> Scored:
        """Inputs of one request, not scored yet: `scores` is empty.

        Raises:
            Refusal: 422, a key or a context value is missing or of the wrong type.
            StoreUnavailableError: Redis does not answer.
        """
        self._check(entity, candidates, context)
        keys = {name: KeyColumn.of([value], self._text_keys.get(name)) for name, value in entity.items()}
        keys[self.spec.candidate] = KeyColumn.of(candidates, self._text_keys.get(self.spec.candidate))
        request: dict[str, Any] = {name: _column([value]) for name, value in context.items()}
        request |= {name: key.values if name in self._raw else key.ids for name, key in keys.items()}
        answers: dict[str, Answer] = {}
        views: dict[str, ViewFound] = {}
        for read in self._reads:
            name = read.plan.name
            answers[name] = read.answer(self.store, keys, len(candidates), now_us)
            views[name] = _found(answers[name])
        inputs = self.spec.learner.inputs.assemble(columns_of(answers, request), len(candidates))
        entity_views = [views[read.plan.name] for read in self._reads if not read.per_candidate]
        ages_us = [view.age_us for view in entity_views if view.age_us is not None]
        status = _status(list(views.values()), entity_views)
        return Scored(np.empty(0, np.float32), inputs, views, status, min(ages_us, default=None))

    def score(
        self,
        scorer: Scores,
        entity: Mapping[str, Key],
        candidates: Sequence[Key],
        now_us: int,
        context: Mapping[str, Any],
    ) -> Scored:
        """Scores of all `candidates`, by `scorer` alone. Raises as `read` does."""
        read = self.read(entity, candidates, now_us, context)
        return Scored(scorer.score(read.inputs), read.inputs, read.views, read.status, read.entity_age_us)

    def probe(self, rows: int = PROBE_ROWS) -> Inputs:
        """Inputs of a request whose records are all missing: the shape of a real one, with no store asked."""
        request: dict[str, Any] = {name: _column([0.0]) for name in self.spec.context}
        for name in (*self.spec.entity, self.spec.candidate):
            count = rows if name == self.spec.candidate else 1
            request[name] = _column([str(i) if self._text_keys.get(name) else i for i in range(count)])
        answers: dict[str, Answer] = {}
        for read in self._reads:
            count = rows if read.per_candidate else 1
            nobody: list[bytes | None] = [None] * count
            answers[read.plan.name] = read_packed(read.plan, np.arange(count), [b""] * count, nobody, 0)
        return self.spec.learner.inputs.assemble(columns_of(answers, request), rows)

    def _check(self, entity: Mapping[str, Key], candidates: Sequence[Key], context: Mapping[str, Any]) -> None:
        if entity.keys() != set(self.spec.entity):
            wrong = next(iter(set(self.spec.entity) ^ entity.keys()))
            raise Refusal(
                422,
                "invalid_request",
                f"entity has the keys {sorted(entity)}",
                f"give exactly {', '.join(self.spec.entity)}",
                f"entity.{wrong}",
            )
        for name, value in entity.items():
            _require_type([value], self._text_keys.get(name), f"entity.{name}", name)
        is_text = self._text_keys.get(self.spec.candidate)
        _require_type(candidates, is_text, "candidates", self.spec.candidate)
        for name in self.spec.context:
            if name not in context:
                raise Refusal(
                    422,
                    "invalid_request",
                    f"context has no {name!r}",
                    f"the model reads {name}: give it",
                    f"context.{name}",
                )


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """One key column of a request: the values as sent, and their ids (n,) and texts for tables and store.

    Hashed once a request, and used by each view and each input.
    """

    values: NDArray[Any]
    ids: NDArray[np.int64]
    texts: list[bytes]

    @classmethod
    def of(cls, sent: Sequence[Key], is_text: bool | None) -> Self:
        """Build from keys of one type; with `is_text` None the first key decides."""
        if isinstance(sent[0], str) if is_text is None else is_text:
            words = [str(value) for value in sent]
            return cls(np.asarray(words, dtype=object), *hashed_keys(words, is_text=True))
        ids, texts = hashed_keys(sent, is_text=False)
        return cls(ids, ids, texts)

    def repeated(self, rows: int) -> pl.Series:
        """The values as a series of `rows`; a single value is repeated."""
        series = pl.Series(self.values.tolist())
        return series if len(series) == rows else series.new_from_index(0, rows)


@dataclass(frozen=True, slots=True)
class _ViewRead:
    """Plan of reading one view for a request."""

    plan: ViewPlan
    per_candidate: bool
    resident: "_Resident | None"

    @classmethod
    def of(cls, plan: ViewPlan, spec: RankingSpec, ttl_s: float) -> Self:
        per_candidate = spec.candidate in plan.entity
        # Records keyed by entity and candidate together are rarely read twice.
        resident = _Resident(ttl_s) if ttl_s > 0 and plan.entity == (spec.candidate,) else None
        return cls(plan, per_candidate, resident)

    def answer(self, store: OnlineStore, keys: Mapping[str, "KeyColumn"], candidates: int, now_us: int) -> Answer:
        first = keys[self.plan.entity[0]]
        if len(self.plan.entity) == 1:
            ids, texts = first.ids, first.texts
        else:
            rows = candidates if self.per_candidate else 1
            frame = {name: keys[name].repeated(rows) for name in self.plan.entity}
            ids, texts = entity_ids(self.plan, pl.DataFrame(frame))
        if self.resident is None:
            return store.answer(self.plan, ids, texts, now_us)
        return read_packed(self.plan, ids, texts, self.resident.records(store, self.plan, ids, texts), now_us)


class _Resident:
    """Cache of the packed records of one view, for `ttl_s` seconds each."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._entries: dict[bytes, tuple[bytes | None, float]] = {}
        self._lock = threading.Lock()

    def records(
        self, store: OnlineStore, plan: ViewPlan, ids: NDArray[np.int64], texts: Sequence[bytes]
    ) -> list[bytes | None]:
        now_s = time.monotonic()
        entries = [self._entries.get(text) for text in texts]
        stale = [i for i, entry in enumerate(entries) if entry is None or entry[1] < now_s]
        out = [entry[0] if entry is not None else None for entry in entries]
        if not stale:
            return out
        fetched = store.records(plan, ids[stale], [texts[i] for i in stale])
        with self._lock:
            for i, record in zip(stale, fetched, strict=True):
                out[i] = record
                self._entries.pop(texts[i], None)  # keeps the dict in order of fetching, oldest first
                self._entries[texts[i]] = (record, now_s + self._ttl_s)
            while len(self._entries) > RESIDENT_MAX:
                del self._entries[next(iter(self._entries))]
        return out


def best(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indexes (k,) of the greatest scores, best first; equal scores in the request's order.

    >>> best(np.array([0.1, 0.9, 0.9], np.float32), 2).tolist()
    [1, 2]
    """
    return np.argsort(-scores, kind="stable")[:k]


def _column(values: Sequence[Any]) -> NDArray[Any]:
    if any(isinstance(value, str) or value is None for value in values):
        return np.asarray(values, dtype=object)
    return np.asarray(values)


def _found(answer: Answer) -> ViewFound:
    count = int(answer.found.sum())
    age_us = int(answer.age_us[answer.found].min()) if count else None
    return ViewFound(len(answer.found), count, age_us, int(answer.ahead.sum()))


def _status(views: Sequence[ViewFound], entity_views: Sequence[ViewFound]) -> str:
    if all(view.found == view.asked for view in views):
        return "ok"
    if entity_views and not any(view.found for view in entity_views):
        return "missing"
    return "partial"


def _require_type(values: Sequence[Key], is_text: bool | None, field: str, name: str) -> None:
    """Refuse keys that are not all text or all integers; with `is_text` None the first key decides."""
    must_be_text = isinstance(values[0], str) if is_text is None else is_text
    for i, value in enumerate(values):
        if isinstance(value, str) != must_be_text:
            where = field if len(values) == 1 and field != "candidates" else f"{field}[{i}]"
            kind = "text" if must_be_text else "an integer"
            raise Refusal(422, "invalid_request", f"{where} is {value!r}", f"{name} is {kind}: send it so", where)
