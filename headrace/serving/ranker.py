"""Ranker: reads, assembles and scores a batch of requests, each of one entity and its candidates. For any thread.

    entities' views      n rows, one a request   --+
    candidates' views    R rows, all candidates  --+-> SplitInputs -> Inputs (R rows) -> scorer -> (R,) scores
    requests' columns    keys, context           --+

All views of all requests are read in one round trip. A view with the candidate's column among its keys has one row per
candidate. Any other view belongs to the entity, and fields of the entity are assembled once per request. Values that
depend on the candidate alone come from the resident catalogue if it holds the candidate. A lone request whose
candidates are all resident is scored in halves, and inputs are assembled only for the candidates that it returns.

Invariants: `score` uses only the scorer passed to it and never reads the live model; an answer does not depend on the
other requests of its batch (up to 1e-6, since a matrix product may sum in another order).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from headrace.errors import StoreUnavailableError
from headrace.features import Answer, ViewPlan, entity_ids, read_packed
from headrace.features.keys import FEW_TEXTS
from headrace.features.store import OnlineStore
from headrace.features.store.reader import ViewRead
from headrace.features.warm import sample_records
from headrace.learners import Inputs, columns_of
from headrace.learners.input_spec import Column
from headrace.serving.queries import Key, KeyColumn, Query, QueryRules, RankingSpec
from headrace.serving.resident import ResidentCandidates, SplitInputs
from headrace.serving.resident.batch_read import BatchRead, Parts, RequestRead, ViewFound, requests_read
from headrace.serving.resident.catalogue import CandidateRows, Hit, Records, taken
from headrace.serving.swap import Scores

PROBE_ROWS = 100

Ints = NDArray[np.int64]


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
        resident: candidates that are kept in memory; None: all are read from the store.
    """

    def __init__(self, spec: RankingSpec, store: OnlineStore, *, resident: ResidentCandidates | None = None) -> None:
        self.spec = spec
        self.store = store
        self.rules = QueryRules(spec)
        self.resident = resident
        self.is_warm = False
        self._split = resident.split if resident is not None else SplitInputs(spec)
        self._reads = [_ViewSource(plan, self._split.kinds[plan.name]) for plan in spec.plans]

    @property
    def fingerprints(self) -> dict[str, str]:
        """View -> layout fingerprint; a model must be trained on the same layouts."""
        return {read.plan.name: read.plan.fingerprint for read in self._reads}

    def read(
        self, entity: Mapping[str, Key], candidates: Sequence[Key], now_us: int, context: Mapping[str, Any]
    ) -> Scored:
        """Read the inputs of one request without scoring them: `scores` is empty.

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
        """Score all `candidates` with `scorer`. Raises the errors of `read`."""
        read = self.read(entity, candidates, now_us, context)
        return Scored(scorer.score(read.inputs), read.inputs, read.views, read.status, read.entity_age_us)

    def read_batch(
        self, queries: Sequence[Query], deadline_s: float | None = None, *, may_ask: bool = True
    ) -> BatchRead:
        """Read the inputs of queries of one kind (`rules.kind`) that have passed `rules.check`.

        `deadline_s`: time (`time.monotonic`) by which Redis must answer; `may_ask`: whether Redis may be read at all.

        Raises:
            StoreUnavailableError: Redis does not answer in time, or is needed and may not be read.
            LayoutError: a view was changed and its new version is not active yet.
        """
        keys, cut = self._keys(queries), _cut(queries)
        hit = self._hit(keys, queries)
        reads = self._view_reads(keys, queries, cut, hit)
        if reads and not may_ask:
            raise StoreUnavailableError("the store hangs: it is not asked")
        answers = self.store.answers(list(reads.values()), deadline_s=deadline_s) if reads else []
        return self._batch(dict(zip(reads, answers, strict=True)), keys, queries, cut, hit)

    def probe(self, rows: int = PROBE_ROWS) -> Inputs:
        """Build inputs of the shape of a real request, with all records missing and without reading the store."""
        return self._inputs_of([self._probe_query(rows)], dict.fromkeys(read.plan.name for read in self._reads))

    def warm(self) -> None:
        """Run every kernel that a request may need once; on a new machine this compiles them, which takes some 20 s.

        Reads made-up records, reads missing records from the store, and fills the resident catalogue.

        Raises:
            StoreUnavailableError: Redis does not answer.
            LayoutError: a view was changed and its new version is not active yet.
        """
        records = {read.plan.name: sample_records(read.plan)[2][0] for read in self._reads}
        for rows, count in (
            (PROBE_ROWS, 1),
            (2, 1),
            (2, FEW_TEXTS + 1),
        ):  # few keys and many keys use different kernels
            queries = [self._probe_query(rows)] * count
            self.read_batch(queries)
            self._inputs_of(queries, records).pack_each(np.arange(1), np.array([0, 1]))
        if self.resident is not None:
            self.resident.fill()
            self.resident.start()
        self.is_warm = True

    def _probe_query(self, rows: int) -> Query:
        text_keys = self.rules.text_keys
        entity: dict[str, Key] = {name: "0" if text_keys.get(name) else 0 for name in self.spec.entity}
        is_text = text_keys.get(self.spec.candidate)
        candidates: list[Key] = [str(i) if is_text else i for i in range(rows)]
        return Query(entity, candidates, 0, dict.fromkeys(self.spec.context, 0.0))

    def _inputs_of(self, queries: Sequence[Query], records: Mapping[str, bytes | None]) -> Inputs:
        """Build the inputs of probe queries; all records of a view are equal, or all are missing."""
        cut = _cut(queries)
        answers: dict[str, Answer] = {}
        for read in self._reads:
            count = len(queries) if read.kind == "request" else int(cut.edges[-1])
            same, moments = [records[read.plan.name]] * count, np.zeros(count, np.int64)
            answers[read.plan.name] = read_packed(read.plan, np.arange(count), [b""] * count, same, moments)
        return self._batch(answers, self._keys(queries), queries, cut, None).inputs

    def _keys(self, queries: Sequence[Query]) -> dict[str, KeyColumn]:
        text_keys, candidate = self.rules.text_keys, self.spec.candidate
        keys = {
            name: KeyColumn([query.entity[name] for query in queries], text_keys.get(name)) for name in self.spec.entity
        }
        sent = queries[0].candidates if len(queries) == 1 else list(chain(*[query.candidates for query in queries]))
        keys[candidate] = KeyColumn(sent, text_keys.get(candidate))
        return keys

    def _hit(self, keys: Mapping[str, KeyColumn], queries: Sequence[Query]) -> Hit | None:
        """Look up the candidates in the resident catalogue; None if it cannot be used."""
        if self.resident is None or not all(query.is_now for query in queries):
            return None
        key = keys[self.spec.candidate]
        return self.resident.look_up(key.ids, key.texts, min(query.now_us for query in queries))

    def _view_reads(
        self, keys: Mapping[str, KeyColumn], queries: Sequence[Query], cut: "_Cut", hit: Hit | None
    ) -> dict[str, ViewRead]:
        """Return what to read from the store, by view; views of the candidate alone only for absent candidates."""
        now_us, rows = np.array([query.now_us for query in queries]), int(cut.edges[-1])
        row_now_us = now_us[cut.owners] if cut.owners is not None else np.repeat(now_us, rows)
        reads = {}
        for read in self._reads:
            if read.kind != "candidate" or hit is None:
                moments = now_us if read.kind == "request" else row_now_us
                reads[read.plan.name] = read.of_keys(keys, cut.owners, rows, moments)
            elif hit.absent.size:
                key = keys[self.spec.candidate]
                texts = [key.texts[i] for i in hit.absent.tolist()]
                reads[read.plan.name] = ViewRead(read.plan, key.ids[hit.absent], texts, row_now_us[hit.absent])
        return reads

    def _batch(
        self,
        answers: Mapping[str, Answer],
        keys: Mapping[str, KeyColumn],
        queries: Sequence[Query],
        cut: "_Cut",
        hit: Hit | None,
    ) -> BatchRead:
        """Build the batch from the store's answers by view and the resident values."""
        split, rows, name = self._split, int(cut.edges[-1]), self.spec.candidate
        by_kind: dict[str, dict[str, Answer]] = {"candidate": {}, "request": {}, "both": {}}
        for view, answer in answers.items():
            by_kind[split.kinds[view]][view] = answer
        key = keys[name].values if name in split.raw else keys[name].ids
        by_request = columns_of(by_kind["request"], self._request_columns(keys, queries))
        records = {view: Records.of(answer) for view, answer in answers.items()}
        if hit is None:
            by_row = columns_of({**by_kind["candidate"], **by_kind["both"]}, {name: key})
            columns = _spread(by_row, by_request, cut.owners)
            read = self._requests_read(records, cut, None)
            return BatchRead(cut.edges, read, inputs=self.spec.learner.inputs.assemble(columns, rows))
        candidates: CandidateRows | None = None
        if hit.absent.size:
            absent = columns_of(by_kind["candidate"], {name: key[hit.absent]})
            candidates = hit.completed(split.rows_of(by_kind["candidate"], absent, len(hit.absent)))
        shared = hit.columns() if candidates is None else candidates.columns
        records |= hit.records() if candidates is None else candidates.records
        columns = _spread({**columns_of(by_kind["both"], {name: key}), **shared}, by_request, cut.owners)
        of_requests = split.request.assemble(columns if cut.owners is None else by_request, len(queries))
        parts = Parts(split, of_requests, split.both.assemble(columns, rows), cut.owners, candidates, hit)
        return BatchRead(cut.edges, self._requests_read(records, cut, hit.age_us), parts=parts, resident=self.resident)

    def _requests_read(
        self, records: Mapping[str, Records], cut: "_Cut", resident_age_us: int | None
    ) -> list[RequestRead]:
        by_view = {read.plan.name: (records[read.plan.name], read.kind) for read in self._reads}
        return requests_read(by_view, cut.counts, cut.edges, resident_age_us)

    def _request_columns(self, keys: Mapping[str, KeyColumn], queries: Sequence[Query]) -> dict[str, Any]:
        """Build the columns (n,) of the entities' keys and of the context."""
        columns: dict[str, Any] = {
            name: _column([query.context[name] for query in queries]) for name in self.spec.context
        }
        for name in self.spec.entity:
            columns[name] = keys[name].values if name in self._split.raw else keys[name].ids
        return columns


