"""The values read for a batch of requests, and its scores. Inputs are assembled only when they are needed.

A lone request for many candidates that are all resident is scored in halves (`publishing/halves.py`) without assembling
inputs; only the candidates that it returns need them, for the impression.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace.learners import Inputs
from headrace.serving.resident.candidates import ResidentCandidates
from headrace.serving.resident.catalogue import CandidateRows, Hit, Records
from headrace.serving.resident.split_inputs import SplitInputs
from headrace.serving.swap import Scores

FAN_OUT_MIN = 128
"""Candidates from which on a lone request is scored in halves; with fewer, the calls cost more than they save."""

Ints = NDArray[np.int64]


class ViewFound(NamedTuple):
    """Records of one view in one request.

    Attributes:
        asked, found: number of records requested, and of those that exist.
        age_us: age of their newest event in µs, None if none exist.
        ahead: number of records with an event at or after the request's time.
        resident_age_us: how long before the request resident values were read, in µs of event time; None if all
            records came from the store.
    """

    asked: int
    found: int
    age_us: int | None
    ahead: int = 0
    resident_age_us: int | None = None


class RequestRead(NamedTuple):
    """Records read for one request: by view, summed up as a status, and the age of the entity's newest event in µs."""

    views: dict[str, ViewFound]
    status: str
    entity_age_us: int | None


def requests_read(
    by_view: Mapping[str, tuple[Records, str]], counts: Sequence[int], edges: Ints, resident_age_us: int | None
) -> list[RequestRead]:
    """Summarize the records read for each request. `by_view`: records, and "candidate", "request" or "both".

    `counts` (n,) and `edges` (n + 1,) are those of the candidates, `resident_age_us` is that of the candidates' views.
    """
    ones, starts = [1] * len(counts), edges[:-1]
    reads = {
        view: _found(records, ones, None, None)
        if kind == "request"
        else _found(records, counts, starts, resident_age_us if kind == "candidate" else None)
        for view, (records, kind) in by_view.items()
    }
    requests = []
    for i in range(len(counts)):
        views = {view: some[i] for view, some in reads.items()}
        entity_views = [views[view] for view, (_, kind) in by_view.items() if kind == "request"]
        ages_us = [view.age_us for view in entity_views if view.age_us is not None]
        requests.append(RequestRead(views, _status(views.values(), entity_views), min(ages_us, default=None)))
    return requests


@dataclass(frozen=True, slots=True)
class Parts:
    """Inputs of a batch with resident candidates, in parts that are not merged yet.

    Attributes:
        split: the parts of the spec.
        of_requests, of_both: inputs of the requests' fields (n,), and of fields that depend on both (R,).
        owners: (R,) index of each candidate's request; None if there is only one request.
        candidates: values of the candidates (R,); None if all are resident, see `hit`.
    """

    split: SplitInputs
    of_requests: Inputs
    of_both: Inputs
    owners: Ints | None
    candidates: CandidateRows | None
    hit: Hit

    def merged(self, rows: Ints | slice) -> Inputs:
        """Merge the inputs of the candidates `rows`."""
        if self.candidates is not None:
            of_candidates = self.candidates.inputs.take(rows)
        else:
            of_candidates = self.hit.catalogue.rows.inputs.take(self.hit.rows[rows])
        owners = None if self.owners is None else self.owners[rows]
        return self.split.merged(of_candidates, self.of_requests, self.of_both.take(rows), owners)


class BatchRead:
    """A batch of n requests, ready to be scored: rows [edges[i], edges[i + 1]) are the candidates of request i.

    Args:
        edges: (n + 1,).
        requests: summary of the records read for each request.
        inputs: inputs of all candidates (R,), or
        parts: the parts from which inputs are merged on demand.
        resident: has the models in halves; needed with `parts`.
    """

    def __init__(
        self,
        edges: Ints,
        requests: list[RequestRead],
        *,
        inputs: Inputs | None = None,
        parts: Parts | None = None,
        resident: ResidentCandidates | None = None,
    ) -> None:
        assert (inputs is None) != (parts is None), "either inputs or their parts"
        self.edges = edges
        self.requests = requests
        self._inputs = inputs
        self._parts = parts
        self._resident = resident

    @property
    def inputs(self) -> Inputs:
        """All inputs (R,)."""
        if self._inputs is None:
            assert self._parts is not None
            self._inputs = self._parts.merged(slice(None))
        return self._inputs

    def scores(self, scorer: Scores) -> NDArray[np.float32]:
        """Score all candidates with `scorer`: (R,)."""
        parts = self._parts
        if parts is not None and parts.candidates is None and parts.owners is None and self.edges[-1] >= FAN_OUT_MIN:
            assert self._resident is not None
            halved = self._resident.half(scorer, parts.hit.catalogue)
            if halved is not None:
                halves, half = halved
                return halves.score(half, parts.hit.rows, parts.of_requests, parts.of_both)
        return scorer.score(self.inputs)

    def shown(self, picked: Ints) -> tuple[Inputs, Ints]:
        """Return inputs that include the candidates `picked` (k,), and the rows (k,) of these."""
        if self._inputs is not None:
            return self._inputs, picked
        assert self._parts is not None
        return self._parts.merged(picked), np.arange(len(picked))


def best(scores: NDArray[np.float32], k: int) -> Ints:
    """Return the indexes (k,) of the greatest scores, best first; equal scores stay in the request's order.

    >>> best(np.array([0.1, 0.9, 0.9], np.float32), 2).tolist()
    [1, 2]
    """
    if k < len(scores):
        least = -np.partition(-scores, k - 1)[k - 1]
        above = np.flatnonzero(scores >= least)  # more than k where scores are equal, fewer where some are NaN
        if len(above) >= k:
            return above[np.argsort(-scores[above], kind="stable")[:k]]
    return np.argsort(-scores, kind="stable")[:k]


def _found(
    records: Records, counts: Sequence[int], starts: Ints | None, resident_age_us: int | None
) -> list[ViewFound]:
    """Summarize records by request i, which has `counts[i]` of them from `starts[i]` on, one if `starts` is None."""
    never = np.int64(2**63 - 1)
    present, ages_us, ahead = records.exists, np.where(records.exists, records.age_us, never), records.ahead
    if starts is not None:
        present, ahead = (np.add.reduceat(flags, starts, dtype=np.int64) for flags in (present, ahead))
        ages_us = np.minimum.reduceat(ages_us, starts)
    columns = zip(counts, present.tolist(), ages_us.tolist(), ahead.tolist(), strict=True)
    return [
        ViewFound(asked, int(n), age_us if n else None, int(late), resident_age_us)
        for asked, n, age_us, late in columns
    ]


def _status(views: Collection[ViewFound], entity_views: Sequence[ViewFound]) -> str:
    if all(view.found == view.asked for view in views):
        return "ok"
    if entity_views and not any(view.found for view in entity_views):
        return "missing"
    return "partial"
