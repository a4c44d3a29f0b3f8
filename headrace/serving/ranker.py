"""Ranker: reads, assembles and scores a batch of requests, each one entity and its candidates. Called by any thread.

    entities' views      n rows, one a request   --+
    candidates' views    R rows, all candidates  --+-> InputSpec.assemble -> Inputs (R rows) -> scorer -> (R,) scores
    requests' columns    keys, context           --+

All views of all requests are read in one round trip. A view with the candidate's column among its keys has a row a
candidate, any other belongs to the entity; a column of the entities is spread over the candidates only where an input
reads it, and for a lone request not at all: its one row stands for all.

Invariants: `score_batch` uses only the scorer passed to it, it never reads the live model; an answer does not depend on
the requests beside it in the batch (a matrix product may sum in another order: 1e-6).
"""

import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.features import Answer, Lists, ViewPlan, entity_ids, plan_of, read_packed
from headrace.features.store import OnlineStore
from headrace.features.store.mget import ViewRead
from headrace.features.warm import sample_records
from headrace.learners import Derived, Inputs, columns_of
from headrace.learners.input_spec import Column
from headrace.serving.queries import Key, KeyColumn, Query, QueryRules, RankingSpec
from headrace.serving.swap import Scores

RESIDENT_MAX = 200_000  # candidate records kept in memory per view; at 256 B each 50 MB
PROBE_ROWS = 100

Ints = NDArray[np.int64]


class ViewFound(NamedTuple):
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


class RequestRead(NamedTuple):
    """What was read for one request: by view, in a word, and the age of the entity's newest event in µs."""

    views: dict[str, ViewFound]
    status: str
    entity_age_us: int | None