class _Cut(NamedTuple):
    """How R candidates belong to n requests: counts (n,), edges (n + 1,), owners (R,), which are None if n is 1."""

    counts: list[int]
    edges: Ints
    owners: Ints | None


def _cut(queries: Sequence[Query]) -> _Cut:
    counts = [len(query.candidates) for query in queries]
    edges = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=edges[1:])
    return _Cut(counts, edges, np.repeat(np.arange(len(counts)), counts) if len(counts) > 1 else None)


def _spread(by_row: dict[str, Column], by_request: dict[str, Column], owners: Ints | None) -> Mapping[str, Column]:
    """Return columns for all candidates; without owners, those of the only request apply to all."""
    return by_row | by_request if owners is None else _Spread(by_row, by_request, owners)


class _Spread(Mapping[str, Column]):
    """Columns of all R rows; a column of `by_request` (n rows) is expanded by `owners` (R,) when first read."""

    def __init__(self, by_row: dict[str, Column], by_request: Mapping[str, Column], owners: Ints) -> None:
        self._by_row = by_row
        self._by_request = by_request
        self._owners = owners

    def __getitem__(self, name: str) -> Column:
        column = self._by_row.get(name)
        if column is None:
            column = self._by_row[name] = taken(self._by_request[name], self._owners)
        return column

    def __contains__(self, name: object) -> bool:
        return name in self._by_row or name in self._by_request

    def __iter__(self) -> Iterator[str]:
        return iter({**self._by_request, **self._by_row})

    def __len__(self) -> int:
        return len({**self._by_request, **self._by_row})


@dataclass(frozen=True, slots=True)
class _ViewSource:
    """One view, and whether its keys are the candidate's, the request's, or both."""

    plan: ViewPlan
    kind: str

    def of_keys(self, keys: Mapping[str, KeyColumn], owners: Ints | None, rows: int, now_us: Ints) -> ViewRead:
        """Return the entities to read as of `now_us`, one time for each or one for all."""
        first = keys[self.plan.entity[0]]
        if len(self.plan.entity) == 1:
            return ViewRead(self.plan, first.ids, first.texts, now_us)
        count = len(first.ids) if self.kind == "request" else rows
        frame = {name: keys[name].spread(owners, count) for name in self.plan.entity}
        return ViewRead(self.plan, *entity_ids(self.plan, pl.DataFrame(frame)), now_us)


def _column(values: Sequence[Any]) -> NDArray[Any]:
    if any(isinstance(value, str) or value is None for value in values):
        return np.asarray(values, dtype=object)
    return np.asarray(values)