@dataclass(frozen=True, slots=True)
class BatchRead:
    """Inputs of a batch, not scored yet: rows `edges[i]` to `edges[i + 1]` are the candidates of request i."""

    inputs: Inputs
    edges: Ints
    requests: list[RequestRead]


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
        self.rules = QueryRules(spec)
        self._reads = [_ViewSource.of(plan_of(view), spec, candidate_ttl_s) for view in spec.learner.views]
        derived = [field for field in spec.learner.inputs.fields if isinstance(field, Derived)]
        self.is_warm = False
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
        query = Query(entity, candidates, now_us, context)
        self.rules.check(query)
        batch = self.read_batch([query])
        return Scored(np.empty(0, np.float32), batch.inputs, *batch.requests[0])

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

    def read_batch(self, queries: Sequence[Query], deadline_s: float | None = None) -> BatchRead:
        """Inputs of queries of one kind (`rules.kind`), each of which `rules.check` has passed.

        `deadline_s`: moment of `time.monotonic` by which Redis must have answered.

        Raises:
            StoreUnavailableError: Redis does not answer, or not in time.
            LayoutError: a view was changed and its new version is not active yet.
        """
        counts = [len(query.candidates) for query in queries]
        edges = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=edges[1:])
        owners = np.repeat(np.arange(len(counts)), counts) if len(counts) > 1 else None
        now_us = np.array([query.now_us for query in queries])
        keys = self._keys(queries)
        answers = self._answers(keys, now_us, owners, int(edges[-1]), deadline_s)
        columns = self._columns(answers, keys, queries, owners)
        inputs = self.spec.learner.inputs.assemble(columns, int(edges[-1]))
        return BatchRead(inputs, edges, self._requests(answers, counts, edges))

    def probe(self, rows: int = PROBE_ROWS) -> Inputs:
        """Inputs of a request whose records are all missing: the shape of a real one, with no store asked."""
        return self._inputs_of([self._probe_query(rows)], dict.fromkeys(read.plan.name for read in self._reads))

    def warm(self) -> None:
        """Run every kernel that a request may need, once: on a new machine they are compiled, for some 20 s.

        Reads records that are made up, and asks the store for some that are missing.

        Raises:
            StoreUnavailableError: Redis does not answer.
        """
        records = {read.plan.name: sample_records(read.plan)[2][0] for read in self._reads}
        for count in (1, 2):
            queries = [self._probe_query(PROBE_ROWS)] * count
            self.read_batch(queries)
            self._inputs_of(queries, records).pack_each(np.arange(1), np.array([0, 1]))
        self.is_warm = True

    def _probe_query(self, rows: int) -> Query:
        text_keys = self.rules.text_keys
        entity: dict[str, Key] = {name: "0" if text_keys.get(name) else 0 for name in self.spec.entity}
        is_text = text_keys.get(self.spec.candidate)
        candidates: list[Key] = [str(i) if is_text else i for i in range(rows)]
        return Query(entity, candidates, 0, dict.fromkeys(self.spec.context, 0.0))

    def _inputs_of(self, queries: Sequence[Query], records: Mapping[str, bytes | None]) -> Inputs:
        """Inputs of probe queries, every record of a view being the same, or missing."""
        counts = [len(query.candidates) for query in queries]
        owners, rows = np.repeat(np.arange(len(counts)), counts) if len(counts) > 1 else None, sum(counts)
        answers: dict[str, Answer] = {}
        for read in self._reads:
            count = rows if read.per_candidate else len(queries)
            same = [records[read.plan.name]] * count
            moments = np.zeros(count, np.int64)
            answers[read.plan.name] = read_packed(read.plan, np.arange(count), [b""] * count, same, moments)
        columns = self._columns(answers, self._keys(queries), queries, owners)
        return self.spec.learner.inputs.assemble(columns, rows)

    def _keys(self, queries: Sequence[Query]) -> dict[str, KeyColumn]:
        text_keys, candidate = self.rules.text_keys, self.spec.candidate
        keys = {
            name: KeyColumn.of([query.entity[name] for query in queries], text_keys.get(name))
            for name in self.spec.entity
        }
        sent = queries[0].candidates if len(queries) == 1 else list(chain(*[query.candidates for query in queries]))
        keys[candidate] = KeyColumn.of(sent, text_keys.get(candidate))
        return keys

    def _answers(
        self, keys: Mapping[str, KeyColumn], now_us: Ints, owners: Ints | None, rows: int, deadline_s: float | None
    ) -> dict[str, Answer]:
        """Answers by view, n rows each or R; views without a cache in one round trip."""
        row_now_us = now_us[owners] if owners is not None else np.repeat(now_us, rows)
        reads = [read.of_keys(keys, owners, rows, row_now_us if read.per_candidate else now_us) for read in self._reads]
        direct = [read for source, read in zip(self._reads, reads, strict=True) if source.resident is None]
        fetched = iter(self.store.answers(direct, deadline_s=deadline_s) if direct else ())
        return {
            read.plan.name: next(fetched) if source.resident is None else source.resident.answer(self.store, read)
            for source, read in zip(self._reads, reads, strict=True)
        }

    def _columns(
        self,
        answers: Mapping[str, Answer],
        keys: Mapping[str, KeyColumn],
        queries: Sequence[Query],
        owners: Ints | None,
    ) -> Mapping[str, Column]:
        """Source columns of the inputs, R rows each, or one that stands for all."""
        request: dict[str, Any] = {
            name: _column([query.context[name] for query in queries]) for name in self.spec.context
        }
        request |= {name: key.values if name in self._raw else key.ids for name, key in keys.items()}
        if owners is None:
            return columns_of(answers, request)
        by_row = {read.plan.name: answers[read.plan.name] for read in self._reads if read.per_candidate}
        by_request = {name: answer for name, answer in answers.items() if name not in by_row}
        candidates = {self.spec.candidate: request.pop(self.spec.candidate)}
        return _Spread(columns_of(by_row, candidates), columns_of(by_request, request), owners)

    def _requests(self, answers: Mapping[str, Answer], counts: Sequence[int], edges: Ints) -> list[RequestRead]:
        ones, starts = [1] * len(counts), edges[:-1]
        by_view = [
            (
                read,
                _found(answers[read.plan.name], counts, starts)
                if read.per_candidate
                else _found(answers[read.plan.name], ones, None),
            )
            for read in self._reads
        ]
        requests = []
        for i in range(len(counts)):
            views = {read.plan.name: reads[i] for read, reads in by_view}
            entity_views = [reads[i] for read, reads in by_view if not read.per_candidate]
            ages_us = [view.age_us for view in entity_views if view.age_us is not None]
            requests.append(RequestRead(views, _status(views.values(), entity_views), min(ages_us, default=None)))
        return requests


class _Spread(Mapping[str, Column]):
    """Columns of all rows, those of `by_request` (n rows) taken for the `owners` (R,) of the rows when first read."""

    def __init__(self, by_row: dict[str, Column], by_request: Mapping[str, Column], owners: Ints) -> None:
        self._by_row = by_row
        self._by_request = by_request
        self._owners = owners

    def __getitem__(self, name: str) -> Column:
        column = self._by_row.get(name)
        if column is None:
            column = self._by_row[name] = _taken(self._by_request[name], self._owners)
        return column

    def __contains__(self, name: object) -> bool:
        return name in self._by_row or name in self._by_request

    def __iter__(self) -> Iterator[str]:
        return iter({**self._by_request, **self._by_row})

    def __len__(self) -> int:
        return len({**self._by_request, **self._by_row})


def _taken(column: Column, rows: Ints) -> Column:
    return column[rows] if isinstance(column, np.ndarray) else Lists(column.values[rows], column.lengths[rows])


@dataclass(frozen=True, slots=True)
class _ViewSource:
    """How one view is read for a batch."""

    plan: ViewPlan
    per_candidate: bool
    resident: "_Resident | None"

    @classmethod
    def of(cls, plan: ViewPlan, spec: RankingSpec, ttl_s: float) -> "_ViewSource":
        per_candidate = spec.candidate in plan.entity
        # Records keyed by entity and candidate together are rarely read twice.
        resident = _Resident(ttl_s) if ttl_s > 0 and plan.entity == (spec.candidate,) else None
        return cls(plan, per_candidate, resident)

    def of_keys(self, keys: Mapping[str, KeyColumn], owners: Ints | None, rows: int, now_us: Ints) -> ViewRead:
        """The entities to read, at `now_us`: one moment for each, or one for all."""
        first = keys[self.plan.entity[0]]
        if len(self.plan.entity) == 1:
            ids, texts = first.ids, first.texts
        else:
            count = rows if self.per_candidate else len(first.ids)
            frame = {name: keys[name].spread(owners, count) for name in self.plan.entity}
            ids, texts = entity_ids(self.plan, pl.DataFrame(frame))
        return ViewRead(self.plan, ids, texts, now_us)


class _Resident:
    """Cache of the packed records of one view, for `ttl_s` seconds each."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._entries: dict[bytes, tuple[bytes | None, float]] = {}
        self._lock = threading.Lock()

    def answer(self, store: OnlineStore, read: ViewRead) -> Answer:
        """Values as of the read's moments, of records that may be `ttl_s` old."""
        return read_packed(read.plan, read.ids, read.texts, self._records(store, read), read.now_us, skips_damaged=True)

    def _records(self, store: OnlineStore, read: ViewRead) -> list[bytes | None]:
        now_s = time.monotonic()
        entries = [self._entries.get(text) for text in read.texts]
        stale = [i for i, entry in enumerate(entries) if entry is None or entry[1] < now_s]
        out = [entry[0] if entry is not None else None for entry in entries]
        if not stale:
            return out
        fetched = store.records(read.plan, read.ids[stale], [read.texts[i] for i in stale])
        with self._lock:
            for i, record in zip(stale, fetched, strict=True):
                out[i] = record
                self._entries.pop(read.texts[i], None)  # keeps the dict in order of fetching, oldest first
                self._entries[read.texts[i]] = (record, now_s + self._ttl_s)
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


def _found(answer: Answer, counts: Sequence[int], starts: Ints | None) -> list[ViewFound]:
    """Records by request, which has `counts` of them from `starts` on; None: one each."""
    never = np.int64(2**63 - 1)
    present, ages_us, ahead = answer.found, np.where(answer.found, answer.age_us, never), answer.ahead
    if starts is not None:
        present, ahead = (np.add.reduceat(flags, starts, dtype=np.int64) for flags in (present, ahead))
        ages_us = np.minimum.reduceat(ages_us, starts)
    columns = zip(counts, present.tolist(), ages_us.tolist(), ahead.tolist(), strict=True)
    return [ViewFound(asked, int(n), age_us if n else None, int(late)) for asked, n, age_us, late in columns]


def _status(views: Collection[ViewFound], entity_views: Sequence[ViewFound]) -> str:
    if all(view.found == view.asked for view in views):
        return "ok"
    if entity_views and not any(view.found for view in entity_views):
        return "missing"
    return "partial"
